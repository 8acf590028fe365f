"""What a runner tells whoever watches it. The command line draws bars; tests count; nobody is the default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Observer(Protocol):
    """Watches a study while it runs."""

    def stage(self, name: str, total: int | None) -> None:
        """A stage begins; `total` is its number of items if known."""
        ...

    def progress(self, done: int, total: int) -> None:
        """Items of the stage done so far."""
        ...

    def note(self, text: str) -> None:
        """What is worth seeing beside the progress, such as a loss; it holds until the next stage."""
        ...

    def extra(self, count: int) -> None:
        """More responses were planned (fresh draws of a multi-attempt trial)."""
        ...

    def trial(self, arm: str, scores: Sequence[float]) -> None:
        """A trial is graded; `scores` of its attempts, empty if it is not valid."""
        ...

    def spent(self, usd: float, cap: float | None) -> None:
        """Money spent on the judge so far, and the most that may be (None: no cap)."""
        ...


class Silent:
    """Watches nothing."""

    def stage(self, name: str, total: int | None) -> None:
        """Ignore."""

    def progress(self, done: int, total: int) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""

    def extra(self, count: int) -> None:
        """Ignore."""

    def trial(self, arm: str, scores: Sequence[float]) -> None:
        """Ignore."""

    def spent(self, usd: float, cap: float | None) -> None:
        """Ignore."""
