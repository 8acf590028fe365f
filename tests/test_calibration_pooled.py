"""Pooled calibration: its curves against brute force, its accuracy and intervals against simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, special

from countersteer.core.errors import InputError
from countersteer.statistics.calibration import BisectionCalibrator, PooledCalibrator, curves, levels
from countersteer.statistics.calibration.simulation import SimulatedWorld, TableWorld, run

THETAS = np.linspace(-3.0, 1.5, 60)


def good_by_hand(log_strength: float, theta: float, width: float, skew: float, effect: float = 0.0) -> float:
    """The documented curve, one number at a time, with its lapses."""
    shift = special.logit(0.5 ** (1 / skew))
    clean = special.expit(-(log_strength - theta - effect) / width + shift) ** skew
    return curves.LAPSE + (1 - 2 * curves.LAPSE) * clean


def test_theta_is_where_half_the_answers_are_good_whatever_the_skew() -> None:
    assert curves.share_good(np.array([0.0]))[0] == pytest.approx(np.full(curves.WIDTHS.size, 0.5))


def test_tabulated_slope_is_the_derivative_of_the_tabulated_likelihood() -> None:
    tables = curves.tabulate(np.linspace(-0.2, 0.2, 41))  # fine enough for differences
    shape = (tables.places, 2, 41, curves.WIDTHS.size)
    chance, rise = tables.log_chance.reshape(shape), tables.rise.reshape(shape)
    # A higher effect of the prompt acts as a lower log strength.
    difference = (chance[:-2] - chance[2:]) / (2 * tables.step)
    assert np.abs(difference - rise[1:-1]).max() < 0.02


def test_posterior_of_one_latent_is_prior_times_likelihood() -> None:
    asked, good = np.array([[-0.8, -0.3, 0.1, 0.2]]), np.array([[1.0, 1.0, 0.0, 1.0]])
    doses = curves.Doses(asked, np.arange(4)[None, :], good, np.array([[1.0, 1.0, 1.0, 0.0]]))
    begin = curves.start(0.8, 4)
    posterior, _, _ = curves._expect(doses, begin, np.zeros((1, 4)), THETAS, curves.tabulate(THETAS))
    expected = np.empty((THETAS.size, curves.WIDTHS.size))
    stray = curves.STRAY / (THETAS[-1] - THETAS[0])
    for t, theta in enumerate(THETAS):
        z = (theta - begin.centre) / begin.spread
        by_theta = (1 - curves.STRAY) * np.exp(-(z**2) / 2) / (begin.spread * np.sqrt(2 * np.pi)) + stray
        for w, (width, skew) in enumerate(zip(curves.WIDTHS, curves.SKEW, strict=True)):
            value = by_theta * np.exp(-0.5 * ((np.log(width) - begin.width) / begin.width_spread) ** 2)
            for x, y in zip(asked[0][:3], good[0][:3], strict=True):  # the fourth is missing
                p = good_by_hand(x, theta, width, skew)
                value *= p if y else 1 - p
            expected[t, w] = value
    # The table rounds log strength to a quarter of the grid's step.
    assert np.abs(posterior[0] - expected / expected.sum()).max() < 0.06 * posterior.max()
    assert (posterior[0].sum(axis=1) @ THETAS) == pytest.approx(
        (expected.sum(axis=1) @ THETAS) / expected.sum(), abs=0.01
    )


def test_crossing_averages_over_prompts() -> None:
    effects = np.array([-0.5, -0.1, 0.2, 0.4])
    population = curves.Population(0.0, 0.4, np.log(0.2), 0.4, effects, 0.3)
    found = curves.crossing_offset(np.array([0.15, 0.4]), population)
    for row, share in enumerate((0.15, 0.4)):
        for form in (0, 4, 13, 26):
            width, skew = curves.WIDTHS[form], curves.SKEW[form]

            def gap(x: float, width: float = width, skew: float = skew, share: float = share) -> float:
                return float(np.mean([good_by_hand(x, 0.0, width, skew, u) for u in effects]) - share)

            assert found[row, form] == pytest.approx(optimize.brentq(gap, -8, 8), abs=0.005)


def test_levels_shrink_to_the_common_mean_by_how_little_is_known() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0.2, 0.05, 300)
    scores = true[:, None] + rng.normal(0, 0.1, (300, 12))
    member = (np.arange(12)[None, :] < rng.integers(0, 13, 300)[:, None]).astype(float)
    found = levels.shrunk(scores, member, 0.15)
    plain = np.where(member.sum(axis=1) > 0, (scores * member).sum(axis=1) / np.maximum(member.sum(axis=1), 1), 0.15)
    assert np.mean((found.mean - true) ** 2) < 0.8 * np.mean((plain - true) ** 2)
    assert found.mean[member.sum(axis=1) == 0] == pytest.approx(scores[member > 0].mean(), abs=0.02)
    inside = np.abs(found.mean - true) < 1.645 * np.sqrt(found.variance)
    assert 0.84 <= inside.mean() <= 0.95


def test_target_share_solves_for_the_mean_score() -> None:
    good, bad = (levels.Levels(np.array([level]), np.array([0.001])) for level in (0.85, 0.2))
    share, variance = levels.target_share(0.3, good, bad)
    assert share[0] * 0.85 + (1 - share[0]) * 0.2 == pytest.approx(0.3)
    draws = np.random.default_rng(0).normal([0.85, 0.2], 0.001**0.5, (200_000, 2))
    assert variance[0] == pytest.approx(np.var((0.3 - draws[:, 1]) / (draws[:, 0] - draws[:, 1])), rel=0.05)


def errors(found: dict, world: SimulatedWorld) -> dict:
    """Log error by latent that crosses the target and was placed."""
    truths = {latent: world.truth(latent, 0.3) for latent in world.latents}
    return {k: np.log(found[k].strength / t) for k, t in truths.items() if t and found[k].strength}


def test_pooled_beats_twice_the_bisection_when_the_prior_is_off_centre() -> None:
    """25 generations per latent against 50, true centre at half the expected one, a tenth of curves odd."""
    world = SimulatedWorld(count=80, middle=-1.1, missing=0.02, seed=11)
    pooled = PooledCalibrator(latents=world.latents, prompts=world.prompts, seed=1)
    found = run(pooled, world, np.random.default_rng(1))
    other = BisectionCalibrator(latents=world.latents, prompts=world.prompts, seed=1)
    rival = run(other, world, np.random.default_rng(2))
    ours, theirs = errors(found, world), errors(rival, world)
    assert len(pooled.queries) == 80 * 25 and len(other.queries) == 80 * 50
    shared = sorted(ours)
    assert len(shared) >= 68
    mine, bisected = np.array([ours[k] for k in shared]), np.array([theirs[k] for k in shared])
    draws = np.random.default_rng(3).integers(0, len(shared), (2000, len(shared)))
    ratios = np.sqrt((mine[draws] ** 2).mean(axis=1) / (bisected[draws] ** 2).mean(axis=1))
    assert np.quantile(ratios, 0.975) < 1.0
    covered = np.mean([found[k].low <= world.truth(k, 0.3) <= found[k].high for k in shared])
    assert 0.82 <= covered <= 0.99


def test_few_latents_do_not_make_intervals_overconfident() -> None:
    """Eight latents at a time, 8 times: prompt effects must not be fitted to a latent's own answers."""
    inside = []
    for seed in range(8):
        world = SimulatedWorld(count=8, seed=seed)
        found = run(
            PooledCalibrator(latents=world.latents, prompts=world.prompts, seed=seed),
            world,
            np.random.default_rng(seed),
        )
        inside += [found[k].low <= world.truth(k, 0.3) <= found[k].high for k in errors(found, world)]
    assert np.mean(inside) >= 0.85


def table_of(world: SimulatedWorld, draws: int) -> dict[str, list]:
    rng = np.random.default_rng(0)
    rows = [
        (latent, float(strength), prompt, world.score(latent, prompt, float(strength), rng))
        for latent in world.latents
        for strength in np.geomspace(0.05, 3.0, 24)
        for prompt in world.prompts
        for _ in range(draws)
    ]
    return {name: [row[i] for row in rows] for i, name in enumerate(("latent", "strength", "prompt", "score"))}


def test_a_table_of_measured_curves_is_a_world() -> None:
    world = SimulatedWorld(count=6, odd=0.0, prompt_count=30, seed=2)
    table = TableWorld(table_of(world, draws=4))
    for latent in world.latents:
        assert table.truth(latent, 0.3) == pytest.approx(world.truth(latent, 0.3), rel=0.12)
    found = run(PooledCalibrator(latents=table.latents, prompts=table.prompts, seed=0), table, np.random.default_rng(0))
    placed = [k for k in found if found[k].strength is not None]
    assert len(placed) >= 5  # one latent's bad answers score 0.28: whether its mean ever falls to 0.3 is moot
    assert np.sqrt(np.mean([np.log(found[k].strength / table.truth(k, 0.3)) ** 2 for k in placed])) < 0.3


def test_a_table_without_a_column_is_refused() -> None:
    with pytest.raises(InputError, match="strength"):
        TableWorld({"latent": [1], "prompt": [1], "score": [0.5]})
