"""Progress of long work on stderr: bars on a terminal, a line now and then elsewhere.

Shows the rate and the time left; for a study also the running multi-attempt and ESR rate of the base arm, each with its
Wilson interval.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

_EVERY = 15.0


def money(usd: float, cap: float | None) -> str:
    """Money in words; empty while there is none to speak of."""
    if cap is None:
        return f"{usd:.2f} USD" if usd else ""
    return f"{usd:.2f} of {cap:.2f} USD"


class Counts:
    """Running rates over the trials of one arm, and the money spent on the judge."""

    def __init__(self, arm: str) -> None:
        self.arm = arm
        self.valid = self.multi = self.improved = 0
        self.money = self.note = ""

    def add(self, arm: str, scores: Sequence[float]) -> None:
        """Count a graded trial of the arm that is watched."""
        if arm == self.arm and scores:
            self.valid += 1
            self.multi += len(scores) > 1
            self.improved += len(scores) > 1 and scores[-1] > scores[0]

    def text(self) -> str:
        """Note, rates and money in words; empty before there is any."""
        return "; ".join(part for part in (self.note, self._rates(), self.money) if part)

    def _rates(self) -> str:
        if not self.valid:
            return ""
        from countersteer.statistics.rates import wilson

        parts = []
        for name, events in (("multi", self.multi), ("ESR", self.improved)):
            interval = wilson(events, self.valid)
            low, high = 100 * (interval.low or 0.0), 100 * (interval.high or 0.0)
            parts.append(f"{name} {100 * events / self.valid:.1f}% [{low:.1f}, {high:.1f}]")
        return f"{self.arm}: {', '.join(parts)} of {self.valid}"


class Lines:
    """One line per stage, and one every quarter of a minute while it lasts."""

    def __init__(self, base: str) -> None:
        self.counts = Counts(base)
        self._name, self._began, self._said, self._start = "", 0.0, 0.0, -1

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def stage(self, name: str, total: int | None) -> None:
        """Name the stage."""
        self.counts.note = ""
        self._name, self._began, self._said, self._start = name, time.monotonic(), time.monotonic(), -1
        sys.stderr.write(f"{name}{f' ({total})' if total else ''}\n")
        sys.stderr.flush()

    def progress(self, done: int, total: int) -> None:
        """A line when the last is old enough."""
        now = time.monotonic()
        self._start = done if self._start < 0 else self._start
        if now - self._said >= _EVERY:
            self._said = now
            rate = (done - self._start) / max(now - self._began, 1e-9)
            left = f", {(total - done) / rate:.0f} s left" if rate > 0 else ""
            rates = self.counts.text()
            sys.stderr.write(f"{self._name}: {done}/{total}, {rate:.1f}/s{left}{'; ' + rates if rates else ''}\n")
            sys.stderr.flush()

    def note(self, text: str) -> None:
        """Keep for the line."""
        self.counts.note = text

    def extra(self, count: int) -> None:
        """Fresh draws belong to their trial."""

    def trial(self, arm: str, scores: Sequence[float]) -> None:
        """Count."""
        self.counts.add(arm, scores)

    def spent(self, usd: float, cap: float | None) -> None:
        """Keep for the line."""
        self.counts.money = money(usd, cap)


class Bars:
    """A bar per stage, drawn by rich on stderr."""

    def __init__(self, base: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self.counts = Counts(base)
        self._task: Any = None
        self._said = 0.0
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._finish()
        self._bars.stop()

    def _finish(self) -> None:
        if self._task is not None:
            task = self._bars.tasks[self._task]
            if task.total is None:
                self._bars.update(self._task, total=max(task.completed, 1), completed=max(task.completed, 1))

    def stage(self, name: str, total: int | None) -> None:
        """A new bar."""
        self.counts.note = ""
        self._finish()
        self._task = self._bars.add_task(name, total=total, rate="", note="")

    def progress(self, done: int, total: int) -> None:
        """Move the bar."""
        if self._task is None:
            return
        task = self._bars.tasks[self._task]
        rate = f"{task.speed:.1f}/s" if task.speed else ""
        now = time.monotonic()
        note = task.fields["note"]
        if now - self._said > 0.5:
            self._said, note = now, self.counts.text()
        self._bars.update(self._task, completed=done, total=total, rate=rate, note=note)

    def note(self, text: str) -> None:
        """Keep for the line."""
        self.counts.note = text

    def extra(self, count: int) -> None:
        """Fresh draws belong to their trial."""

    def trial(self, arm: str, scores: Sequence[float]) -> None:
        """Count."""
        self.counts.add(arm, scores)

    def spent(self, usd: float, cap: float | None) -> None:
        """Keep for the line."""
        self.counts.money = money(usd, cap)


def watch(base: str = "base") -> Bars | Lines:
    """Bars on a terminal, lines elsewhere."""
    return Bars(base) if sys.stderr.isatty() else Lines(base)
