"""The ask / tell interface that every calibrator shares, and the words for what goes in and out.

A calibrator plans rounds of queries; whoever runs the model answers them. Its state is a function of the
constructor's arguments and the told answers alone, and the order of answers within a round does not matter: to
resume, build it again and tell the stored answers round by round.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from countersteer.core.errors import InputError

Id = int | str
Status = Literal["ok", "uncalibrated"]


@dataclass(frozen=True)
class Query:
    """One generation wanted: steer `latent` at `strength` on `prompt`, score its first attempt, tell `index`."""

    latent: Id
    prompt: Id
    strength: float
    index: int


@dataclass(frozen=True)
class Estimate:
    """The calibrated strength of one latent with its 90% interval, from `n` scores.

    With status "uncalibrated" (the curve does not cross the target in range, or cannot be said to) the three
    numbers are None.
    """

    strength: float | None
    low: float | None
    high: float | None
    status: Status
    n: int


@dataclass(frozen=True)
class Settings:
    """Range of strengths [lo, hi], where to expect the answer, the wanted mean score (0 to 1), the seed."""

    lo: float
    hi: float
    centre: float
    target: float
    seed: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lo) and math.isfinite(self.hi) and 0.0 <= self.lo < self.hi):
            raise InputError(f"strength range [{self.lo}, {self.hi}] is not 0 <= lo < hi: give for example 0 and 3")
        if not (self.lo < self.centre < self.hi):
            raise InputError(f"centre {self.centre} lies outside the range [{self.lo}, {self.hi}]: move it inside")
        if not 0.0 < self.target < 1.0:
            raise InputError(f"target {self.target} is not between 0 and 1: give the score as a share, 0.3 for 30")


def named_rng(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for each named draw: adding a draw never moves another."""
    words = np.frombuffer(hashlib.sha256(f"{seed}/{name}".encode()).digest(), dtype=np.uint32)
    return np.random.default_rng(np.random.SeedSequence(words.tolist()))


class Calibrator(ABC):
    """Ask for a round, tell its scores, repeat until a round is empty, then take the result."""

    method: str

    def __init__(
        self,
        *,
        latents: Sequence[Id],
        prompts: Sequence[Id],
        lo: float = 0.0,
        hi: float = 3.0,
        centre: float = 0.8,
        target: float = 0.3,
        seed: int = 0,
    ) -> None:
        """Strengths are in the caller's unit per latent. Raises InputError for empty or repeated ids."""
        for what, ids in (("latents", latents), ("prompts", prompts)):
            if not ids:
                raise InputError(f"no {what} to calibrate with: give at least one")
            if len(set(ids)) != len(ids):
                raise InputError(f"{what} contain an id twice: give each once")
        self.latents = tuple(latents)
        self.prompts = tuple(prompts)
        self.settings = Settings(float(lo), float(hi), float(centre), float(target), int(seed))
        self.queries: list[Query] = []
        self.answers: dict[int, float | None] = {}
        self._rounds = 0
        self._done = False

    def ask(self) -> list[Query]:
        """The queries of this round that are still unanswered; a new round once all are; empty when done."""
        open_queries = [query for query in self.queries if query.index not in self.answers]
        if open_queries or self._done:
            return open_queries
        planned = self._plan(self._rounds)
        if not planned:
            self._done = True
            return []
        self._rounds += 1
        first = len(self.queries)
        self.queries += [Query(*parts, index=first + offset) for offset, parts in enumerate(planned)]
        return self.queries[first:]

    def tell(self, index: int, score: float | None) -> None:
        """Answer query `index` with a mean score from 0 to 1, or None if there is none (a failed generation).

        Raises InputError for a query never asked, a score out of range, or an answer that changes a former one.
        """
        if not 0 <= index < len(self.queries):
            raise InputError(f"query {index} was never asked: tell answers round by round, after ask()")
        if score is not None and not 0.0 <= score <= 1.0:
            raise InputError(f"score {score} of query {index} is not within 0 to 1: divide scores of 0-100 by 100")
        if index in self.answers and self.answers[index] != score:
            raise InputError(f"query {index} was already answered with {self.answers[index]}: answers do not change")
        self.answers[index] = None if score is None else float(score)

    @property
    def done(self) -> bool:
        """Whether every round has been asked and answered."""
        return not self.ask()

    def result(self) -> dict[Id, Estimate]:
        """Estimates by latent. Raises InputError while queries are unanswered."""
        if not self.done:
            raise InputError("the calibration is not finished: ask() and tell() until ask() returns nothing")
        return self._estimate()

    def describe(self) -> dict[str, object]:
        """Method and settings, for the artefact."""
        return {"method": self.method, **asdict(self.settings)}

    @abstractmethod
    def _plan(self, number: int) -> list[tuple[Id, Id, float]]:
        """(latent, prompt, strength) of round `number`, all former rounds being answered; empty: done."""

    @abstractmethod
    def _estimate(self) -> dict[Id, Estimate]:
        """Estimates, all rounds being answered."""
