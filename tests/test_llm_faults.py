"""What failures of a judge's provider mean, many at a time: what is billed, what is asked again, what stops a run."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from countersteer.core.errors import InputError
from countersteer.judging.llm import LLMJudge
from countersteer.judging.llm_budget import Breaker, JudgeDownError
from countersteer.judging.llm_calls import Caller, JudgeRefusedError
from countersteer.judging.llm_settings import JudgeSettings
from countersteer.judging.prices import price
from countersteer.store.replies import Replies
from countersteer.store.shared_replies import Claims, SharedLedger
from fake_openai import PRICE, FakeOpenAI
from test_llm_judge import FAST, PROMPT, key, settings, texts, work  # noqa: F401

BAD = {"error": {"message": "not like this"}}


def statuses(grades: list) -> Counter[str]:
    return Counter(getattr(grade, "status", type(grade).__name__) for grade in grades)


def test_a_provider_without_structured_output_is_asked_without_however_many_are_under_way(tmp_path: Path) -> None:
    with FakeOpenAI(structured=False, delay=0.05) as server:
        grades = work(Replies.shared(tmp_path), settings(server, connections=16), texts(40))
        assert statuses(grades) == {"ok": 40}
        assert server.requests <= 40 + 16, "only those that had left are asked twice"


def test_one_rejected_question_does_not_end_structured_output_for_the_others(tmp_path: Path) -> None:
    first = texts(1)[0]
    bodies: list[bool] = []
    with FakeOpenAI(intercept=lambda response, attempt: (400, BAD) if response == first else None) as server:
        original = server._chat

        def chat(body: dict) -> dict:
            bodies.append("response_format" in body)
            return original(body)

        server._chat = chat  # type: ignore[method-assign]
        grades = work(Replies.shared(tmp_path), settings(server, connections=1), texts(6))
        assert statuses(grades) == {"ok": 5, "error": 1} and grades[0].status == "error"
    assert bodies == [True] * 5


@pytest.mark.parametrize("status", [400, 403, 422])
def test_a_provider_that_rejects_every_question_stops_the_run(tmp_path: Path, status: int) -> None:
    with FakeOpenAI(intercept=lambda response, attempt: (status, BAD)) as server:
        grades = work(Replies.shared(tmp_path), settings(server, connections=1), texts(40))
        assert statuses(grades)["JudgeRefusedError"] >= 35, "ten thousand trials would all be errors"
        assert server.requests <= 10
        assert "not like this" in str(next(g for g in grades if isinstance(g, JudgeRefusedError)))


def test_what_was_always_rejected_can_be_retried_where_others_were_answered(tmp_path: Path) -> None:
    long = set(texts(12)[:8])
    with FakeOpenAI(intercept=lambda response, attempt: (413, BAD) if response in long else None) as server:
        ledger = Replies.shared(tmp_path)
        grades = work(ledger, settings(server), texts(12)[8:])
        assert statuses(grades) == {"ok": 4}
        again = work(ledger, settings(server, connections=1), texts(12)[:8])
        assert statuses(again) == {"error": 8}, "each is its own fault: the run is not stopped for them"


def test_a_request_that_never_left_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with FakeOpenAI() as server:
        url = server.url
    how = JudgeSettings("openai/gpt-4o", base_url=url, price=PRICE, tries=3, connections=4)
    ledger = Replies.shared(tmp_path)
    breaker = Breaker(threshold=4, first=0.05, longest=0.1, patience=2)
    grades = work(ledger, how, texts(6), max_cost=0.05, breaker=breaker)
    assert set(statuses(grades)) <= {"error", "JudgeDownError"}
    assert ledger.requests() > 4 and ledger.states() == {"refused": ledger.requests()} and ledger.spent() == 0
    assert "does not answer" in caplog.text and "Connection" in caplog.text, "nobody waits without being told why"
    assert any("onnect" in str(g) for g in grades if isinstance(g, JudgeDownError))


def test_closing_waits_for_requests_under_way_and_for_nothing_else(tmp_path: Path) -> None:
    busy = (429, {"error": {"message": "busy"}})
    with FakeOpenAI(
        delay=0.4, intercept=lambda response, attempt: busy if "setting 1." in response else None
    ) as server:
        ledger = Replies.shared(tmp_path)

        async def go() -> float:
            caller = Caller(settings(server, connections=2), ledger)
            caller._waits = type(FAST)(first=500.0, longest=500.0)
            asked = [asyncio.ensure_future(LLMJudge(caller).grade(PROMPT, text)) for text in texts(6)]
            while server.requests < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            before = time.monotonic()
            await caller.close()
            took = time.monotonic() - before
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            return took

        assert asyncio.run(go()) < 10, "one was under way, the others waited for minutes or for their turn"
        assert ledger.states() == {"ok": 1, "refused": 1} and server.requests == 2


def test_only_one_call_probes_an_open_breaker() -> None:
    async def go() -> None:
        breaker = Breaker(threshold=1, first=0.01, longest=0.01, patience=5)
        assert breaker.failure("down") == pytest.approx(0.01)
        assert await breaker.enter() is True
        breaker.neutral(False)  # a call that left before the opening ends
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(breaker.enter(), 0.2)
        assert breaker.failure("late", False) is None, "nor does an old call's failure count as the probe's"
        assert breaker.failure("down", True) is not None

    asyncio.run(go())


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000/v1", "http://", "ftp://host/v1", "http://me:pw@host/v1", "http://host/v1?key=1", "http://h:x"],
)
def test_an_address_that_is_none_is_refused_and_its_secrets_are_not_repeated(url: str) -> None:
    with pytest.raises(InputError, match="base_url must") as caught:
        JudgeSettings("openai/gpt-4o", base_url=url)
    assert "pw" not in str(caught.value) and "key=1" not in str(caught.value)
    for good in ("http://[::1]:8000/v1", "https://Host.example/v1", "http://localhost:8000"):
        JudgeSettings("openai/gpt-4o", base_url=good)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[model]\n"openai/gpt-4o" = [1, 2]\n', "needs .models."),
        ('[models]\n"a/b" = [1, 2]\n[model]\n"openai/gpt-4o" = [1, 2]\n', "unknown key 'model'.*did you mean 'models'"),
        ('"openai/gpt-4o" = [1, 2]\n[models]\n"a/b" = [1, 2]\n', "prices stand under .models."),
        ("", "needs .models."),
    ],
)
def test_a_price_file_that_says_nothing_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=said):
        price("openai/gpt-4o", file=file)


def shared(folder: Path, name: str) -> SharedLedger:
    return SharedLedger(Replies.shared(folder / name), folder / "cache")


def test_a_cap_is_a_runs_own_whatever_others_paid_for_the_replies_they_share(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        with closing(shared(tmp_path, "one")) as one:
            work(one, settings(server), texts(20), max_cost=5.0)
            first = one.spent()
        assert first == pytest.approx(server.billed) and first > 0.01
        with closing(shared(tmp_path, "two")) as two:
            assert two.spent() == 0
            grades = work(two, settings(server), texts(24), max_cost=0.06)
            assert statuses(grades) == {"ok": 24} and server.requests == 24
            assert two.requests() == 4 and two.spent() == pytest.approx(server.billed - first)


def test_a_process_killed_over_shared_replies_leaves_its_money_counted(tmp_path: Path) -> None:
    with FakeOpenAI(delay=30) as server:
        code = (
            "import sys\nsys.path.insert(0, 'tests')\nfrom test_llm_faults import *\n"
            f"how = JudgeSettings('openai/gpt-4o', base_url={server.url!r}, price=PRICE, connections=3)\n"
            f"work(shared(Path({str(tmp_path)!r}), 'one'), how, texts(8), max_cost=1.0)\n"
        )
        child = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent.parent)
        until = time.monotonic() + 120
        while server.requests < 3 and time.monotonic() < until:
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
    with closing(shared(tmp_path, "one")) as ledger:
        assert ledger.requests() == 3 and ledger.spent() > 3 * 1024 * PRICE[1] / 1e6
        assert ledger.claim("anything"), "what the process had taken is free again"


def test_two_runs_that_share_replies_ask_the_same_question_once(tmp_path: Path) -> None:
    with FakeOpenAI(delay=0.3) as server:

        async def go() -> list:
            ledgers = [shared(tmp_path, name) for name in ("one", "two")]
            callers = [Caller(settings(server), ledger, waits=FAST) for ledger in ledgers]
            asked = [LLMJudge(caller).grade(PROMPT, text) for caller in callers for text in texts(4)]
            grades = await asyncio.gather(*asked)
            for caller, ledger in zip(callers, ledgers, strict=True):
                await caller.close()
                ledger.close()
            return list(grades)

        grades = asyncio.run(go())
        assert [g.status for g in grades] == ["ok"] * 8 and grades[:4] == grades[4:]
        assert server.requests == 4 and set(server.answered.values()) == {1}


def test_a_taken_question_is_free_when_its_holder_ends(tmp_path: Path) -> None:
    mine, theirs = Claims(tmp_path), Claims(tmp_path)
    assert mine.take("a") and not theirs.take("a") and theirs.take("b") and not mine.take("b")
    mine.give_back("a")
    assert theirs.take("a")
    theirs.close()
    assert mine.take("a") and mine.take("b")
    mine.close()
    assert os.path.getsize(tmp_path / "questions.lock") == 0
