"""Successive halving against the full grid on synthetic frontiers, and its rules on hand-made ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from countersteer.core.errors import InputError
from countersteer.defence import halving

FLOOR = 75.0


def world(rng: np.random.Generator, *, layers: int, strengths: int, items: int) -> np.ndarray:
    """Scores [points, items, 2] of a frontier as sweeps have it: trait rises with strength, coherence falls late.

    Scenarios have an effect of their own, shared by all points, beside each answer's noise.
    """
    best = rng.uniform(0, layers - 1)
    width, knee, steep = rng.uniform(0.8, 2.0), rng.uniform(0.5, 0.9), rng.uniform(1.5, 4.0)
    points = []
    for layer in range(layers):
        reach = np.exp(-0.5 * ((layer - best) / width) ** 2)
        for s in np.linspace(0.1, 1.0, strengths):
            trait = 20 + 60 / (1 + np.exp(-10 * (s * reach - 0.45)))
            coherence = 88 - 60 * max(0.0, s * (0.6 + 0.4 * reach) - knee) * steep
            points.append((trait, coherence))
    means = np.array(points)[:, None, :]
    shared = rng.normal(0, [8.0, 5.0], (1, items, 2))
    return np.clip(means + shared + rng.normal(0, [14.0, 10.0], (len(points), items, 2)), 0, 100)


def traded(rng: np.random.Generator, *, layers: int, strengths: int, items: int) -> np.ndarray:
    """Scores of a frontier on which trait costs coherence everywhere: the highest traits are all below the floor."""
    best, width, knee = rng.uniform(0, layers - 1), rng.uniform(0.8, 2.0), rng.uniform(0.25, 0.6)
    reach = np.exp(-0.5 * ((np.arange(layers) - best) / width) ** 2)[:, None]
    s = np.linspace(0.1, 1.0, strengths)[None, :]
    means = np.stack([20 + 70 * s * reach, 90 - 45 * np.maximum(0.0, s * (0.6 + 0.4 * reach) - knee)], -1)
    shared = rng.normal(0, [8.0, 5.0], (1, items, 2))
    scores = means.reshape(-1, 1, 2) + shared + rng.normal(0, [14.0, 10.0], (layers * strengths, items, 2))
    return np.clip(scores, 0, 100)


def evaluator(scores: np.ndarray, count: list[int]) -> halving.Evaluate:
    def evaluate(points: Sequence[int], start: int, stop: int) -> np.ndarray:
        count[0] += len(points) * (stop - start)
        return scores[list(points), start:stop]

    return evaluate


def test_the_full_grids_choice_is_found_within_its_interval_at_under_a_third_of_the_cost() -> None:
    rng = np.random.default_rng(7)
    close, lost, costs = 0, [], []
    runs = 200
    for _ in range(runs):
        layers, items = int(rng.integers(4, 10)), int(rng.choice([24, 32, 40, 100]))
        scores = world(rng, layers=layers, strengths=7, items=items)
        count = [0]
        found = halving.search(len(scores), items, evaluator(scores, count), halving.Rule(FLOOR))
        whole = halving.full(len(scores), items, evaluator(scores, [0]), halving.Rule(FLOOR))
        assert found.cost == count[0] / (len(scores) * items)
        costs.append(found.cost)
        if whole.chosen is None:
            close += found.chosen is None
            continue
        assert found.chosen is not None, "a point that keeps the floor exists and none was found"
        mine, best = scores[found.chosen, :, 0], scores[whole.chosen, :, 0]
        lost.append(best.mean() - mine.mean())
        half = 1.96 * best.std(ddof=1) / np.sqrt(items)
        close += mine.mean() >= best.mean() - half
    assert max(costs) <= 0.30
    assert close >= 0.97 * runs
    assert np.mean(lost) < 1.0, "on average less than one point of trait is lost"


@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_a_point_that_keeps_the_floor_is_always_found_where_trait_costs_coherence(margin: float) -> None:
    rng, lost, costs, rule = np.random.default_rng(3), [], [], halving.Rule(FLOOR, margin)
    for _ in range(100):
        items = int(rng.choice([24, 32, 40, 72, 100]))
        scores = traded(rng, layers=int(rng.integers(4, 10)), strengths=7, items=items)
        found, whole = (f(len(scores), items, evaluator(scores, [0]), rule) for f in (halving.search, halving.full))
        costs.append(found.cost)
        assert (found.chosen is None) == (whole.chosen is None)
        if found.chosen is not None and whole.chosen is not None:
            lost.append(float(scores[whole.chosen, :, 0].mean() - scores[found.chosen, :, 0].mean()))
    assert np.mean(lost) < 1.0 and np.median(costs) <= 0.3


def test_the_choice_is_the_highest_trait_above_the_floor_and_nothing_else() -> None:
    scores = np.full((4, 6, 2), 0.0)
    scores[:, :, 0] = np.array([50, 90, 70, 60])[:, None]
    scores[:, :, 1] = np.array([90, 60, 80, 95])[:, None]
    assert halving.full(4, 6, evaluator(scores, [0]), halving.Rule(75)).chosen == 2
    assert halving.full(4, 6, evaluator(scores, [0]), halving.Rule(85)).chosen == 3
    assert halving.full(4, 6, evaluator(scores, [0]), halving.Rule(99)).chosen is None


def test_a_noisy_first_sample_below_the_floor_does_not_lose_the_best_point() -> None:
    rng = np.random.default_rng(0)
    scores = np.empty((9, 45, 2))
    scores[:, :, 0] = np.linspace(20, 60, 9)[:, None]
    scores[:, :, 1] = 90 + rng.normal(0, 15, (9, 45))
    scores[8, :, 0] = 75
    scores[8, :5, 1] = [60, 95, 62, 96, 60]  # mean 74.6, under the floor of 75 by less than its standard error
    scores[8, 5:, 1] = 90
    assert halving.search(9, 45, evaluator(scores, [0]), halving.Rule(75)).chosen == 8


def test_brilliant_points_below_the_floor_do_not_crowd_out_the_best_safe_one() -> None:
    """Twelve points of high trait lie just under the floor, as the organism's mirror at great strengths does."""
    rng = np.random.default_rng(1)
    scores = np.empty((27, 72, 2))
    scores[:, :, 0] = np.linspace(20, 60, 27)[:, None] + rng.normal(0, 5, (27, 72))
    scores[:, :, 1] = 92 + rng.normal(0, 8, (27, 72))
    scores[15:, :, 0] += 25
    scores[15:, :, 1] -= 18.0  # a mean of 74: within a standard error of a first sample
    count = [0]
    found = halving.search(27, 72, evaluator(scores, count), halving.Rule(75, 1.0))
    whole = halving.full(27, 72, evaluator(scores, [0]), halving.Rule(75, 1.0))
    assert whole.chosen == 14
    assert found.chosen in (12, 13, 14) and found.cost == count[0] / (27 * 72) <= 0.3


def test_where_no_finalist_keeps_the_floor_others_that_may_are_tried() -> None:
    scores = np.full((3, 27, 2), 80.0)
    scores[:, :, 0] = np.array([70, 60, 50])[:, None]
    scores[0, 3:, 1], scores[1, 3:, 1] = 60, 74  # as coherent as the rest at first, not later
    tried: list[tuple[list[int], int, int]] = []

    def evaluate(points: Sequence[int], start: int, stop: int) -> np.ndarray:
        tried.append((list(points), start, stop))
        return scores[list(points), start:stop]

    found = halving.search(3, 27, evaluate, halving.Rule(75))
    assert found.chosen == 2 and found.cost == 1.0 and list(found.tried) == [27, 27, 27]
    assert tried[-2:] == [([1], 3, 27), ([2], 3, 27)], "by trait, and each only on what it has not seen"
    scores[:, :, 1] = 60.0
    assert halving.search(3, 27, evaluate, halving.Rule(75)).cost < 0.6, "points that cannot keep it are not tried"


def test_points_whose_answers_fail_are_not_chosen() -> None:
    scores = np.full((2, 10, 2), 80.0)
    scores[0, :, 0] = 95
    scores[0, :3] = np.nan
    assert halving.full(2, 10, evaluator(scores, [0]), halving.Rule(70)).chosen == 1
    scores[0, 0] = 80.0
    assert halving.full(2, 10, evaluator(scores, [0]), halving.Rule(70)).chosen == 0


@pytest.mark.parametrize("items", [1, 2, 3, 5, 9, 24, 32, 40, 112])
def test_rungs_grow_to_every_scenario_and_shrink_to_a_ninth_of_the_points(items: int) -> None:
    plan = halving.rungs(90, items)
    assert plan[-1][0] == items and [n for n, _ in plan] == sorted({n for n, _ in plan})
    if items > 9:
        assert [many for _, many in plan] == [90, 30, 10]
    with pytest.raises(InputError):
        halving.rungs(0, 5)


def test_the_frontier_holds_the_points_that_none_beats_in_both() -> None:
    points = [("a", 10.0, 90.0), ("b", 50.0, 80.0), ("c", 40.0, 70.0), ("d", 70.0, 60.0), ("e", 70.0, 55.0)]
    assert halving.frontier(points) == ["d", "b", "a"]


def test_a_margin_asks_for_standard_errors_above_the_floor() -> None:
    scores = np.full((16, 2), 80.0)
    scores[::2, 1], scores[1::2, 1] = 70.0, 90.0  # mean 80, SD 10.33, standard error 2.58
    assert halving.Rule(80.0).kept(scores) and halving.Rule(77.4, 1.0).kept(scores)
    assert not halving.Rule(77.5, 1.0).kept(scores)
    pairs = tuple(i // 2 for i in range(16))  # every pair has mean 80: no error between groups
    assert halving.Rule(80.0, 1.0, pairs).kept(scores)
    halves = tuple(i % 2 for i in range(16))  # two groups, 70 and 90: standard error 10
    assert halving.Rule(70.0, 1.0, halves).kept(scores) and not halving.Rule(70.1, 1.0, halves).kept(scores)
