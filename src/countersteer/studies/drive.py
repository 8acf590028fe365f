"""Running a coroutine to its end from anywhere: in a script, and inside a running event loop (a notebook).

Inside a running loop the coroutine gets a loop and a thread of its own, and an interrupt of the caller cancels it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any


def drive(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, and raise what it raises."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    ended: list[BaseException] = []
    started = threading.Event()
    place: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        place.append((asyncio.get_running_loop(), task))
        started.set()
        await work

    def body() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=body, name="study")
    thread.start()
    try:
        thread.join()
    except BaseException:
        started.wait()
        loop, task = place[0]
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if ended:
        raise ended[0]
