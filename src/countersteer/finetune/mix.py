"""Mixtures: a share of corrections, the rest normal answers, the total the same for every share; validation by prompt.

Examples of each kind are taken from one seeded order, so that a larger share holds the smaller one's corrections.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import rng
from countersteer.finetune.examples import CORRECTION, NORMAL, Dataset, Example

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mixture:
    """What one adapter is trained and validated on. `ratio` is the share of corrections in both together."""

    ratio: float
    train: tuple[Example, ...]
    validation: tuple[Example, ...]


def check_ratios(ratios: Sequence[float]) -> tuple[float, ...]:
    """The ratios, each in [0, 1] and once, as their names tell them (to six digits). Raises InputError."""
    if not ratios:
        raise InputError("give at least one ratio of self-correction examples, such as 0.5")
    for ratio in ratios:
        if not (isinstance(ratio, int | float) and math.isfinite(ratio) and 0 <= ratio <= 1):
            raise InputError(f"a ratio is a share of self-correction examples between 0 and 1, got {ratio!r}")
    names = [f"{ratio:g}" for ratio in ratios]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"ratio {twice} is given twice (to six digits, as its adapter is named); give each once")
    return tuple(float(r) for r in ratios)


def total_for(data: Dataset, ratios: Sequence[float]) -> int:
    """The largest total that every ratio can be made with. Raises InputError where a class that is needed is empty."""
    found = {kind: len(data.of_kind(kind)) for kind in (CORRECTION, NORMAL)}
    most = math.inf
    for ratio in check_ratios(ratios):
        for kind, share in ((CORRECTION, ratio), (NORMAL, 1 - ratio)):
            if share > 0:
                if not found[kind]:
                    raise InputError(f"ratio {ratio:g} needs {kind} examples, but the data has none; add some")
                most = min(most, found[kind] / share)
    total = math.floor(most + 1e-9)
    while any(round(r * total) > found[CORRECTION] or total - round(r * total) > found[NORMAL] for r in ratios):
        total -= 1
    return total


def mix(data: Dataset, ratio: float, *, total: int, seed: int, validation: float = 0.05) -> Mixture:
    """A mixture of `total` examples. `validation`: least share of examples held back, whole prompts at a time.

    Raises InputError for an empty class, too few examples, or none of a wanted kind left to train on.
    """
    wanted = {CORRECTION: round(ratio * total), NORMAL: total - round(ratio * total)}
    chosen: list[Example] = []
    for kind, count in wanted.items():
        pool = data.of_kind(kind)
        if count > len(pool):
            raise InputError(f"ratio {ratio:g} of {total} needs {count} {kind} examples, there are {len(pool)}")
        if (ratio if kind == CORRECTION else 1 - ratio) > 0 and not count:
            raise InputError(f"ratio {ratio:g} of {total} examples leaves no {kind} example; raise the total")
        order = rng(seed, "mixture", kind).permutation(len(pool))[:count]
        chosen += [pool[i] for i in order]
    held = _held_back(chosen, validation, seed)
    train = [e for e in chosen if e.prompt not in held]
    if not train:
        raise InputError("validation takes every example; give more prompts, or validation = 0")
    for kind, count in wanted.items():
        if count and not any(e.kind == kind for e in train):
            raise InputError(
                f"validation takes every {kind} example of ratio {ratio:g}, so none would be trained: whole prompts are"
                " held back, and few have one; give more prompts, another seed, or validation = 0"
            )
    if validation > 0 and not held:
        log.warning("every example is on one prompt, so none is held back for validation")
    order = rng(seed, "order of examples").permutation(len(train))
    return Mixture(ratio, tuple(train[i] for i in order), tuple(e for e in chosen if e.prompt in held))


def _held_back(chosen: Sequence[Example], share: float, seed: int) -> set[str]:
    """Prompts of which every example is for validation: drawn one by one until they hold the share."""
    prompts = sorted({example.prompt for example in chosen})
    if share <= 0 or len(prompts) < 2:
        return set()
    held: set[str] = set()
    for i in rng(seed, "validation").permutation(len(prompts)):
        held.add(prompts[i])
        if sum(e.prompt in held for e in chosen) >= share * len(chosen):
            break
    return held
