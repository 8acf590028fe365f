"""How much a client may ask for: sizes, rates, how many at once, how long.

Rates are token buckets per key that hold one minute's worth. Work in flight is counted per key and in all; what is too
much is refused at once with the seconds to wait, never queued without end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from countersteer.core.errors import InputError
from countersteer.serving.errors import Refusal


@dataclass(frozen=True)
class Limits:
    """The limits of a server. Seconds, bytes, tokens, requests."""

    body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    seconds: float = 300.0
    max_tokens: int = 4096
    default_max_tokens: int = 256
    per_minute: int = 600
    at_once_per_key: int = 128
    at_once: int = 512

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(f"limit {item.name} must be a number above 0, got {value!r}")


class Turnstile:
    """Lets requests in by key, or refuses them. Used on one event loop only."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self.clock = limits, clock
        self.tokens: dict[str, tuple[float, float]] = {}
        self.inside: dict[str, int] = {}

    @property
    def total(self) -> int:
        """Requests inside."""
        return sum(self.inside.values())

    @contextmanager
    def enter(self, key: str) -> Iterator[None]:
        """Hold a place for one request of a key. Raises Refusal 429 (this key's limits) or 503 (the server is full)."""
        self._spend(key)
        if self.inside.get(key, 0) >= self.limits.at_once_per_key:
            raise _wait(429, "too_many_at_once", "this key has too many requests in flight", 1.0)
        if self.total >= self.limits.at_once:
            raise _wait(503, "overloaded", "the server is full", 1.0)
        self.inside[key] = self.inside.get(key, 0) + 1
        try:
            yield
        finally:
            self.inside[key] -= 1

    def _spend(self, key: str) -> None:
        rate, now = self.limits.per_minute / 60, self.clock()
        left, since = self.tokens.get(key, (float(self.limits.per_minute), now))
        left = min(float(self.limits.per_minute), left + (now - since) * rate)
        if left < 1:
            self.tokens[key] = (left, now)
            raise _wait(429, "rate_limited", f"this key may send {self.limits.per_minute} requests a minute",
                        (1 - left) / rate)  # fmt: skip
        self.tokens[key] = (left - 1, now)


def _wait(status: int, code: str, message: str, seconds: float) -> Refusal:
    whole = max(1, math.ceil(seconds))
    return Refusal(status, code, f"{message}; try again in {whole} s", headers={"Retry-After": str(whole)})
