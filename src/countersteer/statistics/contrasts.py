"""Paired contrasts of an arm with base: difference, ratio, their intervals, a p-value, Holm's correction.

An arm replays base's trials, so trials pair by key and clusters (latents) are shared. Rates near zero would give
a bootstrap nothing to draw from, so for 0/1 metrics the intervals combine the two arms' effective-n Wilson
intervals (statistics.mover) with the correlation that pairing induces. Scores use the cluster bootstrap.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from countersteer.statistics import bootstrap, mover, permutation
from countersteer.statistics.groups import Floats, codes, numbers, recode, sums
from countersteer.statistics.rates import Interval, rate

Key = tuple[Hashable, ...]
Status = Literal["ok", "zero-events", "no-data"]


@dataclass(frozen=True)
class Contrast:
    """An arm against base on one metric. `ratio` and its interval are None when `ratio_status` is not "ok".

    `interval` is that of the difference; `p` is two-sided, from swapping the two arms within whole clusters. `sizes`:
    trials in the arm's and in base's denominator. What `power.smallest` needs: `error`, the clustered standard error of
    the difference; `effects`, the two design effects, and `correlation` of the arms (rates only); `least_p`, the
    smallest p that the test can give with these clusters.
    """

    value: float | None
    base: float | None
    difference: float | None
    interval: Interval | None
    ratio: float | None
    ratio_interval: Interval | None
    ratio_status: Status
    p: float | None
    pairs: int
    clusters: int
    sizes: tuple[int, int] = (0, 0)
    error: float | None = None
    effects: tuple[float, float] | None = None
    correlation: float = 0.0
    least_p: float = 1.0

    def as_dict(self) -> dict[str, object]:
        """The JSON form used by reports (`p_holm` is added by the caller, who knows the other arms)."""
        return {
            "difference": self.difference,
            "interval": self.interval.as_list() if self.interval else None,
            "ratio": self.ratio,
            "ratio_interval": self.ratio_interval.as_list() if self.ratio_interval else None,
            "ratio_status": self.ratio_status,
            "p": self.p,
            "pairs": self.pairs,
        }


@dataclass(frozen=True)
class Pairs:
    """Values of an arm and of base over the same keys, [pairs] each, with their clusters and prompts."""

    arm: tuple[float | None, ...]
    base: tuple[float | None, ...]
    clusters: tuple[Hashable, ...]
    prompts: tuple[Hashable, ...]
    unpaired: int


def pair(arm: Mapping[Key, float | None], base: Mapping[Key, float | None]) -> Pairs:
    """Match two arms by key (latent, prompt, seed, ...), in base's order; keys in one arm only are counted.

    The first part of a key is the cluster, the second the prompt. A value None stays in the pair: that trial
    is outside its own arm's denominator (one attempt, say), which is no reason to lose the other arm's.
    """
    shared = [key for key in base if key in arm]
    return Pairs(
        arm=tuple(arm[key] for key in shared),
        base=tuple(base[key] for key in shared),
        clusters=tuple(key[0] for key in shared),
        prompts=tuple(key[1] for key in shared),
        unpaired=len(arm) + len(base) - 2 * len(shared),
    )


def contrast(
    arm: Sequence[float | None],
    base: Sequence[float | None],
    clusters: Sequence[Hashable],
    rng: np.random.Generator,
    *,
    binary: bool,
    deff_at_zero: float = 1.0,
    confidence: float = 0.95,
) -> Contrast:
    """Mean of `arm` against mean of `base`, [pairs] each, clusters [pairs] shared.

    None: that trial is outside that arm's denominator; clusters without any value are not counted. `binary`: 0/1
    events, so intervals by MOVER; else the cluster bootstrap. `deff_at_zero` as in `rate`. Raises InputError for
    lengths that differ.
    """
    values, others = numbers(arm), numbers(base)
    group = codes(clusters, expected=values.size, what="clusters")
    codes(base, expected=values.size, what="base values")
    totals, count = _totals(values, others, group)
    ours, theirs = totals[:, 1].sum(), totals[:, 3].sum()
    sizes = (int(ours), int(theirs))
    if ours == 0 or theirs == 0:
        value = float(totals[:, 0].sum() / ours) if ours else None
        other = float(totals[:, 2].sum() / theirs) if theirs else None
        return Contrast(value, other, None, None, None, None, "no-data", None, values.size, count, sizes)
    value, other = float(totals[:, 0].sum() / ours), float(totals[:, 2].sum() / theirs)
    effects, correlation = None, 0.0
    if binary:
        left = rate(arm, clusters, clusters, deff_at_zero=deff_at_zero, confidence=confidence)
        right = rate(base, clusters, clusters, deff_at_zero=deff_at_zero, confidence=confidence)
        correlation = mover.correlation(totals)
        spread = mover.difference(left, right, correlation=correlation)
        relative = mover.ratio(left, right, correlation=correlation)
        effects = (left.design_effect or 1.0, right.design_effect or 1.0)
    else:
        spread = bootstrap.interval(totals, _difference, rng, confidence=confidence)
        relative = bootstrap.interval(totals, _ratio, rng, confidence=confidence)
    defined = other > 0
    return Contrast(
        value=value,
        base=other,
        difference=value - other,
        interval=spread,
        ratio=value / other if defined else None,
        ratio_interval=relative if defined else None,
        ratio_status="ok" if defined else "zero-events",
        p=permutation.swap_test(totals, _difference, rng),
        pairs=int(values.size),
        clusters=count,
        sizes=sizes,
        error=standard_error(totals),
        effects=effects,
        correlation=correlation,
        least_p=permutation.least_p(count),
    )


def holm(pvalues: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values (statsmodels), in order; None (no test) stays None and counts not."""
    from statsmodels.stats.multitest import multipletests

    given = [p for p in pvalues if p is not None]
    if not given:
        return [None] * len(pvalues)
    adjusted = iter(multipletests(given, method="holm")[1].tolist())
    return [None if p is None else float(next(adjusted)) for p in pvalues]


def _totals(values: Floats, others: Floats, group: np.ndarray) -> tuple[Floats, int]:
    """Per cluster: sum and count of the arm, sum and count of base, [clusters, 4]."""
    group, count = recode(group)
    columns = []
    for series in (values, others):
        known = np.isfinite(series)
        columns += [
            sums(np.where(known, series, 0.0), group, count=count),
            sums(known * 1.0, group, count=count),
        ]
    table = np.stack(columns, axis=1)
    table = table[(table[:, 1] > 0) | (table[:, 3] > 0)]
    return table, len(table)


def standard_error(totals: Floats) -> float | None:
    """Standard error of a mean, or of a difference of two, from the influence of whole clusters; None with one cluster.

    `totals` [clusters, 2]: sum and count; or [clusters, 4]: those of the arm, then those of base.
    """
    if len(totals) < 2:
        return None
    gap = influence(totals[:, :2])
    if totals.shape[1] == 4:
        gap = gap - influence(totals[:, 2:])
    return float((len(totals) / (len(totals) - 1) * (gap @ gap)) ** 0.5)


def influence(totals: Floats) -> Floats:
    """What each cluster adds to a mean: (sum - count * mean) / all counts, from [clusters, 2]."""
    whole = totals.sum(axis=0)
    return np.asarray((totals[:, 0] - totals[:, 1] * (whole[0] / whole[1])) / whole[1])


def _difference(totals: Floats) -> Floats:
    return bootstrap.ratio_of_sums(totals[..., :2]) - bootstrap.ratio_of_sums(totals[..., 2:])


def _ratio(totals: Floats) -> Floats:
    base = bootstrap.ratio_of_sums(totals[..., 2:])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(base > 0, bootstrap.ratio_of_sums(totals[..., :2]) / base, np.nan))
