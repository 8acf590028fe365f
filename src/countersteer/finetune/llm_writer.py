"""Corrections written by a language model, asked through the judges' layer: its providers, cache, pace and cost cap.

It writes an off-topic stretch, an acknowledgement and an answer as three texts; they are put together here, so that the
trained characters are exact whatever the model does with punctuation.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint, rng
from countersteer.core.reply import Ledger
from countersteer.finetune.compose import correction, spread
from countersteer.finetune.examples import Example
from countersteer.finetune.templates import general
from countersteer.judging import parse
from countersteer.judging.llm_calls import Caller, CallFailed, Question
from countersteer.judging.llm_model import load_model
from countersteer.judging.llm_redact import Redactor
from countersteer.judging.llm_settings import JudgeSettings
from countersteer.store.replies import Replies
from countersteer.studies.drive import drive

VERSION = 2
PARTS = ("stretch", "acknowledgement", "answer")
_SAID = {
    "stretch": "two to four sentences, written as if they were the beginning of an answer to the question, but about"
    " the given other subject. They do not mention the question and do not notice anything.",
    "acknowledgement": "one or two sentences in which the model notices that it is off topic and begins again.",
    "answer": "a helpful answer to the question, with no word about the other subject.",
}


def write(
    prompts: Sequence[str], settings: JudgeSettings, ledger: Ledger, *, count: int, seed: int,
    answers: Mapping[str, Sequence[str]] | None = None, max_cost: float | None = None,
    progress: Callable[[int, int], None] | None = None, spent: Callable[[float, float | None], None] | None = None,
) -> tuple[list[Example], dict[str, int]]:  # fmt: skip
    """At most `count` corrections, and how many replies were refused by reason. Replies kept in `ledger` are free.

    `answers`: the model's own; where a prompt has one, the writer is not asked for an answer. Raises CountersteerError
    when no call can be made any more (paid replies are kept), InputError when no reply could be used.
    """
    draw = rng(seed, "llm")
    order = spread(prompts, count, draw)
    wanted = [(prompt, _subject(prompt, draw), int(draw.integers(2**31))) for prompt in order]
    refused: dict[str, int] = {}

    found: list[Example] = []

    async def go() -> None:
        caller = Caller(settings, ledger, max_cost=max_cost, spent=spent)
        done = 0

        async def one(prompt: str, subject: str, pick: int) -> Example | None:
            nonlocal done
            try:
                own = (answers or {}).get(prompt) or ()
                reply = await caller.ask(_question(settings, prompt, subject, pick, PARTS[:2] if own else PARTS))
                data = parse.find_object(reply.text, "stretch", stop=reply.stop)
                return _example(prompt, data, own, pick)
            except CallFailed:
                refused["call failed"] = refused.get("call failed", 0) + 1
            except parse.Unreadable as error:
                refused[error.code] = refused.get(error.code, 0) + 1
            except InputError:
                refused["empty part"] = refused.get("empty part", 0) + 1
            finally:
                done += 1
                if progress is not None:
                    progress(done, len(wanted))
            return None

        try:
            made = await asyncio.gather(*(one(*item) for item in wanted))
            found.extend(example for example in made if example is not None)
        finally:
            await caller.close()

    drive(go())
    if not found:
        why = ", ".join(f"{n} {reason}" for reason, n in sorted(refused.items()))
        raise InputError(f"{settings.model} wrote no usable example ({why}); try another model")
    return found, refused


def _subject(prompt: str, draw: np.random.Generator) -> str:
    """The drawn subject, or the next one in the list that the prompt does not ask about."""
    subjects = general().subjects
    first = int(draw.integers(len(subjects)))
    turned = (*subjects[first:], *subjects[:first])
    return next((s for s in turned if not s.asked_by(prompt)), turned[0]).name


@dataclass
class LlmWriter:
    """The corrections of one language model for `finetune.data.make`; its replies are kept in `folder`.

    `max_cost` USD over all calls with that folder. After a call, `left_out` has the replies that could not be used, by
    reason, and `spent` the USD so far.
    """

    settings: JudgeSettings
    folder: Path
    seed: int = 0
    max_cost: float | None = None
    stage: Callable[[str, int | None], None] | None = None
    progress: Callable[[int, int], None] | None = None
    watch: Callable[[float, float | None], None] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    spent: float = 0.0

    def check(self) -> None:
        """Raise InputError for a model that cannot be asked (key, provider, price), before anything else is made."""
        self.settings.require(self.max_cost)
        model = load_model(self.settings, Redactor.of())

        async def close() -> None:
            with contextlib.suppress(Exception):  # a client that cannot be closed holds nothing of ours
                await model.api.aclose()

        drive(close())

    def __call__(self, prompts: Sequence[str], count: int, answers: Mapping[str, Sequence[str]]) -> list[Example]:
        """At most `count` corrections. Raises as `write` does."""
        if self.stage is not None:
            self.stage("writing", count)
        ledger = Replies.shared(self.folder)
        try:
            made, self.left_out = write(
                prompts, self.settings, ledger, count=count, seed=self.seed, answers=answers, max_cost=self.max_cost,
                progress=self.progress, spent=self.watch,
            )  # fmt: skip
        finally:
            self.spent = ledger.spent()
            ledger.close()
        return made

    def described(self) -> dict[str, Any]:
        """Model, USD and replies that were left out."""
        return {"model": self.settings.model, "usd": round(self.spent, 6), "left_out": self.left_out}


def _question(settings: JudgeSettings, prompt: str, subject: str, pick: int, parts: Sequence[str]) -> Question:
    form = ", ".join(f'"{name}": ...' for name in parts)
    system = "\n".join([
        "You write training examples of a model that catches itself going off topic. Reply with one JSON object and"
        f" nothing else: {{{form}}}.",
        *(f"{name}: {_SAID[name]}" for name in parts),
    ])  # fmt: skip
    schema = {
        "type": "object", "properties": {name: {"type": "string"} for name in parts}, "required": list(parts),
        "additionalProperties": False,
    }  # fmt: skip
    user = f"Question: {prompt}\nOther subject: {subject}\nVariant: {pick % 1000}"
    key = settings.reply_key(fingerprint(["finetune", VERSION]), system, user)
    return Question(key, f"{settings.model}:finetune-{VERSION}", system, user, schema, "correction")


def _example(prompt: str, data: Mapping[str, Any], own: Sequence[str], pick: int) -> Example:
    """The example of one reply. Raises Unreadable for a part that is no text, InputError for an empty one."""
    texts = {name: data.get(name) for name in (PARTS[:2] if own else PARTS)}
    if not all(isinstance(text, str) for text in texts.values()):
        raise parse.Unreadable("wrong-type", f"{' and '.join(texts)} must be texts")
    said = own[pick % len(own)] if own else str(texts["answer"])
    return correction(prompt, str(texts["stretch"]), str(texts["acknowledgement"]), said, source="llm")
