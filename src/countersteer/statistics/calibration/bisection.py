"""Probabilistic bisection, latent by latent, as the ESR paper calibrates its strengths.

McKenzie et al. 2026 (arXiv 2602.06941), after Waeber, Frazier & Henderson 2011: a density over strengths, queried
at its median; the mean score of a few prompts says, with a confidence from a beta distribution, on which side
the target lies. The final median is the answer. The paper has no notion of a curve that never crosses; here a latent is
uncalibrated if its rounds (four or more, fewer say too little) all lay on one side of the target, or if its median ran
to an end of the range.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from countersteer.core.errors import InputError
from countersteer.statistics.calibration.base import Calibrator, Estimate, Id, named_rng

GRID = 10_000
LAST = 3
"""Rounds at the end of which a median that still falls must come near the target."""
ENOUGH = 4
"""So many rounds must lie on one side of the target before the curve is said not to cross it."""


class BisectionCalibrator(Calibrator):
    """The paper's bisection: `rounds` medians per latent, `per_round` random prompts at each.

    `prior_sd`: standard deviation of the Gaussian prior around `centre`; the paper's lie between half of
    the mean and all of it, the default is all of it.
    """

    method = "bisection"

    def __init__(
        self,
        *,
        latents: Sequence[Id],
        prompts: Sequence[Id],
        lo: float = 0.0,
        hi: float = 3.0,
        centre: float = 0.8,
        target: float = 0.3,
        seed: int = 0,
        rounds: int = 10,
        per_round: int = 5,
        prior_sd: float | None = None,
    ) -> None:
        super().__init__(latents=latents, prompts=prompts, lo=lo, hi=hi, centre=centre, target=target, seed=seed)
        if rounds < 1 or per_round < 1:
            raise InputError(f"{rounds} rounds of {per_round} prompts measure nothing: use at least 1 of each")
        self.rounds, self.per_round = rounds, per_round
        self.prior_sd = self.settings.centre if prior_sd is None else float(prior_sd)
        if not self.prior_sd > 0.0:
            raise InputError(f"prior_sd {prior_sd} is not positive: use about the centre itself")
        self._grid = np.linspace(self.settings.lo, self.settings.hi, GRID)
        prior = stats.norm.logpdf(self._grid, self.settings.centre, self.prior_sd)
        self._log_density = np.tile(prior, (len(self.latents), 1))
        self._updated = 0

    def describe(self) -> dict[str, object]:
        """Method and settings, for the artefact."""
        own = {"rounds": self.rounds, "per_round": self.per_round, "prior_sd": self.prior_sd}
        return {**super().describe(), **own}

    def _plan(self, number: int) -> list[tuple[Id, Id, float]]:
        self._update()
        if number >= self.rounds:
            return []
        planned: list[tuple[Id, Id, float]] = []
        medians = self._quantile(0.5)
        for row, latent in enumerate(self.latents):
            rng = named_rng(self.settings.seed, f"bisection/{latent!r}/{number}")
            again = self.per_round > len(self.prompts)
            for pick in rng.choice(len(self.prompts), self.per_round, replace=again):
                planned.append((latent, self.prompts[pick], float(medians[row])))
        return planned

    def _update(self) -> None:
        """Take in the rounds that were answered since the last update. A round without a score says nothing."""
        size = self._round
        while self._updated < len(self.queries):
            for row in range(len(self.latents)):
                first = self._updated + row * self.per_round
                indices = range(first, first + self.per_round)
                scores = [score for index in indices if (score := self.answers[index]) is not None]
                if scores:
                    self._multiply(row, self.queries[first].strength, float(np.mean(scores)))
            self._updated += size

    def _multiply(self, row: int, strength: float, score: float) -> None:
        """The paper's update of one density with the mean score observed at `strength`."""
        target = self.settings.target
        up = score >= target
        above = float(stats.beta.sf(target, 0.5 + 5.0 * score, 0.5 + 5.0 * (1.0 - score)))
        sure = above if up else 1.0 - above
        if sure < 0.5:
            up, sure = not up, 1.0 - sure
        indicated = (self._grid > strength) if up else (self._grid < strength)
        floor = np.finfo(np.float64).tiny
        self._log_density[row] += np.where(indicated, np.log(max(sure, floor)), np.log(max(1.0 - sure, floor)))

    def _quantile(self, share: float) -> np.ndarray:
        """Quantile of each latent's density, [latents]."""
        density = np.exp(self._log_density - self._log_density.max(axis=1, keepdims=True))
        cumulative = np.cumsum(density, axis=1)
        index = np.argmax(cumulative >= share * cumulative[:, -1:], axis=1)
        return np.asarray(self._grid[index])

    def medians(self) -> dict[Id, float]:
        """The paper's answer for every latent: its final median, whether its curve was seen to cross or not."""
        return {latent: float(median) for latent, median in zip(self.latents, self._quantile(0.5), strict=True)}

    def _estimate(self) -> dict[Id, Estimate]:
        low, middle, high = self._quantile(0.05), self._quantile(0.5), self._quantile(0.95)
        counts = dict.fromkeys(self.latents, 0)
        for query in self.queries:
            counts[query.latent] += self.answers[query.index] is not None
        return {
            latent: Estimate(float(middle[row]), float(low[row]), float(high[row]), "ok", counts[latent])
            if self._crosses(row) and not self._ran_low(row, float(middle[row]))
            else Estimate(None, None, None, "uncalibrated", counts[latent])
            for row, latent in enumerate(self.latents)
        }

    def _ran_low(self, row: int, median: float) -> bool:
        """Whether the median only runs to the low end: below all that was asked, and the last scores miss the target.

        Of a curve that crosses the last rounds are near its crossing, so that their scores are near the target.
        """
        own = [k for first in range(0, len(self.queries), self._round) for k in self._numbers(first, row)]
        last = [s for k in own[-LAST * self.per_round :] if (s := self.answers[k]) is not None]
        if not last or self.rounds < ENOUGH or median >= min(self.queries[k].strength for k in own):
            return False
        return float(np.mean(last) + 2 * np.std(last) / len(last) ** 0.5) < self.settings.target

    def _numbers(self, first: int, row: int) -> range:
        """Numbers of a latent's queries in the round that begins with query `first`."""
        return range(first + row * self.per_round, first + (row + 1) * self.per_round)

    @property
    def _round(self) -> int:
        """Queries per round."""
        return len(self.latents) * self.per_round

    def _crosses(self, row: int) -> bool:
        """Whether the rounds' mean scores were seen on both sides of the target; of few rounds, whether any came."""
        above = set()
        for first in range(0, len(self.queries), self._round):
            scores = [s for k in self._numbers(first, row) if (s := self.answers[k]) is not None]
            if scores:
                above.add(float(np.mean(scores)) >= self.settings.target)
        return len(above) == 2 or (len(above) == 1 and self.rounds < ENOUGH)
