"""A crew: processes that answer and score parts of one step's questions, each with engines of its own.

A small model leaves most of a machine idle: its layers are too narrow for several threads. Every part is answered as it
would be alone (seeds belong to the scenario), so that a crew changes when something is known, not what. Workers load
engines when they first need them and keep them; a judge learns the references of the one in charge.

What travels is plain data: JSON, and interventions as the bytes of bundle files.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache, lru_cache
from typing import Any

from countersteer.core.errors import EngineError, InputError, RefusedError
from countersteer.core.request import Receipt
from countersteer.defence.data import Scenario
from countersteer.defence.judges import OrganismJudge, Reference, Scores
from countersteer.defence.responses import Answer, Ask
from countersteer.defence.scoring import Condition, answered
from countersteer.defence.settings import Settings, checked
from countersteer.edits.bundle import bundle_bytes, bundle_of
from countersteer.edits.edit import Intervention

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
        self._drawn: dict[str, Any] = {}
        self._pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))

    def serves(self, settings: Settings) -> bool:
        """Whether these are the settings that its workers have."""
        return self._settings == json.dumps(settings.model_dump(mode="json"))

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.shutdown(cancel_futures=True)

    def answered(
        self, judge: Any, asks: Sequence[Ask], *, short: bool = False, adapter: str | None = None, progress: Any = None
    ) -> Condition:
        """What `scoring.answered` gives, on the model under `adapter`; the judge's engine has none."""
        rows = self._spread(_answered, asks, judge, adapter, short, progress=progress)
        answers = tuple(_answer(ask, row["answer"]) for ask, row in zip(asks, rows, strict=True))
        return Condition(answers, tuple(Scores(**row["scores"]) for row in rows))

    def references(self, judge: OrganismJudge, asks: Sequence[Ask]) -> list[Reference]:
        """What the judge's `references` gives. A question that was asked before is not answered again."""
        keys = [json.dumps(_ask_row(a)) for a in asks]
        new = [i for i, key in enumerate(keys) if key not in self._drawn]
        rows = self._spread(_references, [asks[i] for i in new], judge)
        self._drawn.update((keys[i], row) for i, row in zip(new, rows, strict=True))
        drawn = [self._drawn[key] for key in keys]
        return [_reference(ask, row) for ask, row in zip(asks, drawn, strict=True) if row is not None]

    def _spread(
        self, work: Callable[..., str], asks: Sequence[Ask], judge: OrganismJudge, *more: Any, progress: Any = None
    ) -> list[Any]:
        """One row of `work`'s JSON per question, in order."""
        step = max(1, min(PART, -(-len(asks) // self.workers)))
        parts = [asks[i : i + step] for i in range(0, len(asks), step)]
        known = json.dumps([_reference_row(r) for r in judge.known])
        done = 0
        try:
            futures = {
                self._pool.submit(work, self._settings, known, *_packed(part), *more): len(part) for part in parts
            }
            for future in as_completed(futures):
                future.result()  # the first error ends the step
                done += futures[future]
                if progress is not None:
                    progress(done, len(asks))
        except BrokenProcessPool as error:
            raise EngineError("a worker process ended early (out of memory, or a script without a main guard); "
                              "use fewer workers") from error  # fmt: skip
        return [row for future in futures for row in json.loads(future.result())]


def _packed(asks: Sequence[Ask]) -> tuple[str, list[bytes]]:
    """Questions as JSON, and the bundle of every intervention that they name by its place in the list."""
    steers: dict[int, Intervention] = {id(a.intervention): a.intervention for a in asks if a.intervention is not None}
    place = {key: i for i, key in enumerate(steers)}
    rows = [_ask_row(a) | {"steer": place.get(id(a.intervention))} for a in asks]
    return json.dumps(rows), [bundle_bytes(s) for s in steers.values()]


def _ask_row(ask: Ask) -> dict[str, Any]:
    return {"scenario": vars(ask.scenario), "system": ask.system, "user": ask.user, "draw": ask.draw,
            "tokens": ask.tokens, "exempt": ask.exempt}  # fmt: skip


def _ask(row: dict[str, Any], intervention: Intervention | None = None) -> Ask:
    tokens = None if row["tokens"] is None else tuple(row["tokens"])
    return Ask(Scenario(**row["scenario"]), row["system"], row["user"], intervention, row["draw"], tokens,
               tuple(row["exempt"]))  # fmt: skip


def _answer_row(answer: Answer) -> dict[str, Any]:
    receipt = None if answer.receipt is None else answer.receipt.to_dict()
    return {k: v for k, v in vars(answer).items() if k != "ask"} | {"receipt": receipt}


def _answer(ask: Ask, row: dict[str, Any]) -> Answer:
    receipt = None if row["receipt"] is None else Receipt.from_dict(row["receipt"])
    return Answer(ask, **{**row, "tokens": tuple(row["tokens"]), "receipt": receipt})


def _reference_row(reference: Reference) -> dict[str, Any]:
    answer = reference.answer
    return {"ask": _ask_row(answer.ask), "answer": _answer_row(answer), "likelihood": reference.likelihood,
            "shuffled": reference.shuffled}  # fmt: skip


def _reference(ask: Ask, row: dict[str, Any]) -> Reference:
    return Reference(_answer(ask, row["answer"]), row["likelihood"], row["shuffled"])


# Everything below runs in the workers.


def _answered(settings: str, known: str, asks: str, steers: list[bytes], adapter: str | None, short: bool) -> str:
    engine = _engine(settings, adapter)
    found = answered(engine, _judge(settings, known), _unpacked(asks, steers), _checked(settings), short=short)
    pairs = zip(found.answers, found.scores, strict=True)
    return json.dumps([{"answer": _answer_row(a), "scores": vars(s)} for a, s in pairs])


def _references(settings: str, known: str, asks: str, steers: list[bytes]) -> str:
    """One row per question, None for an answer without words."""
    given = _unpacked(asks, steers)
    drawn = {id(r.answer.ask): r for r in _judge(settings, known).references(given)}
    return json.dumps([_reference_row(drawn[id(a)]) if id(a) in drawn else None for a in given])


def _unpacked(asks: str, steers: list[bytes]) -> list[Ask]:
    loaded = [bundle_of(data).intervention for data in steers]
    return [_ask(row, None if row["steer"] is None else loaded[row["steer"]]) for row in json.loads(asks)]


@lru_cache(1)
def _judge(settings: str, known: str) -> OrganismJudge:
    judge = OrganismJudge(_engine(settings, None), _checked(settings))
    references = [_reference(_ask(row["ask"]), row) for row in json.loads(known)]
    if references:
        judge.learn(references)
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
