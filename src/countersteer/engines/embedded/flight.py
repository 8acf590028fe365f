"""One request on its way through the embedded engine, and the ticket its caller holds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from countersteer.core.exempt import Exempt
from countersteer.core.request import Chunk, Completion, Request
from countersteer.engines.embedded.text import TextStream


@dataclass(eq=False)
class Flight:
    """State of a request: its prompt, what it has generated, its slot in the row tables."""

    request: Request
    prompt: list[int]
    text: TextStream
    future: Future[Completion] = field(default_factory=Future)
    on_chunk: Callable[[Chunk], None] | None = None
    generated: list[int] = field(default_factory=list)
    slot: int = -1
    gated_off: bool = False
    cancelled: bool = False
    turns: bool = False
    """Whether a span follows the text and no restart was seen yet."""
    exempt: Exempt | None = None
    """Watches for stretches that the edits leave alone, if any are exempt."""
    notes: list[str] = field(default_factory=list)
    start: Callable[[Any], None] | None = None
    """The loop that this request goes to."""

    def begin(self) -> None:
        """Hand the request to its loop."""
        assert self.start is not None
        self.start(self)

    @property
    def position(self) -> int:
        """Position of the token that is read next (the last one generated)."""
        return len(self.prompt) + len(self.generated) - 1

    @property
    def finish(self) -> str | None:
        """Why the request is over, judged by its length; None while it goes on."""
        return "length" if len(self.generated) >= self.request.sampling.max_tokens else None

    def emit(self, chunk: Chunk) -> None:
        """Hand a piece to a streaming caller."""
        if self.on_chunk is not None:
            self.on_chunk(chunk)

    def fail(self, error: BaseException) -> None:
        """End with an error, once."""
        with contextlib.suppress(InvalidStateError):  # the caller may have cancelled it meanwhile
            self.future.set_exception(error)
        self.emit(Chunk())

    def succeed(self, completion: Completion) -> None:
        """End with a completion, once."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(completion)
        self.emit(Chunk(completion=completion))


@dataclass(eq=False)
class Job:
    """Other work for the engine's thread (a teacher-forced pass)."""

    work: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)

    def do(self) -> None:
        """Run it, unless its caller has given up."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.work())
        except BaseException as error:
            self.future.set_exception(error)

    def fail(self, error: BaseException) -> None:
        """End with an error, once."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)
