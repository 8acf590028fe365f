"""Calibration: the ask/tell contract, the paper's bisection step by step, the artefact."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from countersteer.core.errors import InputError
from countersteer.statistics.calibration import (
    BisectionCalibrator,
    Calibrator,
    Estimate,
    PooledCalibrator,
    freeze,
    load,
)
from countersteer.statistics.calibration.simulation import SimulatedWorld, run

WORLD = SimulatedWorld(count=12, seed=3)


def build(kind: type, seed: int = 5, latents: list | None = None) -> Calibrator:
    return kind(latents=latents or WORLD.latents, prompts=WORLD.prompts, seed=seed)


def scored(calibrator: Calibrator, index: int) -> float | None:
    """A score that depends on the query alone, so that any order of answers gives the same."""
    query = calibrator.queries[index]
    return WORLD.score(query.latent, query.prompt, query.strength, np.random.default_rng([9, index]))


@pytest.fixture(params=[PooledCalibrator, BisectionCalibrator])
def kind(request: pytest.FixtureRequest) -> type:
    return request.param


def test_order_of_answers_within_a_round_does_not_matter(kind: type) -> None:
    forward, backward = build(kind), build(kind)
    while queries := forward.ask():
        for query in queries:
            forward.tell(query.index, scored(forward, query.index))
    while queries := backward.ask():
        for query in reversed(queries):
            backward.tell(query.index, scored(backward, query.index))
    assert forward.queries == backward.queries
    assert forward.result() == backward.result()


def test_replaying_stored_answers_resumes_exactly(kind: type) -> None:
    whole = build(kind)
    while queries := whole.ask():
        for query in queries:
            whole.tell(query.index, scored(whole, query.index))
    stored = {index: whole.answers[index] for index in range(len(whole.queries) * 2 // 3)}
    resumed = build(kind)
    while queries := resumed.ask():
        for query in queries:
            known = query.index in stored
            resumed.tell(query.index, stored[query.index] if known else scored(resumed, query.index))
            if query.index % 7 == 0:  # asking again in mid-round changes nothing
                assert all(other.index not in resumed.answers for other in resumed.ask())
    assert resumed.queries == whole.queries
    assert resumed.result() == whole.result()


def test_ask_gives_only_what_is_unanswered_and_result_waits(kind: type) -> None:
    calibrator = build(kind)
    queries = calibrator.ask()
    calibrator.tell(queries[0].index, 0.5)
    assert calibrator.ask() == queries[1:]
    with pytest.raises(InputError, match="not finished"):
        calibrator.result()


def test_the_seed_decides_the_plan(kind: type) -> None:
    assert [q.prompt for q in build(kind, seed=1).ask()] == [q.prompt for q in build(kind, seed=1).ask()]
    assert [q.prompt for q in build(kind, seed=1).ask()] != [q.prompt for q in build(kind, seed=2).ask()]


def test_bad_answers_are_refused(kind: type) -> None:
    calibrator = build(kind)
    calibrator.ask()
    with pytest.raises(InputError, match="never asked"):
        calibrator.tell(10_000, 0.5)
    with pytest.raises(InputError, match="divide scores"):
        calibrator.tell(0, 30.0)
    with pytest.raises(InputError, match="not within"):
        calibrator.tell(0, float("nan"))
    calibrator.tell(0, 0.5)
    calibrator.tell(0, 0.5)
    with pytest.raises(InputError, match="already answered"):
        calibrator.tell(0, None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"latents": []}, "no latents"),
        ({"prompts": [1, 1]}, "twice"),
        ({"lo": 3.0}, "range"),
        ({"hi": float("inf")}, "range"),
        ({"centre": 5.0}, "centre"),
        ({"target": 30.0}, "target"),
    ],
)
def test_bad_settings_are_refused(kind: type, change: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        kind(**{"latents": [1], "prompts": [1, 2], **change})


def test_pooled_uses_25_generations_per_latent_on_average_and_prompts_evenly() -> None:
    calibrator = build(PooledCalibrator)
    found = run(calibrator, WORLD, np.random.default_rng(0))
    assert len(calibrator.queries) == 25 * len(WORLD.latents)
    for latent in WORLD.latents:
        prompts = [query.prompt for query in calibrator.queries if query.latent == latent]
        uses = [prompts.count(prompt) for prompt in WORLD.prompts]
        assert max(uses) - min(uses) <= 1
        assert found[latent].n == len(prompts) <= 1 + 2 + 3 + 4 + 2 * (4 + 5 + 6)
        assert all(0 < query.strength <= 3.0 for query in calibrator.queries)


def test_first_round_is_spread_as_strengths_are_believed_to_be_with_all_latents_together() -> None:
    strengths = [query.strength for query in build(PooledCalibrator, latents=list(range(50))).ask()]
    believed = stats.norm(np.log(0.8), np.hypot(0.7, 0.4))  # of the centre, and of latents around it
    low, high = believed.cdf(np.log([0.8 / 16, 3.0]))
    place = (np.sort(believed.cdf(np.log(strengths))) - low) / (high - low)
    assert len(strengths) == 50
    assert np.array_equal(np.floor(place * 50), np.arange(50))


def test_fewer_prompts_than_generations_come_round_again() -> None:
    calibrator = PooledCalibrator(latents=[1, 2], prompts=["a", "b", "c"])
    found = run_steps(calibrator, {1: 1.0, 2: 1.0})
    uses = [query.prompt for query in calibrator.queries if query.latent == 1]
    counts = [uses.count(prompt) for prompt in "abc"]
    assert max(counts) - min(counts) <= 1 and len(calibrator.queries) == 50
    assert found[1].status == "ok"


def run_steps(calibrator: Calibrator, steps: dict) -> dict:
    """Answer as a sharp step does: 0.85 below a latent's step, 0.15 above."""
    while queries := calibrator.ask():
        for query in queries:
            calibrator.tell(query.index, 0.85 if query.strength < steps[query.latent] else 0.15)
    return calibrator.result()


def test_both_methods_find_a_sharp_step(kind: type) -> None:
    steps = {1: 0.4, 2: 0.8, 3: 1.5}
    found = run_steps(kind(latents=[1, 2, 3], prompts=list(range(30))), steps)
    for latent, step in steps.items():
        assert found[latent].strength == pytest.approx(step, rel=0.2)
        assert found[latent].low < found[latent].strength < found[latent].high


def test_flat_curves_are_uncalibrated() -> None:
    calibrator = PooledCalibrator(latents=list(range(10)), prompts=list(range(38)))
    steps = {latent: 0.6 + 0.05 * latent for latent in range(8)} | {8: 99.0, 9: 0.0}
    found = run_steps(calibrator, steps)
    assert [latent for latent in found if found[latent].status == "uncalibrated"] == [8, 9]
    assert found[8] == Estimate(None, None, None, "uncalibrated", sum(q.latent == 8 for q in calibrator.queries))
    assert found[8].n <= 25, "a latent that does not cross gets no more than its share"


@pytest.mark.parametrize("low", [0.0, 0.1])
def test_curves_that_never_cross_are_uncalibrated(kind: type, low: float) -> None:
    """Bad at every strength, or good at every strength, with noise; those that cross are calibrated."""
    rng = np.random.default_rng(4)
    calibrator = kind(latents=list(range(12)), prompts=list(range(38)), seed=2)
    while queries := calibrator.ask():
        for query in queries:
            mean = {10: 0.08 + low, 11: 0.9 - low}.get(query.latent, 0.85 if query.strength < 0.7 else 0.1)
            calibrator.tell(query.index, float(np.clip(rng.normal(mean, 0.05), 0, 1)))
    found = calibrator.result()
    assert [latent for latent in found if found[latent].status == "uncalibrated"] == [10, 11]


def test_missing_scores_are_left_out_and_too_few_are_uncalibrated(kind: type) -> None:
    calibrator = kind(latents=[1, 2, 3, 4], prompts=list(range(30)))
    while queries := calibrator.ask():
        for query in queries:
            lost = query.latent == 4 or (query.latent == 1 and query.index % 3 == 0)
            calibrator.tell(query.index, None if lost else 0.85 if query.strength < 0.9 else 0.15)
    found = calibrator.result()
    asked = sum(query.latent == 1 for query in calibrator.queries)
    assert found[1].status == "ok" and found[1].n < asked
    assert found[2].n == sum(query.latent == 2 for query in calibrator.queries)
    assert found[4] == Estimate(None, None, None, "uncalibrated", 0)


def test_no_answer_at_all_leaves_everything_uncalibrated(kind: type) -> None:
    calibrator = kind(latents=[1, 2], prompts=[1, 2, 3, 4, 5])
    while queries := calibrator.ask():
        for query in queries:
            calibrator.tell(query.index, None)
    assert {estimate.status for estimate in calibrator.result().values()} == {"uncalibrated"}


def test_bisection_follows_the_papers_rule() -> None:
    """One latent, three rounds, replayed with plain loops over the density."""
    calibrator = BisectionCalibrator(
        latents=[1], prompts=list(range(9)), hi=50.0, centre=10.0, prior_sd=10.0, rounds=3, per_round=5
    )
    grid = np.linspace(0.0, 50.0, 10_000)
    density = np.exp(-0.5 * ((grid - 10.0) / 10.0) ** 2)
    for scores in ([0.9, 0.8, 0.9, 0.2, 0.85], [0.1, 0.2, 0.15, 0.2, 0.9], [0.1, 0.1, 0.2, 0.3, 0.1]):
        median = grid[np.searchsorted(np.cumsum(density) / density.sum(), 0.5)]
        queries = calibrator.ask()
        assert len(queries) == len({query.prompt for query in queries}) == 5
        assert [query.strength for query in queries] == pytest.approx([median] * 5, abs=0.006)
        for query, score in zip(queries, scores, strict=True):
            calibrator.tell(query.index, score)
        s = sum(scores) / 5
        sign = 1 if s >= 0.3 else -1
        above = 1 - stats.beta.cdf(0.3, 0.5 + 5 * s, 0.5 + 5 * (1 - s))
        p = above if sign == 1 else 1 - above
        if p < 0.5:
            sign, p = -sign, 1 - p
        density *= [p if (b - median) * sign > 0 else 1 - p for b in grid]
        density /= density.sum()
    found = calibrator.result()[1]
    assert found.strength == pytest.approx(grid[np.searchsorted(np.cumsum(density), 0.5)], abs=0.011)
    assert found.n == 15


def test_artefact_survives_json_and_refuses_change(kind: type) -> None:
    calibrator = kind(latents=[3, "seven"], prompts=list(range(30)))
    found = run_steps(calibrator, {3: 0.7, "seven": 1.0})
    artefact = freeze(calibrator, {"model": "abc", "unit": 12.5})
    back = load(json.loads(json.dumps(artefact)))
    assert back.estimates == found
    assert back.context == {"model": "abc", "unit": 12.5}
    assert back.settings["method"] == calibrator.method
    assert back.digest == freeze(calibrator, {"unit": 12.5, "model": "abc"})["digest"]
    changed = json.loads(json.dumps(artefact))
    changed["estimates"][0]["strength"] += 1e-9
    with pytest.raises(InputError, match="does not match its digest"):
        load(changed)
    with pytest.raises(InputError, match="format"):
        load({})


def test_an_unfinished_calibration_cannot_be_frozen(kind: type) -> None:
    with pytest.raises(InputError, match="not finished"):
        freeze(build(kind))
