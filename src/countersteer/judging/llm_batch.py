"""The loop in which Inspect makes batches and looks after them, watched from outside.

Inspect ends that loop for good when a batch cannot be made, and whatever still waits in it would wait for ever. So it
runs in a task of ours: when it ends, all who wait are told, and the caller goes on with a new model and a new loop.
What Inspect says about its batches goes to the log, never to standard output.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from countersteer.core.errors import InputError
from countersteer.judging.llm_redact import Redactor

log = logging.getLogger(__name__)
_GRACE = 1.0
"""Seconds in which those whose own batch failed are told so, before the others are let go."""


class BatchLost(Exception):
    """The loop ended while a question waited in it; the message is why."""


class BatchWorker:
    """Runs one model's batch loop. Satisfies what Inspect asks of a task group (`start_soon`)."""

    def __init__(self, redact: Redactor) -> None:
        """Raises InputError if this Inspect has no batches."""
        try:
            from inspect_ai._util.background import set_background_task_group
            from inspect_ai.model._providers.util.batch_log import set_batch_log_callback, set_batch_status_callback
        except ImportError:
            raise InputError("--judge-batch needs inspect_ai 0.3.285 or one that fits it; upgrade inspect_ai") from None
        self._enter: Callable[[Any], None] = set_background_task_group
        set_batch_log_callback(lambda message: log.debug("%s", redact(message)))
        set_batch_status_callback(lambda status: log.debug("%s", status))
        self._failed = asyncio.Event()
        self._why = ""
        self._redact = redact
        self._tasks: set[asyncio.Task[Any]] = set()

    def start_soon(self, func: Callable[..., Any], *args: Any, name: object = None) -> None:
        """Run a coroutine function in a task of its own."""
        task = asyncio.get_running_loop().create_task(func(*args))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._why = self._redact.one_line(error)
            self._failed.set()

    @property
    def broken(self) -> bool:
        """Whether the loop has ended for good."""
        return self._failed.is_set()

    async def run(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """What `ask` gives. Raises BatchLost when the loop ended before it could give anything."""
        self._enter(self)
        asked = asyncio.ensure_future(ask())
        failed = asyncio.ensure_future(self._failed.wait())
        try:
            await asyncio.wait({asked, failed}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                await asyncio.wait({asked}, timeout=_GRACE)
            if asked.done():
                return asked.result()
            raise BatchLost(f"a batch could not be made: {self._why}")
        finally:
            failed.cancel()
            asked.cancel()

    def close(self) -> None:
        """End the loop."""
        for task in self._tasks:
            task.cancel()
