"""Grade a file of prompts and responses: what `countersteer grade FILE.jsonl --judge offline --out OUT.jsonl` does.

The reference set is built from the whole file before anything is graded: for each prompt the references that its
lines bring, else its own responses (the whole of a response with one attempt, the last attempt of one with more), a
response never being its own reference. References that agree with the others of their prompt count for more, so
that drifting answers among them do little harm.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError, nearest
from countersteer.core.trial import Attempt, Grade
from countersteer.judging.attempts import contents, split_attempts
from countersteer.judging.offline import MIN_PROMPTS, OfflineJudge, only_asks
from countersteer.judging.references import ReferenceSet

MAX_LINE = 8 * 1024 * 1024
"""Bytes that one line may have."""

_MAX_REFERENCES = 40
_DOUBTFUL = 0.1


@dataclass(frozen=True)
class _Sources:
    """The reference set of a file: how far each text is trusted, and which texts were made from which line."""

    references: ReferenceSet
    weights: tuple[tuple[float, ...], ...] | None
    made_from: dict[int, tuple[int, ...]]
    parts: list[list[tuple[int, int, str | None]]]


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file. InputError with file and line number for whatever cannot be graded."""
    path = Path(path)
    try:
        data = path.open("rb")
    except FileNotFoundError:
        raise InputError(f"no file at {path}; give a JSONL file with prompt and response on each line") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give a readable JSONL file") from None
    rows = []
    with data:
        number = 0
        while True:
            try:
                line = data.readline(MAX_LINE + 1)
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror or error}; give a readable JSONL file") from None
            if not line:
                break
            number += 1
            if len(line) > MAX_LINE:
                raise InputError(f"{path} line {number} is longer than {MAX_LINE} bytes; shorten or split the response")
            row = _row(path, number, line)
            if row is not None:
                rows.append(row)
    if not rows:
        raise InputError(f"{path} holds no lines to grade; each must be a JSON object with prompt and response")
    return rows


def _row(path: Path, number: int, line: bytes) -> dict[str, Any] | None:
    where = f"{path} line {number}"
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 (byte {error.start}); convert the file to UTF-8") from None
    if not text.strip():
        return None
    try:
        row = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise InputError(f"{where} is not JSON ({reason}); each line must be one JSON object") from None
    except ValueError as error:
        raise InputError(f"{where} is not usable JSON ({error}); each line must be one JSON object") from None
    if not isinstance(row, dict):
        raise InputError(f"{where} is not a JSON object but {type(row).__name__}; it needs prompt and response")
    for key in ("prompt", "response"):
        if key not in row:
            raise InputError(f"{where} has no {key!r}{nearest(key, row)}; each line needs prompt and response")
        if not isinstance(row[key], str):
            raise InputError(f"{where}: {key!r} must be a text, not {type(row[key]).__name__}")
    if not row["prompt"].strip():
        raise InputError(f"{where}: 'prompt' is empty; give the prompt that the response answers")
    if row.get("label") is not None and not isinstance(row["label"], str):
        raise InputError(f"{where}: 'label' must be a text, not {type(row['label']).__name__}")
    references = row.get("references")
    if references is not None and not (isinstance(references, list) and all(isinstance(r, str) for r in references)):
        raise InputError(f"{where}: 'references' must be a list of texts")
    return row


def _sources(rows: list[dict[str, Any]]) -> _Sources:
    """The reference set of a file's rows; see the module's text."""
    given: dict[str, dict[str, None]] = {}
    own: dict[str, list[tuple[int, str, int]]] = {}
    split = [split_attempts(row["response"], prompt=row["prompt"]) for row in rows]
    for i, (row, parts) in enumerate(zip(rows, split, strict=True)):
        prompt = row["prompt"].strip()
        for text in row.get("references") or ():
            if text.strip():
                given.setdefault(prompt, {})[text] = None
        if parts and not only_asks(row["response"]):
            _, end, _, content = contents(row["response"], parts)[-1]
            own.setdefault(prompt, []).append((len(parts), row["response"][content:end], i))
    prompts = {row["prompt"].strip() for row in rows}
    texts: dict[str, list[str]] = {prompt: list(given[prompt]) for prompt in given}
    made_from: dict[int, tuple[int, ...]] = {}
    if len(prompts) >= MIN_PROMPTS:
        for prompt in prompts - set(given):
            chosen = [(text, i) for _, text, i in own.get(prompt, ()) if text.strip()][:_MAX_REFERENCES]
            texts[prompt] = [text for text, _ in chosen]
            made_from.update({i: (at,) for at, (_, i) in enumerate(chosen)})
    references = ReferenceSet.of(texts)
    if not made_from:
        return _Sources(references, None, made_from, split)
    first = OfflineJudge(references)
    weights = tuple(
        tuple(
            1.0 if prompt in given else max(_DOUBTFUL, (first.score(prompt, text, without=(at,)) or 0.0) / 100.0)
            for at, text in enumerate(answers)
        )
        for prompt, answers in references
    )
    return _Sources(references, weights, made_from, split)


def _unscored(judge: OfflineJudge, row: dict[str, Any], grade: Grade) -> Grade:
    bare = tuple(Attempt(a.start, a.end, None, a.restart) for a in grade.attempts)
    reason = f"no references given and fewer than {MIN_PROMPTS} prompts in the file"
    return Grade("no-reference", bare, judge.name, reason, grade.flags)


def grade_file(
    path: str | Path, out: str | Path, *, judge: str = "offline", progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Grade every line of a JSONL file and write the lines with their "grade" to `out`, in order and at once.

    Each line needs "prompt" and "response" (texts), and may have "label" and "references" (a list of texts); other
    fields are kept. `progress(done, total)` is called as lines are graded. Returns counts: "lines", "statuses",
    "multi_attempt", "prompts", "judge", "judge_key", "references". InputError for what cannot be read or written.
    """
    if judge != "offline":
        raise InputError(f"unknown judge {judge!r}{nearest(judge, ['offline'])}; use 'offline' or PROVIDER/NAME")
    rows = read_lines(path)
    sources = _sources(rows)
    grader = OfflineJudge(sources.references, weights=sources.weights)
    too_few = len({row["prompt"].strip() for row in rows}) < MIN_PROMPTS
    statuses: Counter[str] = Counter()
    multi = 0
    lines = []
    for i, row in enumerate(rows):
        grade = grader.grade_parts(
            row["prompt"], row["response"], sources.parts[i], without=sources.made_from.get(i, ())
        )
        if grade.status == "no-reference" and too_few:
            grade = _unscored(grader, row, grade)
        statuses[grade.status] += 1
        multi += len(grade.attempts) > 1
        lines.append(json.dumps({**row, "grade": grade.to_dict()}, ensure_ascii=False))
        if progress is not None:
            progress(i + 1, len(rows))
    write_lines(out, lines)
    return {
        "lines": len(rows),
        "statuses": dict(sorted(statuses.items())),
        "multi_attempt": multi,
        "prompts": len({row["prompt"].strip() for row in rows}),
        "judge": grader.name,
        "judge_key": grader.key,
        "references": sources.references.digest,
    }


def write_lines(path: str | Path, lines: list[str]) -> None:
    """Write all lines, or leave what was there. Raises InputError."""
    out = Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile("wb", dir=out.parent, prefix=f".{out.name}.", delete=False) as file:
            temporary = file.name
            for line in lines:
                file.write(line.encode("utf-8", "surrogatepass") + b"\n")
        os.replace(temporary, out)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise InputError(f"cannot write {out}: {error.strerror or error}; choose another --out") from None
