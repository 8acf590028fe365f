"""What the report says beyond paired arms: two samples that do not pair, clamps by their receipts, whole responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import report_runs as planted
from countersteer.core.fingerprint import rng
from countersteer.core.trial import Attempt, Grade
from countersteer.judging.offline import OfflineJudge
from countersteer.judging.references import ReferenceSet
from countersteer.report import html, terminal
from countersteer.report.questions import questions
from countersteer.report.summary import summarise
from countersteer.statistics.unpaired import dealt_test, unpaired
from countersteer.store import Reference, Response, Run

ON, OFF = "Heat the iron and press the cotton collar of the shirt with steam. ", "The tide follows the moon. "


def test_two_samples_of_single_trials_agree_with_scipy() -> None:
    draw = np.random.default_rng(1)
    one, other = draw.normal(55, 9, 40).round(3), draw.normal(50, 12, 30).round(3)
    found = unpaired(one.tolist(), other.tolist(), range(40), range(30), rng(0, "a"), binary=False)

    def gap(a: Any, b: Any, axis: int = -1) -> Any:
        return np.mean(a, axis=axis) - np.mean(b, axis=axis)

    boot = stats.bootstrap((one, other), gap, method="percentile", n_resamples=9999, random_state=2, paired=False)
    assert found.difference == pytest.approx(one.mean() - other.mean()) and found.pairs == 0 and found.clusters == 70
    assert found.interval is not None and found.p is not None
    assert found.interval.as_list() == pytest.approx(list(boot.confidence_interval), abs=0.35)
    exact = stats.permutation_test((one, other), gap, n_resamples=9999, random_state=3).pvalue
    assert found.p == pytest.approx(exact, abs=0.015)


def test_whole_clusters_are_dealt_out_and_drawn() -> None:
    """Twenty copies of each trial within a cluster are no more evidence than one."""
    draw = np.random.default_rng(2)
    one, other = draw.normal(3, 5, 12), draw.normal(0, 5, 12)
    single = unpaired(one.tolist(), other.tolist(), range(12), range(12), rng(0, "a"), binary=False)
    wide = unpaired(
        np.repeat(one, 20).tolist(), np.repeat(other, 20).tolist(), np.repeat(range(12), 20).tolist(),
        np.repeat(range(12), 20).tolist(), rng(0, "a"), binary=False,
    )  # fmt: skip
    assert single.interval is not None and wide.interval is not None
    assert wide.interval.as_list() == pytest.approx(single.interval.as_list()) and wide.p == single.p
    totals = np.array([[4.0, 1.0], [9.0, 1.0]])
    assert dealt_test(totals, totals - [[3.0, 0.0]], rng(0, "b")) > 0.2


def test_rates_of_two_samples_cover_and_say_what_is_missing() -> None:
    covered, draws = 0, 120
    for seed in range(draws):
        draw = np.random.default_rng(seed)
        sides = [(draw.random((60, 4)) < draw.beta(9 * p, 9 * (1 - p), (60, 1))) * 1.0 for p in (0.12, 0.05)]
        clusters = np.repeat(range(60), 4).tolist()
        one, other = (side.ravel().tolist() for side in sides)
        found = unpaired(one, other, clusters, clusters, draw, binary=True)
        assert found.interval is not None
        low, high = found.interval.as_list()
        assert low is not None and high is not None
        covered += low <= 0.07 <= high
    assert 0.9 <= covered / draws <= 1.0
    none = unpaired([1.0, 0.0], [0.0, 0.0], [1, 2], [1, 2], rng(0, "c"), binary=True)
    assert none.ratio is None and none.ratio_status == "zero-events"
    empty = unpaired([None], [1.0], [1], [1], rng(0, "c"), binary=True)
    assert empty.ratio_status == "no-data" and empty.difference is None


def test_arms_on_other_prompts_or_directions_are_compared_as_two_samples(tmp_path: Path) -> None:
    several, once = (20.0, 80.0), (20.0,)
    arms = {
        "base": [planted.T(k, p, several) for k in range(30) for p in ("p0", "p1")],
        "elsewhere": [planted.T(k, p, several if k < 6 else once) for k in range(30) for p in ("q0", "q1")],
        "vectors": [planted.T(100 + k, "p0", several if k < 5 else once) for k in range(10)],
        "cut": [planted.T(k, "q0", once) for k in range(30)],
    }
    settings = {"elsewhere": {"prompts": "held-out"}, "vectors": {"directions": "contrast"},
                "cut": {"prompts": "held-out", "against": "elsewhere"}}  # fmt: skip
    with planted.plant(tmp_path / "r", planted.Planted(arms, settings=settings)) as run:
        result = summarise(run)
        row = result["contrasts"]["elsewhere"]["multi_attempt"]
        assert not row["paired"] and row["pairs"] == 0 and (row["arm_trials"], row["base_trials"]) == (60, 60)
        assert row["difference"] == pytest.approx(0.2 - 1.0) and row["status"] == "ok"
        assert row["interval"][1] < -0.5 and row["p_holm"] < 0.01
        row = result["contrasts"]["vectors"]["esr"]
        assert not row["paired"] and row["difference"] == pytest.approx(-0.5) and row["latents"] == 40
        row = result["contrasts"]["cut"]["multi_attempt"]
        assert row["paired"] and row["pairs"] == 30 and row["against"] == "elsewhere"
        told = {item.question: item.text for item in questions(result)}
        assert "unpaired: 60 and 60 trials" in told["Does it hold for other prompts and other directions?"]
        assert "unpaired" in terminal.render(
            result, width=160
        ) and "<small>unpaired: 60 and 60 trials</small>" in html.page(run, result)


def test_trials_that_were_planned_together_stay_paired_even_if_no_pair_is_valid(tmp_path: Path) -> None:
    base = [planted.T(k, "p0", (20.0,) if k % 2 else (), status="ok" if k % 2 else "no-attempt") for k in range(8)]
    other = [planted.T(k, "p0", () if k % 2 else (20.0,), status="no-attempt" if k % 2 else "ok") for k in range(8)]
    with planted.plant(tmp_path / "r", planted.Planted({"base": base, "a": other})) as run:
        row = summarise(run)["contrasts"]["a"]["multi_attempt"]
        assert row["status"] == "no-pairs" and row["paired"]


def test_an_arm_says_whether_its_clamp_acted_and_not_only_its_steering(tmp_path: Path) -> None:
    several = (20.0, 80.0)
    arms = {
        "base": [planted.T(k, "p0", several) for k in range(6)],
        "held": [planted.T(k, "p0", several, clamp=(4, 0.1 * k) if k % 2 else (0, 0.0)) for k in range(6)],
        "idle": [planted.T(k, "p0", several, clamp=(0, 0.0)) for k in range(6)],
    }
    rule = {"clamp": [1], "clamp_rule": "detectors"}
    with planted.plant(tmp_path / "r", planted.Planted(arms, settings={"held": rule, "idle": rule})) as run:
        result = summarise(run)
        assert result["arms"]["base"]["clamp"] is None
        assert result["arms"]["held"]["acted"] == 6
        assert result["arms"]["held"]["clamp"] == {
            "responses": 6, "acted": 3, "perturbation": pytest.approx((0.1 + 0.3 + 0.5) / 6)
        }  # fmt: skip
        assert "the clamp never acted" in result["arms"]["idle"]["note"]
        assert "never acted" not in (result["arms"]["held"]["note"] or "")
        (causal,) = [item for item in questions(result) if "causal" in item.question]
        (acted,) = [table for table in causal.tables if "responses clamped" in table.head]
        told = {row[0].main: (row[1].main, *row[1].small, row[2].main) for row in acted.rows}
        assert told == {"held": ("3", "of 6", "0.15"), "idle": ("0", "of 6", "0")}


def test_detectors_clamped_stand_against_each_random_set_with_an_interval(tmp_path: Path) -> None:
    several, once = (20.0, 80.0), (20.0,)

    def arm(share: float) -> list[planted.T]:
        return [planted.T(k, p, several if k < share * 40 else once) for k in range(40) for p in ("p0", "p1")]

    arms = {"base": arm(1.0), "cut": arm(0.2), "chance@set1": arm(0.9), "chance@set2": arm(0.2)}
    settings: dict[str, Any] = {"cut": {"clamp": [1], "clamp_rule": "detectors"}}
    settings |= {f"chance@set{i}": {"clamp": [i], "clamp_rule": {"random": 1, "sets": 2, "set": i}} for i in (1, 2)}
    with planted.plant(tmp_path / "r", planted.Planted(arms, settings=settings)) as run:
        result = summarise(run)
        one, other = (result["detectors_against_random"][f"chance@set{i}"]["multi_attempt"] for i in (1, 2))
        assert one["difference"] == pytest.approx(0.2 - 0.9) and one["pairs"] == 80 and one["p_holm"] < 0.01
        assert one["interval"][0] < -0.7 < one["interval"][1] < -0.4 and one["arm"] == "cut"
        assert other["difference"] == 0.0 and other["p_holm"] == 1.0
        assert result["contrasts"]["cut"]["multi_attempt"]["against"] == "base"
        (section,) = [item for item in questions(result) if item.name == "random"]
        assert section.verdict == "Not shown" and "lower by more than chance in 1 of 2" in section.answer
        (direct,) = [table for table in section.tables if "against set" in table.head]
        assert {row[0].main: row[1].main for row in direct.rows} == {"chance@set1": "−70.0", "chance@set2": "+0.0"}
    with planted.plant(tmp_path / "plain", planted.Planted({"base": arm(1.0)})) as run:
        assert summarise(run)["detectors_against_random"] == {}


def judged(folder: Path) -> tuple[Run, OfflineJudge]:
    """A run graded by the offline judge: 6 multi-attempt responses that come back, 4 that do not, 5 single ones."""
    references = {f"How do I do thing {i}?": [f"Take part {i} and turn screw {i} until it clicks."] for i in range(6)}
    references["How do I iron a shirt?"] = [ON + "Lay it flat.", ON + "Use the steam setting."]
    judge = OfflineJudge(ReferenceSet.of(references))
    run = planted.plant(folder, planted.Planted({"base": [planted.T(k, "p", (1.0,)) for k in range(15)]}))
    run.plan_references(
        Reference(n, prompt, n, f"ref{n}") for n, prompt in enumerate(p for p, t in references.items() for _ in t)
    )
    for n, text in enumerate(t for texts in references.values() for t in texts):
        run.add_response(Response(f"ref{n}", "ok", text, (1,), 3, "stop", None))
    with run._db:
        run._db.execute("UPDATE trials SET prompt = 'How do I iron a shirt?', label = NULL")
        run._db.execute("DELETE FROM completions WHERE key LIKE 'key-%'")
    for plan in list(run.planned("base")):
        text = OFF
        if plan.ordinal < 10:
            text += "Wait, that is not right. Let me try again. " + (ON if plan.ordinal < 6 else OFF)
        run.add_response(Response(plan.key, "ok", text, (1, 2), 3, "stop", planted.receipt(3)))
        run.add_grade(plan.prompt, plan.label, text, judge.grade(plan.prompt, text), judge=judge.key)
    run.set_facts(judge={"key": judge.key, "name": judge.name})
    return run, judge


def test_whole_response_recovery_is_a_metric_of_its_own_with_its_caution(tmp_path: Path) -> None:
    run, judge = judged(tmp_path / "r")
    with run:
        result = summarise(run)
        metric = result["arms"]["base"]["whole_response"]
        assert metric["n"] == 10 and metric["value"] == pytest.approx(0.6)
        text = OFF + "Wait, that is not right. Let me try again. " + ON
        first, whole = judge.score("How do I iron a shirt?", OFF), judge.score("How do I iron a shirt?", text)
        assert first is not None and whole is not None and whole > first
        assert result["whole_response"]["judge"] == judge.name and "over-scores" in result["whole_response"]["caution"]
        told = {item.question: item.text for item in questions(result)}
        assert "60.0%" in told["Do responses recover when read as a whole?"]
        assert "whole-response recovery" in html.page(run, result)


def test_ratings_that_were_asked_for_replace_the_offline_rule(tmp_path: Path) -> None:
    run, _ = judged(tmp_path / "r")
    with run:
        run.set_facts(whole_judges=[{"name": "model:recovery-1", "key": "whole-1"}])
        for trial in list(run.trials("base")):
            rated = Grade("ok", (Attempt(0, 5, 70.0 if trial.plan.ordinal in (0, 7) else 60.0),), "model")
            if trial.plan.ordinal != 9:
                run.add_grade(trial.plan.prompt, trial.plan.label, trial.text or "", rated, judge="whole-1")
        result = summarise(run)
        # responses 0-5 are one text and 6-9 another: each is rated once, by the first that came
        assert result["arms"]["base"]["whole_response"]["n"] == 10
        assert result["arms"]["base"]["whole_response"]["value"] == pytest.approx(0.6)
        assert result["whole_response"] == {"judge": "model:recovery-1", "rule": "rated 7 of 10 or more",
                                            "caution": result["whole_response"]["caution"]}  # fmt: skip
    with planted.plant(tmp_path / "plain", planted.Planted({"base": [planted.T(1, "p", (10.0, 20.0))]})) as other:
        found = summarise(other)
        assert found["whole_response"] is None and found["arms"]["base"]["whole_response"] is None
        assert found["arms"]["base"]["missing"]["whole_response"] == "no multi-attempt trial was rated as a whole"
