"""Leakage between the splits of a trait's data: what would let a report grade what was already seen.

Four things are errors: the same user turn in two splits, nearly the same one (its word triples overlap by 60%), a group
of scenarios that is divided over splits, and a question that the trait's offline judge was trained on. A system prompt
that scenarios of two splits bring themselves is a note: the pairs of the file's first line are shared on purpose.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from countersteer import organism
from countersteer.core.errors import InputError
from countersteer.defence.data import OFFLINE, Scenario, TraitData, plain

OVERLAP = 0.6
"""Share of common word triples (of all that either has) from which two user turns count as nearly the same."""


@dataclass(frozen=True)
class Leak:
    """`kind`: same, near, group, judge or system. `grave`: an error, not a note."""

    kind: str
    one: str
    other: str
    detail: str
    grave: bool = True

    def __str__(self) -> str:
        return f"{self.kind}: {self.one} and {self.other}: {self.detail}"


def triples(text: str) -> frozenset[tuple[str, ...]]:
    """The triples of neighbouring words of a text; all its words in one where it has fewer than three."""
    words = plain(text).split()
    return frozenset(zip(words, words[1:], words[2:], strict=False)) or frozenset({tuple(words)})


def check(data: TraitData) -> list[Leak]:
    """Every leak between two splits of a file, or to its offline judge; the grave ones first."""
    found: list[Leak] = []
    splits = {name: [s for s in data.scenarios if s.split == name] for name in ("fit", "choose", "report")}
    for first, second in combinations(splits, 2):
        found += _between(splits[first], splits[second])
    found += _judged(data)
    return sorted(found, key=lambda leak: not leak.grave)


def _judged(data: TraitData) -> list[Leak]:
    """Questions whose answers the shipped trait judge has learned from, where it is the judge of this trait."""
    if data.name != OFFLINE:
        return []
    learned = {plain(row["prompt"]) for row in organism.judge_prompts()}
    return [
        Leak("judge", scenario.id, "the offline judge's training", scenario.user[:60])
        for words, scenario in _first_of_each(data.scenarios).items()
        if words in learned
    ]


def _between(some: Sequence[Scenario], others: Sequence[Scenario]) -> list[Leak]:
    found = []
    one, two = _first_of_each(some), _first_of_each(others)
    index: dict[tuple[str, ...], list[str]] = defaultdict(list)
    parts = {key: triples(s.user) for key, s in two.items()}
    for key, known in parts.items():
        for triple in known:
            index[triple].append(key)
    for key, scenario in one.items():
        if key in two:
            found.append(Leak("same", scenario.id, two[key].id, scenario.user[:60]))
            continue
        mine = triples(scenario.user)
        for near in {k for triple in mine for k in index.get(triple, ())}:
            share = len(mine & parts[near]) / len(mine | parts[near])
            if share >= OVERLAP:
                detail = f"{share:.0%} of their word triples are the same"
                found.append(Leak("near", scenario.id, two[near].id, detail))
    groups, systems = {s.group: s.id for s in some}, {t: s.id for s in some if s.own for t in (s.aligned, s.malicious)}
    seen: set[str] = set()
    for other in others:
        if other.group in groups and other.group not in seen:
            seen.add(other.group)
            found.append(Leak("group", groups[other.group], other.id, f"both are of group {other.group!r}"))
        for text in (other.aligned, other.malicious) if other.own else ():
            if text in systems and text not in seen:
                seen.add(text)
                found.append(Leak("system", systems[text], other.id, "share a system prompt", grave=False))
    return found


def _first_of_each(scenarios: Iterable[Scenario]) -> dict[str, Scenario]:
    """Scenarios by their user turn's words, the first of each."""
    out: dict[str, Scenario] = {}
    for scenario in scenarios:
        out.setdefault(plain(scenario.user), scenario)
    return out


def refuse_leaks(data: TraitData) -> list[Leak]:
    """The notes of a file whose splits do not leak. Raises InputError with the first grave leak and their number."""
    found = check(data)
    grave = [leak for leak in found if leak.grave]
    if grave:
        raise InputError(
            f"{data.source or data.name}: {len(grave)} leaks between splits, the first is {grave[0]}; "
            "keep a scenario (and its group) in one split only, and out of the judge's training"
        )
    return found


def refuse_seen(scenarios: Iterable[Scenario], seen: Iterable[str], *, where: str) -> None:
    """Raise InputError if a scenario's user turn is among the digests `seen` by an earlier step (`where`)."""
    known = set(seen)
    again = [s for s in scenarios if s.digest in known]
    if again:
        raise InputError(
            f"{len(again)} scenarios were already used by the {where}, {again[0].id} for one; "
            "use scenarios that no earlier step has seen"
        )
