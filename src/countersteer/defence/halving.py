"""Successive halving over a grid of operating points, under a floor: a fraction of the cost, the same choice.

Every point is tried on the first few scenarios; the best third goes on to three times as many, and so on. The places of
a rung go in turn to the highest traits among the points that *may* keep the floor (coherence not below it by more than
a standard error: a small first sample does not lose the best point) and among those that *seem to* keep it (not below
it: a rung of brilliant points that all turn out too low does not lose the best safe one). If in the end no point
keeps the floor, others that may are tried on everything, one at a time. All points see the same scenarios with
the same noise. Jamieson and Talwalkar 2016 (successive halving); the floor and what follows from it are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from countersteer.core.errors import InputError

Floats = NDArray[np.float64]
Evaluate = Callable[[Sequence[int], int, int], Floats]
"""(points, from scenario, to scenario) -> [points, scenarios, 2]: trait and coherence, NaN where missing."""
MOST_MISSING = 0.2
"""Share of missing answers beyond which a point cannot be chosen."""


@dataclass(frozen=True, eq=False)
class Searched:
    """What was seen of each point: `scores` [points, scenarios, 2] (NaN where not tried), `tried` [points].

    `chosen` is None where no point that was tried on everything keeps the floor. `cost`: answers over a full grid's.
    """

    scores: Floats
    tried: NDArray[np.int64]
    chosen: int | None
    cost: float


def rungs(points: int, items: int, *, keep: float = 1 / 3, smallest: int = 3) -> list[tuple[int, int]]:
    """(scenarios seen in all, points still in) of each rung; the last one sees every scenario."""
    if points < 1 or items < 1:
        raise InputError("a search needs at least one point and one scenario")
    out: list[tuple[int, int]] = []
    for power in (2, 1, 0):
        seen = items if power == 0 else max(min(smallest, items), math.ceil(items * keep**power))
        alive = max(1, math.ceil(points * keep ** (2 - power)))
        if not out or seen > out[-1][0]:
            out.append((seen, alive))
    return out


@dataclass(frozen=True)
class Rule:
    """When a point keeps the floor: its mean coherence less `margin` standard errors reaches `floor`.

    The standard error is that of the means of `groups` (one label per scenario; every scenario alone without). Margin 0
    is the paper's rule; since the best of many noisy points is chosen, 1 makes it likelier that the floor holds
    elsewhere.
    """

    floor: float
    margin: float = 0.0
    groups: tuple[Hashable, ...] | None = None

    def kept(self, scores: Floats) -> bool:
        """Whether scores [scenarios, 2] keep the floor, with at most a fifth of them missing."""
        known = np.asarray(np.isfinite(scores).all(1))
        if not known.any() or 1 - known.mean() > MOST_MISSING:
            return False
        values = scores[known, 1]
        if not self.margin:
            return float(values.mean()) >= self.floor
        labels = range(len(scores)) if self.groups is None else self.groups
        parts: dict[Hashable, list[float]] = {}
        for label, counted, value in zip(labels, known, scores[:, 1], strict=True):
            if counted:
                parts.setdefault(label, []).append(float(value))
        means = np.array([np.mean(part) for part in parts.values()])
        error = means.std(ddof=1) / math.sqrt(len(means)) if len(means) > 1 else 0.0
        return float(values.mean() - self.margin * error) >= self.floor


def search(points: int, items: int, evaluate: Evaluate, rule: Rule, *, keep: float = 1 / 3) -> Searched:
    """Halving over `points` points and `items` scenarios."""
    return _run(points, items, evaluate, rule, rungs(points, items, keep=keep))


def full(points: int, items: int, evaluate: Evaluate, rule: Rule) -> Searched:
    """Every point on every scenario."""
    return _run(points, items, evaluate, rule, [(items, points)])


def _run(points: int, items: int, evaluate: Evaluate, rule: Rule, plan: list[tuple[int, int]]) -> Searched:
    scores = np.full((points, items, 2), np.nan)
    tried = np.zeros(points, np.int64)
    alive: list[int] = list(range(points))
    seen = 0
    for upto, many in plan:
        if len(alive) > many:
            alive = sorted(_promoted(scores[:, :seen], alive, rule.floor, many))
        scores[alive, seen:upto] = evaluate(alive, seen, upto)
        tried[alive] = upto
        seen = upto
    final = [i for i in alive if rule.kept(scores[i])]
    while not final and (left := _next(scores, tried, rule.floor)) is not None:
        seen = int(tried[left])
        scores[[left], seen:items] = evaluate([left], seen, items)
        tried[left] = items
        final = [left] if rule.kept(scores[left]) else []
    chosen = max(final, key=lambda i: float(np.nanmean(scores[i, :, 0])), default=None)
    return Searched(scores, tried, chosen, float(tried.sum()) / (points * items))


def _seen(scores: Floats, alive: Sequence[int]) -> tuple[Floats, float]:
    """Means [alive, 2] over the known of scores [points, scenarios, 2], and the usual error of a mean coherence."""
    means, errors = np.full((len(alive), 2), -np.inf), []
    for row, i in enumerate(alive):
        known = scores[i][np.isfinite(scores[i]).all(1)]
        if len(known):
            means[row] = known.mean(0)
        if len(known) > 1:
            errors.append(known[:, 1].var(ddof=1))
    return means, math.sqrt(float(np.mean(errors)) / max(scores.shape[1], 1)) if errors else 0.0


def _promoted(scores: Floats, alive: Sequence[int], floor: float, many: int) -> list[int]:
    """The `many` points that go on: in turn the best that may and that seem to keep the floor, then by coherence."""
    means, error = _seen(scores, alive)
    by_trait = sorted(range(len(alive)), key=lambda row: -means[row, 0])
    lists = [[row for row in by_trait if means[row, 1] >= floor + side * error] for side in (-1, 0)]
    lists.append(sorted(range(len(alive)), key=lambda row: -means[row, 1]))
    out: list[int] = []
    while len(out) < many:
        for ranked in lists[:2] if any(lists[:2]) else lists[2:]:
            while ranked and ranked[0] in out:
                ranked.pop(0)
            if ranked and len(out) < many:
                out.append(ranked.pop(0))
    return [alive[row] for row in out]


def _next(scores: Floats, tried: NDArray[np.int64], floor: float) -> int | None:
    """The point to try on everything next: of those seen most that may keep the floor, the highest trait."""
    items = scores.shape[1]
    for seen in sorted({int(n) for n in tried if n < items}, reverse=True):
        alive = [i for i in range(len(scores)) if tried[i] == seen]
        means, error = _seen(scores[:, :seen], alive)
        may = [row for row in range(len(alive)) if means[row, 1] >= floor - error]
        if may:
            return alive[max(may, key=lambda row: means[row, 0])]
    return None


def frontier(points: Sequence[tuple[Hashable, float, float]]) -> list[Hashable]:
    """Names of the points (name, trait, coherence) that no other beats in both, by rising coherence."""
    best = [
        (name, t, c) for name, t, c in points
        if not any((u >= t and d >= c) and (u > t or d > c) for _, u, d in points)
    ]  # fmt: skip
    return [name for name, _, _ in sorted(best, key=lambda p: p[2])]
