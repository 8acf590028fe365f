"""Labels of latents from a CSV or JSONL file, under any of the usual column names.

An SAE folder's own `labels.csv` or `labels.jsonl` is picked up when the SAE is loaded. A label may carry a
concreteness (0-100: concrete and domain-specific, as in the ESR paper's selection of latents); other columns are kept.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError

INDEX_COLUMNS = (
    "index", "feature_index", "feature_idx", "feature_id", "feature", "latent_index", "latent_id", "latent", "id",
)  # fmt: skip
TEXT_COLUMNS = ("label", "description", "explanation", "name", "text", "feature_label", "auto_interp")
CONCRETENESS_COLUMNS = ("concreteness", "concreteness_score")
FILE_NAMES = ("labels.csv", "labels.jsonl")
_SIZE_LIMIT = 512 << 20


@dataclass(frozen=True)
class Label:
    """What a latent is said to mean; `extra` holds the file's other columns."""

    text: str
    concreteness: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def load_labels(path: str | Path, *, count: int | None = None) -> dict[int, Label]:
    """Labels by latent index from a `.csv` or `.jsonl` file; `count` is the number of latents of the SAE.

    Rows with an empty label are left out. Raises InputError naming the line for a bad, repeated or out-of-range index
    or a bad concreteness, and for files that cannot be read.
    """
    path = Path(path)
    labels: dict[int, Label] = {}
    for line, row in _rows(path, _read(path)):
        where = f"{path}, line {line}"
        lowered = {str(key).strip().lower(): (key, value) for key, value in row.items()}
        index_key, index = _take(lowered, INDEX_COLUMNS, where, "index")
        text_key, text = _take(lowered, TEXT_COLUMNS, where, "label")
        number = _index(index, count, where)
        if number in labels:
            raise InputError(f"{where}: latent {number} is labelled twice; keep one line of the two")
        score_key, score = next((lowered[c] for c in CONCRETENESS_COLUMNS if c in lowered), (None, None))
        if text is None or not str(text).strip():
            continue
        extra = {k: v for k, v in row.items() if k not in (index_key, text_key, score_key)}
        labels[number] = Label(str(text).strip(), _score(score, where), extra)
    return labels


def find_labels(folder: Path, *, count: int | None = None) -> dict[int, Label]:
    """The labels of an SAE folder, or none if it holds no labels file. Raises InputError."""
    for name in FILE_NAMES:
        if (folder / name).is_file():
            return load_labels(folder / name, count=count)
    return {}


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _SIZE_LIMIT:
            raise InputError(f"{path} is larger than {_SIZE_LIMIT >> 20} MiB: is it a labels file?")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read labels file {path}: {error.strerror or error}; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error


def _rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, columns) of each row."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        for line, item in enumerate(text.split("\n"), 1):
            if item.strip():
                yield line, _object(item, f"{path}, line {line}")
    elif suffix in (".csv", ".tsv"):
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ",")
        if reader.fieldnames is None:
            raise InputError(f"{path} is empty: it needs a header line such as index,label")
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(reader.fieldnames)} columns expected; quote commas"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: {error}; check its quotes") from error
    else:
        raise InputError(f"labels file {path} must be .csv, .tsv or .jsonl")


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error}); one object per line") from error
    if not isinstance(data, dict):
        raise InputError(f'{where}: expected a JSON object such as {{"index": 3, "label": "..."}}')
    return data


def _take(row: Mapping[str, tuple[Any, Any]], names: tuple[str, ...], where: str, what: str) -> tuple[Any, Any]:
    for name in names:
        if name in row:
            return row[name]
    raise InputError(f"{where}: no {what} column; name it one of {', '.join(names)}")


def _index(value: Any, count: int | None, where: str) -> int:
    try:
        if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
            raise ValueError
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{where}: latent index {value!r} is not a whole number") from None
    if number < 0 or (count is not None and number >= count):
        limit = "0 or more" if count is None else f"0 to {count - 1}"
        raise InputError(f"{where}: latent index {number} is out of range, it must be {limit}")
    return number


def _score(value: Any, where: str) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if isinstance(value, bool) or not 0 <= score <= 100:
        raise InputError(f"{where}: concreteness {value!r} is not a number from 0 to 100")
    return score
