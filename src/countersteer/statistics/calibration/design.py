"""Where to spend a round of generations: which latents get more of them, and at which strengths.

Strengths: the one whose answer is expected to leave the least variance of the latent's crossing (the expected
posterior variance one answer ahead, as in adaptive psychometrics: Kontsevich & Tyler 1999, with variance for
entropy). The next one of the same round is chosen as if the first had been answered as expected.
Latents: a generation goes where it is expected to take most off the total squared error.
"""

from __future__ import annotations

import heapq

import numpy as np

from countersteer.statistics.calibration.curves import Tables
from countersteer.statistics.groups import Floats, Ints

CAP = 2
COARSER = 3


def shares(variance: Floats, answered: Floats, inside: Floats, size: int) -> Ints:
    """Generations per latent of a round of `size` each on average, at most `CAP` times as many: [latents].

    `variance` [latents] of the crossings known from `answered` scores falls as 1 / answers. A latent counts by the
    probability `inside` that it crosses in range at all, squared: flat ones are not worth more.
    """
    n = np.maximum(answered, 1.0)
    cost = np.maximum(variance, 1e-6) * n * inside**2

    def worth(row: int, more: int) -> float:
        return float(cost[row] / ((n[row] + more) * (n[row] + more + 1.0)))

    given = np.zeros(variance.size, dtype=np.int64)
    queue = [(-worth(row, 0), row) for row in range(variance.size)]
    heapq.heapify(queue)
    for _ in range(size * variance.size):
        _, row = heapq.heappop(queue)
        given[row] += 1
        if given[row] < CAP * size:
            heapq.heappush(queue, (-worth(row, int(given[row])), row))
    return given


def strengths(
    posterior: Floats,
    crossings: Floats,
    tables: Tables,
    *,
    counts: Ints,
    bounds: tuple[float, float],
    dispersion: float,
) -> list[Floats]:
    """Log strengths to ask at, `counts` [latents] of them each, within `bounds` (log strength).

    `posterior` and `crossings` (log strength of each curve's crossing): [latents, grid].
    """
    inside = np.flatnonzero((tables.places >= bounds[0]) & (tables.places <= bounds[1]))
    choices = inside[::COARSER]
    chance = tables.chance[choices].astype(np.float32)
    log_posterior = np.log(np.maximum(posterior, 1e-30))
    crossings = crossings - (posterior * crossings).sum(axis=1, keepdims=True)  # spares single precision
    chosen: list[list[float]] = [[] for _ in counts]
    for number in range(int(counts.max())):
        rows = np.flatnonzero(counts > number)
        weight = np.exp(log_posterior[rows] - log_posterior[rows].max(axis=1, keepdims=True))
        weight /= weight.sum(axis=1, keepdims=True)
        moment = (weight * crossings[rows]).astype(np.float32)
        good, good_moment = chance @ weight.astype(np.float32).T, chance @ moment.T
        # The variance left is the mean square, the same for all choices, less this.
        explained = good_moment**2 / good + (moment.sum(axis=1) - good_moment) ** 2 / (1.0 - good)
        best = explained.argmax(axis=0)
        place = choices[best]
        expected = good[best, np.arange(rows.size)].astype(np.float64)
        log_posterior[rows] += (tables.bad[place] + expected[:, None] * tables.swing[place]) / dispersion
        for row, index in zip(rows, place, strict=True):
            chosen[row].append(float(tables.places[index]))
    return [np.array(values) for values in chosen]
