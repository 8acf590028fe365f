"""The ESR paper's mark of degraded output: one word over and over.

A response is degraded iff some word longer than one character stands at least five times in a row, words being
what white space separates. It is a flag for a second headline, not a reason to drop a trial.
"""

from __future__ import annotations

from itertools import groupby

TIMES = 5


def degraded(text: str) -> bool:
    """Whether a word longer than one character is repeated five or more times in a row (ESR, section 1.1)."""
    return any(len(word) > 1 and sum(1 for _ in same) >= TIMES for word, same in groupby(text.split()))
