"""AUC of one measure between two kinds of trials that are clustered by latent: interval, p-value, what it could see.

Trials steered by one latent are alike, and a latent may have trials of both kinds, so Mann-Whitney's p is too small.
Interval: Wilson's on the effective number of trials AUC (1 - AUC) / V, V from the influence of whole clusters
(Obuchowski, Biometrics 53 (1997) 567), with Student's quantile. p: labels are dealt out anew, whole clusters among
clusters of one size and trials within clusters, which is exact if the measure has nothing to do with the kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from countersteer.core.errors import InputError
from countersteer.statistics.groups import Floats, Ints, sums
from countersteer.statistics.rates import Interval, wilson

DRAWS = 1999
CHUNK = 256


@dataclass(frozen=True)
class ClusteredAuc:
    """Per measure [k]: `auc` = P(one > other) + P(equal) / 2, its interval, two-sided p of 0.5.

    `spread` [k] is the standard deviation of the AUC if the measure has nothing to do with the kind. `clusters` counts
    those of either kind, `one_clusters` those with a trial of the first.
    """

    auc: Floats
    intervals: tuple[Interval | None, ...]
    p: Floats
    spread: Floats
    clusters: int
    one_clusters: int


def clustered_auc(
    values: NDArray[np.floating],
    kinds: NDArray[np.bool_],
    clusters: Sequence[int] | Ints,
    rng: np.random.Generator,
    *,
    draws: int = DRAWS,
) -> ClusteredAuc:
    """AUC of `values` [n, k] between trials where `kinds` [n] is true and the others, clustered by `clusters` [n].

    An interval is None with fewer than two clusters of either kind. Raises InputError for lengths that differ, values
    that are not finite, or only one kind.
    """
    table, first = np.asarray(values, np.float64), np.asarray(kinds, bool)
    group = np.unique(np.asarray(clusters), return_inverse=True)[1].astype(np.int64)
    if table.ndim != 2 or not len(table) == len(first) == len(group):
        raise InputError(
            f"{len(table)} values, {len(first)} kinds and {len(group)} clusters: give one of each per trial"
        )
    if not np.isfinite(table).all():
        raise InputError("a value is NaN or infinite: leave its trial out")
    n, m = int(first.sum()), int((~first).sum())
    if not n or not m:
        raise InputError("an AUC compares two kinds of trials, but there is only one")
    ranks = stats.rankdata(table, axis=0)
    auc = _auc(ranks[first].sum(axis=0), n, m)
    drawn = np.concatenate([_auc(masks @ ranks, n, m) for masks in _dealt(first, group, rng, draws)])  # [draws, k]
    off = np.abs(auc - 0.5) * (1.0 - 1e-9)
    p = (1.0 + (np.abs(drawn - 0.5) >= off).sum(axis=0)) / (1.0 + draws)
    sides = (np.unique(group[first]).size, np.unique(group[~first]).size)
    variance = _variance(table, ranks, first, group, auc)
    intervals = tuple(_interval(a, v, sides) for a, v in zip(auc.tolist(), variance.tolist(), strict=True))
    count = int(np.unique(group).size)
    return ClusteredAuc(auc, intervals, p, np.asarray(drawn.std(axis=0)), count, sides[0])


def _auc(rank_sums: Floats, n: int, m: int) -> Floats:
    return np.asarray((rank_sums - n * (n + 1) / 2.0) / (n * m))


def _dealt(first: NDArray[np.bool_], group: Ints, rng: np.random.Generator, draws: int) -> list[Floats]:
    """Labels dealt out anew, 0/1 rows in chunks: shuffled within clusters, clusters of one size shuffled among them."""
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    begins = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    blocks = [order[begins[sizes == s][:, None] + np.arange(s)] for s in np.unique(sizes)]  # [clusters, size] each
    chunks = []
    for start in range(0, draws, CHUNK):
        rows = min(CHUNK, draws - start)
        masks = np.zeros((rows, first.size))
        for block in blocks:
            labels = np.broadcast_to(first[block], (rows, *block.shape))
            whole = np.argsort(rng.random((rows, len(block))), axis=1)
            labels = np.take_along_axis(labels, whole[:, :, None], axis=1)
            labels = rng.permuted(labels, axis=2)
            masks[:, block.ravel()] = labels.reshape(rows, -1)
        chunks.append(masks)
    return chunks


def _variance(table: Floats, ranks: Floats, first: NDArray[np.bool_], group: Ints, auc: Floats) -> Floats:
    """Variance of each AUC [k] from the influence of whole clusters; NaN with one cluster."""
    n, m, count = int(first.sum()), int((~first).sum()), int(group.max()) + 1
    if count < 2:
        return np.full(auc.shape, np.nan)
    above = (ranks[first] - stats.rankdata(table[first], axis=0)) / m  # share of the others below each of the first
    below = 1.0 - (ranks[~first] - stats.rankdata(table[~first], axis=0)) / n
    out = np.empty_like(auc)
    for k in range(auc.size):
        influence = sums(above[:, k] - auc[k], group[first], count=count) / n
        influence = influence + sums(below[:, k] - auc[k], group[~first], count=count) / m
        out[k] = count / (count - 1) * float(influence @ influence)
    return out


def _interval(auc: float, variance: float, sides: tuple[int, int]) -> Interval | None:
    """Effective-n Wilson interval; where nothing varies (AUC 0 or 1) the smaller number of clusters is the n."""
    if min(sides) < 2 or np.isnan(variance):
        return None
    known = 0.0 < auc < 1.0 and variance > 1e-15
    effective = auc * (1.0 - auc) / variance if known else float(min(sides))
    found = wilson(auc * effective, effective, freedom=min(sides) - 1)
    return Interval(found.low, found.high, "wilson, effective n, clustered AUC")
