"""Which latents tell a mismatched answer from a matched one: separability per latent, and a permutation null.

Texts are pairs (prompt i, response j), max-pooled to one activation per latent: matched where j = i, else shuffled.
AUC = P(shuffled > matched) + P(equal) / 2. Under the null a latent does not care which response stands with which
prompt, so any way of matching each prompt with one response among the encoded pairs is as good as the true one. The
null draws such perfect matchings (matched and shuffled pairs share responses, so labels of pairs may not be
permuted freely) and keeps the largest AUC over all latents, which makes its p-values hold for all at once.
ESR paper (arXiv 2602.06941), detector search; the null is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from countersteer.core.errors import InputError
from countersteer.statistics.groups import Floats, Ints

BLOCK = 2048
"""Latents ranked at once."""
STRICT_SHARE = 0.8
"""The paper's strict rule: silent on every matched pair, active on this share of shuffled ones."""


@dataclass(frozen=True)
class Separation:
    """Per latent, [latents] each. `strict`: the paper's rule. `p` holds for all latents at once (max statistic).

    `null` are the largest AUCs of the null draws, [draws].
    """

    auc: Floats
    cohen_d: Floats
    matched_mean: Floats
    shuffled_mean: Floats
    shuffled_share: Floats
    strict: NDArray[np.bool_]
    p: Floats
    null: Floats


def derangements(count: int, wanted: int, rng: np.random.Generator) -> Ints:
    """Up to `wanted` derangements of `count` items, [derangements, count], no pair (i, j) in two of them.

    Cyclic shifts along a random order. Raises InputError for fewer than 2 items.
    """
    if count < 2:
        raise InputError(f"{count} prompt cannot be shuffled: a detector search needs at least 2 prompts")
    order = rng.permutation(count)
    place = np.empty(count, dtype=np.int64)
    place[order] = np.arange(count)
    shifts = rng.permutation(np.arange(1, count))[: min(wanted, count - 1)]
    return np.stack([order[(place + shift) % count] for shift in shifts]).astype(np.int64)


def separation(
    pooled: NDArray[np.float32],
    prompts: Sequence[int],
    responses: Sequence[int],
    rng: np.random.Generator,
    *,
    draws: int = 500,
) -> Separation:
    """How well each latent separates shuffled from matched pairs, from max-pooled activations [pairs, latents].

    `prompts` and `responses` [pairs]: the numbers of each pair's prompt and response; equal numbers are matched.
    Raises InputError unless every prompt has one matched pair and at least one shuffled one.
    """
    left, right = np.asarray(prompts, np.int64), np.asarray(responses, np.int64)
    matched = left == right
    count = int(left.max()) + 1 if left.size else 0
    if count < 2 or sorted(left[matched].tolist()) != list(range(count)) or set(left[~matched]) != set(range(count)):
        raise InputError("a detector search needs, per prompt, one matched pair and at least one shuffled pair")
    masks = _null_masks(left, right, count, draws, rng)
    total = pooled.shape[1]
    out = {name: np.empty(total) for name in ("auc", "d", "m", "s", "share")}
    strict = np.empty(total, dtype=bool)
    null: Floats = np.zeros(draws)
    n, m = int(matched.sum()), int((~matched).sum())
    for start in range(0, total, BLOCK):
        block = np.asarray(pooled[:, start : start + BLOCK], np.float64)
        here = slice(start, start + block.shape[1])
        ranks = stats.rankdata(block, axis=0)
        everything = ranks.sum(axis=0)

        def auc(matched_ranks: Floats, everything: Floats = everything) -> Floats:
            return np.asarray((everything - matched_ranks - m * (m + 1) / 2.0) / (n * m))

        out["auc"][here] = auc(ranks[matched].sum(axis=0))
        null = np.asarray(np.maximum(null, auc(masks @ ranks).max(axis=1)), np.float64)
        one, other = block[matched], block[~matched]
        out["m"][here], out["s"][here] = one.mean(axis=0), other.mean(axis=0)
        out["share"][here] = (other > 0).mean(axis=0)
        spread = np.sqrt(((n - 1) * _variance(one) + (m - 1) * _variance(other)) / max(n + m - 2, 1))
        gap = out["s"][here] - out["m"][here]
        out["d"][here] = np.where(spread > 0, gap / np.where(spread > 0, spread, 1.0), 0.0)
        strict[here] = ~(one > 0).any(axis=0) & (out["share"][here] >= STRICT_SHARE)
    above = draws - np.searchsorted(np.sort(null), out["auc"] - 1e-12, side="left")
    p: Floats = np.asarray((1.0 + above) / (1.0 + draws), np.float64)
    return Separation(out["auc"], out["d"], out["m"], out["s"], out["share"], strict, p, null)


def top(found: Separation, count: int) -> Ints:
    """The `count` latents of highest AUC; ties by Cohen's d, then by number. Silent latents never count."""
    order = np.lexsort((np.arange(found.auc.size), -found.cohen_d, -found.auc))
    return np.asarray([i for i in order if found.shuffled_mean[i] > 0][:count], dtype=np.int64)


def _variance(values: Floats) -> Floats:
    return np.asarray(values.var(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1]))


def _null_masks(left: Ints, right: Ints, count: int, draws: int, rng: np.random.Generator) -> Floats:
    """Random perfect matchings among the encoded pairs, as 0/1 rows [draws, pairs]."""
    cost = np.empty((count, count))
    number = np.full((count, count), -1, dtype=np.int64)
    number[left, right] = np.arange(left.size)
    masks = np.zeros((draws, left.size))
    known = number >= 0
    for draw in range(draws):
        cost[:] = 1e6
        cost[known] = rng.random(int(known.sum()))
        rows, columns = optimize.linear_sum_assignment(cost)
        masks[draw, number[rows, columns]] = 1.0
    return masks
