"""What the server answers: OpenAI's response bodies, whole and in server-sent events.

Keys that may choose also get `countersteer`: the decision and the receipt. Others learn nothing of bundles.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from countersteer.core.request import Completion

Kind = Literal["chat", "text"]
DONE = b"data: [DONE]\n\n"


def event(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


@dataclass(frozen=True)
class Reply:
    """The shape of one answer: endpoint, id, model and time, the same in every piece of it."""

    kind: Kind
    id: str
    model: str
    created: int

    def _body(self, what: str, **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": what, "created": self.created, "model": self.model, **more}

    def whole(self, completion: Completion, extra: dict[str, Any] | None) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": completion.finish, "logprobs": None}
        if self.kind == "chat":
            choice["message"] = {"role": "assistant", "content": completion.text, "refusal": None}
        else:
            choice["text"] = completion.text
        what = "chat.completion" if self.kind == "chat" else "text_completion"
        more = {} if extra is None else {"countersteer": extra}
        return self._body(what, choices=[choice], usage=usage(completion), **more)

    def piece(self, text: str | None, *, finish: str | None = None, extra: dict[str, Any] | None = None) -> bytes:
        """One chunk of a stream; `text` None in the last one."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if self.kind == "chat":
            choice["delta"] = {} if text is None else {"content": text}
        else:
            choice["text"] = text or ""
        more = {} if extra is None else {"countersteer": extra}
        return event(self._body(self._chunk, choices=[choice], **more))

    def opening(self) -> bytes:
        """The chunk that says who speaks; empty for plain completions."""
        if self.kind == "text":
            return b""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": None}
        return event(self._body(self._chunk, choices=[choice]))

    def counts(self, completion: Completion) -> bytes:
        """The chunk with the token counts (`stream_options.include_usage`)."""
        return event(self._body(self._chunk, choices=[], usage=usage(completion)))

    @property
    def _chunk(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat" else "text_completion"


def usage(completion: Completion) -> dict[str, int]:
    """Token counts."""
    read, made = completion.prompt_tokens, len(completion.tokens)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
