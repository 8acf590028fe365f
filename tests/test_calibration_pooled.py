"""Pooled calibration: its curves against brute force, its accuracy and intervals against simulated truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, special

from countersteer.core.errors import InputError
from countersteer.statistics.calibration import BisectionCalibrator, PooledCalibrator, curves, design, levels
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
    for outcome in (0.0, 1.0, 0.3):
        value = tables.bad + outcome * tables.swing
        # A higher effect of the prompt acts as a lower log strength.
        difference = (value[:-2] - value[2:]) / (2 * (tables.places[1] - tables.places[0]))
        rise = outcome * tables.parts[:, 0] - tables.parts[:, 1]
        assert np.abs(difference - rise[1:-1]).max() < 0.02


def test_tabulated_information_is_the_expected_square_of_the_slope() -> None:
    tables = curves.tabulate(np.linspace(-0.2, 0.2, 9))
    good, bad = tables.parts[:, 0] - tables.parts[:, 1], -tables.parts[:, 1]
    expected = tables.chance * good**2 + (1 - tables.chance) * bad**2
    assert tables.parts[:, 2] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_posterior_of_one_latent_is_prior_times_likelihood_to_the_dispersion() -> None:
    """The third answer is a graded one, between bad and good; the fourth is missing."""
    asked, outcome = np.array([[-0.8, -0.3, 0.1, 0.2]]), np.array([[1.0, 1.0, 0.4, 1.0]])
    doses = curves.Doses(asked, np.arange(4)[None, :], outcome, np.array([[1.0, 1.0, 1.0, 0.0]]))
    begin = replace(curves.start(0.8, 4), dispersion=0.6)
    found = curves.expect(doses, begin, np.zeros((1, 4)), curves.tabulate(THETAS))
    posterior = found.posterior.reshape(THETAS.size, curves.WIDTHS.size)
    expected, chance = np.empty((2, THETAS.size, curves.WIDTHS.size))
    stray = curves.STRAY / (THETAS[-1] - THETAS[0])
    for t, theta in enumerate(THETAS):
        z = (theta - begin.centre) / begin.spread
        by_theta = (1 - curves.STRAY) * np.exp(-(z**2) / 2) / (begin.spread * np.sqrt(2 * np.pi)) + stray
        for w, (width, skew) in enumerate(zip(curves.WIDTHS, curves.SKEW, strict=True)):
            value = by_theta * np.exp(-0.5 * ((np.log(width) - begin.width) / begin.width_spread) ** 2)
            for x, y in zip(asked[0][:3], outcome[0][:3], strict=True):
                p = good_by_hand(x, theta, width, skew)
                value *= (p**y * (1 - p) ** (1 - y)) ** (1 / 0.6)
            expected[t, w], chance[t, w] = value, good_by_hand(-0.3, theta, width, skew)
    expected /= expected.sum()
    # The table rounds log strength to a quarter of the grid's step.
    assert np.abs(posterior - expected).max() < 0.06 * posterior.max()
    assert posterior.sum(axis=1) @ THETAS == pytest.approx(expected.sum(axis=1) @ THETAS, abs=0.01)
    assert found.chance[0, 1] == pytest.approx((expected * chance).sum(), abs=0.01)
    assert found.square[0, 1] == pytest.approx((expected * chance**2).sum(), abs=0.01)


def test_crossing_averages_over_prompts() -> None:
    effects = np.array([-0.5, -0.1, 0.2, 0.4])
    population = curves.Population(0.0, 0.4, np.log(0.2), 0.4, effects, 0.3, 1.0)
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
    assert np.mean((found - true) ** 2) < 0.8 * np.mean((plain - true) ** 2)
    assert found[member.sum(axis=1) == 0] == pytest.approx(scores[member > 0].mean(), abs=0.02)


def test_a_mean_outcome_of_the_wanted_share_is_a_mean_score_of_the_target() -> None:
    rng = np.random.default_rng(1)
    scores = rng.choice([0.85, 0.2], (40, 12)) + rng.normal(0, 0.05, (40, 12))
    found = levels.outcomes(scores, np.ones((40, 12)), rng.random((40, 12)), 0.3)
    # Outcomes are linear in the scores, latent by latent: read the line off two of them, and go to the share.
    rise = (scores[:, 1] - scores[:, 0]) / (found.outcome[:, 1] - found.outcome[:, 0])
    assert scores[:, 0] + (found.share - found.outcome[:, 0]) * rise == pytest.approx(np.full(40, 0.3))
    assert found.outcome[scores > 0.5].mean() == pytest.approx(1.0, abs=0.03)
    assert found.outcome[scores <= 0.5].mean() == pytest.approx(0.0, abs=0.03)


def test_graded_levels_are_those_of_the_ends_of_the_curve() -> None:
    rng = np.random.default_rng(2)
    chance = rng.uniform(0.05, 0.95, (60, 20))
    good = rng.random((60, 20)) < chance
    scores = np.where(good, 0.9 - 0.25 * (1 - chance), 0.05 + 0.3 * chance) + rng.normal(0, 0.05, (60, 20))
    for kind, slope in ((good, 0.25), (~good, 0.3)):
        assert levels.slope(scores, kind.astype(float), chance) == pytest.approx(slope, abs=0.03)
    found = levels.outcomes(scores, np.ones((60, 20)), chance, 0.3)
    assert found.share.mean() == pytest.approx((0.3 - 0.05) / (0.9 - 0.05), abs=0.02)
    naive = levels.outcomes(scores, np.ones((60, 20)), None, 0.3)
    assert naive.share.mean() < found.share.mean() - 0.03, "the test must be able to fail"


def test_alikeness_is_the_correlation_of_answers_to_one_prompt() -> None:
    """Residuals of which 40% of the variance belongs to (latent, prompt), two answers to each."""
    rng = np.random.default_rng(5)
    chance, prompt = np.full((200, 20), 0.3), np.tile(np.arange(10), (200, 2))
    between, within = rng.normal(0, 0.4**0.5, (200, 10)), rng.normal(0, 0.6**0.5, (200, 20))
    residual = np.concatenate([between, between], axis=1) + within
    population = replace(curves.start(0.8, 10), dispersion=0.5)
    fit = curves.Fit(np.ones((200, 1)), population, chance)
    for residuals, share in ((residual, 0.4), (rng.normal(size=(200, 20)), 0.0)):
        outcome = chance + residuals * (0.5 * 0.3 * 0.7) ** 0.5
        doses = curves.Doses(np.zeros((200, 20)), prompt, outcome, np.ones((200, 20)))
        assert curves.alikeness(doses, fit) == pytest.approx(share, abs=0.05)
    once = curves.Doses(np.zeros((200, 10)), prompt[:, :10], outcome[:, :10], np.ones((200, 10)))
    assert curves.alikeness(once, replace(fit, chance=chance[:, :10])) == 0.0, "no prompt came twice: nothing is known"


def test_strengths_leave_the_least_expected_variance() -> None:
    """Against a loop over places and outcomes, for a posterior over two thetas and one form."""
    tables = curves.tabulate(THETAS)
    rng = np.random.default_rng(0)
    grid = THETAS.size * curves.WIDTHS.size
    posterior = rng.dirichlet(np.full(grid, 0.02), 2)
    crossings = np.repeat(THETAS, curves.WIDTHS.size)[None, :] + rng.normal(0, 0.1, (2, grid))
    bounds = (-2.0, 1.0)
    found = design.strengths(posterior, crossings, tables, counts=np.array([1, 2]), bounds=bounds, dispersion=1.0)
    assert [len(row) for row in found] == [1, 2]
    for latent in range(2):
        left = {}
        for place, chance in zip(tables.places, tables.chance, strict=True):
            if bounds[0] <= place <= bounds[1]:
                variance = 0.0
                for likelihood in (chance, 1.0 - chance):
                    weight = posterior[latent] * likelihood
                    share, after = weight.sum(), weight / weight.sum()
                    variance += share * (after @ crossings[latent] ** 2 - (after @ crossings[latent]) ** 2)
                left[place] = variance
        before = posterior[latent] @ crossings[latent] ** 2 - (posterior[latent] @ crossings[latent]) ** 2
        saved = before - min(left.values())
        # Every third place is tried: nearly the best of all of them.
        assert before - left[found[latent][0]] > 0.95 * saved > 0


def test_generations_go_where_they_save_most() -> None:
    variance = np.array([0.09, 0.01, 0.01, 0.09])
    given = design.shares(variance, np.full(4, 10.0), np.array([1.0, 1.0, 1.0, 0.1]), 4)
    assert given.sum() == 16 and given.max() <= 8
    assert given[0] == 8 and given[1] == given[2] == 4 and given[3] == 0
    # Equal latents, equal shares; those with fewer answers are no better known for it.
    assert design.shares(np.full(3, 0.02), np.full(3, 9.0), np.ones(3), 5).tolist() == [5, 5, 5]


def errors(found: dict, world: SimulatedWorld) -> dict:
    """Log error by latent that crosses the target and was placed; `found`: estimates or strengths."""
    truths = {latent: world.truth(latent, 0.3) for latent in world.latents}
    strengths = {k: getattr(value, "strength", value) for k, value in found.items()}
    return {k: np.log(strengths[k] / t) for k, t in truths.items() if t and strengths[k]}


def test_pooled_beats_twice_the_bisection_when_the_prior_is_off_centre() -> None:
    """25 generations per latent against 50, true centre at half the expected one, a tenth of curves odd."""
    world = SimulatedWorld(count=80, middle=-1.1, missing=0.02, seed=11)
    pooled = PooledCalibrator(latents=world.latents, prompts=world.prompts, seed=1)
    found = run(pooled, world, np.random.default_rng(1))
    other = BisectionCalibrator(latents=world.latents, prompts=world.prompts, seed=1)
    run(other, world, np.random.default_rng(2))
    ours, theirs = errors(found, world), errors(other.medians(), world)
    assert pooled._population.dispersion > 0.9
    assert len(pooled.queries) == 80 * 25 and len(other.queries) == 80 * 50
    shared = sorted(ours)
    assert len(shared) >= 68
    mine, bisected = np.array([ours[k] for k in shared]), np.array([theirs[k] for k in shared])
    draws = np.random.default_rng(3).integers(0, len(shared), (2000, len(shared)))
    ratios = np.sqrt((mine[draws] ** 2).mean(axis=1) / (bisected[draws] ** 2).mean(axis=1))
    assert np.quantile(ratios, 0.975) < 1.0
    covered = np.mean([found[k].low <= world.truth(k, 0.3) <= found[k].high for k in shared])
    assert 0.82 <= covered <= 0.99


def test_pooled_beats_twice_the_bisection_on_graded_scores() -> None:
    """Steep curves near the expected centre, scores of every grade: the bisection's best case."""
    world = SimulatedWorld(count=60, odd=0.0, middle=-0.3, spread=0.2, width=0.15, graded=0.6, seed=12)
    found = run(PooledCalibrator(latents=world.latents, prompts=world.prompts, seed=1), world, np.random.default_rng(1))
    rival = BisectionCalibrator(latents=world.latents, prompts=world.prompts, seed=1)
    run(rival, world, np.random.default_rng(2))
    ours, theirs = (np.array(list(errors(each, world).values())) for each in (found, rival.medians()))
    assert np.sqrt(np.mean(ours**2)) < np.sqrt(np.mean(theirs**2))
    assert abs(ours.mean()) < 0.03
    covered = np.mean([found[k].low <= world.truth(k, 0.3) <= found[k].high for k in world.latents])
    assert 0.8 <= covered <= 0.99


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
