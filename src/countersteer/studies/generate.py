"""Generating and grading with bounds: many requests in flight, the judge in a thread beside them.

Results depend on their key only, never on time or order, so a run that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from countersteer.core.errors import EngineError, NoOpError, StoreError
from countersteer.core.request import Completion, Request, Sampling
from countersteer.core.trial import Grade
from countersteer.engines.base import Engine
from countersteer.judging.llm_redact import Redactor
from countersteer.store import Response, Run
from countersteer.store.rows import response_key

T = TypeVar("T")
_LOT = 16
_PROBE = Request(prompt="Hello", sampling=Sampling(max_tokens=1, temperature=0.0))


async def bounded(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, workers: int) -> None:
    """Do `work` on every item, at most `workers` at a time, taking the next item only when there is room.

    The first error stops everything and is raised.
    """
    source = iter(items)

    async def worker() -> None:
        for item in source:
            await work(item)

    tasks = [asyncio.ensure_future(worker()) for _ in range(workers)]
    try:
        for done in asyncio.as_completed(tasks):
            await done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Generator:
    """Generates missing responses into a run, at most `in_flight` at once, and grades them in one thread."""

    def __init__(self, engine: Engine, run: Run, *, in_flight: int) -> None:
        self._engine = engine
        self._run = run
        self._in_flight = in_flight
        self._room = asyncio.Semaphore(in_flight)
        self._busy: dict[str, asyncio.Future[Response]] = {}
        self._judge: Any = None
        self._awaited = False
        self._waiting: list[tuple[tuple[str, str, str | None], asyncio.Future[Grade]]] = []
        self._grading: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge")
        self._probing = asyncio.Lock()
        self._redact = Redactor.of()
        self.workers = 2 * in_flight
        """How many trials may be under way: those generating, and those waiting for the judge."""

    def make_room(self, judging: int) -> None:
        """Let as many trials wait for their grade as the judge is asked at once (a batch is many)."""
        self.workers = max(self.workers, self._in_flight + judging)

    def judged_by(self, judge: Any) -> None:
        """Set the judge (its references are frozen by now)."""
        self._judge = judge
        self._awaited = inspect.iscoroutinefunction(judge.grade)

    def close(self) -> None:
        """End the judge's thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def response(self, key: str, request: Callable[[], Request]) -> Response:
        """The stored response of a key, generated and stored first if it is missing. One generation per key."""
        stored = self._run.response(key)
        if stored is not None:
            return stored
        if key in self._busy:
            return await asyncio.shield(self._busy[key])
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._busy[key] = future
        try:
            async with self._room:
                response = self._run.add_response(await self.ask(key, request()))
            future.set_result(response)
            return response
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # it is raised below; whoever shares the key gets it as well
            raise
        finally:
            del self._busy[key]

    async def limited(self, key: str, request: Request) -> Response:
        """A response that is not stored as a completion (calibration), within the bound."""
        async with self._room:
            return await self.ask(key, request)

    async def ask(self, key: str, request: Request) -> Response:
        """What the engine gives: a response, a no-op, or an error with its reason. A dead engine is raised."""
        try:
            return _ok(key, await self._engine.generate(request))
        except NoOpError as error:
            done = error.completion
            why = self._redact(str(error))
            return _ok(key, done, "no-op", why) if done else Response(key, "no-op", reason=why)
        except StoreError:
            raise
        except EngineError as error:
            await self._check_alive()
            return Response(key, "error", reason=self._redact(str(error)))
        except Exception as error:
            return Response(key, "error", reason=self._redact(f"{type(error).__name__}: {error}"))

    async def _check_alive(self) -> None:
        """Raise EngineError if the engine no longer answers at all: then nothing is recorded and a resume retries."""
        async with self._probing:
            await self._engine.generate(_PROBE)

    async def grade(self, prompt: str, label: str | None, text: str) -> Grade:
        """The judge's grade of one response, stored under the judge's key."""
        response, judge = response_key(prompt, label, text), self._judge.key
        stored = self._run.kept_grade(response, judge=judge)
        if stored is not None:
            return stored
        grade = await self.judge(prompt, label, text)
        self._run.keep_grade(response, grade, judge=judge)
        return grade

    async def judge(self, prompt: str, label: str | None, text: str) -> Grade:
        """The judge's grade, not stored. A language model is awaited; another judge works in its thread."""
        if self._awaited:
            graded: Grade = await self._judge.grade(prompt, text, label=label)
            return graded
        future: asyncio.Future[Grade] = asyncio.get_running_loop().create_future()
        self._waiting.append(((prompt, text, label), future))
        if self._grading is None:
            self._grading = asyncio.ensure_future(self._work_off())
        return await future

    async def _work_off(self) -> None:
        """Have the thread grade what waits, a lot at a time: handing over costs more than many a grade."""
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                lot, self._waiting = self._waiting[:_LOT], self._waiting[_LOT:]
                try:
                    made = await loop.run_in_executor(self._thread, self._grade_all, [asked for asked, _ in lot])
                except Exception as error:
                    made = [error] * len(lot)
                for (_, future), grade in zip(lot, made, strict=True):
                    if future.done():  # whoever asked is gone
                        continue
                    if isinstance(grade, Grade):
                        future.set_result(grade)
                    else:
                        future.set_exception(grade)
        finally:
            self._grading = None

    def _grade_all(self, asked: list[tuple[str, str, str | None]]) -> list[Any]:
        """A grade, or the error that came instead, for each (prompt, text, label)."""
        made: list[Any] = []
        for prompt, text, label in asked:
            try:
                made.append(self._judge.grade(prompt, text, label=label))
            except Exception as error:
                made.append(error)
        return made


def _ok(key: str, done: Completion, status: str = "ok", reason: str | None = None) -> Response:
    receipt = rounded(done.receipt.to_dict())
    return Response(key, status, done.text, done.tokens, done.prompt_tokens, done.finish, receipt, reason)


def rounded(value: Any) -> Any:
    """Plain data with its floats at 6 significant digits, None for what is not finite.

    A receipt is measured in batches; digits beyond these depend on which requests happened to share one.
    """
    kind = type(value)
    if kind is int or kind is str or value is None:  # most of a receipt
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if kind is dict:
        return {name: rounded(item) for name, item in value.items()}
    if kind is list or kind is tuple:
        return [rounded(item) for item in value]
    return value
