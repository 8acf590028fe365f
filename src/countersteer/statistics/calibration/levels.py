"""Score levels of good and bad answers per latent, shrunk to what the latents have in common.

The target is a mean score; the curves model the share of good answers. The two are tied by each latent's mean
score of its good and of its bad answers: share = (target - bad) / (good - bad). A latent has a dozen of each, so
both are shrunk to their common mean by an empirical-Bayes normal model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from countersteer.statistics.groups import Floats

# Beliefs before any data: mean score of a good and of a bad answer, and how many answers they are worth.
GOOD, BAD, WORTH = 0.85, 0.15, 4.0
WITHIN, BETWEEN = 0.1, 0.05


@dataclass(frozen=True)
class Levels:
    """Mean score per latent, [latents], and the variance of that estimate, [latents]."""

    mean: Floats
    variance: Floats


def shrunk(scores: Floats, member: Floats, believed: float) -> Levels:
    """Shrunken mean of the `scores` [latents, n] where `member` [latents, n] is 1.

    Common mean, within- and between-latent variance by moments, each with a few answers' worth of belief.
    """
    count = member.sum(axis=1)
    total = float(count.sum())
    own = np.where(count > 0, (scores * member).sum(axis=1) / np.maximum(count, 1.0), believed)
    centre = (float((scores * member).sum()) + WORTH * believed) / (total + WORTH)
    inside = float((member * (scores - own[:, None]) ** 2).sum())
    freedom = max(float(np.maximum(count - 1.0, 0.0).sum()), 0.0)
    within = (inside + WORTH * WITHIN**2) / (freedom + WORTH)
    several = count >= 2
    observed = float(np.sum((own[several] - centre) ** 2 - within / count[several]))
    between = (max(observed, 0.0) + WORTH * BETWEEN**2) / (float(several.sum()) + WORTH)
    precision = count / within + 1.0 / between
    return Levels((own * count / within + centre / between) / precision, 1.0 / precision)


def target_share(target: float, good: Levels, bad: Levels) -> tuple[Floats, Floats]:
    """Share of good answers at which the mean score is `target`, and its variance (delta method), [latents]."""
    gap = np.maximum(good.mean - bad.mean, 0.05)
    share = (target - bad.mean) / gap
    variance = (share**2 * good.variance + (1.0 - share) ** 2 * bad.variance) / gap**2
    return np.clip(share, 0.03, 0.97), variance
