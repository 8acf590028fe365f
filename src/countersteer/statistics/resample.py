"""The resample baseline: would a fresh first attempt have beaten the first one as often as the last attempt did?

Multi-attempt trials tend to start from a low first score, and low scores rise when drawn again (regression to the
mean). So the improvement rate is set beside P(fresh first attempt > first attempt), with fresh attempts of the
same latent, strength and prompt under new seeds. Recovery, the difference, is what the later attempts add.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from countersteer.core.errors import InputError
from countersteer.statistics import bootstrap, permutation
from countersteer.statistics.bootstrap import mean
from countersteer.statistics.contrasts import standard_error
from countersteer.statistics.groups import Floats, codes, numbers, sums
from countersteer.statistics.rates import Interval, Rate


@dataclass(frozen=True)
class Retry:
    """One multi-attempt trial: first and last score of the response, first scores of fresh responses.

    A fresh score is None where that response has no first attempt; all None leaves the trial out.
    """

    latent: Hashable
    prompt: Hashable
    first: float
    last: float
    fresh: tuple[float | None, ...]


@dataclass(frozen=True)
class ResampleBaseline:
    """Shares over multi-attempt trials that have a fresh score; each trial counts once.

    `improved` is P(last > first), `baseline` P(fresh > first), averaged over a trial's fresh scores, both
    strict; `improved_ties` and `baseline_ties` the shares equal to first. `recovery` = improved - baseline
    with its interval, and `p`, two-sided, from swapping last and fresh attempts within whole latents; `error` is its
    clustered standard error, `clusters` the latents. All None when no trial has a fresh score.
    """

    improved: Rate
    baseline: Rate
    improved_ties: float | None
    baseline_ties: float | None
    recovery: float | None
    recovery_interval: Interval | None
    trials: int
    without_fresh: int
    missing_fresh: int
    p: float | None = None
    error: float | None = None
    clusters: int = 0


def resample_baseline(
    retries: Sequence[Retry], rng: np.random.Generator, *, confidence: float = 0.95
) -> ResampleBaseline:
    """Compare last attempts with fresh first attempts, paired within trials, clustered by latent.

    Intervals by cluster bootstrap (BCa). Raises InputError for a score that is NaN or infinite.
    """
    scores = [score for retry in retries for score in (retry.first, retry.last, *retry.fresh) if score is not None]
    if not np.all(np.isfinite(scores)):
        raise InputError("a score is NaN or infinite: pass None for a fresh response without a first attempt")
    kept = [retry for retry in retries if any(score is not None for score in retry.fresh)]
    improved = [float(retry.last > retry.first) for retry in kept]
    baseline = [_share([score > retry.first for score in retry.fresh if score is not None]) for retry in kept]
    latents, prompts = [retry.latent for retry in kept], [retry.prompt for retry in kept]
    gap = numbers([a - b for a, b in zip(improved, baseline, strict=True)])
    recovery_interval, p, error, count = None, None, None, 0
    if kept:
        group = codes(latents, expected=len(kept), what="latents")
        count = int(group.max()) + 1
        totals = np.stack([sums(gap, group, count=count), sums(np.ones_like(gap), group, count=count)], axis=1)
        recovery_interval = bootstrap.interval(totals, bootstrap.ratio_of_sums, rng, confidence=confidence)
        p = permutation.swap_test(np.concatenate([totals, totals * [0.0, 1.0]], axis=1), _difference, rng)
        error = standard_error(totals)
    return ResampleBaseline(
        improved=mean(improved, latents, prompts, rng, confidence=confidence),
        baseline=mean(baseline, latents, prompts, rng, confidence=confidence),
        improved_ties=_share([retry.last == retry.first for retry in kept]) if kept else None,
        baseline_ties=(
            float(np.mean([_share([s == retry.first for s in retry.fresh if s is not None]) for retry in kept]))
            if kept
            else None
        ),
        recovery=float(gap.mean()) if kept else None,
        recovery_interval=recovery_interval,
        trials=len(kept),
        without_fresh=len(retries) - len(kept),
        missing_fresh=sum(score is None for retry in retries for score in retry.fresh),
        p=p,
        error=error,
        clusters=count,
    )


def _difference(totals: Floats) -> Floats:
    return bootstrap.ratio_of_sums(totals[..., :2]) - bootstrap.ratio_of_sums(totals[..., 2:])


def _share(flags: Sequence[bool]) -> float:
    return float(np.mean(flags))
