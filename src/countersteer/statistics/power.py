"""What a paired, clustered design can detect: before money is spent, and what a finished contrast could not have seen.

Normal approximation for the difference of two paired rates p0 (base) and p1:
    variance of one pair's difference  = p0 (1 - p0) + p1 (1 - p1) - 2 r sqrt(p0 (1 - p0) p1 (1 - p1))
    deff of the difference             = 1 + (trials per latent - 1) * correlation
    se(p1)^2                           = variance * deff / (latents * trials per latent)
The detectable p1 solves |p1 - p0| = (z(1 - alpha/2) + z(power)) se(p1). r is the correlation of an arm's and
base's outcome in one pair.

A finished contrast (`smallest`) takes its own denominators, design effects and correlation, Student's quantiles at its
clusters less one, and the corrected alpha. For scores the detectable difference is that reach times its standard error.
Where even unanimous clusters cannot give a p below alpha, nothing can be found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import optimize, special, stats

from countersteer.core.errors import InputError
from countersteer.statistics.contrasts import Contrast
from countersteer.statistics.variance import ASSUMED_CORRELATION


@dataclass(frozen=True)
class Design:
    """A paired study: how many latents, trials on each, and how alike outcomes are.

    `correlation`: of outcomes within a latent; `pair_correlation`: of an arm's and base's outcome in a pair
    (0 is the cautious choice for fresh sampling noise).
    """

    latents: int
    per_latent: int
    base_rate: float
    correlation: float = 1.5 * ASSUMED_CORRELATION
    pair_correlation: float = 0.0
    alpha: float = 0.05
    power: float = 0.8

    def __post_init__(self) -> None:
        if self.latents < 2 or self.per_latent < 1:
            raise InputError(f"{self.latents} latents x {self.per_latent} trials is no design: use 2 x 1 or more")
        for name in ("base_rate", "alpha", "power"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise InputError(f"{name} {getattr(self, name)} is not between 0 and 1: give a share such as 0.05")
        for name in ("correlation", "pair_correlation"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"{name} {getattr(self, name)} is not in [0, 1): give for example 0.15")


@dataclass(frozen=True)
class Detectable:
    """Smallest effects a design detects; None where even the extreme rate (0 or 1) would not be detected."""

    rise: float | None
    rise_ratio: float | None
    fall: float | None
    fall_ratio: float | None
    expected_events: float


def standard_error(design: Design, rate: float) -> float:
    """Standard error of the paired difference of `rate` and the base rate (module docstring)."""
    ours, base = rate * (1.0 - rate), design.base_rate * (1.0 - design.base_rate)
    variance = ours + base - 2.0 * design.pair_correlation * math.sqrt(ours * base)
    deff = 1.0 + (design.per_latent - 1) * design.correlation
    return math.sqrt(max(variance, 0.0) * deff / (design.latents * design.per_latent))


def detectable(design: Design) -> Detectable:
    """Smallest rise and fall of the base rate that a two-sided test detects with the design's power."""
    rise, fall = _solve(design, upwards=True), _solve(design, upwards=False)
    return Detectable(
        rise=None if rise is None else rise - design.base_rate,
        rise_ratio=None if rise is None else rise / design.base_rate,
        fall=None if fall is None else fall - design.base_rate,
        fall_ratio=None if fall is None else fall / design.base_rate,
        expected_events=design.base_rate * design.latents * design.per_latent,
    )


def _solve(design: Design, *, upwards: bool) -> float | None:
    """The rate on one side of base at which the design just reaches its power."""
    reach = float(stats.norm.isf(design.alpha / 2.0) + stats.norm.ppf(design.power))

    def lacking(rate: float) -> float:
        return abs(rate - design.base_rate) - reach * standard_error(design, rate)

    end = 1.0 if upwards else 0.0
    if lacking(end) < 0.0:
        return None
    return float(optimize.brentq(lacking, design.base_rate, end, xtol=1e-10))


@dataclass(frozen=True)
class Smallest:
    """Smallest rise and fall of base's value that a contrast finds four times in five (fall is negative).

    None: not even the largest possible one; `few` if because there are too few clusters for any p below alpha.
    """

    rise: float | None
    fall: float | None
    few: bool = False


def smallest(found: Contrast, *, alpha: float = 0.05, power: float = 0.8) -> Smallest | None:
    """What a finished contrast could see at level `alpha` (corrected for the number of arms).

    None where there is nothing to compute it from: no data, or scores that do not vary.
    """
    if found.base is None or found.difference is None or found.clusters < 2:
        return Smallest(None, None, few=True) if found.difference is not None else None
    if found.least_p > alpha:
        return Smallest(None, None, few=True)
    freedom = found.clusters - 1.0
    reach = float(-special.stdtrit(freedom, alpha / 2.0) + special.stdtrit(freedom, power))
    if found.effects is None:
        return None if not found.error else Smallest(reach * found.error, -reach * found.error)
    sizes = [max(n / deff, 1.0) for n, deff in zip(found.sizes, found.effects, strict=True)]
    base = min(max(found.base, 0.5 / found.sizes[1]), 1.0 - 0.5 / found.sizes[1])  # no event is not a rate of zero
    paired = min(max(found.correlation, 0.0), 0.9)

    def lacking(rate: float) -> float:
        ours, theirs = rate * (1.0 - rate) / sizes[0], base * (1.0 - base) / sizes[1]
        variance = ours + theirs - 2.0 * paired * math.sqrt(ours * theirs)
        return abs(rate - base) - reach * math.sqrt(max(variance, 0.0))

    rise, fall = (float(optimize.brentq(lacking, base, end)) - base if lacking(end) > 0 else None for end in (1.0, 0.0))
    return Smallest(rise, fall)
