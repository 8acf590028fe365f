"""Dose-response curves of many latents at once: the model, and its empirical-Bayes fit on a grid.

P(good) = lapse + (1 - 2 lapse) * logistic(-(log strength - theta_k - u_prompt) / w_k)

theta_k and log w_k of the latents come from common normals (theta with a share of strays, so that flat curves do
not widen everyone's prior), prompt effects u from another. Each latent's posterior is computed exactly on a grid
of (theta, w); the common normals and u are found by expectation-maximisation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from countersteer.statistics.groups import Floats, Ints

LAPSE = 0.02
STRAY = 0.1
ITERATIONS = 12
WIDTHS = np.geomspace(0.03, 1.2, 11)
# Prior beliefs about the common normals (in log strength), each worth some latents: value, weight.
CENTRE_SD = 0.7
SPREAD, SPREAD_WEIGHT = 0.4, 4.0
WIDTH, WIDTH_SD, WIDTH_SPREAD, WIDTH_WEIGHT = 0.2, 0.4, 0.4, 4.0
PROMPT_SPREAD, PROMPT_WEIGHT = 0.2, 4.0
BLOCK = 32


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
    """Posterior of each latent over the grid, [latents, thetas, widths], and the population it came from."""

    thetas: Floats
    posterior: Floats
    population: Population


def start(centre: float, prompts: int) -> Population:
    """The population before any data: `centre` is the strength at which half the answers go bad."""
    return Population(np.log(centre), SPREAD, np.log(WIDTH), WIDTH_SPREAD, np.zeros(prompts), PROMPT_SPREAD)


def fit(doses: Doses, begin: Population, prior: Population, thetas: Floats) -> Fit:
    """Empirical-Bayes fit, starting from `begin`; `prior` holds the beliefs before any data."""
    population = begin
    for _ in range(ITERATIONS):
        posterior, slope, curvature = _expect(doses, population, thetas)
        population = _maximise(posterior, slope, curvature, doses, population, prior, thetas)
    posterior, _, _ = _expect(doses, population, thetas)
    return Fit(thetas, posterior, population)


def crossing_offset(share: Floats, population: Population) -> Floats:
    """x(w): log strength - theta at which the mean of P(good) over prompts is `share` [n]; [n, widths].

    Solved by bisection on the mean over prompts, whose effects shift the curve. `share` is kept inside what
    the lapse leaves reachable.
    """
    clean = np.clip((share - LAPSE) / (1.0 - 2.0 * LAPSE), 0.005, 0.995)
    offsets = np.empty((share.size, WIDTHS.size))
    for column, width in enumerate(WIDTHS):
        reach = np.abs(population.prompts).max() + 8.0 * width
        x = np.linspace(-reach, reach, 600)
        curve = special.expit(-(x[:, None] - population.prompts) / width).mean(axis=1)
        offsets[:, column] = np.interp(-clean, -curve, x)
    return offsets


def _expect(doses: Doses, population: Population, thetas: Floats) -> tuple[Floats, Floats, Floats]:
    """Posterior over the grid; expected gradient and curvature of the log-likelihood in each answer's u."""
    latents = doses.known.shape[0]
    normal = -0.5 * ((thetas - population.centre) / population.spread) ** 2
    height = np.exp(normal) / (population.spread * np.sqrt(2.0 * np.pi))
    log_theta = np.log((1.0 - STRAY) * height + STRAY / (thetas[-1] - thetas[0]))
    log_width = -0.5 * ((np.log(WIDTHS) - population.width) / population.width_spread) ** 2
    prior = log_theta[:, None] + log_width[None, :]
    posterior = np.empty((latents, thetas.size, WIDTHS.size))
    slope, curvature = np.zeros_like(doses.good), np.zeros_like(doses.good)
    for first in range(0, latents, BLOCK):
        rows = slice(first, first + BLOCK)
        y = doses.log_strength[rows] - population.prompts[doses.prompt[rows]]
        clean = special.expit((thetas[:, None] - y[:, :, None, None]) / WIDTHS)
        chance = LAPSE + (1.0 - 2.0 * LAPSE) * clean
        good = doses.good[rows][:, :, None, None]
        chance = np.where(good > 0.5, chance, 1.0 - chance)
        known = doses.known[rows]
        score = np.einsum("kn,kntw->ktw", known, np.log(chance)) + prior
        score = np.exp(score - score.max(axis=(1, 2), keepdims=True))
        post = score / score.sum(axis=(1, 2), keepdims=True)
        posterior[rows] = post
        rise = (1.0 - 2.0 * LAPSE) * clean * (1.0 - clean) / WIDTHS / chance
        slope[rows] = known * (2.0 * doses.good[rows] - 1.0) * np.einsum("kntw,ktw->kn", rise, post)
        curvature[rows] = known * np.einsum("kntw,ktw->kn", rise**2, post)
    return posterior, slope, curvature


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
    height = np.exp(-0.5 * ((thetas - now.centre) / now.spread) ** 2) / (now.spread * np.sqrt(2.0 * np.pi))
    member = (1.0 - STRAY) * height / ((1.0 - STRAY) * height + STRAY / (thetas[-1] - thetas[0]))
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
