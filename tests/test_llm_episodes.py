"""Episodes marked by a language model: kept once, used by traces, and the trace stands in the exported Inspect log."""

from __future__ import annotations

import json
from pathlib import Path

import inspect_ai.log as log_file
import pytest

import studies_world as world
from countersteer.cli import call
from countersteer.core.errors import InputError
from countersteer.store import Run
from countersteer.store.export_inspect import export_inspect
from countersteer.studies import runner, spec
from countersteer.studies.episodes import episodes
from countersteer.studies.read_again import judge_run, trace_run
from fake_openai import RESTART, FakeOpenAI
from test_llm_judge import key  # noqa: F401

MODEL = "openai/gpt-4o"


@pytest.fixture
def done(tmp_path: Path) -> Path:
    loaded = spec.load(world.study(tmp_path, arms="[arms.base]\nstrength = 3.0\n", latents="count = 8\n"))
    runner.run_study(loaded, tmp_path / "run", tools=lambda _: world.tools(tmp_path / "sae")).close()
    return tmp_path / "run"


def test_boundaries_are_marked_once_and_used_by_the_trace_which_is_exported(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[tuple[int, int]] = []
    tools, progress = (lambda _: world.tools(tmp_path / "sae")), lambda *at: read.append(at)
    before = trace_run(done, latents="1,3", tools=tools, progress=progress)
    assert read == sorted(read) and read[-1] == (before["episodes"] + before["matched"] + before["baseline"],) * 2
    assert before["boundaries"] == {"judge": None, "episodes": 0} and before["episodes"] > 0
    with FakeOpenAI() as server:
        argv = ["judge", str(done), "--judge", MODEL, "--rubric", "episodes", "--base-url", server.url, "--json"]
        assert call(argv) == 0
        made = json.loads(capsys.readouterr().out)
        with Run.open(done) as run:
            found = episodes(run.trials())
            texts = {(e.trial.plan.prompt, e.trial.text) for e in found}
            assert made["sampled"] == made["marked"] == len(found) and server.requests >= len(texts)
            for episode in found:
                kept = run.grade(
                    episode.trial.plan.prompt, episode.trial.plan.label, episode.trial.text, judge=made["key"]
                )
                at = episode.trial.text.index(RESTART)
                assert [part["start"] for part in kept["attempts"]] == [0, at, at + len(RESTART)]
                assert all(part["score"] is None for part in kept["attempts"])
        requests = server.requests
        (tmp_path / "prices.toml").write_text(f'date = "x"\n[models]\n"{MODEL}" = [1.0, 1.0]\n')
        assert call([*argv, "--max-cost", "1", "--prices", str(tmp_path / "prices.toml")]) == 0
        capsys.readouterr()
        judge_run(done, MODEL, rubric="episodes", base_url=server.url)
        assert server.requests == requests, "what is marked is not paid for again"
    after = trace_run(done, latents="1,3", tools=tools)
    assert after["boundaries"] == {"judge": made["judge"], "episodes": len(texts)}
    with Run.open(done) as run:
        export_inspect(run, tmp_path / "x.eval")
        assert run.judge.startswith("offline-"), "the run's own grades stay"
    metadata = log_file.read_eval_log(str(tmp_path / "x.eval"), header_only=True).eval.metadata
    assert metadata["trace"] == json.loads(json.dumps({"asked": "1,3", **after}))
    assert metadata["judging"]["requests"] == requests


def test_marking_is_refused_where_it_means_nothing(done: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name a language model"):
        judge_run(done, "offline", rubric="episodes")
    with pytest.raises(InputError, match="PROVIDER/NAME"):
        judge_run(done, "gpt-4o", rubric="episodes")
    with pytest.raises(InputError, match="not one of attempts, recovery, episodes"):
        judge_run(done, MODEL, rubric="episode")
    loaded = spec.load(world.study(tmp_path / "calm", arms="[arms.base]\nstrength = 0\n", latents="count = 2\n"))
    out = tmp_path / "calm" / "run"
    runner.run_study(loaded, out, tools=lambda _: world.tools(tmp_path / "calm" / "sae")).close()
    with pytest.raises(InputError, match="no response of two attempts"):
        judge_run(out, MODEL, rubric="episodes")
