"""What a language model replied when it was asked to judge, and the ledger that keeps it and counts every request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Reply:
    """A judge's reply. `stop` is why it stopped writing; `cost` in USD, None if the price is unknown."""

    text: str
    stop: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost: float | None


class Ledger(Protocol):
    """Where replies are kept and every request is entered before it leaves, so that no money is ever forgotten."""

    def reply(self, key: str) -> Reply | None:
        """The kept reply to a question."""
        ...

    def spent(self) -> float:
        """USD of all requests so far; one whose end is not known counts with the most it can have cost."""
        ...

    def requests(self) -> int:
        """How many requests were ever made."""
        ...

    def answered(self) -> bool:
        """Whether any request was ever answered."""
        ...

    def claim(self, key: str) -> bool:
        """Take a question for this ledger alone; False while another process has it."""
        ...

    def release(self, key: str) -> None:
        """Give a claimed question back."""
        ...

    def begin(self, key: str, judge: str, worst: float) -> int:
        """Enter a request that is about to leave; its number."""
        ...

    def end(
        self, number: int, state: str, cost: float, *, reason: str | None = None, reply: Reply | None = None
    ) -> None:
        """Enter how a request ended: "ok" (with its reply), "refused" (not billed) or "lost" (perhaps billed)."""
        ...
