"""Traces, re-judging, people's labels and imported results over runs whose truth is known."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import report_runs as planted
from countersteer.core.errors import InputError
from countersteer.core.site import Site
from countersteer.edits.vectors import Latent, Latents
from countersteer.engines.scripted import ScriptedEngine, Shape
from countersteer.report.agreement import agreement
from countersteer.report.summary import summarise
from countersteer.store import Run
from countersteer.store.import_results import import_results
from countersteer.studies.detectors import compare_steered
from countersteer.studies.episodes import episodes, token_starts
from countersteer.studies.read_again import judge_run
from countersteer.studies.rejudge import human, sample
from countersteer.studies.trace import backtracking, trace

D = 4


class FakeSae:
    """Two latents that read the first two coordinates."""

    labels: ClassVar = {0: "cats", 1: "dogs"}

    def latents(self, chosen: list[int]) -> Latents:
        eye = np.eye(D, dtype=np.float32)
        return Latents(Latent(i, Site(2), eye[i], 0.0, eye[i]) for i in chosen)


def residuals(text: str, site: Site) -> Any:
    """Latent 0 is active from the first word of the response until the restart and silent after it; 1 always."""
    words = text.split()
    out = np.zeros((1 + len(words), D), np.float32)
    out[:, 1] = 1.0
    begin = 1 + words.index("Fold") if "Fold" in words else 0
    stop = 1 + words.index("Wait,") if "Wait," in words else len(out)
    if "Wait," in words:
        out[begin:stop, 0] = 2.0
    return out


def make(folder: Path, trials: list[planted.T]) -> Run:
    return planted.plant(folder, planted.Planted({"base": trials, "other": trials[:2]}))


def some() -> list[planted.T]:
    better = [planted.T(k, "p0", (10.0, 80.0 + k)) for k in range(8)]
    worse = [planted.T(k, "p1", (50.0, 20.0)) for k in range(3)]
    single = [planted.T(k, "p2", (60.0,)) for k in range(10)]
    return better + worse + single + [planted.T(2, "p3", (10.0, 20.0, 30.0))]


def traced(run: Run, latents: list[int], arm: str | None = None, read: Any = residuals) -> dict[str, Any]:
    engine = ScriptedEngine({}, shape=Shape(4, D), residuals=read)
    return asyncio.run(trace(run, engine, FakeSae(), latents, layer=2, arm=arm, reach=20, bins=10))


def test_episodes_are_two_attempts_of_which_the_second_is_better(tmp_path: Path) -> None:
    run = make(tmp_path / "r", some())
    found = episodes(run.trials("base"))
    assert [e.trial.plan.latent for e in found] == list(range(8))
    for e in found:
        text = e.trial.text
        assert e.off == 0 and text[e.correction :].startswith(planted.RESTART.strip())
        assert text[e.on :].startswith("Fold") and e.off <= e.correction <= e.on


def test_a_trace_finds_the_latent_that_falls_and_not_the_one_that_does_not(tmp_path: Path) -> None:
    found = traced(make(tmp_path / "r", some()), [0, 1], arm="base")
    assert found["status"] == "ok" and found["episodes"] == found["steering_latents"] == 8 and found["matched"] == 8
    falls, stays = found["latents"]
    assert falls["before"] == 2.0 and falls["after"] == 0.0 and falls["p_holm"] < 0.05 and falls["cliff_delta"] == 1.0
    assert stays["before"] == stays["after"] == 1.0 and stays["p_holm"] is None
    curve = {row["from"]: row["mean"] for row in found["curves"]["episodes"] if row["n"]}
    assert curve[-4.0] == 1.5, "the four words before the correction"
    assert curve[0.0] == curve[4.0] == 0.5
    assert all(row["mean"] == 0.5 for row in found["curves"]["matched"] if row["n"])
    assert found["baseline"] == 8 and stays["after_ratio"] == 1.0 and falls["before_ratio"] is None
    assert "1 of 2 latents are" in found["sentence"]
    assert falls["difference"] == 2.0 and falls["interval"] is None, "every latent falls by the same"


def test_steered_arms_are_pooled_and_others_are_counted(tmp_path: Path) -> None:
    """Improving episodes are rare: base alone has none here. Arms that are not steered as base is are not mixed in."""
    one = [planted.T(k, "p0", (10.0, 80.0), text=f"Fold {k}. ") for k in range(6)]
    single = [planted.T(k, "p0", (60.0,), text=f"Fold once {k}. ") for k in range(6)]
    arms = {"base": single, "sweep@1": [*one, *single], "again": one[:2], "prefilled": one, "clamped": one[:3],
            "cut": one[:1], "plain": one}  # fmt: skip
    settings = {"prefilled": {"prefix": {"of": "base", "part": "start"}}, "clamped": {"clamp": [1]},
                "cut": {"span": "until(restart)"}, "plain": {"steered": False}}  # fmt: skip
    run = planted.plant(tmp_path / "r", planted.Planted(arms, settings=settings))
    found = traced(run, [0])
    assert found["arm"] is None and found["episodes"] == 6, "the texts of `again` are those of `sweep@1`"
    assert {k: (v["episodes"], v["read"]) for k, v in found["arms"].items()} == {
        "base": (0, True), "sweep@1": (6, True), "again": (2, True), "prefilled": (6, False), "clamped": (3, False),
        "cut": (1, False), "plain": (6, False),
    }  # fmt: skip
    assert "sweep@1 6" in found["sentence"] and found["matched"] == 6 and found["smallest_d"] is not None
    assert traced(run, [0], arm="clamped")["episodes"] == 3
    none = traced(run, [0], arm="base")
    assert none["status"] == "no-episodes" and "sweep@1: 6" in none["sentence"] and "--arm" in none["sentence"]


def test_episodes_of_one_steering_latent_are_one_value(tmp_path: Path) -> None:
    """Eight latents with forty episodes each: what falls or rises by latent is noise among eight, not among 320."""
    from scipy import stats

    trials = [planted.T(k, f"p{i}", (10.0, 80.0), text=f"Fold {k}. ") for k in range(8) for i in range(40)]
    shift = np.random.default_rng(7).normal(0.4, 1.0, 8)

    def read(text: str, site: Site) -> Any:
        words = text.split()
        out = np.full((1 + len(words), D), 5.0, np.float32)
        stop = 1 + words.index("Wait,")
        out[:stop, 0] += shift[int(words[words.index("Fold") + 1].rstrip("."))]
        return out

    found = traced(make(tmp_path / "r", trials), [0], arm="base", read=read)
    (row,) = found["latents"]
    gap = shift
    assert (found["episodes"], found["steering_latents"], row["n"], row["episodes"]) == (320, 8, 8, 320)
    assert row["wilcoxon_p"] == pytest.approx(stats.wilcoxon(gap, alternative="greater").pvalue)
    assert row["t_p"] == pytest.approx(stats.ttest_1samp(gap, 0).pvalue, rel=1e-4) and row["t_p"] > 0.05
    naive = stats.ttest_1samp(np.repeat(gap, 40), 0).pvalue
    assert naive < 1e-4, "which forty copies each would have called a finding"
    reach = stats.t.ppf(0.975, 7) * gap.std(ddof=1) / np.sqrt(8)
    assert row["interval"] == pytest.approx((gap.mean() - reach, gap.mean() + reach), rel=1e-4)
    assert "none of 1 latents is shown" in found["sentence"]


def test_detectors_in_steered_responses_are_tested_by_steering_latent(tmp_path: Path) -> None:
    """Latent 0 follows the steering latent, as restarts do; latent 1 fires where there is a restart."""
    from scipy import stats

    draw = np.random.default_rng(36)
    content = draw.normal(0, 2, 16)
    often = draw.permutation(16) < 6  # latents that restart on four prompts of five, the others on one
    trials = [
        planted.T(k, f"p{i}", (10.0, 20.0) if (i > 0) == often[k] else (30.0,), text=f"Fold {k}. ")
        for k in range(16) for i in range(5)
    ]  # fmt: skip

    def read(text: str, site: Site) -> Any:
        words = text.split()
        out = np.zeros((1 + len(words), D), np.float32)
        out[1:, 0] = 9.0 + content[int(words[words.index("Fold") + 1].rstrip("."))]
        out[1:, 1] = 3.0 + 2.0 * ("Wait," in words)
        return out

    run = make(tmp_path / "r", trials)
    engine = ScriptedEngine({}, shape=Shape(4, D), residuals=read)
    chosen = [t for t in run.trials("base") if t.scores]
    found = asyncio.run(compare_steered(engine, FakeSae(), chosen, [0, 1], layer=2, seed=0))
    follows, decides = found["rows"]
    assert (found["restarts"], found["latents"], found["restart_latents"]) == (34, 16, 16)
    values = np.array([content[t.plan.latent] for t in chosen])
    restarts = np.array([len(t.scores) > 1 for t in chosen])
    naive = stats.mannwhitneyu(values[restarts], values[~restarts])
    assert follows["auc"] == pytest.approx(naive.statistic / (34 * 46)) and naive.pvalue < 0.05
    assert follows["p"] > 3 * naive.pvalue and follows["p_holm"] > 0.05, "sixteen latents, not eighty responses"
    assert follows["interval"][0] < 0.5 < follows["interval"][1]
    assert decides["auc"] == 1.0 and decides["p_holm"] < 0.01 and decides["interval"][0] > 0.6
    assert 0.6 < decides["detectable"] < 0.9 and decides["label"] == "dogs"


def test_no_episode_is_a_status_and_a_sentence(tmp_path: Path) -> None:
    found = traced(make(tmp_path / "r", [planted.T(1, "p", (50.0,)), planted.T(2, "p", (50.0, 20.0))]), [0])
    assert found["status"] == "no-episodes" and "there is no trace" in found["sentence"] and not found["latents"]
    assert "Nor has any other" in found["sentence"]
    run = Run.open(tmp_path / "r")
    with pytest.raises(InputError, match="no arm 'bse'"):
        asyncio.run(trace(run, None, FakeSae(), [0], layer=2, arm="bse"))
    with pytest.raises(InputError, match="at least one latent"):
        asyncio.run(trace(run, None, FakeSae(), [], layer=2))


def test_latents_that_speak_of_correcting_are_found_by_label_without_technical_errors() -> None:
    labels = {1: "apologies and corrections", 2: "HTTP error codes", 3: "whales", 4: "mistakes in code", 5: "Oops"}
    assert backtracking(labels) == [1, 5]


def test_characters_are_mapped_to_tokens_with_characters_split_over_tokens() -> None:
    pieces = [b"Hi", b" \xe2", b"\x9c\x93", b" there", b"."]

    def decode(ids: Any) -> str:
        return b"".join(pieces[i] for i in ids).decode("utf-8", errors="replace")

    starts = token_starts(range(5), decode)
    assert starts[0] == 0 and starts[1] == 2 and starts[3] == 4 and starts[4] == 10


def test_samples_take_multi_attempt_responses_first_and_spread_the_rest(tmp_path: Path) -> None:
    run = make(tmp_path / "r", some())
    chosen = sample(run, 14)
    assert len(chosen) == 14
    several = [t for t in run.trials() if len(t.scores) > 1]
    assert {(t.plan.prompt, t.text) for t in several} <= {(t.plan.prompt, t.text) for t in chosen}
    assert len({(t.plan.prompt, t.text) for t in chosen}) == 14
    assert [t.plan.ordinal for t in sample(run, 14)] == [t.plan.ordinal for t in chosen]


def test_people_judge_beside_the_first_judge_and_agreement_is_counted(tmp_path: Path) -> None:
    run = make(tmp_path / "r", some())
    run.close()
    lines = ["arm,ordinal,scores"] + [f"base,{i},10;{90 if i % 2 else 5}" for i in range(8)]
    lines += [f"base,{i},60" for i in range(11, 21)]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    made = judge_run(tmp_path / "r", "ann", labels=tmp_path / "labels.csv")
    assert made["sampled"] == 18
    with Run.open(tmp_path / "r") as again:
        found = agreement(again, made["key"], name="ann")
        assert found["n"] == 18 and found["multi_attempt"]["raw"]["value"] == 1.0
        assert found["multi_attempt"]["kappa"]["value"] == 1.0
        assert found["direction"]["raw"]["value"] == 0.5 and found["disagreements"] == 4
        assert again.judge == planted.JUDGE, "the first judge stays the run's"
        assert summarise(again)["arms"]["base"]["valid"] == 22


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arm,ordinal\nbase,1\n", "needs the columns"),
        ("arm,ordinal,scores\nbase,x,1\n", "line 2: ordinal must be"),
        ("arm,ordinal,scores\nbase,1,101\n", "line 2"),
        ("arm,ordinal,scores\nbase,99,1\n", "no trial 99 in arm 'base'"),
        ("arm,ordinal,scores\nbase,1,1\nbase,1,2\n", "twice"),
        ("arm,ordinal,scores\n", "holds no label"),
    ],
)
def test_bad_labels_name_their_line(tmp_path: Path, text: str, said: str) -> None:
    run = make(tmp_path / "r", some())
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        human(run, tmp_path / "l.csv", name="ann")


def test_imported_results_have_the_metrics_counted_by_hand(tmp_path: Path) -> None:
    def trial(prompt: str, *scores: float, **more: Any) -> dict[str, Any]:
        attempts = [{"attempt": f"part {i}.", "score": s} for i, s in enumerate(scores)]
        text = " ".join(a["attempt"] for a in attempts)
        return {"prompt": prompt, "response": text, "score": {"attempts": attempts}, "error": None, **more}

    data = {
        "experiment_config": {"model_name": "acme/model", "judge_model_name": "j"},
        "results_by_feature": [
            {"feature_index_in_sae": 7, "feature_label": "cats",
             "trials": [trial("a", 20, 80), trial("b", 30), trial("c", 40, 10, 40)]},
            {"feature_index_in_sae": 9, "feature_label": "dogs",
             "trials": [trial("a", 10), trial("b"), {"prompt": "c", "error": "judge failed"}, trial("d", 60, 50)]},
        ],
    }  # fmt: skip
    (tmp_path / "f.json").write_text(json.dumps(data))
    with import_results(tmp_path / "f.json", tmp_path / "run") as run:
        base = summarise(run)["arms"]["base"]
        assert base["valid"] == 5 and base["statuses"] == {"ok": 5, "no-attempt": 1, "error": 1}
        assert base["multi_attempt"]["value"] == 3 / 5 and base["esr"]["value"] == 1 / 5
        assert base["improvement"]["value"] == 1 / 3
        assert base["first_attempt"]["value"] == pytest.approx((20 + 30 + 40 + 10 + 60) / 5)
        assert base["mean_improvement"]["value"] == pytest.approx((60 + 0 - 10) / 3)
        assert [r.label for r in run.latents()] == ["cats", "dogs"]


def test_equal_texts_that_the_published_judge_graded_differently_keep_their_own_grades(tmp_path: Path) -> None:
    def trial(text: str, *scores: float) -> dict[str, Any]:
        return {"prompt": "a", "response": text, "score": {"attempts": [{"score": s} for s in scores]}}

    trials = [trial("x y. z.", 20, 80), trial("x y. z.", 30), trial("other.", 55.5)]
    data = {"results_by_feature": {"7": {"label": "cats", "trials": trials}}}
    (tmp_path / "f.json").write_text(json.dumps(data))
    with import_results(tmp_path / "f.json", tmp_path / "run") as run:
        assert [t.scores for t in run.trials("base")] == [[20.0, 80.0], [30.0], [55.5]]
        base = summarise(run)["arms"]["base"]
        assert base["multi_attempt"]["value"] == 1 / 3
        assert base["first_attempt"]["value"] == pytest.approx((20 + 30 + 55.5) / 3)


def test_other_names_are_read_and_what_was_not_read_is_named(tmp_path: Path) -> None:
    attempts = [{"text": "part 0.", "score": 20, "explanation": "off"}, {"text": "part 1.", "score": 80}]
    trial = {"question": "a", "generated_text": "part 0. part 1.", "judge_score": {"attempts": attempts, "raw": "x"},
             "random_seed": 77, "latency": 3.5}  # fmt: skip
    plain = {"prompt": "b", "response": "part 0.", "score": {"attempts": attempts[:1]}, "boost_level": 4.5}
    data = {"config": {"model": "m"}, "version": 3,
            "results_by_feature": {"7": {"description": "cats", "results": [trial, plain], "extra": 1}}}  # fmt: skip
    (tmp_path / "f.json").write_text(json.dumps(data))
    with import_results(tmp_path / "f.json", tmp_path / "run") as run:
        one, other = run.trials("base")
        assert (one.plan.latent, one.plan.label, one.plan.prompt, one.plan.seed) == (7, "cats", "a", 77)
        assert one.scores == [20.0, 80.0] and other.plan.strength == 4.5
        assert one.grade is not None and [a["start"] for a in one.grade["attempts"]] == [0, 8]
        (note,) = [n for n in run.notes if "not read" in n]
        assert note.split(": ", 2)[2].split(", ") == [
            "attempt.explanation", "feature.extra", "file.version", "score.raw", "trial.latency"
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "no results_by_feature"),
        ("{}", "no results_by_feature"),
        ("{", "is not JSON"),
        ('{"results_by_feature": [{"trials": 3}]}', "no list of trials"),
        ('{"results_by_feature": [{"feature_id": 3, "trials": [{"response": "x"}]}]}', "has no prompt"),
        ('{"results_by_feature": {"x": {"trials": []}}}', "which latent"),
        ('{"results_by_feature": [{"trials": []}]}', "holds no trial"),
        ('{"results_by_feature": [{"trials": [{"prompt": "p", "response": "r", "score":'
         ' {"attempts": [{"score": 300}]}}]}]}', "score 300"),
    ],
)  # fmt: skip
def test_result_files_of_another_shape_are_refused_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        import_results(tmp_path / "f.json", tmp_path / "run")
    assert "\n" not in str(caught.value)
