"""Which latents a study steers with: a seeded random order, filtered by label and by relevance.

ESR paper, 1.4: candidates are drawn uniformly, abstract labels and latents that the prompts activate anyway are
dropped. Walking a random order until enough have passed draws uniformly among those that pass.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import rng
from countersteer.store.rows import LatentRow
from countersteer.studies.schema import LatentsSection

CANDIDATES = 3
"""Candidates are examined in lots of this many times the wanted number."""


@dataclass(frozen=True)
class Chosen:
    """The latents in the order they were drawn, and remarks in words."""

    latents: tuple[LatentRow, ...]
    notes: tuple[str, ...]


def relevant(active: NDArray[Any], rule: str) -> NDArray[np.bool_]:
    """Which latents [d_sae] the relevance rule keeps, from the largest activation per prompt [prompts, d_sae].

    "zero": inactive on every prompt token. "top100": among no prompt's 100 most active. "any": all.
    """
    keep = np.ones(active.shape[1], dtype=bool)
    if rule == "zero":
        keep &= ~(active > 0).any(axis=0)
    elif rule == "top100":
        top = min(100, active.shape[1])
        for row in active:
            order = np.argsort(-row, kind="stable")[:top]
            keep[order[row[order] > 0]] = False
    return keep


def _lots(section: LatentsSection, seed: int, total: int) -> Iterator[list[int]]:
    """All latents in their random order, a lot at a time."""
    order = rng(seed, "latents").permutation(total)
    lot = CANDIDATES * section.count
    for start in range(0, total, lot):
        yield [int(index) for index in order[start : start + lot]]


async def rated(
    section: LatentsSection,
    *,
    seed: int,
    total: int,
    labels: Mapping[int, Any],
    keep: NDArray[np.bool_] | None,
    rate: Callable[[Sequence[str]], Awaitable[Sequence[float | None]]],
) -> tuple[dict[int, Any], int, int]:
    """Labels with the concreteness (0-100) that `rate` gives to bare texts; how many it was asked, and failed on.

    Only candidates that `choose` will come to are rated, lot by lot, until enough have passed. Raises InputError when
    nothing could be rated.
    """
    found = dict(labels)
    passed = asked = failed = 0
    for lot in _lots(section, seed, total):
        candidates = [index for index in lot if index in labels and (keep is None or keep[index])]
        bare = [index for index in candidates if found[index].concreteness is None]
        values = await rate([found[index].text for index in bare]) if bare else ()
        for index, value in zip(bare, values, strict=True):
            found[index] = replace(found[index], concreteness=value)
            failed += value is None
        asked += len(bare)
        passed += sum((found[index].concreteness or 0.0) >= section.concreteness for index in candidates)
        if passed >= section.count:
            break
    if asked and failed == asked and not passed:
        raise InputError(
            f"the judge gave no usable concreteness for any of {asked} labels; name another judge, or set [latents]"
            " concreteness = 0"
        )
    return found, asked, failed


def choose(
    section: LatentsSection,
    *,
    seed: int,
    total: int,
    labels: Mapping[int, Any],
    keep: NDArray[np.bool_] | None,
    need_label: bool,
    taken: Collection[int] = (),
    barred: Collection[int] = (),
) -> Chosen:
    """The latents of a study. `labels`: by index, objects with text and concreteness; `keep`: relevant ones [total].

    `taken`: latents that are chosen already, and count; `barred`: latents that may not be chosen any more, since a
    random set clamps them. Raises InputError when none passes, or for a needed label that is missing.
    """
    if section.ids is not None:
        return _given([index for index in section.ids if index not in taken], labels, need_label)
    notes: list[str] = []
    known = {i for i, label in labels.items() if label.concreteness is not None}
    ask = section.concreteness > 0 and bool(known)
    if section.concreteness > 0 and not known:
        rates = "the labels carry no concreteness, and no language model is set as judge to rate them"
        why = rates if labels else "there are no labels"
        notes.append(f"latents were not filtered by concreteness: {why}")
    if need_label and not labels:
        raise InputError("an arm's text uses {label} but there are no labels; set [latents] labels to a labels file")
    kept: list[int] = []
    dropped = {"abstract or unrated label": 0, "no label": 0, "active on the prompts": 0,
               "clamped in a random set": 0}  # fmt: skip
    examined = 0
    for lot in _lots(section, seed, total):
        for index in lot:
            if len(kept) + len(taken) == section.count:
                break
            if index in taken:
                continue
            examined += 1
            if index in barred:
                dropped["clamped in a random set"] += 1
            elif need_label and index not in labels:
                dropped["no label"] += 1
            elif keep is not None and not keep[index]:
                dropped["active on the prompts"] += 1
            elif ask and (index not in known or labels[index].concreteness < section.concreteness):
                dropped["abstract or unrated label"] += 1
            else:
                kept.append(index)
        if len(kept) + len(taken) == section.count:
            break
    why = ", ".join(f"{n} {reason}" for reason, n in dropped.items() if n)
    notes.append(
        f"latents: {len(kept)} of {section.count - len(taken)} wanted{' more' if taken else ''},"
        f" {examined} of {total} examined ({why or 'all kept'})"
    )
    if not kept and not taken:
        raise InputError(f"no latent passes the filters ({why}); lower [latents] concreteness or change relevance")
    return Chosen(tuple(_row(rank, index, labels) for rank, index in enumerate(kept)), tuple(notes))


def _given(ids: Sequence[int], labels: Mapping[int, Any], need_label: bool) -> Chosen:
    for index in ids:
        if need_label and index not in labels:
            raise InputError(f"an arm's text uses {{label}} but latent {index} has no label; drop it or label it")
    return Chosen(tuple(_row(rank, index, labels) for rank, index in enumerate(ids)), ())


def _row(rank: int, index: int, labels: Mapping[int, Any]) -> LatentRow:
    label = labels.get(index)
    return LatentRow(rank, index, None if label is None else label.text, None if label is None else label.concreteness)
