"""Corrections by a language model: exact parts, and the judge layer's price, cap, kept replies and care with faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from countersteer.cli import call
from countersteer.core.errors import InputError
from countersteer.finetune import examples
from countersteer.finetune.llm_writer import PARTS, LlmWriter, _subject
from countersteer.judging.llm_budget import CostCapError
from countersteer.judging.llm_calls import JudgeRefusedError
from countersteer.judging.llm_settings import JudgeSettings
from countersteer.organism import prompts
from countersteer.store.replies import Replies
from fake_openai import PRICE, FakeOpenAI

ASKED = [row["prompt"] for row in prompts("howto")]
OWN = {prompt: ["My own answer."] for prompt in ASKED}


class WritingServer(FakeOpenAI):
    """Writes the same parts whatever it is asked, with an empty answer about bread; `first` statuses come before."""

    first: tuple[int, ...] = ()
    always: int | None = None
    asked_for: list[list[str]]
    reply: str | None = None

    async def _reply(self, head: str, body: dict[str, Any], writer: Any) -> bool:
        self.requests += 1
        status = self.always or (self.first[self.requests - 1] if self.requests <= len(self.first) else 200)
        if status != 200:
            await self._send(writer, status, {"error": {"message": "not now"}})
            return True
        wanted = [name for name in PARTS if f'"{name}": ...' in body["messages"][0]["content"]]
        self.__dict__.setdefault("asked_for", []).append(wanted)
        broken = "How do I bake bread?" in body["messages"][-1]["content"]
        parts = dict(zip(PARTS, (" It erupted.", "Wait, no. ", "" if broken else "First: heat it.\n"), strict=True))
        text = self.reply or json.dumps({name: parts[name] for name in wanted})
        reply = {
            "id": "x", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 100, "total_tokens": 200},
        }  # fmt: skip
        await self._send(writer, 200, reply)
        return True


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")


def settings(server: FakeOpenAI, **options: Any) -> JudgeSettings:
    return JudgeSettings("openai/gpt-4o", base_url=server.url, price=PRICE, max_tokens=200, **options)


def test_its_parts_are_put_together_exactly_and_kept(tmp_path: Path) -> None:
    with WritingServer() as server:
        for _ in range(2):  # the second time from the kept replies
            writer = LlmWriter(settings(server), tmp_path)
            made = writer(ASKED[:2], 6, {})
            assert {e.prompt for e in made} == {"How do I iron a shirt?"} and writer.left_out == {"empty part": 3}
            assert {e.answer for e in made} == {"It erupted. Wait, no. First: heat it."}
            assert all(e.answer[e.spans[0][0] :] == " Wait, no. First: heat it." for e in made)
            assert server.requests == 6
        assert writer.described() == {"model": "openai/gpt-4o", "usd": pytest.approx(6 * 100 * 12e-6),
                                      "left_out": {"empty part": 3}}  # fmt: skip


def test_it_is_not_asked_for_an_answer_that_the_model_has(tmp_path: Path) -> None:
    with WritingServer() as server:
        made = LlmWriter(settings(server), tmp_path)(ASKED[:2], 6, {ASKED[0]: OWN[ASKED[0]]})
        assert sorted(server.asked_for) == [list(PARTS[:2])] * 3 + [list(PARTS)] * 3
        assert {e.answer.split("no. ")[1] for e in made if e.prompt == ASKED[0]} == {"My own answer."}


def test_no_stretch_is_asked_for_on_what_the_question_asks_about() -> None:
    draws = [np.random.default_rng(seed) for seed in range(300)]
    found = {_subject("How does a volcano shape the weather?", draw) for draw in draws}
    assert len(found) == 48 and not found & {"volcanoes", "meteorology"}
    plain = {_subject("Why?", np.random.default_rng(seed)) for seed in range(300)}
    assert len(plain) == 50


def test_faults_are_asked_again_and_a_cap_stops_and_goes_on(tmp_path: Path) -> None:
    with WritingServer() as server:
        server.first = (500, 503, 429)
        worst = 0.004  # one call at most: about 350 tokens of question and schema at 2, 200 of reply at 10 per million
        writer = LlmWriter(settings(server, connections=1), tmp_path / "r", max_cost=2 * worst)
        with pytest.raises(CostCapError, match="USD"):
            writer(ASKED[:8], 8, OWN)
        kept = writer.spent
        assert 0 < kept <= 2 * worst and server.requests > 3
        ledger = Replies.shared(tmp_path / "r")
        assert ledger.states()["ok"] == server.requests - 3, "a failed call is not billed"
        ledger.close()
        before = server.requests
        writer = LlmWriter(settings(server), tmp_path / "r", max_cost=1.0)
        assert len(writer(ASKED[:8], 8, OWN)) == 8 and not writer.left_out
        assert server.requests == 3 + 8 > before, "what was paid for is not asked again"


def test_what_cannot_be_asked_or_used_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WritingServer() as server:
        server.reply = "I would rather not."
        with pytest.raises(InputError, match=r"openai/gpt-4o wrote no usable example \(4 no-json\)"):
            LlmWriter(settings(server), tmp_path / "a")(ASKED[:2], 4, OWN)
        server.always = 401
        with pytest.raises(JudgeRefusedError, match="check the model's name, its key and its quota"):
            LlmWriter(settings(server), tmp_path / "b")(ASKED[:2], 4, OWN)
    with pytest.raises(InputError, match="--max-cost needs the price of openai/unheard-of"):
        LlmWriter(JudgeSettings("openai/unheard-of"), tmp_path, max_cost=1.0).check()
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="OPENAI_API_KEY") as error:
        LlmWriter(JudgeSettings("openai/gpt-4o"), tmp_path).check()
    assert "[" not in str(error.value), "no marks of a coloured terminal"


def test_the_command_stops_at_its_cap_and_a_second_one_pays_for_the_rest_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few.txt").write_text("\n".join(ASKED[:3]) + "\n")
    (tmp_path / "eval.txt").write_text("Else?\n")
    out = tmp_path / "data"
    with WritingServer() as server:
        given = [
            "finetune", "data", "--model", "organism-plain", "--prompts", str(tmp_path / "few.txt"), "--eval",
            str(tmp_path / "eval.txt"), "--templates", "none", "--llm", "openai/gpt-4o", "--base-url", server.url,
            "--corrections", "6", "--normals", "6", "--max-tokens", "100", "--out", str(out), "--json",
        ]  # fmt: skip
        assert call([*given, "--max-cost", "0.0001"]) != 0
        err = capsys.readouterr().err.strip().split("\n")
        assert err[-1].startswith("error: ") and "0.0001" in err[-1] and not out.exists()
        assert (tmp_path / "data-answers.jsonl").is_file()
        first = server.requests
        assert call([*given, "--max-cost", "1"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert server.requests == first + 6 and not (tmp_path / "data-answers.jsonl").exists()
        assert told["corrections"] == 6 and told["writer"]["model"] == "openai/gpt-4o" and told["writer"]["usd"] > 0
        made = examples.load(out)
        assert made.facts["sources"]["language_model"] == told["writer"]
        assert {e.source for e in made.of_kind(examples.CORRECTION)} == {"llm"}
