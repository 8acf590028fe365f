"""The rows of a run as frozen data: what is written, and what a report or an export reads.

`status` of a trial is one of core.trial.STATUSES, or "pending" while its response or its grade is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from countersteer.core.fingerprint import fingerprint

PENDING = "pending"


def response_key(prompt: str, label: str | None, text: str) -> str:
    """What a grade belongs to: the question, the latent's label as the judge is told it, the response."""
    return fingerprint(["response", prompt, label, text])


@dataclass(frozen=True)
class Reference:
    """One planned unsteered response for the judge's reference set."""

    ordinal: int
    prompt: str
    seed: int
    key: str


@dataclass(frozen=True)
class LatentRow:
    """A chosen latent. `unit` converts relative strengths into this latent's; the rest is its calibration."""

    rank: int
    latent: int
    label: str | None
    concreteness: float | None = None
    unit: float | None = None
    strength: float | None = None
    low: float | None = None
    high: float | None = None
    status: str | None = None


@dataclass(frozen=True)
class Answer:
    """One answered calibration query. `strength` is in relative units, `score` 0-1 or None with the status why."""

    ordinal: int
    latent: int
    prompt: str
    strength: float
    key: str
    status: str
    score: float | None
    text: str
    reason: str | None = None


@dataclass(frozen=True)
class Planned:
    """A planned trial. `prompt` is the question, `user` the user turn as sent (with suffix).

    `planned_status` is set when the trial is known to be missing already ("uncalibrated").
    """

    arm: str
    ordinal: int
    key: str
    latent: int
    label: str | None
    strength: float | None
    prompt: str
    user: str
    system: str | None
    prefix: str | None
    seed: int
    planned_status: str | None = None


@dataclass(frozen=True)
class Resample:
    """A planned fresh first attempt: draw number `draw` for trial (`arm`, `ordinal`)."""

    arm: str
    ordinal: int
    draw: int
    key: str
    seed: int


@dataclass(frozen=True)
class Response:
    """What an engine gave for one key. `status` is "ok", "error" or "no-op"."""

    key: str
    status: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    prompt_tokens: int = 0
    finish: str | None = None
    receipt: dict[str, Any] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Trial:
    """A trial with all that is known of it. `text` is the whole response, a given prefix included, or None.

    `grade` is the judge's grade as plain data ({"status", "attempts": [{"start", "end", "score", "restart"}], ...}).
    `finish`: why the response ended ("stop", "length", ...), None where that is not known.
    """

    plan: Planned
    status: str
    reason: str | None
    text: str | None
    receipt: dict[str, Any] | None
    grade: dict[str, Any] | None
    tokens: int
    finish: str | None = None

    @property
    def written(self) -> str:
        """What the model wrote: the response without a given prefix, "" if there is none."""
        return (self.text or "")[len(self.plan.prefix or "") :]

    @property
    def scores(self) -> list[float]:
        """Scores of the scored attempts in order, empty if there are none."""
        attempts = (self.grade or {}).get("attempts", ())
        return [a["score"] for a in attempts if a["score"] is not None]


@dataclass(frozen=True)
class FreshAttempt:
    """A resampled response with its grade; `first` is its first attempt's score or None with the status why."""

    arm: str
    ordinal: int
    draw: int
    status: str
    first: float | None
    text: str | None
