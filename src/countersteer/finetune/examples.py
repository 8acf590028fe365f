"""Training examples with their trained characters, and the folder that keeps them with the split of prompts.

A folder holds `examples.jsonl` (one conversation per line, in the form that trl takes, plus the trained spans),
`data.json` (prompts of the train and evaluation side, counts, where everything came from, a digest) and
`eval-prompts.txt`, ready to be the prompts of a study. What is inconsistent is refused with file and line.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import rng

CORRECTION, NORMAL = "correction", "normal"
EXAMPLES, HEADER, EVAL = "examples.jsonl", "data.json", "eval-prompts.txt"
FORMAT = 1


@dataclass(frozen=True)
class Example:
    """One conversation: `prompt` (after `system`, if any) and `answer`, of which the characters in `spans` are trained.

    spans: disjoint [start, stop) in ascending order, in characters of the answer. end: whether the end of the turn is
    trained as well (it must follow a span). steer: the latent, strength, layer and span under which the off-topic
    stretch was written, if it was. Raises InputError for spans outside the text, empty, or out of order.
    """

    prompt: str
    answer: str
    spans: tuple[tuple[int, int], ...]
    kind: str
    source: str
    system: str | None = None
    end: bool = True
    steer: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip() or not self.answer.strip():
            raise InputError("an example needs a prompt and an answer with words in them")
        for name in ("prompt", "answer", "system", "source"):
            _require_text(getattr(self, name) or "", f"an example's {name}")
        if self.kind not in (CORRECTION, NORMAL):
            raise InputError(f"an example's kind is {CORRECTION!r} or {NORMAL!r}, got {self.kind!r}")
        if not self.spans:
            raise InputError("an example without a trained span teaches nothing; leave it out")
        last = 0
        for start, stop in self.spans:
            if not 0 <= start < stop <= len(self.answer):
                raise InputError(
                    f"span [{start}, {stop}) lies outside the answer of {len(self.answer)} characters, or is empty"
                )
            if start < last:
                raise InputError(f"span [{start}, {stop}) overlaps the one before it; spans are disjoint, in order")
            last = stop
        if self.end and last != len(self.answer):
            raise InputError(f"the end of the turn is trained, but the last span stops at {last}, before the end")

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as role / content dicts."""
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*system, {"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]

    def to_dict(self) -> dict[str, Any]:
        """One line of `examples.jsonl`."""
        data: dict[str, Any] = {"messages": self.messages, "spans": [list(s) for s in self.spans], "end": self.end}
        data |= {"kind": self.kind, "source": self.source}
        return data | ({"steer": dict(self.steer)} if self.steer is not None else {})

    @staticmethod
    def from_dict(data: Any) -> Example:
        """The example of one line. Raises InputError."""
        if not isinstance(data, dict) or not isinstance(data.get("messages"), list):
            raise InputError('not an object with "messages"')
        roles = [m.get("role") if isinstance(m, dict) else None for m in data["messages"]]
        if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
            raise InputError(f"messages must be [system,] user, assistant; got {roles}")
        texts = [m.get("content") for m in data["messages"]]
        if not all(isinstance(text, str) for text in texts):
            raise InputError("every message needs a text as content")
        spans = data.get("spans")
        if not isinstance(spans, list) or not all(
            isinstance(s, list) and len(s) == 2 and all(type(v) is int for v in s) for s in spans
        ):
            raise InputError('"spans" must be a list of [start, stop] in characters of the answer')
        if not isinstance(data.get("end", True), bool):
            raise InputError(f'"end" must be true or false, got {data["end"]!r}')
        return Example(
            prompt=texts[-2],
            answer=texts[-1],
            spans=tuple((s[0], s[1]) for s in spans),
            kind=str(data.get("kind")),
            source=str(data.get("source", "file")),
            system=texts[0] if len(texts) == 3 else None,
            end=data.get("end", True),
            steer=_steer(data.get("steer")),
        )


@dataclass(frozen=True)
class Dataset:
    """Examples, the prompts they may use (`train`) and those kept for evaluation (`held_out`), and facts about them.

    overlap: evaluation prompts may be trained on, as the paper did; otherwise that is refused. Raises InputError.
    """

    examples: tuple[Example, ...]
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    overlap: bool = False

    def __post_init__(self) -> None:
        both = sorted(set(self.train) & set(self.held_out))
        if both and not self.overlap:
            raise InputError(
                f"{len(both)} prompts are on both sides of the split, {both[0]!r} for one; evaluation prompts that are"
                " trained on measure memory (the paper's flaw): keep them apart, or say so with --overlap"
            )
        for prompt in (*self.train, *self.held_out):
            _require_text(prompt, "a prompt")
        known = set(self.train)
        for example in self.examples:
            if example.prompt not in known:
                raise InputError(f"the prompt {example.prompt!r} of an example is not on the train side of the split")

    def of_kind(self, kind: str) -> list[Example]:
        """The examples of one kind, in order."""
        return [example for example in self.examples if example.kind == kind]

    @property
    def digest(self) -> str:
        """Hash of the examples and the split."""
        lines = _lines(self.examples)
        split = json.dumps([self.train, self.held_out, self.overlap])
        return hashlib.blake2b((lines + split).encode(), digest_size=16).hexdigest()


def _require_text(text: str, what: str) -> None:
    """Raise InputError for a text that no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} holds half a character (a lone surrogate) at {error.start}; mend it") from None


def _steer(data: Any) -> Mapping[str, Any] | None:
    """The steering of an example as a file gives it. Raises InputError."""
    if data is None:
        return None
    kinds: dict[str, Any] = {"latent": int, "strength": (int, float), "layer": int, "span": str}
    if not isinstance(data, dict) or not isinstance(data.get("sae") or "", str):
        raise InputError(f'"steer" must be an object such as {{"latent": 3, ...}}, got {str(data)[:60]!r}')
    for name, kind in kinds.items():
        value: Any = data.get(name)
        good = isinstance(value, kind) and not isinstance(value, bool)
        if not good or (kind is int and value < 0) or not math.isfinite(value if kind is not str else 0):
            raise InputError(f'"steer" needs "{name}", {_STEER[name]}; got {value!r}')
    return data


_STEER = {"latent": "a whole number >= 0", "strength": "a number", "layer": "a whole number >= 0", "span": "a text"}


def split_prompts(prompts: Sequence[str], share: float, *, seed: int) -> tuple[list[str], list[str]]:
    """(train, evaluation) prompts: `share` of them, drawn from the seed, are kept for evaluation. Raises InputError."""
    if not 0 < share < 1:
        raise InputError(f"the share of evaluation prompts must lie between 0 and 1, got {share}")
    count = round(share * len(prompts))
    if not 0 < count < len(prompts):
        raise InputError(f"{len(prompts)} prompts cannot be split with a share of {share}; add prompts")
    kept = set(rng(seed, "split").permutation(len(prompts))[:count].tolist())
    return (
        [p for i, p in enumerate(prompts) if i not in kept],
        [p for i, p in enumerate(prompts) if i in kept],
    )


def _lines(examples: Iterable[Example]) -> str:
    return "".join(json.dumps(example.to_dict(), ensure_ascii=False) + "\n" for example in examples)


def require_new(folder: str | os.PathLike[str]) -> Path:
    """Raise InputError for a folder that holds anything."""
    place = Path(folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"{place} exists already: give a new folder, nothing is overwritten")
    return place


def save(data: Dataset, folder: str | os.PathLike[str]) -> Path:
    """Write a data set into a new or empty folder. Raises InputError.

    It is written beside the folder, in FOLDER.part, and moved there when it is whole: a kill leaves no half a folder.
    """
    place = require_new(folder)
    part = place.resolve().with_name(place.resolve().name + ".part")
    header = {
        "format": FORMAT,
        "digest": data.digest,
        "counts": dict(sorted(Counter(f"{e.kind} from {e.source}" for e in data.examples).items())),
        "overlap": data.overlap,
        **data.facts,
        "train_prompts": list(data.train),
        "eval_prompts": list(data.held_out),
    }
    files = {
        EXAMPLES: _lines(data.examples),
        EVAL: "".join(p + "\n" for p in data.held_out),
        HEADER: json.dumps(header, indent=1, ensure_ascii=False) + "\n",
    }
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, text in files.items():
            (part / name).write_text(text, encoding="utf-8")
        if place.exists():  # it may be the working folder, so it stays; the header last
            for name in files:
                (part / name).replace(place / name)
            part.rmdir()
        else:
            part.replace(place)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise InputError(f"cannot write the data to {place}: {error.strerror or error}") from error
    return place


def load(folder: str | os.PathLike[str]) -> Dataset:
    """The data set in a folder. Raises InputError with the file and line of what is wrong.

    Examples may have been edited since they were written, so the header's digest is not held against them.
    """
    place = Path(folder)
    try:
        header = json.loads(_read(place / HEADER))
    except ValueError as error:
        raise InputError(f"{place / HEADER} is not valid JSON: {error}") from error
    text = _read(place / EXAMPLES)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{place / HEADER} has another format than {FORMAT}; make the data again")
    examples = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                examples.append(Example.from_dict(json.loads(line)))
            except (ValueError, InputError) as error:
                raise InputError(f"{place / EXAMPLES}, line {number}: {error}") from error
    facts = {k: v for k, v in header.items() if k not in _OWN}
    for side in ("train_prompts", "eval_prompts"):
        given = header.get(side, [])
        if not isinstance(given, list) or not all(isinstance(prompt, str) for prompt in given):
            raise InputError(f'{place / HEADER}: "{side}" must be a list of texts')
    sides = [tuple(header.get(side, ())) for side in ("train_prompts", "eval_prompts")]
    return Dataset(tuple(examples), sides[0], sides[1], facts, bool(header.get("overlap", False)))


def _read(path: Path) -> str:
    """A file's text, a byte order mark left out. Raises InputError."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise InputError(
            f"{path.parent} is no folder of training data ({error.strerror or error}); make one with `finetune data`"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


_OWN = ("format", "digest", "counts", "overlap", "train_prompts", "eval_prompts")
