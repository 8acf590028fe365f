"""Contrast data of a trait: scenarios with an aligned and a malicious system prompt, in three splits.

One JSONL file. The first line is `{"trait": {...}}`: `name`, `threat` and `description` (what a judge is told), and,
optional, `reminder` (the prompting baseline), `pairs` of system prompts, `fit_pairs` ("all" or "turn"),
`user_attacks` (texts with a `{user}` slot), `follow_ups` (later user turns of a conversation). Every other line is a
scenario: `id`, `split` (fit, choose, report), `user`, and optional `category`, `group` (scenarios that hang together),
`aligned` and `malicious`. A scenario without its own system prompts takes the file's pairs: all of them in `fit` (or
one, with `fit_pairs` "turn"), one in turn elsewhere. Arrangement of the data: arXiv 2604.08169.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError, nearest
from countersteer.core.fingerprint import fingerprint

SPLITS = ("fit", "choose", "report")
SHIPPED = ("dishonesty", "dismissiveness", "organism")
"""Names of the shipped files: two threat models for real models, and the organism's own trait."""
OFFLINE = "warmth"
"""The trait that the shipped offline judge holds for: the organism's."""
MAX_LINE = 1 << 20
_HEAD = ("name", "threat", "description", "reminder", "pairs", "fit_pairs", "user_attacks", "follow_ups")
_ROW = ("id", "split", "user", "category", "group", "aligned", "malicious")
_SPACE = re.compile(r"\W+")


def plain(text: str) -> str:
    """A text in lower case with its words alone: what two scenarios are compared by."""
    return _SPACE.sub(" ", text.lower()).strip()


@dataclass(frozen=True)
class Scenario:
    """One user turn under an aligned and a malicious system prompt. `own`: whether it brought its system prompts."""

    id: str
    split: str
    user: str
    aligned: str
    malicious: str
    category: str = ""
    group: str = ""
    own: bool = True

    @property
    def digest(self) -> str:
        """Hash of the user turn's words: scenarios with the same are the same, whatever file they come from."""
        return fingerprint(plain(self.user))[:16]


@dataclass(frozen=True)
class TraitData:
    """A trait, the threat to it, and its scenarios."""

    name: str
    threat: str
    description: str
    scenarios: tuple[Scenario, ...]
    reminder: str = ""
    user_attacks: tuple[str, ...] = ()
    follow_ups: tuple[str, ...] = ()
    source: str = ""

    def split(self, name: str) -> tuple[Scenario, ...]:
        """The scenarios of one split. Raises InputError for another name or an empty split."""
        if name not in SPLITS:
            raise InputError(f"no split {name!r}; there are: {', '.join(SPLITS)}")
        found = tuple(s for s in self.scenarios if s.split == name)
        if not found:
            raise InputError(f"the data of trait {self.name} has no scenario in split {name!r}; add some")
        return found

    @property
    def digest(self) -> str:
        """Hash of everything in the file that decides a result."""
        rows = [[s.id, s.split, s.user, s.aligned, s.malicious, s.group] for s in self.scenarios]
        return fingerprint([self.description, self.reminder, self.user_attacks, self.follow_ups, rows])


def load(source: str | Path) -> TraitData:
    """A shipped trait by name, or a JSONL file. Raises InputError with file, line and what is wrong."""
    name = str(source)
    if name in SHIPPED:
        text = (resources.files("countersteer.defence") / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
        return parse(text, where=name)
    path = Path(source)
    if not path.is_file():
        hint = nearest(name, SHIPPED)
        raise InputError(f"no trait data {name!r}{hint}; give a JSONL file, or one of {', '.join(SHIPPED)}")
    try:
        return parse(path.read_bytes().decode("utf-8-sig"), where=str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error


def parse(text: str, *, where: str) -> TraitData:
    """The trait in the lines of a JSONL text. Raises InputError."""
    lines = [(n, line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise InputError(f"{where} is empty: its first line must be the trait, then one scenario per line")
    rows = [(n, _object(line, f"{where}, line {n}")) for n, line in lines]
    head = rows[0][1].get("trait")
    if not isinstance(head, dict) or set(rows[0][1]) != {"trait"}:
        raise InputError(f'{where}, line {rows[0][0]}: the first line must be {{"trait": {{"name": ..., ...}}}}')
    _known(head, _HEAD, f"{where}, trait")
    for key in ("name", "threat", "description"):
        _text(head, key, f"{where}, trait")
    pairs = _pairs(head.get("pairs", []), where)
    cross = head.get("fit_pairs", "all")
    if cross not in ("all", "turn"):
        raise InputError(f"{where}, trait: fit_pairs must be 'all' or 'turn', got {cross!r}")
    attacks = _texts(head, "user_attacks", where)
    for attack in attacks:
        if "{user}" not in attack:
            raise InputError(f"{where}, trait: user attack {attack[:40]!r} lacks the slot {{user}}")
    scenarios: list[Scenario] = []
    turns = dict.fromkeys(SPLITS, 0)
    for n, row in rows[1:]:
        at = f"{where}, line {n}"
        split = str(row.get("split"))
        made = list(_scenarios(row, pairs, cross, turns.get(split, 0), at))
        turns[split] += 1
        scenarios += made
    ids = [s.id for s in scenarios]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise InputError(f"{where}: id {twice!r} is used twice; ids must differ")
    return TraitData(
        head["name"], head["threat"], head["description"], tuple(scenarios), str(head.get("reminder", "")),
        attacks, _texts(head, "follow_ups", where), where,
    )  # fmt: skip


def _scenarios(
    row: Mapping[str, Any], pairs: list[tuple[str, str]], cross: str, turn: int, at: str
) -> Iterable[Scenario]:
    _known(row, _ROW, at)
    for key in ("id", "split", "user"):
        _text(row, key, at)
    if row["split"] not in SPLITS:
        raise InputError(f"{at}: split must be one of {', '.join(SPLITS)}, got {row['split']!r}")
    category, group = str(row.get("category", "")), str(row.get("group") or row["id"])
    if "aligned" in row or "malicious" in row:
        yield Scenario(row["id"], row["split"], row["user"], _text(row, "aligned", at), _text(row, "malicious", at),
                       category, group)  # fmt: skip
        return
    if not pairs:
        raise InputError(f"{at}: give 'aligned' and 'malicious' system prompts, or 'pairs' in the first line")
    if row["split"] != "fit" or cross == "turn":
        good, bad = pairs[turn % len(pairs)]
        yield Scenario(row["id"], row["split"], row["user"], good, bad, category, group, own=False)
        return
    for i, (good, bad) in enumerate(pairs):
        yield Scenario(f"{row['id']}/{i}", "fit", row["user"], good, bad, category, group, own=False)


def _object(line: str, at: str) -> dict[str, Any]:
    if len(line) > MAX_LINE:
        raise InputError(f"{at} is longer than {MAX_LINE} characters")
    try:
        data = json.loads(line)
    except ValueError as error:
        raise InputError(f"{at} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{at} must be a JSON object")
    return data


def _known(data: Mapping[str, Any], names: tuple[str, ...], at: str) -> None:
    for key in data:
        if key not in names:
            raise InputError(f"{at}: unknown key {key!r}{nearest(key, names)}; known: {', '.join(names)}")


def _text(data: Mapping[str, Any], key: str, at: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{at}: {key!r} must be a text that is not empty")
    return value


def _texts(head: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    given = head.get(key, [])
    if not isinstance(given, list) or not all(isinstance(t, str) and t.strip() for t in given):
        raise InputError(f"{where}, trait: {key} must be a list of texts")
    return tuple(given)


def _pairs(given: Any, where: str) -> list[tuple[str, str]]:
    if not isinstance(given, list) or not all(isinstance(p, dict) for p in given):
        raise InputError(f'{where}, trait: pairs must be a list of {{"aligned": ..., "malicious": ...}}')
    return [tuple(_text(p, key, f"{where}, pairs") for key in ("aligned", "malicious")) for p in given]  # type: ignore[misc]
