"""A judge's server that is hostile or broken in ways no provider documents: each reply has a status, nothing fails.

What it says to a question is decided by the question's own first words (`CASE name.`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import studies_world as world
from countersteer.cli import call
from countersteer.core.trial import Grade
from countersteer.judging import llm_wire
from countersteer.judging.llm_budget import Breaker
from countersteer.judging.parse import MAX_RAW
from countersteer.report import html as page
from countersteer.report.summary import summarise
from countersteer.store import Run
from countersteer.store.replies import Replies
from fake_openai import FakeOpenAI, block, verdict
from test_llm_judge import KEY, PROMPT, key, settings, work  # noqa: F401
from test_long_runs_judge import run, study

QUOTE = "Lay the shirt flat"
ACCENTS = "Caf\u00e9 cr\u00e8me br\u00fbl\u00e9e na\u00efve fa\u00e7ade."
ESCAPED = "".join(f"\\u{ord(letter):04x}" for letter in KEY)


def reply(score: str = "50", *, restart: str | None = None, quote: str = QUOTE) -> str:
    """A judge's JSON with one attempt, or with two of which the second has a restart; `score` as it stands there."""
    second = {"quote": quote, "restart": restart, "score": 50}
    rows = [{"quote": QUOTE, "restart": None, "score": 0}]
    if restart is not None:
        rows = [{"quote": "CASE", "restart": None, "score": 0}, second]
    return json.dumps({"attempts": rows}).replace('"score": 0', f'"score": {score}')


SAID = {
    "warm": reply(),
    "nan": reply("NaN"),
    "infinite": reply("1e999"),
    "huge": reply("1" + "0" * 400),
    "below": reply("-1" + "0" * 400),
    "digits": reply("1" * 5000),
    "text": reply('"85"'),
    "of-ten": reply('"8/10"'),
    "percent": reply('"85%"'),
    "object": reply('{"value": 3}'),
    "twice": json.dumps({"attempts": [{"quote": QUOTE, "restart": None, "score": 5}] * 2}),
    "backwards": json.dumps({"attempts": [{"quote": q, "restart": None, "score": 5} for q in ("and press.", QUOTE)]}),
    "many": json.dumps({"attempts": [{"quote": "", "restart": None, "score": 5}] * 101}),
    "half-pair": reply(restart="\ud800 bad"),
    "half-pair-outside": reply() + " \ud800",
    "nul": reply(restart="a\x00b"),
    "decomposed": reply(restart="", quote=unicodedata.normalize("NFD", ACCENTS)),
    "key": reply(restart=KEY),
    "escaped-key": reply(restart="@").replace("@", ESCAPED),
    "deep": "[" * 100_000,
    "deep-object": '{"attempts": ' * 20_000,
    "long": reply() + " " * 3_000_000,
}
"""What the model says, in an ordinary chat completion."""

UNPARSED = {
    "nan": "out-of-range", "infinite": "out-of-range", "huge": "out-of-range", "below": "out-of-range",
    "digits": "truncated", "of-ten": "out-of-range", "object": "wrong-type", "twice": "out-of-order",
    "backwards": "out-of-order", "many": "out-of-range", "deep": "no-json", "deep-object": "truncated",
    "no-choices": "empty", "no-content": "empty",
}  # fmt: skip
ERRORS = {
    "error-object": f"the server sent an error as a reply: boom {KEY}",
    "error-text": "the server sent an error as a reply: out of luck",
    "no-message": "the server's reply is no chat completion; it begins '{",
    "list": "the server's reply is no chat completion; it begins '[1, 2]'",
    "page": "the server's reply is no chat completion; it begins '<html>log in</html>'",
    "nothing": "the server sent an empty reply",
    "text-usage": "the server's reply is no chat completion",
    "too-long": "the reply is longer than 16777216 bytes",
    "bomb": "the reply is longer than 65536 bytes (compressed)",
    "packed": "the reply is packed as 'br', which was not asked for",
    "garbage": "illegal status line",
    "bad-request": f"bad ?[31m key {KEY} xxx",
}
"""What the reason of each error must hold (the key as its name)."""


def bomb() -> bytes:
    """A hundred megabytes of blanks, packed."""
    packer, blank = zlib.compressobj(6, zlib.DEFLATED, 31), b" " * (1 << 20)
    return b"".join([*(packer.compress(blank) for _ in range(100)), packer.flush()])


class Nasty(FakeOpenAI):
    """The server. `encodings`: what each request said it takes."""

    encodings: set[str]

    async def _reply(self, head: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        self.requests += 1
        self.encodings = {line.split(":")[1].strip() for line in head.lower().splitlines() if "accept-encoding" in line}
        response = block("answer", body["messages"][-1]["content"])
        case = response.split()[1].rstrip(".") if response.startswith("CASE") else ""
        self.asked[case] += 1
        said = SAID.get(case, json.dumps(verdict(response)))
        made = self._chat(body)
        made["choices"][0]["message"]["content"] = said
        made.update(OTHER.get(case, {}))
        if case in ("error-object", "limited") and (case != "limited" or self.asked[case] == 1):
            return await self._send(writer, 200, {"error": {"message": f"boom {KEY}", "code": 429}})
        if case == "error-text":
            return await self._send(writer, 200, {"error": "out of luck"})
        if case == "list":
            return await self._send(writer, 200, [1, 2])
        if case == "moved" and self.asked[case] == 1:
            return await self._send(writer, 307, {}, f"location: {self.url}/chat/completions?moved\r\n")
        if case == "bad-request":
            return await self._send(writer, 413, {"error": {"message": f"bad\n\x1b[31m key {KEY} {'x' * 1_000_000}"}})
        if case.startswith("wait") and self.asked[case] == 1:
            return await self._send(writer, 429, {"error": {"message": "busy"}}, f"retry-after: {WAITS[case]}\r\n")
        if case == "cut" and self.asked[case] == 1:
            return await self._raw(writer, json.dumps(made).encode()[:40], length=4000)
        if case == "garbage":
            writer.write(b"\x00\x01 not http\r\n\r\n")
            return False
        raw = {
            "page": (b"<html>log in</html>", "text/html"), "nothing": (b"", "application/json"),
            "bomb": (bomb, "application/json\r\ncontent-encoding: gzip"),
            "packed": (b"x", "application/json\r\ncontent-encoding: br"),
            "too-long": (lambda: json.dumps(made).encode() + b" " * llm_wire.MOST, "application/json"),
        }  # fmt: skip
        if case in raw:
            data, kind = raw[case]
            return await self._raw(writer, data if isinstance(data, bytes) else data(), kind=kind)
        return await self._send(writer, 200, made)

    async def _raw(
        self, writer: asyncio.StreamWriter, data: bytes, *, kind: str = "application/json", length: int | None = None
    ) -> bool:
        size = len(data) if length is None else length
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {size}\r\n\r\n".encode() + data)
        await writer.drain()
        return length is None


WAITS = {"wait-nan": "nan", "wait-below": "-5", "wait-past": "Wed, 21 Oct 2015 07:28:00 GMT", "wait-words": "soon"}
BEYOND = {"prompt_tokens": 10**12, "completion_tokens": 10**25, "total_tokens": 1}
OTHER: dict[str, dict[str, Any]] = {
    "no-choices": {"choices": []},
    "no-message": {"choices": [{"index": 0, "finish_reason": "stop", "message": None}]},
    "no-content": {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant"}}]},
    "other-model": {"model": "another-one"},
    "no-usage": {"usage": None},
    "less-than-no-usage": {"usage": {"prompt_tokens": -(10**9), "completion_tokens": -5, "total_tokens": -6}},
    "beyond-usage": {"usage": BEYOND},
    "text-usage": {"usage": {"prompt_tokens": "ten", "completion_tokens": "x", "total_tokens": "y"}},
}
FINE = {
    "text": 85.0, "percent": 85.0, "half-pair-outside": 50.0, "long": 50.0, "moved": 50.0, "cut": 50.0,
    "limited": 50.0, "no-usage": 50.0, "less-than-no-usage": 50.0, "beyond-usage": 50.0, "other-model": 50.0,
    **dict.fromkeys(WAITS, 50.0),
}  # fmt: skip
UNTOLD = ("no-usage", "less-than-no-usage", "beyond-usage")


def ask(server: Nasty, ledger: Replies, cases: list[str], **more: Any) -> dict[str, Grade]:
    SAID.update({case: reply() for case in [*FINE, *OTHER] if case not in SAID})
    texts = [f"CASE {case}. {ACCENTS if case == 'decomposed' else 'Lay the shirt flat and press.'}" for case in cases]
    how = settings(server, tries=3, **more)
    return dict(zip(cases, work(ledger, how, texts, breaker=Breaker(threshold=10_000)), strict=True))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Grade], Path, Nasty, str]]:
    """Every case asked once, over one connection after the other: grades, the ledger's folder, the server, the log."""
    folder = tmp_path_factory.mktemp("nasty")
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("countersteer").addHandler(handler)
    with pytest.MonkeyPatch.context() as patch, Nasty() as server:
        patch.setenv("OPENAI_API_KEY", KEY)
        ledger = Replies.shared(folder)
        grades = ask(server, ledger, ["warm"], connections=1)
        grades |= ask(server, ledger, [*UNPARSED, *ERRORS, *FINE, *(c for c in SAID if c not in FINE)], connections=4)
        ledger.close()
        yield grades, folder, server, "\n".join(heard)
    logging.getLogger("countersteer").removeHandler(handler)


def test_no_reply_stops_the_work(told: Any) -> None:
    grades = told[0]
    assert len(grades) > 45 and all(isinstance(grade, Grade) for grade in grades.values()), grades


@pytest.mark.parametrize("case", UNPARSED)
def test_a_reply_that_cannot_be_used_has_its_code(told: Any, case: str) -> None:
    grade = told[0][case]
    assert grade.status == "unparsed" and grade.reason.startswith(f"{UNPARSED[case]}: "), grade
    assert len(grade.reason) < 400


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_no_reply_is_an_error_in_the_servers_own_words(told: Any, case: str) -> None:
    grade = told[0][case]
    assert grade.status == "error" and ERRORS[case].replace(KEY, "[OPENAI_API_KEY]") in grade.reason, grade
    assert "\x1b" not in grade.reason and len(grade.reason) <= 600


@pytest.mark.parametrize("case", FINE)
def test_what_can_be_read_is_read(told: Any, case: str) -> None:
    assert told[0][case].status == "ok" and [a.score for a in told[0][case].attempts] == [FINE[case]]


def test_quotations_are_found_whatever_their_accents_are_made_of(told: Any) -> None:
    grade = told[0]["decomposed"]
    assert [(a.start, a.end) for a in grade.attempts] == [(0, 17), (17, 17 + len(ACCENTS))]
    assert "loose-quote" not in grade.flags


def test_texts_that_no_file_can_hold_are_mended(told: Any) -> None:
    assert told[0]["half-pair"].attempts[1].restart == "? bad"
    assert told[0]["nul"].status == "ok"
    json.dumps([grade.to_dict() for grade in told[0].values()], ensure_ascii=False).encode()


def test_replies_are_kept_within_bounds(told: Any) -> None:
    ledger = Replies.shared(told[1])
    kept = [row[0] for row in ledger._db.execute("SELECT text FROM replies")]
    reasons = [row[0] for row in ledger._db.execute("SELECT reason FROM requests WHERE reason IS NOT NULL")]
    ledger.close()
    assert MAX_RAW - 100 < max(map(len, kept)) <= MAX_RAW and max(map(len, reasons)) <= 500
    assert sum(file.stat().st_size for file in told[1].iterdir()) < 2_000_000
    assert any("sk-" not in text and "[OPENAI_API_KEY]" in text for text in kept)


def test_an_echoed_key_is_in_no_grade_no_file_and_no_line_of_the_log(told: Any) -> None:
    grades, folder, _, heard = told
    assert grades["key"].attempts[1].restart == grades["escaped-key"].attempts[1].restart == "[OPENAI_API_KEY]"
    said = json.dumps([grade.to_dict() for grade in grades.values()]) + heard
    for file in folder.rglob("*"):
        said += file.read_bytes().decode("latin-1")
    assert KEY not in said


def test_usage_that_no_call_can_have_counts_as_the_most(told: Any) -> None:
    ledger = Replies.shared(told[1])
    rows = ledger._db.execute("SELECT state, cost FROM requests").fetchall()
    states, spent = ledger.states(), ledger.spent()
    ledger.close()
    most = 1024 * 10.0 / 1e6
    assert all(0 <= cost < 2 * most for _, cost in rows) and sum(cost for _, cost in rows) == pytest.approx(spent)
    assert sum(state == "ok" and cost > most for state, cost in rows) == len(UNTOLD)
    assert "sent" not in states


def test_an_error_sent_with_status_200_is_what_its_code_says(told: Any) -> None:
    """429: not billed, and tried again."""
    _, _, server, _ = told
    assert server.asked["error-object"] == 3 and server.asked["limited"] == 2


def test_another_models_answers_are_said_once(told: Any) -> None:
    _, _, server, heard = told
    assert heard.count("openai/gpt-4o was asked, and another-one answers") == 1
    assert server.encodings == {"identity"}


def test_a_bill_beyond_the_most_a_call_can_cost_is_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with FakeOpenAI() as server:
        chat = server._chat

        def dear(body: dict[str, Any]) -> dict[str, Any]:
            return {**chat(body), "usage": {"prompt_tokens": 10, "completion_tokens": 50_000, "total_tokens": 50_010}}

        server._chat = dear  # type: ignore[method-assign]
        ledger = Replies.shared(tmp_path)
        work(ledger, settings(server, connections=1), ["Lay it flat.", "Press it."])
        assert ledger.spent() == pytest.approx(2 * (10 * 2.0 + 50_000 * 10.0) / 1e6)
    assert caplog.text.count("a cost cap may be passed by the difference") == 1


def test_no_secret_leaves_a_run_by_any_door(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The key comes back in replies (plain and escaped), in errors of the provider and in exceptions of the engine."""
    caplog.set_level(logging.INFO)

    def script(request: Any) -> str:
        if "bread" in request.prompt:
            raise RuntimeError(f"refused for Bearer {KEY}")
        return world.answer(request)

    def echo(response: str, attempt: int) -> tuple[int, Any] | None:
        if attempt == 0:
            return 500, {"error": {"message": f"the key {KEY} is tired"}}
        rows = verdict(response)["attempts"]
        rows[-1]["restart"] = f"key {KEY}"
        text = json.dumps({"attempts": rows}) if len(response) % 2 else json.dumps({"attempts": rows, "note": KEY})
        text = text.replace(KEY, ESCAPED if len(response) % 3 else KEY)
        if len(rows) == 1 and len(response) % 5 == 0:
            text = f"I am sorry, {KEY}."
        message = {"role": "assistant", "content": text}
        return 200, {"id": KEY, "object": "chat.completion", "created": 0, "model": KEY,
                     "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                     "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}}  # fmt: skip

    with FakeOpenAI(intercept=echo) as server:
        path = study(tmp_path, server)
        with run(path, tmp_path / "run", tools=world.tools(tmp_path / "sae", script=script)) as done:
            seen = {trial.status for trial in done.trials()}
            page.write(done, summarise(done), tmp_path / "run" / "report.html")
        assert seen >= {"ok", "error"}
        folder = str(tmp_path / "run")
        for form in ("jsonl", "parquet", "inspect"):
            name = tmp_path / f"x.{'eval' if form == 'inspect' else form}"
            assert call(["export", folder, "--format", form, "--out", str(name)]) == 0
        assert call(["export", folder]) == 0
        assert call(["report", folder, "--json"]) == 0
        again = ["judge", folder, "--judge", "openai/gpt-4o-mini", "--base-url", server.url, "--json"]
        assert call(again) == 0
    with FakeOpenAI(key="another") as server:
        assert call([*again[:-3], "--base-url", server.url, "--sample", "3", "--rubric", "recovery"]) == 1
    said = "".join(capsys.readouterr()) + caplog.text
    assert "refused for" in (tmp_path / "x.jsonl").read_text() and "[OPENAI_API_KEY]" in said
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.eval") as log:
        said += "".join(log.read(name).decode() for name in log.namelist())
    for file in tmp_path.rglob("*"):
        if file.is_file():
            said += file.read_bytes().decode("latin-1")
    assert KEY not in said and ESCAPED not in said


@pytest.mark.parametrize("judge", ["offline", "openai/gpt-4o"])
def test_a_file_with_half_a_surrogate_pair_is_graded(tmp_path: Path, judge: str) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"prompt": "Wh\ud800y?", "response": "Fold it \ud800 flat. Press it."},
        {"prompt": "How?", "response": "\x00So."},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with FakeOpenAI() as server:
        server_of = [] if judge == "offline" else ["--base-url", server.url]
        assert call(["grade", str(file), "--judge", judge, *server_of, "--out", str(out)]) == 0
    made = [json.loads(line) for line in out.read_bytes().decode("utf-8", "surrogatepass").splitlines()]
    assert [row["response"] for row in made] == [row["response"] for row in rows]
    ends = [row["grade"]["attempts"][-1]["end"] for row in made]
    assert ends == [len(row["response"]) for row in rows]


def test_a_second_process_that_grades_into_the_same_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps({"prompt": PROMPT, "response": f"Fold {i}."}) + "\n" for i in range(4)))
    with FakeOpenAI(delay=60) as server:
        argv = ["grade", str(file), "--judge", "openai/gpt-4o", "--base-url", server.url, "--out", str(out)]
        child = subprocess.Popen([sys.executable, "-m", "countersteer", *argv, "--max-cost", "1"], env=os.environ)
        until = time.monotonic() + 120
        while server.requests < 4 and time.monotonic() < until:
            time.sleep(0.05)
        assert server.requests == 4
        assert call([*argv, "--max-cost", "1"]) == 2, "two processes would spend the cap twice"
        assert f"in use by process {child.pid}; wait for it" in capsys.readouterr().err and server.requests == 4
        child.send_signal(signal.SIGKILL)
        child.wait()
    with FakeOpenAI() as server:
        argv[5] = server.url
        assert call(argv) == 0
        assert server.requests == 4 and Replies.shared(f"{out}.replies").states() == {"ok": 4, "sent": 4}


def test_the_live_line_shows_the_money_and_its_cap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("countersteer.cli.progress._EVERY", 0.0)
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps({"prompt": PROMPT, "response": f"Fold {i}."}) + "\n" for i in range(20)))
    with FakeOpenAI() as server:
        argv = ["grade", str(file), "--judge", "openai/gpt-4o", "--base-url", server.url, "--out", str(tmp_path / "o")]
        assert call([*argv, "--max-cost", "5", "--judge-connections", "1"]) == 0
        said = capsys.readouterr().err.splitlines()
        assert any(line.startswith("grading: 20/20") and line.endswith("of 5.00 USD") for line in said), said
        path = study(tmp_path, server)
        with run(path, tmp_path / "run"):
            pass
        argv = ["judge", str(tmp_path / "run"), "--judge", "openai/gpt-4.1", "--base-url", server.url, "--sample", "5"]
        assert call([*argv, "--max-cost", "3", "--judge-cache", str(tmp_path / "cache")]) == 0
        said = capsys.readouterr().err.splitlines()
        assert any(line.startswith("judging: 5/5") and line.endswith("of 3.00 USD") for line in said), said
        requests = server.requests
        with Run.open(tmp_path / "run", write=True) as opened:
            opened._db.execute("DELETE FROM grades WHERE judge LIKE '%gpt-4.1%'")
            opened._db.execute("DELETE FROM replies WHERE judge LIKE '%gpt-4.1%'")
        assert call([*argv, "--judge-cache", str(tmp_path / "cache")]) == 0
        assert server.requests == requests, "the folder of replies had them"
