"""Pooled calibration: many latents at once, each learning from the others, in few generations.

A first round of two generations per latent, stratified over the whole range, lets all latents together find the
centre. Small rounds then ask where an answer says most about the latent's crossing of the target; the later ones also
give more generations to latents whose crossing is less certain. Estimates come with 90% intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from countersteer.core.errors import InputError
from countersteer.statistics.calibration import curves, design, levels
from countersteer.statistics.calibration.base import Calibrator, Estimate, Id, named_rng
from countersteer.statistics.groups import Floats, Ints

FIRST = 1
ROUNDS = (2, 3, 4, 4, 5, 6)
# After the first round, so many give every latent the same number of generations.
EVEN_ROUNDS = 3
SWEEPS = 2
THETAS = 72
CONFIDENCE = 0.9
LOWEST_SHARE_OF_CENTRE = 1.0 / 16.0
# Within this factor of the lowest strength a curve must be seen above the target to be said to cross it.
NEAR_LOWEST = 3.0
# Crossings this far out of range (in log strength) all count alike when generations are placed.
MARGIN = 0.3


@dataclass(frozen=True)
class State:
    """What is known after some rounds.

    `posterior` of every latent's curves and the log strength at which each of them crosses the target, both
    [latents, grid]; scores per latent; the population; and how alike a latent's answers to one prompt are.
    """

    posterior: Floats
    crossings: Floats
    counts: Floats
    population: curves.Population
    alike: float

    def mean(self) -> Floats:
        """Expected log strength of the crossing, [latents]."""
        return np.asarray((self.posterior * self.crossings).sum(axis=1))


class PooledCalibrator(Calibrator):
    """Partial pooling of dose-response curves: `first` + sum(`rounds`) generations per latent (25) on average.

    Prompts are drawn without replacement per latent. A latent is "uncalibrated" if its curve probably crosses
    the target outside the range, if it is nowhere seen above the target, or if fewer than `least` scores arrived.
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
        self._bounds = (float(np.log(self._lowest)), float(np.log(self.settings.hi)))
        self._tables = curves.tabulate(np.linspace(self._bounds[0] - 0.3, self._bounds[1] + 0.7, THETAS))
        self._rank = {latent: row for row, latent in enumerate(self.latents)}
        self._prior = curves.start(self.settings.centre, len(self.prompts))
        self._population = self._prior
        self._order = [self._prompt_order(latent) for latent in self.latents]
        self._used = [0] * len(self.latents)

    def describe(self) -> dict[str, object]:
        """Method and settings, for the artefact."""
        return {**super().describe(), "first": self.first, "rounds": list(self.rounds), "least": self.least}

    def _prompt_order(self, latent: Id) -> list[int]:
        """Prompts of one latent in the order they are used: every prompt once before any comes again."""
        most, size = self.first + design.CAP * sum(self.rounds), len(self.prompts)
        rng = named_rng(self.settings.seed, f"pooled/prompts/{latent!r}")
        return [int(pick) for _ in range(-(-most // size)) for pick in rng.permutation(size)][:most]

    def _plan(self, number: int) -> list[tuple[Id, Id, float]]:
        if number > len(self.rounds):
            return []
        planned = []
        for row, doses in enumerate(self._stratified() if number == 0 else self._aimed(number)):
            for log_strength in doses:
                prompt = self.prompts[self._order[row][self._used[row]]]
                strength = float(np.clip(np.exp(log_strength), self._lowest, self.settings.hi))
                planned.append((self.latents[row], prompt, strength))
                self._used[row] += 1
        return planned

    def _stratified(self) -> list[Floats]:
        """First-round log strengths, spread as the latents' thetas are believed to be, latents interleaved."""
        rng = named_rng(self.settings.seed, "pooled/first-round")
        count = len(self.latents)
        place = np.stack([(rng.permutation(count) + rng.random(count)) / count for _ in range(self.first)], axis=1)
        place = (np.arange(self.first) + place) / self.first
        believed = stats.norm(self._prior.centre, np.hypot(curves.CENTRE_SD, curves.SPREAD))
        low, high = believed.cdf(self._bounds)
        return list(believed.ppf(low + place * (high - low)))

    def _aimed(self, number: int) -> list[Floats]:
        """Log strengths of round `number`, by latent."""
        state, size = self._state(), self.rounds[number - 1]
        self._population = state.population
        low, high = self._bounds
        crossings = np.clip(state.crossings, low - MARGIN, high + MARGIN)
        counts: Ints = np.full(len(self.latents), size)
        if number > EVEN_ROUNDS:
            middle = (state.posterior * crossings).sum(axis=1)
            variance = (state.posterior * (crossings - middle[:, None]) ** 2).sum(axis=1)
            counts = design.shares(variance, state.counts, self._inside(state), size)
        return design.strengths(
            state.posterior,
            crossings,
            self._tables,
            counts=counts,
            bounds=self._bounds,
            dispersion=state.population.dispersion,
        )

    def _inside(self, state: State) -> Floats:
        """Probability that the crossing is in range, [latents]."""
        low, high = self._bounds
        return np.asarray((state.posterior * ((state.crossings >= low) & (state.crossings <= high))).sum(axis=1))

    def _never_above(self, latent: Id, strength: float) -> bool:
        """Whether a crossing near the lowest strength is only the range's end: the answers there miss the target."""
        if strength > NEAR_LOWEST * self._lowest:
            return False
        near = [self.answers[q.index] for q in self.queries if q.latent == latent and q.strength <= 1.5 * strength]
        known = [score for score in near if score is not None]
        return (
            not known or float(np.mean(known)) < self.settings.target + 0.5 * float(np.std(known)) / len(known) ** 0.5
        )

    def _state(self) -> State:
        """Fit all answers so far: curves need outcomes, outcomes need levels, graded levels need curves."""
        doses, scores = self._doses()
        population, chance = self._population, None
        for _ in range(SWEEPS):
            found = levels.outcomes(scores, doses.known, chance, self.settings.target)
            doses = replace(doses, outcome=found.outcome)
            fit = curves.fit(doses, population, self._prior, self._tables)
            population, chance = fit.population, fit.chance
        offsets = curves.crossing_offset(found.share, population)
        crossings = (self._tables.thetas[None, :, None] + offsets[:, None, :]).reshape(len(self.latents), -1)
        alike = curves.alikeness(doses, fit)
        return State(fit.posterior, crossings, doses.known.sum(axis=1), population, alike)

    def _doses(self) -> tuple[curves.Doses, Floats]:
        """All answers in rows by latent, outcomes still to be filled in; and their scores [latents, n]."""
        table: list[list[tuple[float, int, float]]] = [[] for _ in self.latents]
        numbered = {prompt: number for number, prompt in enumerate(self.prompts)}
        for query in self.queries:
            score = self.answers[query.index]
            if score is not None:
                table[self._rank[query.latent]].append((query.strength, numbered[query.prompt], score))
        shape = (len(self.latents), max(1, max(len(row) for row in table)))
        known, log_strength, scores = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        prompt = np.zeros(shape, dtype=np.int64)
        for row, entries in enumerate(table):
            for column, (dose, which, score) in enumerate(entries):
                known[row, column], log_strength[row, column] = 1.0, np.log(dose)
                prompt[row, column], scores[row, column] = which, score
        return curves.Doses(log_strength, prompt, np.zeros(shape), known), scores

    def _estimate(self) -> dict[Id, Estimate]:
        state = self._state()
        middle, probability = state.mean(), self._inside(state)
        # The prompts are all there are: an answer's noise that belongs to its prompt goes as they are used up.
        used = np.minimum(state.counts / len(self.prompts), 1.0)
        narrow = np.sqrt(1.0 - state.alike * used)
        tails = [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2]
        found: dict[Id, Estimate] = {}
        for row, latent in enumerate(self.latents):
            n = int(state.counts[row])
            if n < self.least or probability[row] < 0.5:
                found[latent] = Estimate(None, None, None, "uncalibrated", n)
                continue
            order = np.argsort(state.crossings[row], kind="stable")
            cumulative = np.cumsum(state.posterior[row][order])
            if self._never_above(latent, float(np.exp(middle[row]))):
                found[latent] = Estimate(None, None, None, "uncalibrated", n)
                continue
            limits = np.interp(tails, cumulative, state.crossings[row][order])
            low, high = np.exp(middle[row] + narrow[row] * (limits - middle[row]))
            value = float(np.clip(np.exp(middle[row]), self._lowest, self.settings.hi))
            found[latent] = Estimate(value, float(low), float(high), "ok", n)
        return found
