"""Money: a cap that is never passed, and the pace a provider allows.

A call reserves the most it can cost before it leaves and gives back what it did not use. A call that does not fit waits
while others are under way, and stops the run when none is.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from countersteer.core.errors import CountersteerError


class CostCapError(CountersteerError):
    """The next call could pass the cap. Everything paid for is kept; running again with a higher cap goes on."""

    def __init__(self, cap: float, spent: float, need: float) -> None:
        super().__init__(
            f"stopped at the cost cap: {spent:.4f} of {cap:.4f} USD are spent and the next call can cost {need:.4f};"
            " what is graded is kept, run the same command with a higher --max-cost to go on"
        )
        self.cap, self.spent = cap, spent


class Budget:
    """Counts money in USD. `cap` None: no limit, only counting."""

    def __init__(self, cap: float | None, spent: float = 0.0) -> None:
        self.cap = cap
        self.spent = spent
        self.reserved = 0.0
        self._changed = asyncio.Event()

    async def reserve(self, worst: float) -> None:
        """Set aside `worst`; waits for calls under way if it does not fit yet. Raises CostCapError."""
        while self.cap is not None and self.spent + self.reserved + worst > self.cap:
            if self.reserved <= 0 or self.spent + worst > self.cap:
                raise CostCapError(self.cap, self.spent, worst)
            changed = self._changed
            await changed.wait()
        self.reserved += worst

    def settle(self, worst: float, cost: float) -> None:
        """Give back a reservation and count what was spent."""
        self.reserved = max(0.0, self.reserved - worst)
        if self.reserved < 1e-12:
            self.reserved = 0.0
        self.spent += cost
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Pace:
    """At most so many requests and tokens in any minute (None: no limit), and pauses that a provider asks for."""

    def __init__(self, requests: int | None = None, tokens: int | None = None) -> None:
        self._limits = (requests, tokens)
        self._past: deque[tuple[float, int]] = deque()
        self._tokens = 0
        self._until = 0.0

    def pause(self, seconds: float) -> bool:
        """Let nothing leave for a while; whether that is longer than was known already."""
        until = time.monotonic() + seconds
        longer, self._until = until > self._until + 1.0, max(self._until, until)
        return longer

    async def turn(self, tokens: int) -> None:
        """Wait until a request of this size may leave, and count it."""
        while True:
            now = time.monotonic()
            while self._past and self._past[0][0] <= now - 60:
                self._tokens -= self._past.popleft()[1]
            wait = self._until - now
            most, volume = self._limits
            full = most is not None and len(self._past) >= most
            heavy = volume is not None and self._past and self._tokens + tokens > volume
            if full or heavy:
                wait = max(wait, self._past[0][0] + 60 - now)
            if wait <= 0:
                break
            await asyncio.sleep(min(wait, 1.0))
        if self._limits != (None, None):
            self._past.append((now, tokens))
            self._tokens += tokens


class JudgeDownError(CountersteerError):
    """The judge does not answer at all; nothing is recorded for what was under way, so running again retries it."""


class Breaker:
    """Stops asking a provider that fails every time: waits, lets one call try, and gives up in the end.

    `threshold` failures in a row open it for `first` seconds, then twice as long each time, at most `longest`;
    after `patience` openings in a row without one success JudgeDownError is raised.
    """

    def __init__(self, *, threshold: int = 10, first: float = 2.0, longest: float = 60.0, patience: int = 6) -> None:
        self._threshold, self._first, self._longest, self._patience = threshold, first, longest, patience
        self._failures = self._openings = 0
        self._open_until = 0.0
        self._probing = False
        self.last = ""

    async def enter(self) -> bool:
        """Wait until a call may try; whether it is the one that probes. Raises JudgeDownError."""
        while self._openings:
            if self._openings > self._patience:
                raise JudgeDownError(
                    f"the judge failed {self._failures} times in a row, last: {self.last}; what is graded is kept,"
                    " run the same command again when it answers"
                )
            wait = self._open_until - time.monotonic()
            if wait <= 0 and not self._probing:
                self._probing = True
                return True
            await asyncio.sleep(min(max(wait, 0.02), 1.0))
        return False

    def success(self) -> None:
        """A call was answered."""
        self._failures = self._openings = 0
        self._probing = False

    def failure(self, reason: str, probe: bool = False) -> float | None:
        """A call failed for a reason that is not its own; the seconds for which this opens it, if it does."""
        self._failures += 1
        self.last = reason
        if not probe and (self._openings or self._failures < self._threshold):
            return None
        self._probing = self._probing and not probe
        self._openings += 1
        seconds = min(self._first * 2 ** (self._openings - 1), self._longest)
        self._open_until = time.monotonic() + seconds
        return seconds

    def neutral(self, probe: bool = False) -> None:
        """A call ended without saying anything about the provider (it was put off, cancelled, or its own fault)."""
        self._probing = self._probing and not probe
