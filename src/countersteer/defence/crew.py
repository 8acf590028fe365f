"""A crew: processes that answer and score parts of one step's questions, each with engines of its own.

A small model leaves most of a machine idle: its layers are too narrow for several threads. Every part is answered as it
would be alone (seeds belong to the scenario), so that a crew changes when something is known, not what. Workers load
engines when they first need them and keep them; a judge travels with its references and takes the worker's engine.
"""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache, lru_cache
from typing import Any, TypeVar

from countersteer.core.errors import EngineError, InputError, RefusedError
from countersteer.defence.judges import OrganismJudge, Reference
from countersteer.defence.responses import Ask
from countersteer.defence.scoring import Condition, answered
from countersteer.defence.settings import Settings, checked

Result = TypeVar("Result")
PART = 256
"""Most questions that a worker is given at once: progress is seen by parts."""


class Crew:
    """`workers` processes for the settings' model. Use it as a context manager; nothing starts before the first work.

    Raises InputError, and RefusedError for a judge that is not the offline one (its paid replies are kept by one
    process). A script needs the usual `if __name__ == "__main__":` around what uses a crew.
    """

    def __init__(self, settings: Settings, workers: int) -> None:
        if workers < 2:
            raise InputError(f"a crew has at least two workers, got {workers}")
        if settings.judge.model != "offline":
            raise RefusedError(f"{workers} workers with the judge {settings.judge.model}",
                               "the replies it is paid for are kept by one process", "--workers 1")  # fmt: skip
        self.workers = workers
        self._settings = json.dumps(settings.model_dump(mode="json"))
        self._pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.shutdown(cancel_futures=True)

    def answered(
        self, judge: Any, asks: Sequence[Ask], *, short: bool, adapter: str | None = None, progress: Any = None
    ) -> Condition:
        """What `scoring.answered` gives, on the model under `adapter`; the judge's engine has none."""
        parts = self._spread(_answered, asks, judge, adapter, short, progress=progress)
        return Condition(tuple(a for p in parts for a in p.answers), tuple(s for p in parts for s in p.scores))

    def references(self, judge: OrganismJudge, asks: Sequence[Ask]) -> list[Reference]:
        """What the judge's `references` gives."""
        return [r for part in self._spread(_references, asks, judge) for r in part]

    def _spread(
        self, work: Callable[..., Result], asks: Sequence[Ask], judge: Any, *more: Any, progress: Any = None
    ) -> list[Result]:
        step = max(1, min(PART, -(-len(asks) // self.workers)))
        parts = [list(asks[i : i + step]) for i in range(0, len(asks), step)]
        # As bytes: a tensor that travels by itself would take a file descriptor of shared memory.
        known, done = pickle.dumps(judge), 0
        try:
            futures = {
                self._pool.submit(work, self._settings, known, pickle.dumps(part), *more): len(part) for part in parts
            }
            for future in as_completed(futures):
                future.result()  # the first error ends the step
                done += futures[future]
                if progress is not None:
                    progress(done, len(asks))
        except BrokenProcessPool as error:
            raise EngineError("a worker process ended early (out of memory, or a script without a main guard); "
                              "use fewer workers") from error  # fmt: skip
        return [future.result() for future in futures]


# Everything below runs in the workers.


def _answered(settings: str, judge: bytes, asks: bytes, adapter: str | None, short: bool) -> Condition:
    engine, kept = _engine(settings, adapter), _checked(settings)
    return answered(engine, _judge(settings, judge), _unpacked(asks), kept, short=short)


def _references(settings: str, judge: bytes, asks: bytes) -> list[Reference]:
    return _judge(settings, judge).references(_unpacked(asks))


def _unpacked(data: bytes) -> Any:
    """What the parent process packed and sent over its own pipe; nothing else ever comes here."""
    return pickle.loads(data)  # noqa: S301


@lru_cache(1)
def _judge(settings: str, known: bytes) -> OrganismJudge:
    judge: OrganismJudge = _unpacked(known)
    judge.engine = _engine(settings, None)
    return judge


@cache
def _checked(settings: str) -> Settings:
    return checked(json.loads(settings), where="the crew's settings")


@cache
def _engine(settings: str, adapter: str | None) -> Any:
    import torch

    from countersteer.defence.steps import engine_for

    torch.set_num_threads(1)
    return engine_for(_checked(settings), adapter=adapter)
