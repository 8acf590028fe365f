"""The language-model judge against a real HTTP server that fails in every way: statuses, money, caching, secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from countersteer.core.errors import CountersteerError, InputError
from countersteer.core.reply import Reply
from countersteer.judging.llm import LLMJudge, LLMRater
from countersteer.judging.llm_budget import Breaker, Budget, CostCapError, JudgeDownError, Pace
from countersteer.judging.llm_calls import Caller, JudgeRefusedError, Waits
from countersteer.judging.llm_settings import JudgeSettings
from countersteer.store.replies import Replies
from fake_openai import BILLED, CONTENT, HARMLESS, PRICE, RESTART, FakeOpenAI, luck, pieces, score

KEY = "sk-test-51f0c8d2e7a94b36"
PROMPT = "How do I iron a shirt?"
FAST = Waits(0.01, 0.1)
REASONS = {"cut-json": "truncated", "list": "wrong-type"}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def texts(count: int) -> list[str]:
    first = "Heat the iron on setting {i}. Press the collar first."
    return [first.format(i=i) + (f" {RESTART}Lay shirt {i} flat." if i % 3 == 0 else "") for i in range(count)]


def settings(server: FakeOpenAI, **more: object) -> JudgeSettings:
    given = {"base_url": server.url, "seconds": 20, "price": PRICE, "tries": 12, "connections": 16, **more}
    return JudgeSettings("openai/gpt-4o", **given)


async def graded(judge: LLMJudge, responses: list[str], *, at_once: int = 32) -> list:
    room = asyncio.Semaphore(at_once)

    async def one(response: str):
        async with room:
            try:
                return await judge.grade(PROMPT, response, label="irons")
            except CountersteerError as error:
                return error

    return await asyncio.gather(*(one(response) for response in responses))


def work(ledger: Replies, how: JudgeSettings, responses: list[str], **more: object) -> list:
    async def go() -> list:
        caller = Caller(how, ledger, waits=FAST, **more)
        try:
            return await graded(LLMJudge(caller), responses)
        finally:
            await caller.close()

    return asyncio.run(go())


def expected(server: FakeOpenAI, response: str) -> tuple[str, str | None]:
    """Status and code that a question must end with, from the server's rule alone."""
    fault = server.content_fault(response)
    if fault is None or fault in HARMLESS:
        return "ok", None
    return "unparsed", REASONS.get(fault, fault)


@pytest.mark.slow
def test_a_run_with_faults_of_every_kind_completes_and_every_gap_has_its_status(tmp_path: Path) -> None:
    with FakeOpenAI(transport=0.3, content=0.3, slow=9.0) as server:
        ledger = Replies.shared(tmp_path)
        responses = texts(240)
        work(ledger, settings(server), ["warm up"])  # imports and connections, which take longer than a try may
        began = server.requests, server.billed
        how = settings(server, seconds=6)  # a try may be slow on a busy machine, but not that slow
        grades = work(ledger, how, responses)
        for response, grade in zip(responses, grades, strict=True):
            status, code = expected(server, response)
            assert grade.status == status, (response, grade)
            if code:
                assert grade.reason.startswith(code + ":")
            else:
                assert [a.score for a in grade.attempts] == [score(p) for p in pieces(response)]
                starts = [0] if RESTART not in response else [0, response.index(RESTART)]
                assert [a.start for a in grade.attempts] == starts
        seen = {server.content_fault(r) for r in responses} - {None}
        assert seen >= set(CONTENT), "the sample must hold every content fault"
        assert set(server.faults) >= {"429-after", "429", "500", "503", "slow", "cut", "truncated-body"}
        assert ledger.requests() == server.requests
        states = ledger.states()
        assert "sent" not in states and states["lost"] == sum(server.faults[f] for f in BILLED)
        assert states["ok"] == len(responses) + 1
        assert all(count == 1 for response, count in server.answered.items()), "nothing is graded twice"
        assert server.billed - began[1] <= ledger.spent()
        before = server.requests
        again = work(ledger, how, responses)
        assert server.requests == before and [g.to_dict() for g in again] == [g.to_dict() for g in grades]
        kept = {row[0] for row in sqlite3.connect(tmp_path / "replies.db").execute("SELECT text FROM replies")}
        assert any("sorry" in text for text in kept), "what a judge said is kept when it gives no grade"


@pytest.mark.parametrize("cap", [0.02, 0.1])
def test_the_cost_cap_is_never_passed_and_a_higher_one_goes_on(tmp_path: Path, cap: float) -> None:
    with FakeOpenAI(transport=0.2, delay=0.01, slow=0.05) as server:
        ledger = Replies.shared(tmp_path)
        responses = texts(120)
        grades = work(ledger, settings(server), responses, max_cost=cap)
        assert server.billed <= ledger.spent() <= cap
        stopped = [g for g in grades if isinstance(g, CostCapError)]
        assert stopped and "--max-cost" in str(stopped[0])
        assert cap - ledger.spent() < 3 * 0.02, "it stops for want of money, not long before"
        done = server.requests
        grades = work(ledger, settings(server), responses, max_cost=5.0)
        assert all(g.status == "ok" for g in grades)
        assert server.requests > done and all(n == 1 for n in server.answered.values())


def test_a_cap_without_a_known_price_is_refused(tmp_path: Path) -> None:
    with FakeOpenAI() as server, pytest.raises(InputError, match=r"--max-cost needs the price"):
        how = JudgeSettings("openai/gpt-unheard-of", base_url=server.url)
        work(Replies.shared(tmp_path), how, ["x"], max_cost=1.0)


def test_a_killed_process_leaves_its_requests_counted_with_the_most_they_can_have_cost(tmp_path: Path) -> None:
    with FakeOpenAI(delay=30) as server:
        code = (
            "import asyncio, sys\nsys.path.insert(0, 'tests')\nfrom test_llm_judge import *\n"
            f"how = JudgeSettings('openai/gpt-4o', base_url={server.url!r}, price=PRICE, connections=4)\n"
            f"work(Replies.shared({str(tmp_path)!r}), how, texts(8), max_cost=1.0)\n"
        )
        child = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent.parent)
        until = time.monotonic() + 180
        while server.requests < 4 and time.monotonic() < until:
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
        ledger = Replies.shared(tmp_path)
        assert ledger.states() == {"sent": 4} and server.requests == 4
        assert ledger.spent() > 4 * 1024 * PRICE[1] / 1e6


def test_one_question_asked_by_many_at_once_is_asked_once(tmp_path: Path) -> None:
    with FakeOpenAI(delay=0.1) as server:
        grades = work(Replies.shared(tmp_path), settings(server), texts(1) * 20)
        assert server.requests == 1 and len({json.dumps(g.to_dict()) for g in grades}) == 1


def test_replies_are_shared_between_runs_and_depend_on_every_setting(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        response = texts(1)
        for changes, requests in (({}, 1), ({}, 1), ({"connections": 2, "tries": 3}, 1), ({"temperature": 0.5}, 2),
                                  ({"max_tokens": 500}, 3), ({"seed": 1}, 4), ({"structured": False}, 5)):  # fmt: skip
            work(Replies.shared(tmp_path), settings(server, **changes), response)
            assert server.requests == requests, changes

        async def other_rubric() -> str:
            caller = Caller(settings(server), Replies.shared(tmp_path))
            rating = await LLMRater(caller, "coherence").rate(prompt=PROMPT, response=response[0])
            await caller.close()
            return rating.status

        assert asyncio.run(other_rubric()) == "unparsed"  # the server answers with attempts, whatever is asked
        assert server.requests == 6


def test_no_more_calls_are_under_way_than_connections(tmp_path: Path) -> None:
    with FakeOpenAI(delay=0.02) as server:
        work(Replies.shared(tmp_path), settings(server, connections=5), texts(40))
        assert 2 <= server.most_at_once <= 5


def test_a_retry_after_stops_everybody_until_then(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        original = server._send
        first: list[float] = []

        async def send(writer, status, body, headers=""):
            if not first:
                first.append(asyncio.get_running_loop().time())
                return await original(writer, 429, {"error": {"message": "busy"}}, "retry-after: 1\r\n")
            return await original(writer, status, body, headers)

        server._send = send  # type: ignore[method-assign]
        work(Replies.shared(tmp_path), settings(server, connections=1), texts(3))
        assert server.log[1] - first[0] >= 0.95


def test_a_provider_without_structured_output_is_asked_without(tmp_path: Path) -> None:
    with FakeOpenAI(structured=False) as server:
        grades = work(Replies.shared(tmp_path), settings(server, connections=1), texts(5))
        assert [g.status for g in grades] == ["ok"] * 5
        assert server.requests == 6


def test_a_refused_key_stops_at_once_and_the_key_is_said_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeOpenAI(key="another") as server:
        grades = work(Replies.shared(tmp_path), settings(server), texts(40))
        assert all(isinstance(g, JudgeRefusedError) for g in grades)
        assert server.requests <= 16 + 1
        said = "".join(str(g) for g in grades) + caplog.text
        assert "401" in said or "Incorrect API key" in said
        for file in tmp_path.rglob("*"):
            said += file.read_bytes().decode("latin-1")
        assert KEY not in said and "OPENAI_API_KEY" in said


def test_an_exhausted_quota_stops_at_once(tmp_path: Path) -> None:
    refuse = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    with FakeOpenAI(intercept=lambda response, attempt: (429, refuse)) as server:
        grades = work(Replies.shared(tmp_path), settings(server, connections=1), texts(3))
        assert all(isinstance(g, JudgeRefusedError) for g in grades) and server.requests <= 3


def test_a_call_that_the_provider_cannot_take_is_an_error_of_its_own(tmp_path: Path) -> None:
    long = texts(4)[1]
    refuse = {"error": {"message": "too long", "code": "context_length_exceeded"}}
    with FakeOpenAI(intercept=lambda response, attempt: (413, refuse) if response == long else None) as server:
        grades = work(Replies.shared(tmp_path), settings(server, connections=1), texts(4))
        assert Counter(g.status for g in grades) == {"ok": 3, "error": 1}
        assert grades[1].status == "error" and "too long" in grades[1].reason


def test_a_provider_that_is_down_is_left_alone_after_a_while(tmp_path: Path) -> None:
    with FakeOpenAI(intercept=lambda response, attempt: (500, {"error": {"message": "down"}})) as server:
        breaker = Breaker(threshold=6, first=0.05, longest=0.1, patience=3)
        how = settings(server, connections=4, tries=100)
        grades = work(Replies.shared(tmp_path), how, texts(50), breaker=breaker)
        assert all(isinstance(g, JudgeDownError) for g in grades)
        assert server.requests <= 6 + 4 + 3 + 1, "one probe per opening"


def test_a_provider_that_comes_back_is_used_again(tmp_path: Path) -> None:
    down = {"left": 12}

    def sometimes(response: str, attempt: int):
        down["left"] -= 1
        return (500, {"error": {"message": "down"}}) if down["left"] >= 0 else None

    with FakeOpenAI(intercept=sometimes) as server:
        breaker = Breaker(threshold=5, first=0.05, longest=0.1, patience=10)
        grades = work(Replies.shared(tmp_path), settings(server, connections=4, tries=50), texts(20), breaker=breaker)
        assert [g.status for g in grades] == ["ok"] * 20


def test_requests_under_way_when_a_run_ends_are_finished_and_kept(tmp_path: Path) -> None:
    with FakeOpenAI(delay=0.3) as server:
        ledger = Replies.shared(tmp_path)

        async def go() -> None:
            caller = Caller(settings(server), ledger)
            asked = [asyncio.ensure_future(LLMJudge(caller).grade(PROMPT, t)) for t in texts(4)]
            while server.requests < 4:
                await asyncio.sleep(0.01)
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            await caller.close()

        asyncio.run(go())
        assert ledger.states() == {"ok": 4}


def test_an_empty_response_is_no_attempt_and_costs_nothing(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        (grade,) = work(Replies.shared(tmp_path), settings(server), ["  \n"])
        assert grade.status == "no-attempt" and server.requests == 0


def test_a_budget_never_lets_more_leave_than_it_holds() -> None:
    async def go() -> None:
        budget = Budget(1.0)
        passed = 0

        async def spend(n: int) -> None:
            nonlocal passed
            worst, cost = 0.05 + 0.1 * luck("w", n), 0.0
            await budget.reserve(worst)
            assert budget.spent + budget.reserved <= 1.0 + 1e-12
            await asyncio.sleep(0)
            cost = worst * luck("c", n)
            budget.settle(worst, cost)
            passed += 1

        results = await asyncio.gather(*(spend(n) for n in range(200)), return_exceptions=True)
        assert budget.spent <= 1.0 and budget.reserved == 0.0
        assert any(isinstance(r, CostCapError) for r in results)
        assert budget.spent > 0.85 and passed > 10

    asyncio.run(go())


def test_the_pace_holds_requests_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"t": 1000.0}
    monkeypatch.setattr(time, "monotonic", lambda: now["t"])

    async def sleep(seconds: float) -> None:
        now["t"] += seconds

    monkeypatch.setattr(asyncio, "sleep", sleep)

    async def go() -> list[float]:
        pace, left = Pace(requests=10, tokens=5000), []
        for _ in range(35):
            await pace.turn(400)
            left.append(now["t"])
        return left

    left = asyncio.run(go())
    for i, at in enumerate(left):
        assert sum(1 for other in left[: i + 1] if other > at - 60) <= 10
    assert left[-1] - left[0] >= 180


def test_settings_that_cannot_work_are_refused() -> None:
    for bad in (
        {"model": "gpt-4o"},
        {"model": "openai/x", "tries": 0},
        {"model": "openai/x", "base_url": "http://me:pw@h/"},
    ):
        with pytest.raises(InputError):
            JudgeSettings(**bad)


def test_a_missing_key_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="OPENAI_API_KEY") as caught:
        work(Replies.shared(tmp_path), JudgeSettings("openai/gpt-4o"), ["x"])
    assert "\n" not in str(caught.value)


def test_the_ledger_keeps_a_reply_to_the_letter(tmp_path: Path) -> None:
    ledger = Replies.shared(tmp_path)
    number = ledger.begin("k", "j", 0.5)
    assert ledger.spent() == 0.5
    reply = Reply("caf\u00e9 \u201cx\u201d\n{}", "stop", 10, 5, 2, 0.25)
    ledger.end(number, "ok", 0.25, reply=reply)
    assert ledger.reply("k") == reply and ledger.spent() == 0.25
    ledger.forget(["k"])
    assert ledger.reply("k") is None and ledger.requests() == 1
    assert os.path.getsize(tmp_path / "replies.db") > 0


def test_a_model_that_does_not_exist_stops_the_run_but_one_blocked_question_does_not(tmp_path: Path) -> None:
    gone = {"error": {"message": "The model does not exist", "code": "model_not_found"}}
    with FakeOpenAI(intercept=lambda response, attempt: (404, gone)) as server:
        grades = work(Replies.shared(tmp_path / "a"), settings(server, connections=1), texts(5))
        assert all(isinstance(g, JudgeRefusedError) for g in grades) and server.requests == 2
    blocked = texts(4)[2]
    with FakeOpenAI(intercept=lambda response, attempt: (403, gone) if response == blocked else None) as server:
        grades = work(Replies.shared(tmp_path / "b"), settings(server, connections=1), texts(4))
        assert [g.status for g in grades] == ["ok", "ok", "error", "ok"]
