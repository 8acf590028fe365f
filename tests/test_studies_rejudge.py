"""A run judged again by a language model over HTTP: stored beside, resumed, agreement as counted from what it said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import report_runs as planted
import studies_world as world
from countersteer.cli import call
from countersteer.core.errors import InputError
from countersteer.report.agreement import direction
from countersteer.report.summary import summarise
from countersteer.store import Run
from countersteer.studies import runner, spec
from countersteer.studies.judges import JudgeOptions
from countersteer.studies.read_again import judge_run
from fake_openai import RESTART, FakeOpenAI, pieces, score

NAME = "openai/gpt-4o"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-5b1f")
    monkeypatch.setattr(planted, "RESTART", RESTART)


def some() -> list[planted.T]:
    several = [planted.T(k, f"p{k % 3}", (10.0, 80.0 + k)) for k in range(9)]
    single = [planted.T(k, "p4", (60.0 + k,)) for k in range(10)]
    hidden = [planted.T(k, "p5", (50.0,), text=f"Fold it {k}. {RESTART}Press it {k}.") for k in range(3)]
    return several + single + hidden


def test_a_language_model_judges_again_and_the_agreement_is_that_of_what_it_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = planted.plant(tmp_path / "r", planted.Planted({"base": some()}))
    first = {t.text or "": t.scores for t in run.trials()}
    run.close()
    with FakeOpenAI() as server:
        asked = ["judge", str(tmp_path / "r"), "--judge", NAME, "--base-url", server.url, "--json"]
        assert call(asked) == 0
        made = json.loads(capsys.readouterr().out)
        assert server.requests == 22 == made["sampled"]
        assert call(asked) == 0 and server.requests == 22, "grades that are there are not asked for again"
        capsys.readouterr()
    said = {text: [float(score(part)) for part in pieces(text)] for text in first}
    found = made["agreement"]
    assert found["n"] == 22 and found["multi_first"] == 9 and found["multi_other"] == 12
    assert found["multi_attempt"]["raw"]["value"] == pytest.approx(19 / 22)
    yes, other = 9 / 22, 12 / 22
    chance = yes * other + (1 - yes) * (1 - other)
    assert found["multi_attempt"]["kappa"]["value"] == pytest.approx((19 / 22 - chance) / (1 - chance))
    both = [text for text in first if len(first[text]) > 1]
    same = sum(direction(first[t]) == direction(said[t]) for t in both)
    assert found["direction"]["raw"] == {**found["direction"]["raw"], "n": 9, "value": pytest.approx(same / 9)}
    assert found["disagreements"] == 3 + 9 - same
    with Run.open(tmp_path / "r") as again:
        assert again.judge == planted.JUDGE and [j["kind"] for j in again.fact("judges")] == ["model"]
        assert "sk-test" not in json.dumps(summarise(again))


def test_whole_responses_are_rated_under_a_key_of_their_own(tmp_path: Path) -> None:
    run = planted.plant(tmp_path / "r", planted.Planted({"base": some()}))
    texts = [t.text or "" for t in run.trials()]
    several = [t.text or "" for t in run.trials() if len(t.scores) > 1]
    run.close()

    def gain(text: str) -> int:
        parts = pieces(text)
        return max(0, score(parts[-1]) - score(parts[0])) // 10

    with FakeOpenAI() as server:
        made = judge_run(tmp_path / "r", NAME, base_url=server.url, rubric="recovery")
        assert server.requests == made["sampled"] == made["rated"] == len(texts)
    assert made["recovered"] == sum(gain(t) >= 7 for t in texts)
    assert sum(made["kinds"].values()) == len(texts) and made["kinds"]["none"] >= 10
    with Run.open(tmp_path / "r") as again:
        assert again.fact("judges") is None and again.judge == planted.JUDGE, "no rival grades of attempts"
        result = summarise(again)
        metric = result["arms"]["base"]["whole_response"]
        assert metric["n"] == 9 and metric["value"] == pytest.approx(sum(gain(t) >= 7 for t in several) / 9)
        assert result["whole_response"]["judge"] == made["judge"]
    with pytest.raises(InputError, match="name a language model"):
        judge_run(tmp_path / "r", "offline", rubric="recovery")
    with pytest.raises(InputError, match="--rubric 'trait' is not one of"):
        judge_run(tmp_path / "r", NAME, rubric="trait")


def test_a_judge_is_not_compared_with_itself(tmp_path: Path) -> None:
    path = world.study(tmp_path, arms="[arms.base]\nstrength = 3.0\n")
    with FakeOpenAI() as server:
        judged = f'[judge]\nmodel = "{NAME}"\nbase_url = "{server.url}"\n'
        other = tmp_path / "by-model.toml"
        other.write_text(path.read_text().replace("[judge]\nreferences = 3\n", judged))
        given: dict[str, Any] = {"tools": lambda _: world.tools(tmp_path / "sae")}
        runner.run_study(spec.load(path), tmp_path / "offline", **given).close()
        runner.run_study(spec.load(other), tmp_path / "model", options=JudgeOptions(), **given).close()
        before = server.requests
        with pytest.raises(InputError, match=f"{NAME} graded .* in the first place; name another judge"):
            judge_run(tmp_path / "model", NAME, base_url=server.url)
        with pytest.raises(InputError, match=r"graded .* in the first place; name another judge"):
            judge_run(tmp_path / "offline", "offline")
        assert server.requests == before, "refused before anything is asked"
        made = judge_run(tmp_path / "offline", NAME, base_url=server.url, sample=5)
        assert made["sampled"] == 5 and server.requests == before + 5


def test_a_run_without_grades_has_nothing_to_compare(tmp_path: Path) -> None:
    run = planted.plant(tmp_path / "r", planted.Planted({"base": [planted.T(1, "p", status="error")]}))
    run.close()
    for rubric in ("attempts", "recovery"):
        with pytest.raises(InputError, match="no graded response"):
            judge_run(tmp_path / "r", NAME, rubric=rubric)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--judge", "ann"], "--judge 'ann' must be 'offline' or PROVIDER/NAME"),
        (["--judge", "openai/"], "--judge 'openai/' must be"),
        (["--judge", "ann", "--rubric", "recovery"], "--labels"),
        (["--judge", NAME, "--base-url", "http://me:secret@host/v1"], "--base-url must not hold a user name"),
        (["--judge", "ann", "--labels", "missing.csv"], "cannot read labels"),
        (["--judge", "ann", "--labels", "missing.csv", "--judge-cache", "c"], "labels of people ask nobody"),
        (["--judge", "offline", "--judge-batch"], "the offline judge asks nobody"),
        (["--judge", "ann", "--labels", "missing.csv", "--rubric", "recovery"], "labels of people are attempts"),
    ],
)
def test_a_judge_that_cannot_be_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    planted.plant(tmp_path / "r", planted.Planted({"base": [planted.T(1, "p", (5.0, 9.0))]})).close()
    assert call(["judge", str(tmp_path / "r"), *more]) == 2
    (line,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("error:")]
    assert said in line and "secret" not in line


def test_a_clamp_on_a_topk_sae_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    from countersteer.core.errors import RefusedError
    from countersteer.studies.setup import load_tools

    golden = Path(__file__).parent / "data" / "saelens" / "topk"
    for arm in ("clamp = [1]", 'clamp = "detectors"', "clamp = { random = 2 }"):
        text = f'[study]\nmodel = "/no/such/model"\nsae = "{golden}"\n[arms.base]\n[arms.cut]\n{arm}\n'
        with pytest.raises(RefusedError, match=r"\[arms.cut.*clamp on a TopK SAE.*JumpReLU"):
            load_tools(spec.parse(text))
