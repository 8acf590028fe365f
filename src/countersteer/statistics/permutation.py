"""A paired permutation test at cluster level: under no effect, an arm and base could be swapped latent by latent.

Trials of one latent are correlated, so whole clusters are swapped, never single trials. With few clusters that
differ at all, every pattern of swaps is enumerated and p is exact.
"""

from __future__ import annotations

import numpy as np

from countersteer.statistics.bootstrap import Statistic
from countersteer.statistics.groups import Floats

EXACT_UP_TO = 14
DRAWS = 9999
CHUNK = 2048


def least_p(clusters: int, *, draws: int = DRAWS) -> float:
    """The smallest p that a swap test over this many clusters can give: all of them agree."""
    return min(2.0 ** (1 - clusters), 1.0) if clusters <= EXACT_UP_TO else 1.0 / (1 + draws)


def swap_test(totals: Floats, statistic: Statistic, rng: np.random.Generator, *, draws: int = DRAWS) -> float:
    """Two-sided p of `statistic` (0 under no effect) over swaps of the arms within clusters.

    `totals` [clusters, 2k]: k sums of the arm, then the same k of base. Clusters whose arms are equal cannot
    matter and are left alone; with at most 14 others all swaps are enumerated, else `draws` are sampled and
    p = (1 + extreme) / (1 + draws). A swap that leaves the statistic undefined counts as extreme.
    """
    half = totals.shape[1] // 2
    gaps = totals[:, half:] - totals[:, :half]
    moving = gaps[np.any(gaps != 0, axis=1)]
    if moving.shape[0] == 0:
        return 1.0
    observed = abs(float(statistic(totals.sum(axis=0)))) * (1.0 - 1e-9)
    exact = moving.shape[0] <= EXACT_UP_TO
    patterns = 2 ** moving.shape[0] if exact else draws
    extreme = 0
    for start in range(0, patterns, CHUNK):
        size = min(CHUNK, patterns - start)
        if exact:
            numbered = np.arange(start, start + size)[:, None]
            swapped = (numbered >> np.arange(moving.shape[0])) & 1
        else:
            swapped = rng.integers(0, 2, size=(size, moving.shape[0]), dtype=np.int8)
        moved = swapped.astype(np.float64) @ moving
        values = np.abs(statistic(totals.sum(axis=0) + np.concatenate([moved, -moved], axis=1)))
        extreme += int(np.sum(~(values < observed)))
    return extreme / patterns if exact else (1 + extreme) / (1 + draws)
