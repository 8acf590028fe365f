"""One generation on its way through the server: decided, generated, measured, and audited exactly once however it ends.

`Job.chunks` is the stream that handlers read. Closing it (a client that went away, a shutdown) closes the engine's
stream, which frees the place in the batch.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, cast

from countersteer.core.errors import NoOpError
from countersteer.core.request import Chunk, Completion, Request
from countersteer.engines.base import Engine
from countersteer.serving.audit import Audit
from countersteer.serving.errors import Refusal, refusal_of
from countersteer.serving.keys import Key, Role
from countersteer.serving.metrics import Metrics
from countersteer.serving.policy import Policy
from countersteer.serving.rollout import Decision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ticket:
    """What is known of a generation before it starts."""

    id: str
    endpoint: str
    key: Key
    policy: Policy
    decision: Decision
    conversation: str
    request: Request


@dataclass(eq=False)
class Job:
    """A generation: `chunks` runs it."""

    ticket: Ticket
    engine: Engine
    metrics: Metrics
    audit: Audit | None
    seconds: float
    clock: Callable[[], float] = time.monotonic
    started: float = field(default=0.0)
    first: float | None = None
    text: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def steered(self) -> Request:
        """The request with what was decided for it."""
        decision = self.ticket.decision
        if decision.bundle is None:
            return self.ticket.request
        return self.ticket.request.with_(
            intervention=decision.bundle.bundle.intervention,
            measure_only=not decision.acts,
            exempt=decision.bundle.exempt,
        )

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """The engine's chunks; the last one, with the completion, only after it is audited. Raises Refusal."""
        keeps = self.audit is not None and self.audit.options.text
        status, error, completion = "cancelled", None, None
        self.metrics.in_flight.inc()
        try:
            deadline = asyncio.get_running_loop().time() + self.seconds
            stream = cast("AsyncGenerator[Chunk, None]", self.engine.stream(self.steered()))
            async with aclosing(stream):
                while completion is None:
                    async with asyncio.timeout_at(deadline):  # the next piece only: readers may change tasks between
                        chunk = await anext(stream)
                    if self.first is None and (chunk.text or chunk.completion):
                        self.first = self.clock() - self.started
                    if keeps:
                        self.text.append(chunk.text)
                    if chunk.completion is not None:
                        completion, status = self._marked(chunk.completion), "ok"
                        chunk = replace(chunk, completion=completion)
                        await self._close(status, completion, None)
                    yield chunk
        except Exception as caught:
            if isinstance(caught, NoOpError):
                completion = caught.completion
            error = refusal_of(caught)
            status = "timeout" if error.code == "timeout" else "error"
            if error.status >= 422:
                log.warning("request %s ended with %s: %s", self.ticket.id, error.code, caught)
            raise error from caught
        finally:
            self.metrics.in_flight.dec()
            if status != "ok":
                self._count(status, completion, error)
                self._record(status, completion, error)

    def _marked(self, completion: Completion) -> Completion:
        """The completion, its receipt saying so if the bundle was made for other weights."""
        served = self.ticket.decision.bundle
        return completion if served is None else replace(completion, receipt=served.bundle.mark(completion.receipt))

    async def _close(self, status: str, completion: Completion, error: Refusal | None) -> None:
        """Count and audit a completion; with synced auditing wait until its line is on the disk."""
        self._count(status, completion, error)
        written = self._record(status, completion, error)
        if written is not None and self.audit is not None and self.audit.waits:
            await asyncio.shield(asyncio.wrap_future(written))

    def _count(self, status: str, completion: Completion | None, error: Refusal | None) -> None:
        t, m = self.ticket, self.metrics
        by = (t.decision.bundle.name if t.decision.bundle else "none", t.decision.mode)
        m.requests.labels(t.endpoint, *by, status).inc()
        m.seconds.labels(t.endpoint).observe(self.clock() - self.started)
        if self.first is not None:
            m.first.labels(t.endpoint).observe(self.first)
        if error is not None and error.code == "no_op":
            m.no_op.labels(*by).inc()
        if completion is not None:
            m.completed(t.decision, completion)

    def _record(self, status: str, completion: Completion | None, error: Refusal | None) -> Any:
        if self.audit is None:
            return None
        t, s = self.ticket, self.ticket.request.sampling
        record: dict[str, Any] = {
            "event": "request",
            "time": now(),
            "id": t.id,
            "endpoint": t.endpoint,
            "key": t.key.name,
            "conversation": t.conversation,
            **decided(t),
            "sampling": {"temperature": s.temperature, "top_p": s.top_p, "seed": s.seed, "max_tokens": s.max_tokens},
            "status": status,
            "error": error.code if error else None,
            "seconds": round(self.clock() - self.started, 4),
        }
        if completion is not None:
            record |= {
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": len(completion.tokens),
                "finish": completion.finish,
                "receipt": receipt_of(completion),
            }
        if self.audit.options.text:
            r = t.request
            said = (
                list(r.messages)
                if r.messages is not None
                else r.prompt
                if r.prompt is not None
                else list(r.tokens or ())
            )
            record["prompt"] = said
            record["response"] = completion.text if completion is not None else "".join(self.text)
        return self.audit.write(record)

    def extra(self, completion: Completion) -> dict[str, Any] | None:
        """What a key that may choose is told about the bundle; None for others."""
        if self.ticket.key.role < Role.CHOOSE:
            return None
        return {"request": self.ticket.id, **decided(self.ticket), "receipt": receipt_of(completion)}


def decided(ticket: Ticket) -> dict[str, Any]:
    """The decision as plain data."""
    d = ticket.decision
    bundle: dict[str, Any] | None = None
    if d.bundle is not None:
        b = d.bundle.bundle
        bundle = {"name": d.bundle.name, "version": b.version, "fingerprint": b.intervention.fingerprint}
        if d.bundle.derived:
            bundle["derived"] = True
    return {"policy": ticket.policy.number, "bundle": bundle, "mode": d.mode, "why": d.why}


def receipt_of(completion: Completion) -> dict[str, Any]:
    """The receipt as data that JSON can hold: what overflowed is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return cast("dict[str, Any]", plain(completion.receipt.to_dict()))


def now() -> str:
    """The time in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
