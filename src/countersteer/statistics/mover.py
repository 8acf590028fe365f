"""Intervals for a difference and a ratio of two paired rates, from the two rates' own intervals (MOVER).

Zou & Donner, Statistics in Medicine 27 (2008) 1693; Donner & Zou, Statistical Methods in Medical Research
21 (2012) 347 ("method of variance estimates recovery"): the distance from each rate to its own limit
stands for its standard error, separately on either side, so the limits stay honest near zero.
"""

from __future__ import annotations

import numpy as np

from countersteer.statistics.groups import Floats
from countersteer.statistics.rates import Interval, Rate

METHOD = "MOVER on effective-n Wilson"


def correlation(totals: Floats) -> float:
    """Correlation of two paired rates from clusters' residual sums; totals [clusters, 4] as in contrasts.

    Columns: sum and count of the arm, sum and count of base. 0 where one arm does not vary.
    """
    arm = totals[:, 0] - totals[:, 1] * (totals[:, 0].sum() / totals[:, 1].sum())
    base = totals[:, 2] - totals[:, 3] * (totals[:, 2].sum() / totals[:, 3].sum())
    scale = float(np.sqrt((arm @ arm) * (base @ base)))
    return float(np.clip((arm @ base) / scale, -1.0, 1.0)) if scale > 1e-12 else 0.0


def difference(arm: Rate, base: Rate, *, correlation: float = 0.0) -> Interval | None:
    """Interval of arm - base (Zou & Donner 2008, with the correlation term); None without both intervals."""
    limits = _limits(arm, base)
    if limits is None:
        return None
    p, low, high, q, base_low, base_high = limits
    below = (p - low) ** 2 - 2 * correlation * (p - low) * (base_high - q) + (base_high - q) ** 2
    above = (high - p) ** 2 - 2 * correlation * (high - p) * (q - base_low) + (q - base_low) ** 2
    return Interval(max(p - q - below**0.5, -1.0), min(p - q + above**0.5, 1.0), METHOD)


def ratio(arm: Rate, base: Rate, *, correlation: float = 0.0) -> Interval | None:
    """Interval of arm / base (Donner & Zou 2012, with the correlation term).

    The upper limit is None where base's own lower limit is 0: the data do not bound it. None for a base of 0.
    """
    limits = _limits(arm, base)
    if limits is None or limits[3] == 0.0:
        return None
    p, low, high, q, base_low, base_high = limits
    cross = p * q - correlation * (p - low) * (base_high - q)
    inner = max(cross**2 - low * base_high * (2 * p - low) * (2 * q - base_high), 0.0)
    bottom = base_high * (2 * q - base_high)
    # At base_high = 2 q the quadratic is linear: its root is the limit of the general form.
    smallest = low * (2 * p - low) / (2 * cross) if abs(bottom) < 1e-12 else (cross - inner**0.5) / bottom
    cross = p * q - correlation * (high - p) * (q - base_low)
    inner = max(cross**2 - high * base_low * (2 * p - high) * (2 * q - base_low), 0.0)
    bottom = base_low * (2 * q - base_low)
    largest = (cross + inner**0.5) / bottom if bottom > 1e-12 else None
    return Interval(max(float(smallest), 0.0), largest, METHOD)


def _limits(arm: Rate, base: Rate) -> tuple[float, float, float, float, float, float] | None:
    """Value, low, high of both rates, or None if one has no interval."""
    found = []
    for side in (arm, base):
        if side.value is None or side.interval is None or side.interval.low is None or side.interval.high is None:
            return None
        found += [side.value, min(side.interval.low, side.value), max(side.interval.high, side.value)]
    return found[0], found[1], found[2], found[3], found[4], found[5]
