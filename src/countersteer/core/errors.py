"""The errors of countersteer and the exit code each one means on the command line.

CountersteerError            1   anything we raise on purpose
├── InputError               2   the caller's input cannot be used (file, value, name, setting)
│   └── RefusedError         2   understood, but cannot be honoured: what, why, what instead
├── NoOpError                1   a requested intervention changed nothing
├── EngineError              1   the engine failed while it worked
└── StoreError               1   the run on disk could not be read or written
Every message is one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class CountersteerError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(CountersteerError):
    """The caller's input cannot be used. The message says what, why, and what instead."""

    exit_code = 2


class RefusedError(InputError):
    """A request that is understood but cannot be honoured, raised before work starts."""

    def __init__(self, what: str, why: str, instead: str) -> None:
        super().__init__(f"{what} is refused: {why}. Instead: {instead}")
        self.what, self.why, self.instead = what, why, instead


class NoOpError(CountersteerError):
    """A requested intervention changed nothing. `completion` holds what was generated, if anything was."""

    def __init__(self, message: str, completion: Any = None) -> None:
        super().__init__(message)
        self.completion = completion


class EngineError(CountersteerError):
    """The engine failed while it worked; the cause is chained."""


class StoreError(CountersteerError):
    """The run on disk could not be read or written."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as " (did you mean 'seed'?)" for a mistyped name, or the empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
