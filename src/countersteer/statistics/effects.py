"""Paired effects of one measure before and after: Wilcoxon, paired t, Cohen's d, Cliff's delta; aligned curves.

Used for activations off topic against after the correction (ESR paper 1.7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from countersteer.core.errors import InputError
from countersteer.statistics.groups import Floats, Ints, recode


@dataclass(frozen=True)
class PairedEffect:
    """`before` against `after` over `n` pairs. p-values are None where every pair is equal (nothing to test).

    difference: mean of before - after, with its 95% interval (paired t; None with one pair or where nothing differs).
    wilcoxon_p: one-sided, before > after. t_p: two-sided paired t. cohen_d: mean difference / SD of the differences
    (None if that is 0). cliff_delta: P(before > after) - P(before < after) over all pairs of values.
    """

    n: int
    before: float | None
    after: float | None
    difference: float | None
    interval: tuple[float, float] | None
    wilcoxon_p: float | None
    t_p: float | None
    cohen_d: float | None
    cliff_delta: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def paired(before: Sequence[float] | Floats, after: Sequence[float] | Floats) -> PairedEffect:
    """The effect over pairs [n] each. Raises InputError for lengths that differ or values that are not finite."""
    one, other = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if one.shape != other.shape or one.ndim != 1:
        raise InputError(f"{one.size} values before and {other.size} after: give pairs")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise InputError("a value is NaN or infinite: leave its pair out")
    n = int(one.size)
    if n == 0:
        return PairedEffect(0, *[None] * 8)
    gap = one - other
    moved = bool((gap != 0).any())
    spread = float(gap.std(ddof=1)) if n > 1 else 0.0
    reach = float(stats.t.ppf(0.975, n - 1)) * spread / n**0.5 if spread > 0 else 0.0
    return PairedEffect(
        n,
        float(one.mean()),
        float(other.mean()),
        float(gap.mean()),
        (float(gap.mean()) - reach, float(gap.mean()) + reach) if spread > 0 else None,
        float(stats.wilcoxon(one, other, alternative="greater").pvalue) if moved and n > 1 else None,
        float(stats.ttest_rel(one, other).pvalue) if spread > 0 else None,
        float(gap.mean()) / spread if spread > 0 else None,
        cliff(one, other),
    )


def cliff(one: Floats, other: Floats) -> float | None:
    """Cliff's delta of two samples, from Mann-Whitney's U; None if one is empty."""
    if not one.size or not other.size:
        return None
    ranks = stats.rankdata(np.concatenate([one, other]))
    u = float(ranks[: one.size].sum()) - one.size * (one.size + 1) / 2.0
    return 2.0 * u / (one.size * other.size) - 1.0


def aligned(
    series: Sequence[NDArray[Any]], centres: Sequence[int], *, reach: int, bins: int, rng: np.random.Generator,
    draws: int = 1000, clusters: Sequence[int] | None = None,
) -> list[dict[str, float | int | None]]:  # fmt: skip
    """The mean of series [tokens] around their centres, in `bins` equal bins over [-reach, reach).

    A series counts in a bin with its own mean there. Per bin: "from", "to", "mean", "low", "high" (95%, percentiles of
    a bootstrap over `clusters` [series], by default every series its own), "n" (series with a token there); None
    without any, and no limits where one cluster has them all.
    """
    edges = np.linspace(-reach, reach, bins + 1)
    table = np.full((len(series), bins), np.nan)
    for i, (values, centre) in enumerate(zip(series, centres, strict=True)):
        place = np.digitize(np.arange(len(values)) - centre, edges) - 1
        inside = (place >= 0) & (place < bins)
        seen = np.bincount(place[inside], minlength=bins)
        total = np.bincount(place[inside], weights=np.asarray(values, np.float64)[inside], minlength=bins)
        table[i, seen > 0] = total[seen > 0] / seen[seen > 0]
    known = np.isfinite(table)
    filled = np.where(known, table, 0.0)
    group, count = recode(np.asarray(range(len(series)) if clusters is None else clusters, np.int64))
    picks: Ints = rng.integers(0, max(count, 1), (draws, count))
    drawn_clusters = np.stack([np.bincount(p, minlength=count) for p in picks])
    weights = drawn_clusters[:, group] if count else np.zeros((draws, 0))
    out: list[dict[str, float | int | None]] = []
    for b in range(bins):
        n = int(known[:, b].sum())
        row: dict[str, float | int | None] = {"from": float(edges[b]), "to": float(edges[b + 1]), "n": n}
        mean = low = high = None
        if n:
            mean = float(filled[known[:, b], b].mean())
            counts = weights @ known[:, b]
            totals = weights @ filled[:, b]
            drawn = totals[counts > 0] / counts[counts > 0]
            if np.unique(group[known[:, b]]).size > 1 and drawn.size:
                low, high = (float(v) for v in np.quantile(drawn, [0.025, 0.975]))
        out.append({**row, "mean": mean, "low": low, "high": high})
    return out
