"""Cluster bootstrap: intervals for means, differences and ratios of scores by drawing whole latents again.

Intervals are BCa (bias-corrected and accelerated; Efron 1987): the percentiles of the bootstrap distribution,
moved for bias and skewness, the acceleration from leaving out one cluster at a time. A statistic is a function
of sums over clusters, so a draw is a row of multinomial weights and no loop over trials is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy import stats

from countersteer.statistics.groups import Floats, codes, numbers, recode, sums
from countersteer.statistics.rates import Interval, Rate, check_confidence
from countersteer.statistics.variance import crossed_variance

DRAWS = 4000
# A statistic maps totals [..., k] (k sums over clusters) to values [...]; NaN where it is undefined.
Statistic = Callable[[Floats], Floats]


def interval(
    totals: Floats,
    statistic: Statistic,
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    draws: int = DRAWS,
) -> Interval | None:
    """BCa interval of `statistic(sum over clusters of totals)`; `totals` is [clusters, k].

    None with fewer than 2 clusters, or where over 5% of the draws leave the statistic undefined. Where the
    statistic is the same in every draw the interval is that point.
    """
    check_confidence(confidence)
    clusters = totals.shape[0]
    if clusters < 2:
        return None
    value = float(statistic(totals.sum(axis=0)))
    drawn = statistic(_redrawn(totals, rng, draws))
    defined = np.isfinite(drawn)
    if not np.isfinite(value) or defined.mean() < 0.95:
        return None
    drawn = np.sort(drawn[defined])
    below = (np.sum(drawn < value) + 0.5 * np.sum(drawn == value)) / drawn.size
    below = float(np.clip(below, 0.5 / drawn.size, 1.0 - 0.5 / drawn.size))
    bias = float(stats.norm.ppf(below))
    left_out = statistic(totals.sum(axis=0) - totals)
    left_out = left_out[np.isfinite(left_out)]
    deviation = left_out.mean() - left_out
    spread = float(np.sum(deviation**2))
    acceleration = float(np.sum(deviation**3)) / (6.0 * spread**1.5) if spread > 1e-300 else 0.0
    z = stats.norm.ppf([(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    share = stats.norm.cdf(bias + (bias + z) / (1.0 - acceleration * (bias + z)))
    low, high = np.quantile(drawn, np.clip(share, 0.0, 1.0))
    return Interval(float(low), float(high), "cluster bootstrap, BCa")


def ratio_of_sums(totals: Floats) -> Floats:
    """totals[..., 0] / totals[..., 1]: a mean, when the second sum counts. NaN over zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(totals[..., 1] > 0, totals[..., 0] / totals[..., 1], np.nan))


def mean(
    values: Sequence[float | None],
    clusters: Sequence[Hashable],
    prompts: Sequence[Hashable],
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
) -> Rate:
    """Mean of `values` [n] (None: not in the denominator) with its intervals.

    `interval`: cluster bootstrap over latents, for these prompts. `interval_new_prompts`: mean +- t * the
    two-way cluster-robust standard error (statistics.variance). `wilson` is None: scores are not events.
    Raises InputError for lengths that differ, NaN or infinity.
    """
    check_confidence(confidence)
    numeric = numbers(values)
    group = codes(clusters, expected=numeric.size, what="clusters")
    crossed = codes(prompts, expected=numeric.size, what="prompts")
    kept = np.isfinite(numeric)
    numeric, crossed = numeric[kept], crossed[kept]
    if numeric.size == 0:
        return Rate(None, None, None, None, 0, 0.0, None, 0)
    group, count = recode(group[kept])
    totals = np.stack([sums(numeric, group, count=count), sums(np.ones_like(numeric), group, count=count)], axis=1)
    value = float(numeric.mean())
    variance, freedom = crossed_variance(numeric, group, crossed)
    new_prompts = None
    if not np.isnan(variance):
        reach = float(stats.t.ppf((1.0 + confidence) / 2.0, freedom)) * variance**0.5
        new_prompts = Interval(value - reach, value + reach, "two-way cluster-robust t")
    return Rate(
        value=value,
        interval=interval(totals, ratio_of_sums, rng, confidence=confidence),
        interval_new_prompts=new_prompts,
        wilson=None,
        n=int(numeric.size),
        events=float(numeric.sum()),
        design_effect=None,
        clusters=count,
    )


def _redrawn(totals: Floats, rng: np.random.Generator, draws: int, *, block: int = 256) -> Floats:
    """Sums over clusters drawn with replacement, [draws, k]; blocks of draws keep the counts small."""
    clusters = totals.shape[0]
    parts = []
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        picked = rng.integers(0, clusters, (rows, clusters)) + np.arange(rows)[:, None] * clusters
        counts = np.bincount(picked.ravel(), minlength=rows * clusters).reshape(rows, clusters)
        parts.append(counts @ totals)
    return np.concatenate(parts)
