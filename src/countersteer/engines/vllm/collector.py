"""What workers measured, fetched once for all requests that end together; and the rows of readouts, made once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

from countersteer.core.errors import EngineError
from countersteer.edits.vectors import ReadRows, read_rows
from countersteer.engines.vllm.measured import Measured, merge

KEPT = 64
"""Sets of readouts whose rows are remembered."""


class Collector:
    """Asks every worker for what it measured. Lives on the event loop of vLLM's engine."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self._wanted: dict[str, asyncio.Future[list[Any]]] = {}
        self._running: asyncio.Task[None] | None = None

    async def collect(self, key: str) -> Measured:
        """What was measured for a ticket. Raises EngineError."""
        future = self._wanted[key] = asyncio.get_running_loop().create_future()
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._collect_all())
        return merge(await future)

    async def _collect_all(self) -> None:
        while self._wanted:
            await asyncio.sleep(0)  # whoever ends in the same step comes along
            wanted, self._wanted = self._wanted, {}
            try:
                answers = await self.llm.collective_rpc("countersteer_collect", args=(list(wanted),))
            except Exception as error:
                failed = EngineError(f"vLLM failed: {' '.join(str(error).split())[:300] or type(error).__name__}")
                failed.__cause__ = error
                for future in wanted.values():
                    if not future.done():
                        future.set_exception(failed)
                continue
            for i, future in enumerate(wanted.values()):
                if not future.done():
                    future.set_result([a[i] for a in answers])


class RowsOf:
    """Rows of readouts. Requests that name the same latents and directions share them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, ...], tuple[tuple[Any, ...], list[ReadRows]]] = OrderedDict()

    def __call__(self, readouts: Any) -> list[ReadRows]:
        """The rows of latents and directions, or rows that a client has made of them. Raises InputError."""
        if readouts is None:
            return []
        if isinstance(readouts, list) and readouts and all(isinstance(r, ReadRows) for r in readouts):
            return readouts
        items = tuple(readouts) if isinstance(readouts, list | tuple) else (readouts,)
        key = tuple(map(id, items))  # the objects are kept, so their ids stay theirs
        if key not in self._kept:
            self._kept[key] = items, read_rows(readouts)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return self._kept[key][1]
