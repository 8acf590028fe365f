"""A conversation turn by turn: its tokens, and which of them each edit changes.

With a kept cache a turn reads what is new since the last one, and the intervention's spans hold for what the turn
reads: under `response` those are the tokens of each answer, under `prompt` those of each question. Reading the whole
conversation again, with the edits of each turn at their own positions, builds the same cache. Without one the text of
earlier turns is read again unedited, and the spans hold from the new question on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from countersteer.core.errors import RefusedError
from countersteer.core.request import Request
from countersteer.core.span import END, Span
from countersteer.defence.responses import Answer, wait
from countersteer.edits.edit import Intervention

Interval = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Talk:
    """A conversation so far. `ids`: all its tokens, the first `read` of which are no longer new.

    `edited`: per edit of the intervention the positions [start, stop) of earlier turns that it has changed.
    """

    messages: tuple[dict[str, str], ...]
    cached: bool = True
    ids: tuple[int, ...] = ()
    read: int = 0
    edited: tuple[tuple[Interval, ...], ...] = ()

    def asked(self, engine: Any, user: str) -> Talk:
        """The conversation with the next question, up to where its answer begins.

        Raises RefusedError where a cache is kept and the template writes earlier turns otherwise than they were said.
        """
        messages = (*self.messages, {"role": "user", "content": user})
        if not self.ids:
            return replace(self, messages=messages, ids=tuple(engine.encode(Request(messages=messages))))
        if not self.cached:
            return replace(self, messages=messages, **_read_again(engine, messages))

        def rendered(turns: Sequence[dict[str, str]]) -> str:
            text: str = engine.tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=False)
            return text

        said = rendered(self.messages[:-1]) + self.messages[-1]["content"].strip()
        whole = rendered(messages)
        if not whole.startswith(said):
            raise RefusedError("a conversation with a kept cache", "the chat template writes earlier turns again",
                               "conversations of one turn")  # fmt: skip
        new = engine.tokenizer(whole[len(said) :], add_special_tokens=False)["input_ids"]
        return replace(self, messages=messages, ids=(*self.ids, *new))

    def answered(self, answer: Answer, new: Sequence[Interval | None]) -> Talk:
        """The conversation with an answer to the last question. `new`: what `coming` said of its turn."""
        text = answer.text if answer.ok else ""
        tokens = answer.tokens if answer.ok else ()
        read = answer.read if answer.ok else len(self.ids)
        kept = self.edited or ((),) * len(new)
        edited = tuple(
            _joined(before, None if turn is None else (turn[0], min(turn[1], read)))
            for before, turn in zip(kept, new, strict=True)
        )
        messages = (*self.messages, {"role": "assistant", "content": text.strip()})
        return Talk(messages, self.cached, (*self.ids, *tokens), read, edited)

    def coming(self, intervention: Intervention) -> tuple[Interval | None, ...]:
        """Per edit the positions that it changes in the turn whose question was asked last; None for none."""
        out: list[Interval | None] = []
        for edit in intervention.edits:
            start, stop = edit.span.bounds(len(self.ids))
            out.append((max(start, self.read), stop) if max(start, self.read) < stop else None)
        return tuple(out)

    def steered(self, intervention: Intervention, new: Sequence[Interval | None]) -> Intervention | None:
        """The edits for a pass over the whole conversation and its next answer; None where nothing is edited.

        `new`: what `coming` says of this turn. With a kept cache earlier turns keep their edits.
        """
        kept = self.edited if self.cached and self.edited else ((),) * len(new)
        edits = [
            edit.on(Span("from", start) if stop >= END else Span("between", start, stop=stop))
            for edit, before, turn in zip(intervention.edits, kept, new, strict=True)
            for start, stop in _joined(before, turn)
        ]
        return Intervention(tuple(edits)) if edits else None


def _read_again(engine: Any, messages: Sequence[dict[str, str]]) -> dict[str, Any]:
    """`ids` of a conversation's text, and as `read` the position at which its last message begins."""
    earlier = [{**m, "content": m["content"] or "..."} for m in messages[:-1]]  # some templates drop what is empty
    last = messages[-1]
    one, other = (
        engine.encode(Request(messages=(*earlier, {**last, "content": text})))
        for text in (last["content"], f"0 {last['content']}")
    )
    start = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return {"ids": tuple(one), "read": start}


def _joined(before: Sequence[Interval], new: Interval | None) -> tuple[Interval, ...]:
    """Intervals with one more, put together with the last one where they touch."""
    if new is None or new[1] <= new[0]:
        return tuple(before)
    if before and before[-1][1] == new[0]:
        return (*before[:-1], (before[-1][0], new[1]))
    return (*before, new)


def gates(engine: Any, intervention: Intervention, talks: Sequence[Talk]) -> list[bool]:
    """Whether a request-level gate lets the intervention act in the next turn of each conversation."""
    gate = intervention.gate
    if gate is None:
        return [True] * len(talks)

    async def all_of_them() -> list[Any]:
        found = await asyncio.gather(*(engine.forward([list(t.ids)], capture=gate.site) for t in talks))
        return [residuals[0] for residuals in found]

    return [bool(gate.opens(residuals)) for residuals in wait(all_of_them())]


def refused(intervention: Intervention) -> str | None:
    """Why conversations under an intervention cannot be held, or None."""
    follows = [str(e.span) for e in intervention.edits if e.span.restart]
    return f"span {follows[0]} follows the text of one answer, not of a conversation" if follows else None
