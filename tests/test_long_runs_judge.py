"""Studies graded by a language model over HTTP: priced, capped, resumed, retried, sharded, and no secret anywhere."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import studies_world as world
from countersteer.cli import call
from countersteer.core.errors import InputError
from countersteer.judging.llm_budget import CostCapError
from countersteer.judging.llm_calls import JudgeRefusedError
from countersteer.report import html as page
from countersteer.report import terminal
from countersteer.report.summary import summarise
from countersteer.store import Run, export
from countersteer.store.merge import merge
from countersteer.studies import runner, spec
from countersteer.studies.judges import JudgeOptions
from fake_openai import CONTENT, PRICE, FakeOpenAI, block, pieces, score

KEY = "sk-test-7c1e9b0d4a5f4e21"
ARMS = "[arms.base]\nstrength = 3.0\n[arms.unsteered]\nstrength = 0\n"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def study(folder: Path, server: FakeOpenAI, *, arms: str = ARMS, latents: str = "count = 6\n", more: str = "") -> Path:
    path = world.study(folder, arms=arms, latents=latents, more=more)
    judged = f'[judge]\nmodel = "openai/gpt-4o"\nbase_url = "{server.url}"\n'
    path.write_text(path.read_text().replace("[judge]\nreferences = 3\n", judged))
    return path


def prices(folder: Path) -> str:
    file = folder / "prices.toml"
    file.write_text(f'date = "2030-01"\n[models]\n"openai/gpt-4o" = {list(PRICE)}\n')
    return str(file)


def run(path: Path, out: Path, *, tools: Any = None, **more: Any) -> Run:
    folder = path.parent
    options = {"prices": prices(folder), "tries": 12, **more.pop("options", {})}
    return runner.run_study(
        spec.load(path),
        out,
        tools=lambda _: tools or world.tools(folder / "sae"),
        options=JudgeOptions(**options),
        **more,
    )


def exported(folder: Path, out: Path) -> str:
    with Run.open(folder) as opened:
        export(opened, out)
    return out.read_text()


def test_every_trial_is_graded_as_the_judge_said_or_has_its_reason(tmp_path: Path) -> None:
    with FakeOpenAI(content=0.3) as server:
        path = study(tmp_path, server)
        with run(path, tmp_path / "run") as done:
            assert done.finished and not done.references(), "a language model needs no references"
            seen: Counter[str] = Counter()
            for trial in done.trials():
                fault = server.content_fault(trial.text)
                seen[trial.status] += 1
                if fault in CONTENT:
                    assert trial.status == "unparsed" and trial.reason
                else:
                    assert trial.scores == [score(piece) for piece in pieces(trial.text)]
            assert set(seen) == {"ok", "unparsed"}
            ledger = done.judging()
            assert ledger["requests"] == server.requests == len(server.answered)
            assert ledger["usd"] == pytest.approx(server.billed)
            known = done.fact("judge")
            assert known["rubric"]["name"] == "attempts" and known["settings"]["model"] == "openai/gpt-4o"


def test_a_cost_cap_stops_the_run_and_a_higher_one_finishes_it(tmp_path: Path) -> None:
    with FakeOpenAI(delay=0.005) as server:
        path = study(tmp_path, server)
        with pytest.raises(CostCapError, match="--max-cost"):
            run(path, tmp_path / "run", options={"max_cost": 0.03})
        assert server.billed <= 0.03
        with Run.open(tmp_path / "run") as stopped:
            assert not stopped.finished and stopped.judging()["usd"] <= 0.03
        with run(path, tmp_path / "run", options={"max_cost": 5.0}) as done:
            assert done.finished
        assert all(count == 1 for count in server.answered.values()), "nothing is paid twice"
        with run(path, tmp_path / "whole"):
            pass
    assert exported(tmp_path / "run", tmp_path / "a") == exported(tmp_path / "whole", tmp_path / "b")


def test_a_calibration_graded_by_a_model_resumes_without_paying_again(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        path = study(tmp_path, server, arms="[arms.base]\n", latents="count = 2\n")
        with pytest.raises(CostCapError):
            run(path, tmp_path / "run", options={"max_cost": 0.025})
        before = Counter(server.answered)
        assert before
        with run(path, tmp_path / "run") as done:
            assert done.finished and done.calibration() is not None
        assert all(server.answered[user] == 1 for user in before)


def test_only_the_asked_statuses_are_tried_again(tmp_path: Path) -> None:
    with FakeOpenAI(content=0.4) as server:
        path = study(tmp_path, server)
        path.write_text(path.read_text().replace("per_latent = 4", "per_latent = 4\nresample = 0"))
        with run(path, tmp_path / "run") as done:
            first = {t.plan.key: t.status for t in done.trials()}
        unparsed = {user for user in server.answered if server.content_fault(block("answer", user)) in CONTENT}
        assert unparsed and len(server.answered) > len(unparsed)
        requests = server.requests
        with run(path, tmp_path / "run"):
            assert server.requests == requests, "a finished run does nothing"
        server.content = 0.0
        with run(path, tmp_path / "run", retry_status=["unparsed"]) as done:
            assert done.finished
            assert all(t.status == "ok" for t in done.trials())
        assert server.requests == requests + len(unparsed)
        assert set(first.values()) == {"ok", "unparsed"}
        with pytest.raises(InputError, match="--retry-status 'bad'"):
            run(path, tmp_path / "run", retry_status=["bad"])


def test_a_judge_that_refuses_stops_the_run_with_one_line_and_no_secret(tmp_path: Path) -> None:
    with FakeOpenAI(key="another") as server:
        path = study(tmp_path, server)
        with pytest.raises(JudgeRefusedError) as caught:
            run(path, tmp_path / "run")
        assert "\n" not in str(caught.value) and KEY not in str(caught.value)
    for file in (tmp_path / "run").rglob("*"):
        assert KEY.encode() not in file.read_bytes(), file


def test_shards_of_a_judged_study_merge_into_the_whole(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        path = study(tmp_path, server)
        for i in (1, 2):
            with run(path, tmp_path / f"shard{i}", shard=(i, 2)) as part:
                assert not part.finished
                done = {t.plan.ordinal % 2 for t in part.trials() if t.status == "ok"}
                assert done == {i - 1}
        result = merge([tmp_path / "shard1", tmp_path / "shard2"], tmp_path / "merged")
        assert result["finished"]
        with run(path, tmp_path / "whole"):
            pass
        with Run.open(tmp_path / "merged") as merged:
            assert merged.judging()["requests"] >= len(server.answered)
    assert exported(tmp_path / "merged", tmp_path / "a") == exported(tmp_path / "whole", tmp_path / "b")


def test_runs_share_replies_through_a_cache_folder(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        path = study(tmp_path, server)
        with run(path, tmp_path / "one", options={"cache": str(tmp_path / "cache")}):
            requests = server.requests
        with run(path, tmp_path / "two", options={"cache": str(tmp_path / "cache")}) as second:
            assert second.finished and server.requests == requests > 0


def test_what_the_judge_cost_stands_in_the_result_and_on_the_page(tmp_path: Path) -> None:
    with FakeOpenAI(content=0.3) as server:
        path = study(tmp_path, server)
        with run(path, tmp_path / "one", options={"cache": str(tmp_path / "cache")}) as shared:
            result = summarise(shared)
        with run(path, tmp_path / "own") as own:
            assert summarise(own)["judging"]["usd"] == pytest.approx(server.billed / 2)
            assert own.judging()["states"] == {"ok": server.requests / 2}
            page.write(own, summarise(own), tmp_path / "report.html")
        used = result["judging"]
        assert used["requests"] == server.requests / 2 and used["usd"] == pytest.approx(server.billed / 2)
        assert used["input_tokens"] * PRICE[0] + used["output_tokens"] * PRICE[1] == pytest.approx(1e6 * used["usd"])
        calls = f"{used['requests']:,} judge calls for {used['usd']:.2f} USD ({used['input_tokens']:,} tokens read"
        assert calls in terminal.render(result) and calls in (tmp_path / "report.html").read_text()
        with run(path, tmp_path / "two", options={"cache": str(tmp_path / "cache")}) as again:
            assert summarise(again)["judging"] is None, "replies from a cache cost nothing"
    with FakeOpenAI() as server:
        path = study(tmp_path / "unpriced", server)
        path.write_text(path.read_text().replace("gpt-4o", "gpt-unheard-of"))
        with run(path, tmp_path / "unpriced" / "run") as unknown:
            found = summarise(unknown)["judging"]
            assert found["usd"] is None and found["unpriced"] == found["requests"] == server.requests
            assert "at an unknown price" in terminal.render(summarise(unknown))


def test_shards_that_share_replies_keep_what_they_cost(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        path = study(tmp_path, server)
        how = {"cache": str(tmp_path / "cache")}
        for i in (1, 2):
            run(path, tmp_path / f"shard{i}", shard=(i, 2), options=how).close()
        assert merge([tmp_path / "shard1", tmp_path / "shard2"], tmp_path / "whole")["finished"]
        with Run.open(tmp_path / "whole") as whole:
            assert whole.judging()["requests"] == server.requests
            assert whole.judging()["usd"] == pytest.approx(server.billed)


def test_plan_prices_every_arm_before_anything_is_paid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeOpenAI() as server:
        path = study(tmp_path, server)
        assert call(["plan", str(path), "--prices", prices(tmp_path), "--json"]) == 0
        planned = json.loads(capsys.readouterr().out)["judge"]
        assert planned["price"]["input"] == PRICE[0] and "2030-01" in planned["price"]["source"]
        assert planned["stages"]["trials base"]["calls"] == 24 and planned["calls"] == 48
        with run(path, tmp_path / "run") as done:
            spent = done.judging()
        trials = sum(row["calls"] for name, row in planned["stages"].items())
        assert 0 < planned["stages"]["trials base"]["usd"] < planned["stages"]["trials base"]["usd_at_most"]
        assert spent["requests"] <= trials and 0 < spent["usd"] <= planned["usd_at_most"]
        assert call(["plan", str(path)]) == 0
        said = capsys.readouterr().out
        assert "judge openai/gpt-4o: 48 calls, about" in said and "trials base: 24 calls" in said
        assert server.requests == spent["requests"]


def test_the_study_file_in_the_run_names_its_judge(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        path = study(tmp_path, server)
        with run(path, tmp_path / "run"):
            pass
        resolved = tomllib.loads((tmp_path / "run" / "study.toml").read_text())
        assert resolved["judge"]["model"] == "openai/gpt-4o"
    with sqlite3.connect(tmp_path / "run" / "run.db") as db:
        dumped = "\n".join(db.iterdump())
    assert KEY not in dumped and "sk-test" not in dumped


@pytest.mark.slow
def test_twelve_kills_while_a_model_judges_lose_no_money_and_grade_nothing_twice(tmp_path: Path) -> None:
    """What was under way when the process died is asked again, and both times are counted; nothing else is."""
    with FakeOpenAI(delay=0.15, content=0.2) as server:
        path = study(tmp_path, server)
        with run(path, tmp_path / "whole"):
            pass
        server.answered.clear()
        server.requests, server.billed = 0, 0.0
        how: dict[str, Any] = {"max_cost": 5.0, "connections": 2}
        draw, kills = random.Random(3), 0
        for _ in range(12):
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                try:
                    run(path, tmp_path / "run", options=how).close()
                finally:
                    os._exit(0)
            before, until = server.requests, time.monotonic() + 60
            while server.requests == before and time.monotonic() < until:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.4))
            os.kill(child, signal.SIGKILL)
            kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            with Run.open(tmp_path / "run") as stopped:
                used = stopped.judging()
                assert server.requests <= used["requests"], "entered before it leaves"
                assert server.billed <= used["usd"] <= 5.0
        assert kills >= 8, "it finished before it was killed: judge more slowly"
        with run(path, tmp_path / "run", options=how) as done:
            assert done.finished
            again = sum(server.answered.values()) - len(server.answered)
            assert again <= 2 * kills, "only what was under way"
            assert done.judging()["usd"] >= server.billed
    assert exported(tmp_path / "run", tmp_path / "a") == exported(tmp_path / "whole", tmp_path / "b")
