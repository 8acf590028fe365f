"""Dose-response curves of many latents at once: the model, and its empirical-Bayes fit on a grid.

P(good) = lapse + (1 - 2 lapse) * logistic(-(log strength - theta_k - u_prompt) / w_k + shift)^a_k

a_k skews the curve (Richards' curve; a = 1 is the logistic) and the shift keeps theta where half are good.
theta_k and log w_k of the latents come from common normals (theta with a share of strays, so that flat curves do
not widen everyone's prior), prompt effects u from another. Each latent's posterior is computed exactly on a grid
of (theta, form); the common normals and u are found by expectation-maximisation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse, special

from countersteer.statistics.groups import Floats, Ints

LAPSE = 0.02
STRAY = 0.1
ITERATIONS = 12
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


@dataclass(frozen=True)
class Doses:
    """Answered queries, padded to the longest latent: all [latents, n]; `known` marks the real ones."""

    log_strength: Floats
    prompt: Ints
    good: Floats
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


@dataclass(frozen=True)
class Fit:
    """Posterior of each latent over the grid, [latents, thetas, forms], and the population it came from."""

    thetas: Floats
    posterior: Floats
    population: Population


def start(centre: float, prompts: int) -> Population:
    """The population before any data: `centre` is the strength at which half the answers go bad."""
    return Population(np.log(centre), SPREAD, np.log(WIDTH), WIDTH_SPREAD, np.zeros(prompts), PROMPT_SPREAD)


def fit(doses: Doses, begin: Population, prior: Population, thetas: Floats) -> Fit:
    """Empirical-Bayes fit, starting from `begin`; `prior` holds the beliefs before any data."""
    population, tables = begin, tabulate(thetas)
    own = np.zeros_like(doses.good)
    for _ in range(ITERATIONS):
        posterior, slope, curvature = _expect(doses, population, own, thetas, tables)
        own = _own_part(slope, curvature, doses, population)
        population = _maximise(posterior, slope, curvature, doses, population, prior, thetas)
    posterior, _, _ = _expect(doses, population, own, thetas, tables)
    return Fit(thetas, posterior, population)


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
    """Log-likelihood of one answer over the grid, and its slope in u, by where it was asked: [2 places, grid].

    Row 2 * place + good; places are `FINER` times as dense as thetas. The likelihood depends on log strength
    - theta - u alone, so a table over places replaces hundreds of evaluations per answer.
    """

    first: float
    step: float
    places: int
    log_chance: Floats
    rise: Floats

    def row(self, log_strength: Floats, good: Floats) -> Ints:
        """Rows of answers asked at `log_strength` (less u)."""
        place = np.rint((log_strength - self.first) / self.step)
        return np.asarray(2 * np.clip(place, 0, self.places - 1) + (good > 0.5), dtype=np.int64)


def tabulate(thetas: Floats) -> Tables:
    """Tables for a grid of `thetas` (evenly spaced), reaching one unit of log strength beyond it."""
    step = float(thetas[1] - thetas[0]) / FINER
    places = np.arange(thetas[0] - 1.0, thetas[-1] + 1.0, step)
    clean = share_good(places[:, None] - thetas)
    steep = clean * SKEW * special.expit((places[:, None] - thetas)[..., None] / WIDTHS - SHIFT) / WIDTHS
    chance = LAPSE + (1.0 - 2.0 * LAPSE) * clean
    steep = (1.0 - 2.0 * LAPSE) * steep
    shape = (2 * places.size, thetas.size * WIDTHS.size)
    log_chance = np.stack([np.log(1.0 - chance), np.log(chance)], axis=1).reshape(shape)
    rise = np.stack([-steep / (1.0 - chance), steep / chance], axis=1).reshape(shape)
    return Tables(float(places[0]), step, places.size, log_chance, rise)


def _expect(
    doses: Doses, population: Population, own: Floats, thetas: Floats, tables: Tables
) -> tuple[Floats, Floats, Floats]:
    """Posterior over the grid; expected gradient and curvature of the log-likelihood in each answer's u."""
    latents, width = doses.known.shape
    log_width = -0.5 * ((np.log(WIDTHS) - population.width) / population.width_spread) ** 2
    prior = (np.log(_theta_prior(population, thetas))[:, None] + log_width).ravel()
    effects = population.prompts[doses.prompt] - own
    rows = tables.row(doses.log_strength - effects, doses.good)
    place = (doses.known.ravel(), rows.ravel(), np.arange(latents + 1) * width)
    score = sparse.csr_array(place, shape=(latents, tables.log_chance.shape[0])) @ tables.log_chance + prior
    posterior = np.exp(score - score.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    slope, curvature = np.zeros_like(doses.good), np.zeros_like(doses.good)
    for latent in range(latents):
        rise = tables.rise[rows[latent]]
        slope[latent] = rise @ posterior[latent]
        curvature[latent] = np.square(rise, out=rise) @ posterior[latent]
    return posterior.reshape(latents, thetas.size, -1), slope * doses.known, curvature * doses.known


def _own_part(slope: Floats, curvature: Floats, doses: Doses, population: Population) -> Floats:
    """What each answer itself contributes to its prompt's effect (one Newton step), [latents, n].

    Taken out before a latent is fitted: with few latents, effects that had seen its own answers would make it
    look better known than it is (intervals of 8 latents then cover 72%, not 90%).
    """
    size = population.prompts.size
    stiff = np.bincount(doses.prompt.ravel(), weights=curvature.ravel(), minlength=size)
    rest = stiff[doses.prompt] - curvature + 1.0 / population.prompt_spread**2
    return np.asarray(np.clip(slope / rest, -0.5, 0.5) * doses.known)


def _theta_prior(population: Population, thetas: Floats) -> Floats:
    """Prior density of theta: the common normal, and strays spread evenly."""
    height = np.exp(-0.5 * ((thetas - population.centre) / population.spread) ** 2)
    height /= population.spread * np.sqrt(2.0 * np.pi)
    return np.asarray((1.0 - STRAY) * height + STRAY / (thetas[-1] - thetas[0]))


def _maximise(
    posterior: Floats,
    slope: Floats,
    curvature: Floats,
    doses: Doses,
    now: Population,
    prior: Population,
    thetas: Floats,
) -> Population:
    """The population that fits the posteriors best, with its prior beliefs as pseudo-latents."""
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
    pull = np.bincount(doses.prompt.ravel(), weights=slope.ravel(), minlength=size)
    # Higher u: the prompt stands more, so P(good) rises with u exactly as with theta.
    stiff = np.bincount(doses.prompt.ravel(), weights=curvature.ravel(), minlength=size)
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
    )
