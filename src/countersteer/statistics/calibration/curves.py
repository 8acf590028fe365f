"""Dose-response curves of many latents at once: the model, and its empirical-Bayes fit on a grid.

P(good) = lapse + (1 - 2 lapse) * logistic(-(log strength - theta_k - u_prompt) / w_k + shift)^a_k

a_k skews the curve (Richards' curve; a = 1 is the logistic) and the shift keeps theta where half are good.
theta_k and log w_k of the latents come from common normals (theta with a share of strays, so that flat curves do
not widen everyone's prior), prompt effects u from another. An answer is an outcome on the scale from bad (0) to good
(1), anywhere between or slightly beyond: its log-likelihood is the binary one, linear in the outcome, over a
common dispersion (quasi-likelihood; McCullagh & Nelder 1989, chapter 9). Answers that are either good or bad have
a dispersion of 1, graded ones less. Each latent's posterior is computed on a grid of (theta, form); the common
normals, u and the dispersion are found by expectation-maximisation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special

from countersteer.statistics.groups import Floats, Ints

LAPSE = 0.02
STRAY = 0.1
ITERATIONS = 4
# Forms of a curve: every width with every skew.
SKEWS = (0.4, 1.0, 2.5)
WIDTHS = np.repeat(np.geomspace(0.04, 1.0, 9), len(SKEWS))
SKEW = np.tile(np.array(SKEWS), 9)
SHIFT = special.logit(0.5 ** (1.0 / SKEW))
FINER = 4
# Prior beliefs about the common normals (in log strength), each worth some latents: value, weight.
CENTRE_SD = 0.7
SPREAD, SPREAD_WEIGHT = 0.4, 4.0
WIDTH, WIDTH_SD, WIDTH_SPREAD, WIDTH_WEIGHT = 0.2, 0.4, 0.4, 4.0
PROMPT_SPREAD, PROMPT_WEIGHT = 0.2, 4.0
# Pairs of answers that speak for "answers to one prompt are no more alike than others".
ALIKE_WEIGHT = 30.0
# A dispersion of 1 is believed as if seen in this much binary variance (30 answers at a share of 0.2).
DISPERSION_WEIGHT = 4.5


@dataclass(frozen=True)
class Doses:
    """Answered queries, padded to the longest latent: all [latents, n]; `known` marks the real ones."""

    log_strength: Floats
    prompt: Ints
    outcome: Floats
    known: Floats


@dataclass(frozen=True)
class Population:
    """What the latents have in common. `prompts` [prompts] are the effects u, summing to 0."""

    centre: float
    spread: float
    width: float
    width_spread: float
    prompts: Floats
    prompt_spread: float
    dispersion: float


@dataclass(frozen=True)
class Fit:
    """Posterior of each latent over the grid, [latents, thetas * forms], and the population it came from.

    `chance` [latents, n]: expected P(good) of each answered query.
    """

    posterior: Floats
    population: Population
    chance: Floats


def start(centre: float, prompts: int) -> Population:
    """The population before any data: `centre` is the strength at which half the answers go bad."""
    return Population(np.log(centre), SPREAD, np.log(WIDTH), WIDTH_SPREAD, np.zeros(prompts), PROMPT_SPREAD, 1.0)


def share_good(distance: Floats) -> Floats:
    """P(good) at `distance` = log strength - theta - u [...], without lapses, for every form: [..., forms]."""
    return np.asarray(special.expit(-distance[..., None] / WIDTHS + SHIFT) ** SKEW)


def crossing_offset(share: Floats, population: Population) -> Floats:
    """log strength - theta at which the mean of P(good) over prompts is `share` [n]; [n, forms].

    By interpolation of the mean over prompts, whose effects shift the curve. `share` is kept inside what
    the lapse leaves reachable.
    """
    clean = np.clip((share - LAPSE) / (1.0 - 2.0 * LAPSE), 0.005, 0.995)
    distance = np.linspace(-8.0, 8.0, 1601)
    curve = share_good(distance[:, None] - population.prompts).mean(axis=1)
    return np.stack([np.interp(-clean, -column, distance) for column in curve.T], axis=1)


@dataclass(frozen=True)
class Tables:
    """What one answer says over the grid (thetas * forms), by its place: log strength - u on a line of `places`.

    Places are `FINER` times as dense as thetas. The likelihood depends on log strength - theta - u alone, so tables
    replace hundreds of evaluations per answer. `chance` [places, grid] is P(good); `bad` the log-likelihood of a
    bad answer and `swing` what a good one adds; `parts` [places, 5, grid]: the slope in u of the log-likelihood is
    outcome * parts[0] - parts[1]; parts[2] is its Fisher information; then P(good) and its square.
    """

    thetas: Floats
    places: Floats
    chance: Floats
    bad: Floats
    swing: Floats
    parts: NDArray[np.float32]

    def nearest(self, log_strength: Floats) -> Ints:
        """Index of the place next to each of `log_strength` (less u)."""
        index = np.rint((log_strength - self.places[0]) / (self.places[1] - self.places[0]))
        return np.asarray(np.clip(index, 0, self.places.size - 1), dtype=np.int64)


def tabulate(thetas: Floats) -> Tables:
    """Tables for a grid of `thetas` (evenly spaced), reaching one unit of log strength beyond it."""
    places = np.arange(thetas[0] - 1.0, thetas[-1] + 1.0, (thetas[1] - thetas[0]) / FINER)
    distance = places[:, None] - thetas
    clean = share_good(distance)
    steep = clean * SKEW * special.expit(distance[..., None] / WIDTHS - SHIFT) / WIDTHS
    shape = (places.size, thetas.size * WIDTHS.size)
    chance = (LAPSE + (1.0 - 2.0 * LAPSE) * clean).reshape(shape)
    steep = ((1.0 - 2.0 * LAPSE) * steep).reshape(shape)
    variance = chance * (1.0 - chance)
    parts = (steep / variance, steep / (1.0 - chance), steep**2 / variance, chance, chance**2)
    single = np.stack(parts, axis=1).astype(np.float32)
    return Tables(thetas, places, chance, np.log1p(-chance), special.logit(chance), single)


def fit(doses: Doses, begin: Population, prior: Population, tables: Tables) -> Fit:
    """Empirical-Bayes fit, starting from `begin`; `prior` holds the beliefs before any data."""
    population, own = begin, np.zeros_like(doses.outcome)
    for _ in range(ITERATIONS):
        found = expect(doses, population, own, tables)
        own = _own_part(found, doses, population)
        population = _maximise(found, doses, population, prior, tables.thetas)
    found = expect(doses, population, own, tables)
    return Fit(found.posterior, population, found.chance)


@dataclass(frozen=True)
class Expectation:
    """Posterior [latents, grid] and, per answer [latents, n], its expectations.

    Slope and Fisher information of the log-likelihood in u; P(good), and its square.
    """

    posterior: Floats
    slope: Floats
    information: Floats
    chance: Floats
    square: Floats


def expect(doses: Doses, population: Population, own: Floats, tables: Tables) -> Expectation:
    """Posterior of every latent given the population; `own` [latents, n] is taken off the prompts' effects."""
    latents, width = doses.known.shape
    log_width = -0.5 * ((np.log(WIDTHS) - population.width) / population.width_spread) ** 2
    prior = (np.log(_theta_prior(population, tables.thetas))[:, None] + log_width).ravel()
    place = tables.nearest(doses.log_strength - population.prompts[doses.prompt] + own)
    ends, weight = np.arange(latents + 1) * width, doses.known / population.dispersion

    def at_places(values: Floats) -> sparse.csr_array:
        return sparse.csr_array((values.ravel(), place.ravel(), ends), shape=(latents, tables.places.size))

    score = at_places(weight) @ tables.bad + at_places(weight * doses.outcome) @ tables.swing + prior
    posterior = np.exp(score - score.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    single = posterior.astype(np.float32)
    parts = np.stack([tables.parts[place[row]] @ single[row] for row in range(latents)]).astype(np.float64)
    slope = weight * (doses.outcome * parts[..., 0] - parts[..., 1])
    return Expectation(posterior, slope, weight * parts[..., 2], parts[..., 3], parts[..., 4])


def alikeness(doses: Doses, fitted: Fit) -> float:
    """Correlation of one latent's answers to one prompt, beyond curve and prompt effect: 0 to 0.9.

    From prompts that came round again, as the mean product of standardised residuals. That much of the dispersion
    is between prompts, and does not add to the error of a mean over prompts that have all been asked.
    """
    binary = fitted.population.dispersion * fitted.chance * (1.0 - fitted.chance)
    residual = doses.known * (doses.outcome - fitted.chance) / np.sqrt(np.maximum(binary, 1e-9))
    latents, size = len(residual), fitted.population.prompts.size
    cell = (np.arange(latents)[:, None] * size + doses.prompt).ravel()

    def total(values: Floats) -> Floats:
        return np.bincount(cell, weights=values.ravel(), minlength=latents * size).astype(np.float64)

    count = total(doses.known)
    products = float((total(residual) ** 2 - total(residual**2)).sum()) / 2.0
    return float(np.clip(products / (float((count * (count - 1.0)).sum()) / 2.0 + ALIKE_WEIGHT), 0.0, 0.9))


def _own_part(found: Expectation, doses: Doses, population: Population) -> Floats:
    """What each answer itself contributes to its prompt's effect (one Newton step), [latents, n].

    Taken out before a latent is fitted: with few latents, effects that had seen its own answers would make it
    look better known than it is (intervals of 8 latents then cover 72%, not 90%).
    """
    stiff = _by_prompt(found.information, doses, population.prompts.size)
    rest = stiff[doses.prompt] - found.information + 1.0 / population.prompt_spread**2
    return np.asarray(np.clip(found.slope / rest, -0.5, 0.5) * doses.known)


def _by_prompt(values: Floats, doses: Doses, count: int) -> Floats:
    return np.bincount(doses.prompt.ravel(), weights=values.ravel(), minlength=count).astype(np.float64)


def _theta_prior(population: Population, thetas: Floats) -> Floats:
    """Prior density of theta: the common normal, and strays spread evenly."""
    height = np.exp(-0.5 * ((thetas - population.centre) / population.spread) ** 2)
    height /= population.spread * np.sqrt(2.0 * np.pi)
    return np.asarray((1.0 - STRAY) * height + STRAY / (thetas[-1] - thetas[0]))


def _maximise(found: Expectation, doses: Doses, now: Population, prior: Population, thetas: Floats) -> Population:
    """The population that fits the posteriors best, with its prior beliefs as pseudo-latents."""
    posterior = found.posterior.reshape(len(found.posterior), thetas.size, -1)
    by_theta = posterior.sum(axis=2)
    member = 1.0 - STRAY / (thetas[-1] - thetas[0]) / _theta_prior(now, thetas)
    weight = (by_theta * member).sum(axis=0)
    ballast = now.spread**2 / CENTRE_SD**2
    centre = (weight @ thetas + ballast * prior.centre) / (weight.sum() + ballast)
    spread = (weight @ (thetas - centre) ** 2 + SPREAD_WEIGHT * SPREAD**2) / (weight.sum() + SPREAD_WEIGHT)
    # A stray's width says nothing about the others'.
    logs, count = np.log(WIDTHS), (posterior * member[None, :, None]).sum(axis=(0, 1))
    ballast = now.width_spread**2 / WIDTH_SD**2
    width = (count @ logs + ballast * prior.width) / (count.sum() + ballast)
    width_spread = (count @ (logs - width) ** 2 + WIDTH_WEIGHT * WIDTH_SPREAD**2) / (count.sum() + WIDTH_WEIGHT)
    size = now.prompts.size
    # Higher u: the prompt stands more, so P(good) rises with u exactly as with theta.
    pull, stiff = (_by_prompt(values, doses, size) for values in (found.slope, found.information))
    precision = 1.0 / now.prompt_spread**2
    step = (pull - precision * now.prompts) / (stiff + precision)
    prompts = now.prompts + np.clip(step, -0.5, 0.5)
    prompts = prompts - prompts.mean()
    leftover = 1.0 / (stiff + precision)
    prompt_spread = np.sqrt((np.sum(prompts**2 + leftover) + PROMPT_WEIGHT * PROMPT_SPREAD**2) / (size + PROMPT_WEIGHT))
    return replace(
        now,
        centre=float(centre),
        spread=float(np.sqrt(spread)),
        width=float(width),
        width_spread=float(np.sqrt(width_spread)),
        prompts=prompts,
        prompt_spread=float(prompt_spread),
        dispersion=_dispersion(found, doses),
    )


def _dispersion(found: Expectation, doses: Doses) -> float:
    """Expected squared residuals over the binary variance; the expectation makes up for the fitted curves."""
    residual = doses.outcome**2 - 2.0 * doses.outcome * found.chance + found.square
    seen = float((doses.known * residual).sum())
    binary = float((doses.known * (found.chance - found.square)).sum())
    return float(np.clip((seen + DISPERSION_WEIGHT) / (binary + DISPERSION_WEIGHT), 0.05, 3.0))
