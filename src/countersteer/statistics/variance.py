"""Variances of a ratio of sums under clustering: one-way (latents) and two-way (latents crossed with prompts).

One-way is the linearised, leverage-corrected (CR2-style) variance of a mean whose cluster sizes may differ; two-way
is the sum of the two one-way variances less that of their intersection (Cameron, Gelbach & Miller, Journal of
Business & Economic Statistics 29 (2011) 238). The design effect is that variance over the binomial one.
"""

from __future__ import annotations

import numpy as np

from countersteer.statistics.groups import Floats, Ints, recode, sums

# With few event-carrying clusters the design effect is badly estimated, and biased low. It is then kept above
# a value shrunk towards that of this within-cluster correlation, which counts as this many such clusters.
ASSUMED_CORRELATION = 0.1
ASSUMED_CLUSTERS = 10.0


def cluster_variance(values: Floats, group: Ints) -> tuple[float, float]:
    """Variance of mean(values) [n] clustered by `group` [n], and its degrees of freedom.

    Each cluster's residual sum is divided by sqrt(1 - its share of the values). Degrees of freedom: the
    effective number of clusters, n^2 / sum of squared sizes, less one (at least 1). One cluster alone has no
    variance: (nan, 1).
    """
    group, count = recode(group)
    if count < 2:
        return float("nan"), 1.0
    sizes = sums(np.ones_like(values), group, count=count)
    total = float(sizes.sum())
    residuals = sums(values - values.mean(), group, count=count) / np.sqrt(1.0 - sizes / total)
    freedom = max(total**2 / float(sizes @ sizes) - 1.0, 1.0)
    return float(residuals @ residuals) / total**2, freedom


def crossed_variance(values: Floats, latents: Ints, prompts: Ints) -> tuple[float, float]:
    """Two-way variance of mean(values) for new latents *and* new prompts, and its degrees of freedom.

    V = V(latents) + V(prompts) - V(cells), never below either one-way variance; degrees of freedom: the
    smaller of the two ways' own.
    """
    by_latent, latent_freedom = cluster_variance(values, latents)
    by_prompt, prompt_freedom = cluster_variance(values, prompts)
    if np.isnan(by_latent) or np.isnan(by_prompt):
        return float("nan"), 1.0
    cells = latents * (int(prompts.max()) + 1) + prompts
    by_cell, _ = cluster_variance(values, cells)
    both = by_latent + by_prompt - (0.0 if np.isnan(by_cell) else by_cell)
    return max(both, by_latent, by_prompt), min(latent_freedom, prompt_freedom)


def mean_cluster_size(group: Ints) -> float:
    """Size of the cluster of a randomly chosen value: sum of squared sizes / n."""
    sizes = np.bincount(group).astype(np.float64)
    return float(sizes @ sizes / sizes.sum())


def effect(events: Floats, group: Ints, variance: float, *, at_zero: float = 1.0) -> float:
    """Design effect (>= 1) of 0/1 `events` [n] whose mean has the given clustered variance.

    `at_zero` is used where there is no variance to estimate from (no event, or nothing but events). Where few
    clusters carry events the estimate is held above its shrunk value (see ASSUMED_CORRELATION).
    """
    share = float(events.mean())
    assumed = 1.0 + ASSUMED_CORRELATION * (mean_cluster_size(group) - 1.0)
    binomial = share * (1.0 - share) / events.size
    if binomial == 0.0 or np.isnan(variance):
        return max(at_zero, assumed, 1.0)
    rare = events if share <= 0.5 else 1.0 - events
    carrying = float(np.unique(group[rare == 1]).size)
    estimate = max(variance / binomial, 1.0)
    shrunk = (carrying * estimate + ASSUMED_CLUSTERS * assumed) / (carrying + ASSUMED_CLUSTERS)
    return max(estimate, shrunk)
