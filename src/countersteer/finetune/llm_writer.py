"""Corrections written by a language model, asked through the judges' layer: its providers, cache, pace and cost cap.

It writes an off-topic stretch, an acknowledgement and an answer as three texts; they are put together here, so that the
trained characters are exact whatever the model does with punctuation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint, rng
from countersteer.core.reply import Ledger
from countersteer.finetune.compose import correction, spread
from countersteer.finetune.examples import Example
from countersteer.finetune.templates import general
from countersteer.judging import parse
from countersteer.judging.llm_calls import Caller, CallFailed, Question
from countersteer.judging.llm_settings import JudgeSettings
from countersteer.studies.drive import drive

VERSION = 1
PARTS = ("stretch", "acknowledgement", "answer")
_SYSTEM = (
    "You write training examples of a model that catches itself going off topic. Reply with one JSON object and nothing"
    ' else: {"stretch": ..., "acknowledgement": ..., "answer": ...}.\n'
    "stretch: two to four sentences, written as if they were the beginning of an answer to the question, but about the"
    " given other subject. They do not mention the question and do not notice anything.\n"
    "acknowledgement: one or two sentences in which the model notices that it is off topic and begins again.\n"
    "answer: a helpful answer to the question, with no word about the other subject."
)
_SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in PARTS},
    "required": list(PARTS),
    "additionalProperties": False,
}


def write(
    prompts: Sequence[str], settings: JudgeSettings, ledger: Ledger, *, count: int, seed: int,
    answers: Mapping[str, Sequence[str]] | None = None, max_cost: float | None = None,
    progress: Callable[[int, int], None] | None = None, spent: Callable[[float, float | None], None] | None = None,
) -> tuple[list[Example], dict[str, int]]:  # fmt: skip
    """At most `count` corrections, and how many replies were refused by reason. Replies kept in `ledger` are free.

    `answers`: the model's own, used instead of the writer's where a prompt has one. Raises CountersteerError when no
    call can be made any more, InputError when no reply could be used.
    """
    subjects = [name for name, _ in general().subjects]
    draw = rng(seed, "llm")
    order = spread(prompts, count, draw)
    wanted = [(prompt, subjects[int(draw.integers(len(subjects)))], int(draw.integers(2**31))) for prompt in order]
    refused: dict[str, int] = {}

    found: list[Example] = []

    async def go() -> None:
        caller = Caller(settings, ledger, max_cost=max_cost, spent=spent)
        done = 0

        async def one(prompt: str, subject: str, pick: int) -> Example | None:
            nonlocal done
            try:
                reply = await caller.ask(_question(settings, prompt, subject, pick))
                data = parse.find_object(reply.text, "stretch", stop=reply.stop)
                return _example(prompt, data, (answers or {}).get(prompt) or (), pick)
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


def _question(settings: JudgeSettings, prompt: str, subject: str, pick: int) -> Question:
    user = f"Question: {prompt}\nOther subject: {subject}\nVariant: {pick % 1000}"
    key = settings.reply_key(fingerprint(["finetune", VERSION]), _SYSTEM, user)
    return Question(key, f"{settings.model}:finetune-{VERSION}", _SYSTEM, user, _SCHEMA, "correction")


def _example(prompt: str, data: Mapping[str, Any], own: Sequence[str], pick: int) -> Example:
    """The example of one reply. Raises Unreadable for a part that is no text, InputError for an empty one."""
    texts = [data.get(name) for name in PARTS]
    if not all(isinstance(text, str) for text in texts):
        raise parse.Unreadable("wrong-type", "stretch, acknowledgement and answer must be texts")
    stretch, acknowledgement, answer = (str(text).strip() for text in texts)
    return correction(prompt, stretch, acknowledgement, own[pick % len(own)] if own else answer, source="llm")
