"""How far two judges agree: raw agreement, Cohen's kappa, correlations of scores, each with an interval.

Raw agreement is inflated where one class is rare (two judges who never see a restart agree always), so kappa
stands beside it, and is None where it is undefined: both judges gave every item the same one label.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from countersteer.core.errors import InputError
from countersteer.statistics.groups import Floats, Ints, codes, numbers
from countersteer.statistics.rates import Interval, check_confidence

DRAWS = 2000
METHOD = "cluster bootstrap, percentile"


@dataclass(frozen=True)
class Agreement:
    """One measure of agreement over `n` items; None where it is undefined."""

    value: float | None
    interval: Interval | None
    n: int


@dataclass(frozen=True)
class LabelAgreement:
    """Agreement of two judges on labels (multi-attempt or not; better, same or worse)."""

    raw: Agreement
    kappa: Agreement


@dataclass(frozen=True)
class ScoreAgreement:
    """Agreement of two judges on scores."""

    pearson: Agreement
    spearman: Agreement


def labels(
    one: Sequence[Hashable],
    other: Sequence[Hashable],
    clusters: Sequence[Hashable],
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
) -> LabelAgreement:
    """Raw agreement and Cohen's kappa of two judges' labels [n]; None on either side leaves the item out.

    Intervals: percentiles of a bootstrap over `clusters` [n]. Raises InputError for lengths that differ.
    """
    if not len(one) == len(other) == len(clusters):
        raise InputError(f"{len(one)} and {len(other)} labels, {len(clusters)} clusters: give one of each per item")
    kept = [i for i in range(len(one)) if one[i] is not None and other[i] is not None]
    joint = codes([one[i] for i in kept] + [other[i] for i in kept], expected=2 * len(kept), what="labels")
    left, right = joint[: len(kept)], joint[len(kept) :]
    group = codes([clusters[i] for i in kept], expected=len(kept), what="clusters")

    def raw(rows: Ints) -> float:
        return float(np.mean(left[rows] == right[rows]))

    def kappa(rows: Ints) -> float:
        return _kappa(left[rows], right[rows])

    return LabelAgreement(_measure(raw, group, rng, confidence), _measure(kappa, group, rng, confidence))


def scores(
    one: Sequence[float | None],
    other: Sequence[float | None],
    clusters: Sequence[Hashable],
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
) -> ScoreAgreement:
    """Pearson's and Spearman's correlation of two judges' scores [n]; None leaves the item out.

    Intervals: percentiles of a bootstrap over `clusters` [n]. Raises InputError for lengths that differ.
    """
    left, right = numbers(one), numbers(other)
    if not left.size == right.size == len(clusters):
        raise InputError(f"{left.size} and {right.size} scores, {len(clusters)} clusters: give one of each per item")
    kept = np.isfinite(left) & np.isfinite(right)
    group = codes(clusters, expected=left.size, what="clusters")[kept]
    left, right = left[kept], right[kept]

    def pearson(rows: Ints) -> float:
        return _correlation(left[rows], right[rows])

    def spearman(rows: Ints) -> float:
        return _correlation(stats.rankdata(left[rows]), stats.rankdata(right[rows]))

    return ScoreAgreement(_measure(pearson, group, rng, confidence), _measure(spearman, group, rng, confidence))


def _kappa(left: Ints, right: Ints) -> float:
    """Cohen 1960: (agreement - chance) / (1 - chance); NaN where chance is 1."""
    size = int(max(left.max(), right.max())) + 1
    chance = float(np.bincount(left, minlength=size) @ np.bincount(right, minlength=size)) / left.size**2
    return float((np.mean(left == right) - chance) / (1.0 - chance)) if chance < 1.0 else float("nan")


def _correlation(left: Floats, right: Floats) -> float:
    left, right = left - left.mean(), right - right.mean()
    scale = float(np.sqrt((left @ left) * (right @ right)))
    return float(left @ right) / scale if scale > 1e-12 else float("nan")


def _measure(measure: Callable[[Ints], float], group: Ints, rng: np.random.Generator, confidence: float) -> Agreement:
    """`measure` on all items, and its percentile interval over draws of whole clusters."""
    check_confidence(confidence)
    if group.size == 0:
        return Agreement(None, None, 0)
    value = measure(np.arange(group.size))
    if not np.isfinite(value):
        return Agreement(None, None, int(group.size))
    members = [np.flatnonzero(group == code) for code in np.unique(group)]
    if len(members) < 2:
        return Agreement(value, None, int(group.size))
    drawn = np.array(
        [
            measure(np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))]))
            for _ in range(DRAWS)
        ]
    )
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size < 0.95 * DRAWS:
        return Agreement(value, None, int(group.size))
    low, high = np.quantile(drawn, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Agreement(value, Interval(float(low), float(high), METHOD), int(group.size))
