"""The model's own responses to scenarios under one condition, and what its layers hold while it reads them again.

A condition is a system prompt (aligned, malicious, none), perhaps a changed user turn, perhaps an intervention.
Sampling seeds belong to the scenario, so that every condition is answered with the same noise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from countersteer.core.errors import CountersteerError, EngineError, InputError, NoOpError
from countersteer.core.fingerprint import named_seed
from countersteer.core.request import Receipt, Request, Sampling
from countersteer.core.site import Site
from countersteer.defence.data import Scenario
from countersteer.edits.edit import Intervention

AT_ONCE = 4
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Ask:
    """One request: who asks (scenario), under which system prompt, what, and steered how.

    `tokens`: the whole prompt as token ids, where a conversation goes before the question. `exempt`: stretches of the
    answer that the intervention leaves alone (core/exempt.py).
    """

    scenario: Scenario
    system: str | None
    user: str
    intervention: Intervention | None = None
    draw: int = 0
    tokens: tuple[int, ...] | None = None
    exempt: tuple[str, ...] = ()

    def request(self, sampling: Sampling, seed: int) -> Request:
        """The engine's request, its seed drawn for this scenario and draw."""
        own = sampling.with_seed(named_seed(seed, "response", self.scenario.id, self.draw))
        if self.tokens is not None:
            return Request(tokens=self.tokens, intervention=self.intervention, sampling=own, exempt=self.exempt)
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = (*system, {"role": "user", "content": self.user})
        return Request(messages=messages, intervention=self.intervention, sampling=own, exempt=self.exempt)


@dataclass(frozen=True, eq=False)
class Answer:
    """What came back: status ok, no-op or error; `tokens` without the end token.

    `read`: how many positions were computed (the last token that was generated is never read back).
    """

    ask: Ask
    status: str
    text: str = ""
    tokens: tuple[int, ...] = ()
    prompt_tokens: int = 0
    receipt: Receipt | None = None
    reason: str | None = None
    read: int = 0

    @property
    def ok(self) -> bool:
        """Whether there is a response to look at."""
        return self.status == "ok"


def ask_all(
    scenarios: Sequence[Scenario],
    system: str,
    intervention: Intervention | None = None,
    *,
    attack: str | None = None,
    reminder: str | None = None,
    exempt: tuple[str, ...] = (),
) -> list[Ask]:
    """Every scenario once. `system`: aligned, malicious or none; `attack`: a text with a `{user}` slot.

    `reminder`: a sentence put behind the system prompt (the prompting baseline).
    """
    if system not in ("aligned", "malicious", "none"):
        raise InputError(f"a condition's system prompt is aligned, malicious or none, got {system!r}")
    out = []
    for s in scenarios:
        given = None if system == "none" else getattr(s, system)
        if reminder:
            given = f"{given} {reminder}" if given else reminder
        user = attack.replace("{user}", s.user) if attack else s.user
        out.append(Ask(s, given, user, intervention, exempt=exempt))
    return out


def answer_all(
    engine: Any, asks: Sequence[Ask], sampling: Sampling, *, seed: int, progress: Progress | None = None
) -> list[Answer]:
    """The answers in order; a request that fails is an answer with its status. Raises InputError for a bad request."""
    out: list[Answer] = []
    step = max(1, 4 * getattr(getattr(engine, "loop", None), "places", 64))
    for start in range(0, len(asks), step):
        part = asks[start : start + step]
        done = engine.run([a.request(sampling, seed) for a in part], errors="return")
        out += [_answer(a, d) for a, d in zip(part, done, strict=True)]
        if progress is not None:
            progress(len(out), len(asks))
    return out


def _answer(ask: Ask, done: Any) -> Answer:
    if isinstance(done, NoOpError):
        return Answer(ask, "no-op", reason=str(done))
    if isinstance(done, EngineError):
        return Answer(ask, "error", reason=str(done))
    if isinstance(done, CountersteerError):
        raise done
    if isinstance(done, Exception):
        return Answer(ask, "error", reason=f"{type(done).__name__}: {done}")
    ended = done.finish == "stop"  # no stop strings are ever given here: the last token is the end token
    tokens = tuple(done.tokens[:-1] if ended else done.tokens)
    read = done.prompt_tokens + len(done.tokens) - 1
    return Answer(ask, "ok", done.text, tokens, done.prompt_tokens, done.receipt, read=read)


@dataclass(frozen=True, eq=False)
class Read:
    """Residuals per layer of one kind of responses, [n, layers, d_model]: over the response's tokens, at its last
    token, over the prompt (position 0 left out)."""

    response: NDArray[np.float64]
    last: NDArray[np.float64]
    prompt: NDArray[np.float64]


def read(
    engine: Any, answers: Sequence[Answer], *, sampling: Sampling, layers: Sequence[int],
    progress: Progress | None = None,
) -> Read:  # fmt: skip
    """Teacher-forced, unsteered pass over prompt and response, reduced per layer. Raises InputError if one is empty."""
    sites = [Site(layer) for layer in layers]

    async def one(answer: Answer) -> list[NDArray[np.float64]]:
        prompt, ids = token_ids(engine, answer, sampling)
        residuals = (await engine.forward([ids], capture=sites))[0]
        parts = []
        for rows in (slice(len(prompt), None), slice(len(ids) - 1, None), slice(1, len(prompt))):
            parts.append(np.stack([h[rows].double().mean(0).cpu().numpy() for h in residuals]))
        return parts

    async def everything() -> list[list[NDArray[np.float64]]]:
        out: list[list[NDArray[np.float64]]] = []
        for start in range(0, len(answers), AT_ONCE):
            out += await asyncio.gather(*(one(a) for a in answers[start : start + AT_ONCE]))
            if progress is not None:
                progress(len(out), len(answers))
        return out

    found = wait(everything())
    return Read(*(np.stack([parts[i] for parts in found]) for i in range(3)))


def projections(
    engine: Any, answers: Sequence[Answer], directions: Sequence[Any], *, sampling: Sampling
) -> list[NDArray[np.float64]]:
    """Per answer the projections [tokens, directions] of its response tokens, unsteered."""

    async def one(answer: Answer) -> NDArray[np.float64]:
        prompt, ids = token_ids(engine, answer, sampling)
        values = (await engine.forward([ids], readouts=list(directions)))[0]
        found: NDArray[np.float64] = values[len(prompt) :].double().cpu().numpy()
        return found

    async def everything() -> list[NDArray[np.float64]]:
        out: list[NDArray[np.float64]] = []
        for start in range(0, len(answers), AT_ONCE):
            out += await asyncio.gather(*(one(a) for a in answers[start : start + AT_ONCE]))
        return out

    return wait(everything())


def token_ids(engine: Any, answer: Answer, sampling: Sampling) -> tuple[list[int], list[int]]:
    """(prompt ids, prompt and response ids) of an answer. Raises InputError for an empty response."""
    prompt = list(engine.encode(answer.ask.request(sampling, 0)))
    if not answer.tokens:
        raise InputError(f"the response to scenario {answer.ask.scenario.id} is empty")
    return prompt, [*prompt, *answer.tokens]


def wait(work: Any) -> Any:
    """The result of a coroutine, from anywhere: inside a running event loop it runs in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
