"""The numbers of a report against planted runs: counted by hand, or by brute force over the planted trials."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from countersteer.report.summary import summarise
from report_runs import Planted, T, plant

LIMITS = {
    "type": ["array", "null"],
    "items": {"type": ["number", "null"]},
    "minItems": 2,
    "maxItems": 2,
}
METRIC = {
    "type": ["object", "null"],
    "required": ["value", "interval", "interval_new_prompts", "wilson", "n"],
    "additionalProperties": False,
    "properties": {
        "value": {"type": "number"},
        "interval": LIMITS,
        "interval_new_prompts": LIMITS,
        "wilson": LIMITS,
        "n": {"type": "integer", "minimum": 1},
    },
}
NUMBER = {"type": ["number", "null"]}
RECOVERY = {**METRIC, "properties": {**METRIC["properties"], "p": NUMBER, "p_holm": NUMBER, "detectable": NUMBER,
                                     "latents": {"type": "integer", "minimum": 1}}}  # fmt: skip
"""Recovery is a contrast within an arm: it has a p and what could have been found."""
NAMES = ("first_attempt", "multi_attempt", "improvement", "resample_baseline", "esr", "recovery", "mean_improvement")
CONTRAST = {
    "type": "object",
    "required": ["difference", "ratio", "interval", "p", "p_holm", "status"],
    "properties": {"difference": NUMBER, "ratio": NUMBER, "interval": LIMITS, "p": NUMBER, "p_holm": NUMBER,
                   "status": {"enum": ["ok", "no-pairs", "no-data", "zero-events"]}},
}  # fmt: skip
METRICS = {name: RECOVERY if name == "recovery" else METRIC for name in NAMES}
ARM = {
    "type": "object",
    "required": ["trials", "valid", "statuses", "acted", "without_degraded", "note", *NAMES],
    "properties": {
        "trials": {"type": "integer"},
        "valid": {"type": "integer"},
        "acted": {"type": "integer"},
        "statuses": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}},
        "without_degraded": {"type": "object", "required": list(NAMES), "properties": METRICS},
        **METRICS,
    },
}
SCHEMA = {
    "type": "object",
    "required": ["run", "arms", "contrasts", "calibration", "tokens", "seconds"],
    "properties": {
        "run": {"type": "string"},
        "arms": {"type": "object", "additionalProperties": ARM},
        "contrasts": {"type": "object", "additionalProperties": {
            "type": "object", "required": ["first_attempt", "multi_attempt", "improvement", "esr"],
            "additionalProperties": CONTRAST}},
        "calibration": {"type": ["object", "null"], "required": ["digest", "counts", "strengths"]},
        "tokens": {"type": "object"},
        "seconds": NUMBER,
    },
}  # fmt: skip


def result_of(folder: Path, planted: Planted) -> dict[str, Any]:
    with plant(folder / "run", planted) as run:
        return summarise(run)


BASE = [
    T(1, "p1", (20.0, 60.0), fresh=(30.0, 10.0, 20.0)),  # improves; 1 of 3 fresh beat 20, one ties
    T(1, "p2", (50.0, 50.0), fresh=(60.0, None)),  # a tie is no improvement; 1 of 1 scored fresh beats it
    T(1, "p3", (30.0,)),
    T(2, "p1", (40.0, 90.0, 10.0), fresh=(0.0, 0.0)),  # the last counts, not the best
    T(2, "p2", (10.0,)),
    T(2, "p3", status="error"),
    T(3, "p1", (15.0, 95.0), status="unparsed"),  # its scores do not count
    T(3, "p2", (70.0, 80.0), fresh=()),  # improves; no fresh draw, so not in the baseline
    T(3, "p3", (5.0,), degraded=True),
    T(4, "p1", status="uncalibrated"),
    T(4, "p2", status="pending"),
]


@pytest.fixture
def mixed(tmp_path: Path) -> dict[str, Any]:
    quiet = [T(t.latent, t.prompt, (95.0,), steered=False, text=f"calm {i}") for i, t in enumerate(BASE)]
    arms = {"base": BASE, "unsteered": quiet}
    settings = {"unsteered": {"steered": False, "strength": 0.0}}
    return result_of(tmp_path, Planted(arms, settings, uncalibrated=(4,), finished=False))


def test_metrics_are_those_counted_by_hand(mixed: dict[str, Any]) -> None:
    base = mixed["arms"]["base"]
    assert (base["trials"], base["valid"]) == (11, 7)
    assert base["statuses"] == {"ok": 7, "error": 1, "unparsed": 1, "pending": 1, "uncalibrated": 1}
    assert base["first_attempt"]["value"] == pytest.approx((20 + 50 + 30 + 40 + 10 + 70 + 5) / 7)
    assert base["multi_attempt"]["value"] == pytest.approx(4 / 7)
    assert base["improvement"] | {"interval": None, "interval_new_prompts": None, "wilson": None} == {
        "value": 0.5, "n": 4, "interval": None, "interval_new_prompts": None, "wilson": None,
    }  # fmt: skip
    assert base["esr"]["value"] == pytest.approx(2 / 7)
    assert base["mean_improvement"]["value"] == pytest.approx((40 + 0 - 30 + 10) / 4)
    assert base["attempts"] == {"1": 3, "2": 3, "3": 1}


def test_resample_baseline_counts_each_trial_once_and_recovery_is_paired(mixed: dict[str, Any]) -> None:
    base = mixed["arms"]["base"]
    assert base["resample_baseline"]["value"] == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert base["resample_baseline"]["n"] == 3
    assert base["recovery"]["value"] == pytest.approx((1 + 0 + 0) / 3 - (1 / 3 + 1 + 0) / 3)
    assert base["resamples"]["baseline_ties"] == pytest.approx((1 / 3) / 3)
    assert (base["resamples"]["draws"], base["resamples"]["draws_without_score"]) == (7, 1)
    assert base["resamples"]["without_fresh"] == 1


def test_every_headline_also_without_degraded_responses(mixed: dict[str, Any]) -> None:
    base = mixed["arms"]["base"]
    clean = base["without_degraded"]
    assert base["degraded"] == 1 and clean["valid"] == 6
    assert clean["first_attempt"]["value"] == pytest.approx((20 + 50 + 30 + 40 + 10 + 70) / 6)
    assert clean["multi_attempt"]["value"] == pytest.approx(4 / 6)
    assert clean["esr"]["value"] == pytest.approx(2 / 6)
    paired = mixed["contrasts_without_degraded"]["unsteered"]["first_attempt"]
    assert paired["pairs"] == 6 and mixed["contrasts"]["unsteered"]["first_attempt"]["pairs"] == 7


def test_plain_wilson_is_statsmodels(mixed: dict[str, Any]) -> None:
    low, high = proportion_confint(4, 7, method="wilson")
    assert mixed["arms"]["base"]["multi_attempt"]["wilson"] == pytest.approx([low, high])
    assert mixed["arms"]["base"]["first_attempt"]["wilson"] is None


def test_a_metric_without_denominator_is_null_with_the_reason(mixed: dict[str, Any]) -> None:
    quiet = mixed["arms"]["unsteered"]
    assert quiet["improvement"] is quiet["resample_baseline"] is quiet["recovery"] is None
    assert quiet["missing"]["improvement"] == "no multi-attempt trial"
    assert quiet["multi_attempt"]["value"] == 0.0 and quiet["acted"] == 0 and quiet["note"] is None
    row = mixed["contrasts"]["unsteered"]["improvement"]
    assert row["status"] == "no-data" and row["difference"] is row["p"] is row["p_holm"] is None


def test_contrast_pairs_trials_valid_in_both(mixed: dict[str, Any]) -> None:
    row = mixed["contrasts"]["unsteered"]["first_attempt"]
    assert row["pairs"] == 7 and row["status"] == "ok"
    assert row["difference"] == pytest.approx(95 - 225 / 7)
    assert row["ratio"] == pytest.approx(95 / (225 / 7))
    # three latents, all of them shifted upwards: of 2^3 swaps only none and all are as extreme
    assert row["p"] == pytest.approx(2 / 8)


def test_contract_and_plain_json(mixed: dict[str, Any]) -> None:
    text = json.dumps(mixed, allow_nan=False)
    jsonschema.validate(json.loads(text), SCHEMA)
    assert json.loads(text) == mixed
    assert mixed["tokens"]["generated"] == 8 * 3 + 7 * 2 + 11 * 3 and mixed["seconds"] == 12.5
    assert mixed["finished"] is False and "1 of 11 trials are still to be run" in mixed["arms"]["base"]["note"]


def test_calibration_counts_and_spread(mixed: dict[str, Any]) -> None:
    found = mixed["calibration"]
    assert found["counts"] == {"latents": 4, "ok": 3, "uncalibrated": 1}
    assert len(found["digest"]) == 64 and found["method"] == "pooled" and found["generations"] == 12
    assert found["relative"]["median"] == pytest.approx(1.1) and found["strengths"]["max"] == pytest.approx(2.4)
    assert found["relative"]["sd"] == pytest.approx(0.1) and found["relative"]["n"] == 3


def test_zero_events_take_the_design_effect_of_the_arm_with_most(tmp_path: Path) -> None:
    # in "base" whole latents restart or none of their trials does: a design effect near the cluster size
    prompts = [f"p{i}" for i in range(5)]
    base = [T(i, p, (10.0, 20.0) if i % 4 == 0 else (10.0,)) for i in range(40) for p in prompts]
    calm = [T(t.latent, t.prompt, (90.0,), text=f"calm {i}") for i, t in enumerate(base)]
    found = result_of(tmp_path, Planted({"base": base, "calm": calm}))["arms"]["calm"]["multi_attempt"]
    assert found["value"] == 0.0 and found["interval"][0] == 0.0
    assert found["interval"][1] > 3.5 * found["wilson"][1]
    row_arms = result_of(tmp_path / "other", Planted({"base": calm, "arm": base}))
    row = row_arms["contrasts"]["arm"]["multi_attempt"]
    assert row["status"] == "zero-events" and row["ratio"] is None and row["difference"] == pytest.approx(0.25)


def test_holm_over_the_arms_per_metric(tmp_path: Path) -> None:
    rng = random.Random(5)
    arms = {
        name: [
            T(i, f"p{k}", (rng.uniform(0, 60) + shift, 70.0) if rng.random() < 0.2 else (rng.uniform(0, 60) + shift,),
              text=f"{name} {i} {k}")
            for i in range(10) for k in range(3)
        ]
        for name, shift in (("base", 0.0), ("a", 4.0), ("b", 12.0), ("c", 30.0))
    }  # fmt: skip
    found = result_of(tmp_path, Planted(arms))["contrasts"]
    for metric in ("first_attempt", "multi_attempt", "esr"):
        raw = [found[name][metric]["p"] for name in ("a", "b", "c")]
        expected = multipletests(raw, method="holm")[1]
        assert [found[name][metric]["p_holm"] for name in ("a", "b", "c")] == pytest.approx(list(expected))
    assert found["c"]["first_attempt"]["p_holm"] < 0.05


def test_no_pairs_is_a_status(tmp_path: Path) -> None:
    base = [T(1, "p1", (10.0,)), T(2, "p1", (20.0,))]
    other = [T(1, "p1", status="error"), T(2, "p1", status="unparsed")]
    found = result_of(tmp_path, Planted({"base": base, "other": other}))
    assert {row["status"] for row in found["contrasts"]["other"].values()} == {"no-pairs"}
    assert found["arms"]["other"]["esr"] is None and "no trial is valid" in found["arms"]["other"]["note"]
    assert found["arms"]["other"]["missing"]["esr"] == "no valid trial"


def test_an_arm_in_which_nothing_acted_says_so(tmp_path: Path) -> None:
    base = [T(1, "p1", (10.0,)), T(2, "p1", (20.0,))]
    resting = [T(1, "p1", (15.0,), changed=0, text="rest 1"), T(2, "p1", (25.0,), changed=0, text="rest 2")]
    found = result_of(tmp_path, Planted({"base": base, "resting": resting}))["arms"]
    assert found["resting"]["acted"] == 0 and "nothing ever acted" in found["resting"]["note"]
    assert found["resting"]["valid"] == 2  # resting is a result, not an error
    assert found["base"]["acted"] == 2 and found["base"]["note"] is None


def test_an_arm_that_changes_no_response_says_so(tmp_path: Path) -> None:
    base = [T(1, "p1", (10.0,), text="same 1"), T(2, "p1", (20.0,), text="same 2")]
    part = [T(1, "p1", (10.0,), text="same 1"), T(2, "p1", (20.0,), text="other")]
    found = result_of(tmp_path, Planted({"base": base, "again": base, "part": part}))["arms"]
    assert "every response equals that of base" in found["again"]["note"] and found["again"]["same_as_base"] == 2
    assert found["part"]["note"] is None and found["part"]["same_as_base"] == 1


def test_an_empty_or_unfinished_run_has_a_result(tmp_path: Path) -> None:
    from countersteer.store import Run

    with Run.create(tmp_path / "run", "", {"settings": {"study": {"model": "organism", "seed": 0}}}) as run:
        found = summarise(run)
    jsonschema.validate(found, SCHEMA)
    assert found["arms"] == {} and found["calibration"] is None and found["finished"] is False
    assert "test animal" in found["caveat"]


def brute(trials: list[T]) -> dict[str, float]:
    valid = [t for t in trials if t.status == "ok"]
    several = [t for t in valid if len(t.scores) > 1]
    better = [t for t in several if t.scores[-1] > t.scores[0]]
    return {
        "first_attempt": sum(t.scores[0] for t in valid) / len(valid),
        "multi_attempt": len(several) / len(valid),
        "improvement": len(better) / len(several),
        "esr": len(better) / len(valid),
        "resample_baseline": sum(sum(f > t.scores[0] for f in t.fresh) / len(t.fresh) for t in several) / len(several),
    }


def random_trials(rng: random.Random, latents: int, name: str, *, per_latent: int = 5) -> list[T]:
    made = []
    for latent in range(latents):
        for k in range(per_latent):
            count = rng.choice([1, 1, 1, 2, 3])
            scores = tuple(float(rng.randrange(0, 101, 10)) for _ in range(count))
            fresh = tuple(float(rng.randrange(0, 101, 10)) for _ in range(3)) if count > 1 else ()
            status = rng.choice(["ok"] * 9 + ["error"])
            made.append(T(latent, f"p{(latent + k) % 9}", scores if status == "ok" else (), status, fresh,
                          text=f"{name} {latent} {k}"))  # fmt: skip
    return made


def test_against_brute_force_and_the_same_twice(tmp_path: Path) -> None:
    arms = {name: random_trials(random.Random(seed), 30, name) for seed, name in enumerate(("base", "one", "two"))}
    with plant(tmp_path / "run", Planted(arms)) as run:
        found = summarise(run)
        assert json.dumps(summarise(run)) == json.dumps(found)
    for name, trials in arms.items():
        expected = brute(trials)
        for metric, value in expected.items():
            data = found["arms"][name][metric]
            assert data["value"] == pytest.approx(value)
            assert data["interval"][0] <= value <= data["interval"][1]
    for name in ("one", "two"):
        by_key = {(t.latent, t.prompt): t for t in arms["base"] if t.status == "ok"}
        both = [
            (t, by_key[t.latent, t.prompt]) for t in arms[name] if t.status == "ok" and (t.latent, t.prompt) in by_key
        ]
        gap = sum(a.scores[0] - b.scores[0] for a, b in both) / len(both)
        assert found["contrasts"][name]["first_attempt"]["difference"] == pytest.approx(gap)
        assert found["contrasts"][name]["first_attempt"]["pairs"] == len(both)


def test_ten_thousand_trials_are_summarised_quickly(tmp_path: Path) -> None:
    arms = {name: random_trials(random.Random(seed), 500, name) for seed, name in enumerate(("base", "a", "b", "c"))}
    with plant(tmp_path / "run", Planted(arms)) as run:
        began = time.process_time()
        found = summarise(run)
        assert time.process_time() - began < 20.0
    assert sum(arm["trials"] for arm in found["arms"].values()) == 10_000


def test_a_damaged_grade_does_not_pass_as_a_score(tmp_path: Path) -> None:
    base = [T(1, "p1", (10.0,)), T(2, "p1", (20.0,))]
    with plant(tmp_path / "run", Planted({"base": base})) as run:
        pass
    with sqlite3.connect(run.path) as database:
        database.execute("DELETE FROM grades")
    from countersteer.store import Run

    with Run.open(tmp_path / "run") as reopened:
        arm = summarise(reopened)["arms"]["base"]
    assert arm["valid"] == 0 and arm["statuses"] == {"pending": 2} and arm["esr"] is None
