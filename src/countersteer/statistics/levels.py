"""Do several arms over the same latents differ among themselves at all? One permutation test for all levels at once.

Contrasts with base say how a level differs from base; which level is the largest is looked at afterwards, and the
largest of several always looks large. Under no effect of the level, a latent's levels could be exchanged: they are
shuffled within whole latents (trials of a latent are alike), and the spread of the levels' means is compared.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from countersteer.core.errors import InputError
from countersteer.statistics.bootstrap import ratio_of_sums
from countersteer.statistics.groups import Floats, codes, numbers, sums

DRAWS = 4999
CHUNK = 512


@dataclass(frozen=True)
class Among:
    """`p` of no difference among the levels; None where fewer than two levels or latents can be compared."""

    p: float | None
    levels: int
    latents: int


def among(
    levels: Mapping[str, tuple[Sequence[float | None], Sequence[Hashable]]],
    rng: np.random.Generator,
    *,
    draws: int = DRAWS,
) -> Among:
    """Test over (values [n], latents [n]) per level; None is outside the denominator.

    Latents that have a value in every level count. Raises InputError for lengths that differ.
    """
    if len(levels) < 2:
        return Among(None, len(levels), 0)
    every = codes([c for _, clusters in levels.values() for c in clusters],
                  expected=sum(len(v) for v, _ in levels.values()), what="latents")  # fmt: skip
    count, start = int(every.max()) + 1 if every.size else 0, 0
    columns = []
    for values, clusters in levels.values():
        if len(values) != len(clusters):
            raise InputError(f"{len(values)} values and {len(clusters)} latents: give exactly one per value")
        group, numeric = every[start : start + len(values)], numbers(values)
        known = np.isfinite(numeric)
        columns.append(np.stack([sums(np.where(known, numeric, 0.0), group, count=count),
                                 sums(known * 1.0, group, count=count)], axis=1))  # fmt: skip
        start += len(values)
    table = np.stack(columns, axis=1)  # [latents, levels, 2]
    table = table[(table[:, :, 1] > 0).all(axis=1)]
    if len(table) < 2:
        return Among(None, len(levels), len(table))
    observed = float(_spread(table.sum(axis=0))) * (1.0 - 1e-9)
    extreme = 0
    for begin in range(0, draws, CHUNK):
        rows = min(CHUNK, draws - begin)
        order = np.argsort(rng.random((rows, *table.shape[:2])), axis=2)
        totals = np.take_along_axis(table[None], order[..., None], axis=2).sum(axis=1)
        extreme += int(np.sum(~(_spread(totals) < observed)))
    return Among((1 + extreme) / (1 + draws), len(levels), len(table))


def _spread(totals: Floats) -> Floats:
    """Variance of the levels' means, from totals [..., levels, 2]."""
    return np.asarray(ratio_of_sums(totals).var(axis=-1))
