"""Two arms whose trials do not pair (other prompts, other directions): difference, ratio, intervals, a p-value.

Clusters are drawn again within each arm by itself (two-sample cluster bootstrap), and the p-value comes from dealing
whole clusters out to the two arms anew. Rates near zero would give a bootstrap nothing to draw from, so for 0/1 events
the intervals combine the arms' effective-n Wilson intervals without correlation (statistics.mover). A latent that both
arms use counts once in each: its agreement across arms is not used, which makes the intervals wider, never narrower.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from countersteer.statistics import mover
from countersteer.statistics.bootstrap import DRAWS, _redrawn, ratio_of_sums
from countersteer.statistics.contrasts import Contrast, standard_error
from countersteer.statistics.groups import Floats, codes, numbers, recode, sums
from countersteer.statistics.rates import Interval, check_confidence, rate

METHOD = "two-sample cluster bootstrap, percentile"
SHUFFLES = 4999


def unpaired(
    arm: Sequence[float | None],
    base: Sequence[float | None],
    arm_clusters: Sequence[Hashable],
    base_clusters: Sequence[Hashable],
    rng: np.random.Generator,
    *,
    binary: bool,
    deff_at_zero: float = 1.0,
    confidence: float = 0.95,
) -> Contrast:
    """Mean of `arm` [n] against mean of `base` [m], each with its clusters. `pairs` of the result is 0.

    None: that trial is outside the denominator. Raises InputError for lengths that differ.
    """
    check_confidence(confidence)
    ours, theirs = _totals(arm, arm_clusters), _totals(base, base_clusters)
    count = len(ours) + len(theirs)
    sizes = (int(ours[:, 1].sum()), int(theirs[:, 1].sum()))
    sides = [float(ratio_of_sums(t.sum(axis=0))) if len(t) else None for t in (ours, theirs)]
    value, other = sides
    if value is None or other is None:
        return Contrast(value, other, None, None, None, None, "no-data", None, 0, count, sizes)
    effects = None
    if binary:
        left = rate(arm, arm_clusters, arm_clusters, deff_at_zero=deff_at_zero, confidence=confidence)
        right = rate(base, base_clusters, base_clusters, deff_at_zero=deff_at_zero, confidence=confidence)
        spread, relative = mover.difference(left, right), mover.ratio(left, right)
        effects = (left.design_effect or 1.0, right.design_effect or 1.0)
    else:
        spread, relative = _drawn(ours, theirs, rng, confidence)
    defined = other > 0
    return Contrast(
        value=value,
        base=other,
        difference=value - other,
        interval=spread,
        ratio=value / other if defined else None,
        ratio_interval=relative if defined else None,
        ratio_status="ok" if defined else "zero-events",
        p=dealt_test(ours, theirs, rng),
        pairs=0,
        clusters=count,
        sizes=sizes,
        error=_error(ours, theirs),
        effects=effects,
        least_p=max(1.0 / (1 + SHUFFLES), 1.0 / math.comb(count, len(ours))),
    )


def _error(ours: Floats, theirs: Floats) -> float | None:
    """Standard error of the difference of the means of two samples of clusters."""
    one, other = standard_error(ours), standard_error(theirs)
    return None if one is None or other is None else float((one**2 + other**2) ** 0.5)


def dealt_test(arm: Floats, base: Floats, rng: np.random.Generator, *, draws: int = SHUFFLES) -> float:
    """Two-sided p of the difference of means over random deals of whole clusters, as many to each arm as it has.

    `arm`, `base`: sum and count per cluster, [clusters, 2]. p = (1 + extreme) / (1 + draws).
    """
    both, first = np.concatenate([arm, base]), len(arm)
    whole = both.sum(axis=0)
    observed = abs(float(ratio_of_sums(arm.sum(axis=0)) - ratio_of_sums(base.sum(axis=0)))) * (1.0 - 1e-9)
    extreme = 0
    for start in range(0, draws, 512):
        rows = min(512, draws - start)
        taken = np.argsort(rng.random((rows, len(both))), axis=1)[:, :first]
        one = both[taken].sum(axis=1)
        gaps = np.abs(ratio_of_sums(one) - ratio_of_sums(whole - one))
        extreme += int(np.sum(~(gaps < observed)))
    return (1 + extreme) / (1 + draws)


def _drawn(
    ours: Floats, theirs: Floats, rng: np.random.Generator, confidence: float
) -> tuple[Interval | None, Interval | None]:
    """Intervals of difference and ratio of the means; None with fewer than 2 clusters on a side."""
    if min(len(ours), len(theirs)) < 2:
        return None, None
    one, other = (ratio_of_sums(_redrawn(t, rng, DRAWS)) for t in (ours, theirs))
    ends = [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0]
    low, high = np.quantile(one - other, ends)
    spread = Interval(float(low), float(high), METHOD)
    if not np.all(other > 0):
        return spread, None
    low, high = np.quantile(one / other, ends)
    return spread, Interval(float(low), float(high), METHOD)


def _totals(values: Sequence[float | None], clusters: Sequence[Hashable]) -> Floats:
    """Sum and count per cluster of the values that are in the denominator, [clusters, 2]."""
    numeric = numbers(values)
    group = codes(clusters, expected=numeric.size, what="clusters")
    kept = np.isfinite(numeric)
    group, count = recode(group[kept])
    known = numeric[kept]
    return np.stack([sums(known, group, count=count), sums(np.ones_like(known), group, count=count)], axis=1)
