"""From scores to outcomes: how good and how bad answers score, per latent, shrunk to what the latents have in common.

The target is a mean score; the curves model the share of good answers. The two are tied by each latent's mean
score of its good and of its bad answers: outcome = (score - bad) / (good - bad), and the wanted share is the
outcome of the target. So a mean outcome equal to that share is a mean score equal to the target, whatever the two
levels. A latent has a dozen answers of each kind: its levels are shrunk to their common mean by an
empirical-Bayes normal model. Where scores are graded rather than good or bad, bad answers score better while the curve
is still high; the levels are those of its two ends, by a slope that is common to all latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from countersteer.statistics.groups import Floats

GOOD_ABOVE = 0.5
# Beliefs before any data: mean score of a good and of a bad answer, and how many answers they are worth.
GOOD, BAD, WORTH = 0.85, 0.15, 4.0
WITHIN, BETWEEN = 0.1, 0.05
# Evidence for "no slope": as much as this sum of squares of P(good).
LEVEL_WEIGHT = 1.0
LEAST_GAP = 0.05


@dataclass(frozen=True)
class Outcomes:
    """Scores on the scale from bad (0) to good (1), [latents, n], and the share of it wanted, [latents]."""

    outcome: Floats
    share: Floats


def outcomes(scores: Floats, known: Floats, chance: Floats | None, target: float) -> Outcomes:
    """Outcomes of `scores` [latents, n] where `known` is 1; `chance`: P(good) of each by an earlier fit, if any."""
    good = known * (scores > GOOD_ABOVE)
    bad = known - good
    high = low = scores
    if chance is not None:
        high = scores + slope(scores, good, chance) * (1.0 - chance)
        low = scores - slope(scores, bad, chance) * chance
    top, bottom = shrunk(high, good, GOOD), shrunk(low, bad, BAD)
    gap = np.maximum(top - bottom, LEAST_GAP)
    outcome = known * (scores - bottom[:, None]) / gap[:, None]
    return Outcomes(outcome, np.clip((target - bottom) / gap, 0.03, 0.97))


def slope(scores: Floats, member: Floats, chance: Floats) -> float:
    """Rise of the scores of a kind of answer with P(good), within latents, common to all; never negative."""
    count = np.maximum(member.sum(axis=1, keepdims=True), 1.0)
    place = member * (chance - (member * chance).sum(axis=1, keepdims=True) / count)
    return max(float((place * scores).sum()) / (float((place**2).sum()) + LEVEL_WEIGHT), 0.0)


def shrunk(scores: Floats, member: Floats, believed: float) -> Floats:
    """Shrunken mean [latents] of the `scores` [latents, n] where `member` [latents, n] is 1.

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
    return np.asarray((own * count / within + centre / between) / (count / within + 1.0 / between))
