"""Paired measurements in CPU time: interleaved pairs, the median ratio and its interval.

CPU time of the whole process, one thread, because wall time on a shared machine measures the neighbours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from scipy import stats

PAIRS = 15


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU seconds that `work` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def median_interval(values: list[float], confidence: float = 0.95) -> tuple[float, float]:
    """Distribution-free interval of the median from order statistics."""
    ordered, n = sorted(values), len(values)
    k = int(stats.binom.ppf((1 - confidence) / 2, n, 0.5))
    return ordered[max(k - 1, 0)], ordered[min(n - k, n - 1)]


def paired_ratio(
    new: Callable[[], Any], reference: Callable[[], Any], *, work: float = 1.0, pairs: int = PAIRS
) -> dict[str, Any]:
    """Median of (reference time / new time) * work over interleaved pairs: above 1 means `new` is faster.

    `work` is the amount of work of `new` over that of `reference`. Both run once before the first pair.
    """
    new(), reference()
    ratios = []
    for i in range(pairs):
        both = [new, reference] if i % 2 else [reference, new]
        seconds = {f: cpu_seconds(f) for f in both}
        ratios.append(work * seconds[reference] / seconds[new])
    low, high = median_interval(ratios)
    return {"median": statistics.median(ratios), "interval": [low, high], "pairs": pairs}
