"""The words of a study's data: statuses, attempts, grades.

A missing value is a status of its own, never 0 and never NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OK = "ok"
STATUSES = (OK, "error", "no-attempt", "unparsed", "no-op", "uncalibrated", "no-reference")
"""ok, or why a trial or grade is missing."""


@dataclass(frozen=True)
class Attempt:
    """A stretch [start, end) of a response in characters; `score` 0-100 or None; `restart` its opening phrase."""

    start: int
    end: int
    score: float | None = None
    restart: str | None = None


@dataclass(frozen=True)
class Grade:
    """A judge's attempts for one response. `status` is "ok" iff there is at least one scored attempt."""

    status: str
    attempts: tuple[Attempt, ...] = ()
    judge: str = ""
    reason: str | None = None
    flags: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain data: {"status", "attempts": [{"start", "end", "score", "restart"}], ...}."""
        return {**vars(self), "attempts": [dict(vars(a)) for a in self.attempts], "flags": list(self.flags)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Grade:
        """The grade that `to_dict` wrote."""
        attempts = tuple(Attempt(**a) for a in data.get("attempts", ()))
        return cls(data["status"], attempts, data.get("judge", ""), data.get("reason"), tuple(data.get("flags", ())))
