"""Pooled calibration: many latents at once, each learning from the others, in few generations.

A first round of two generations per latent, stratified over the whole range, lets all latents together find the
centre. Small rounds then aim around the target, and between it and the steep part of the curve, where a curve is
best located. Estimates come with 90% intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from countersteer.core.errors import InputError
from countersteer.statistics.calibration import curves, levels
from countersteer.statistics.calibration.base import Calibrator, Estimate, Id, named_rng
from countersteer.statistics.groups import Floats

FIRST = 2
ROUNDS = (3, 5, 5, 2, 3, 5)
GOOD_ABOVE = 0.5
WIDEN = 1.1
THETAS = 72
# Queries run from the strength of this share of good answers to somewhat past the target's share (the
# geometric path between the two, times BEYOND): fewer errors in simulation than aiming at one half itself.
FROM_SHARE = 0.35
BEYOND = 1.3
CONFIDENCE = 0.9
LOWEST_SHARE_OF_CENTRE = 1.0 / 16.0


@dataclass(frozen=True)
class State:
    """The fit after some rounds: the posterior and, per latent, the share of good answers wanted."""

    fit: curves.Fit
    share: Floats
    share_variance: Floats
    counts: Floats


class PooledCalibrator(Calibrator):
    """Partial pooling of dose-response curves: `first` + sum(`rounds`) generations per latent (25).

    Prompts are drawn without replacement per latent. A latent is "uncalibrated" if its curve probably crosses
    the target outside the range, or if fewer than `least` of its scores arrived.
    """

    method = "pooled"

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
        first: int = FIRST,
        rounds: Sequence[int] = ROUNDS,
        least: int = 6,
    ) -> None:
        super().__init__(latents=latents, prompts=prompts, lo=lo, hi=hi, centre=centre, target=target, seed=seed)
        if first < 1 or any(size < 1 for size in rounds):
            raise InputError(f"rounds {(first, *rounds)} contain an empty one: use at least 1 generation each")
        self.first, self.rounds, self.least = first, tuple(rounds), least
        self._lowest = max(self.settings.lo, self.settings.centre * LOWEST_SHARE_OF_CENTRE)
        self._thetas = np.linspace(np.log(self._lowest) - 0.3, np.log(self.settings.hi) + 0.7, THETAS)
        self._rank = {latent: row for row, latent in enumerate(self.latents)}
        self._prior = curves.start(self.settings.centre, len(self.prompts))
        self._population = self._prior
        self._order = [self._prompt_order(latent) for latent in self.latents]
        self._used = 0

    def describe(self) -> dict[str, object]:
        """Method and settings, for the artefact."""
        return {**super().describe(), "first": self.first, "rounds": list(self.rounds), "least": self.least}

    def _prompt_order(self, latent: Id) -> list[int]:
        """Prompts of one latent in the order they are used: every prompt once before any comes again."""
        total, size = self.first + sum(self.rounds), len(self.prompts)
        rng = named_rng(self.settings.seed, f"pooled/prompts/{latent!r}")
        return [int(pick) for _ in range(-(-total // size)) for pick in rng.permutation(size)][:total]

    def _plan(self, number: int) -> list[tuple[Id, Id, float]]:
        if number > len(self.rounds):
            return []
        strengths = self._stratified() if number == 0 else self._aimed(self.rounds[number - 1])
        planned = []
        for row, latent in enumerate(self.latents):
            for column in range(strengths.shape[1]):
                prompt = self.prompts[self._order[row][self._used + column]]
                planned.append((latent, prompt, float(strengths[row, column])))
        self._used += strengths.shape[1]
        return planned

    def _stratified(self) -> Floats:
        """First-round strengths [latents, first]: one in each stratum of log strength, latents interleaved."""
        rng = named_rng(self.settings.seed, "pooled/first-round")
        count = len(self.latents)
        place = np.stack([(rng.permutation(count) + rng.random(count)) / count for _ in range(self.first)], axis=1)
        place = (np.arange(self.first) + place) / self.first
        low, high = np.log(self._lowest), np.log(self.settings.hi)
        return np.asarray(np.exp(low + place * (high - low)))

    def _aimed(self, size: int) -> Floats:
        """Strengths [latents, size] spread along each expected curve, from its steep part to past the target."""
        state = self._state()
        self._population = state.fit.population
        strengths = np.empty((len(self.latents), size))
        for column in range(size):
            toward = BEYOND * (column + 0.5) / size
            share = np.exp((1.0 - toward) * np.log(FROM_SHARE) + toward * np.log(state.share))
            middle, _ = self._moments(state, share)
            strengths[:, column] = np.exp(middle)
        return np.clip(strengths, self._lowest, self.settings.hi)

    def _state(self) -> State:
        """Fit all answers so far."""
        table: list[list[tuple[float, int, float]]] = [[] for _ in self.latents]
        numbered = {prompt: number for number, prompt in enumerate(self.prompts)}
        for query in self.queries:
            score = self.answers[query.index]
            if score is not None:
                table[self._rank[query.latent]].append((query.strength, numbered[query.prompt], score))
        width = max(1, max(len(row) for row in table))
        shape = (len(self.latents), width)
        known, strength, scores = np.zeros(shape), np.ones(shape), np.zeros(shape)
        prompt = np.zeros(shape, dtype=np.int64)
        for row, entries in enumerate(table):
            for column, (dose, which, score) in enumerate(entries):
                known[row, column], strength[row, column] = 1.0, dose
                prompt[row, column], scores[row, column] = which, score
        good = known * (scores > GOOD_ABOVE)
        share, variance = levels.target_share(
            self.settings.target,
            levels.shrunk(scores, good, levels.GOOD),
            levels.shrunk(scores, known - good, levels.BAD),
        )
        doses = curves.Doses(np.log(strength), prompt, good, known)
        fit = curves.fit(doses, self._population, self._prior, self._thetas)
        return State(fit, share, variance, known.sum(axis=1))

    def _crossings(self, state: State, share: Floats) -> Floats:
        """Log strength at which P(good) is `share` [latents], on the grid: [latents, thetas, forms]."""
        offsets = curves.crossing_offset(share, state.fit.population)
        return np.asarray(state.fit.thetas[None, :, None] + offsets[:, None, :])

    def _moments(self, state: State, share: Floats) -> tuple[Floats, Floats]:
        """Posterior mean and SD of that log strength, [latents]."""
        crossings = self._crossings(state, share)
        middle = (state.fit.posterior * crossings).sum(axis=(1, 2))
        square = (state.fit.posterior * (crossings - middle[:, None, None]) ** 2).sum(axis=(1, 2))
        return middle, np.sqrt(square)

    def _estimate(self) -> dict[Id, Estimate]:
        state = self._state()
        crossings = self._crossings(state, state.share).reshape(len(self.latents), -1)
        posterior = state.fit.posterior.reshape(len(self.latents), -1)
        middle, spread = self._moments(state, state.share)
        step = 0.02
        nudged, _ = self._moments(state, np.clip(state.share + step, 0.03, 0.97))
        level = np.abs(nudged - middle) / step * np.sqrt(state.share_variance)
        widen = WIDEN * np.sqrt(1.0 + (level / np.maximum(spread, 1e-9)) ** 2)
        inside = (crossings >= np.log(self._lowest)) & (crossings <= np.log(self.settings.hi))
        probability = (posterior * inside).sum(axis=1)
        found: dict[Id, Estimate] = {}
        for row, latent in enumerate(self.latents):
            n = int(state.counts[row])
            if n < self.least or probability[row] < 0.5:
                found[latent] = Estimate(None, None, None, "uncalibrated", n)
                continue
            order = np.argsort(crossings[row], kind="stable")
            cumulative = np.cumsum(posterior[row][order])
            tails = np.interp([0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2], cumulative, crossings[row][order])
            log_low, log_high = middle[row] + widen[row] * (tails - middle[row])
            value = float(np.clip(np.exp(middle[row]), self._lowest, self.settings.hi))
            found[latent] = Estimate(value, float(np.exp(log_low)), float(np.exp(log_high)), "ok", n)
        return found
