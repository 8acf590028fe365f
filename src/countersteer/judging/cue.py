"""A cue: one kind of restart language, with its weight.

Two points of weight within neighbouring pieces of a response make a restart (`attempts.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from countersteer.judging.wording import FLAGS


@dataclass(frozen=True)
class Cue:
    """A kind of restart language: `weight` 2 is enough alone, 1 needs company.

    `own`: it speaks of this very answer or its question, so that neither a letter nor others' beliefs explain it.
    `anchored`: it counts only at the start of a piece, after interruptions and fillers. `first_person`: it cannot
    stand in a piece without a word of `FIRST_PERSON`.
    """

    name: str
    weight: float
    pattern: re.Pattern[str]
    own: bool = False
    anchored: bool = False
    first_person: bool = False


FIRST_PERSON = re.compile(
    r"\b(?:i|we|we'?(?:re|ve)|i'?(?:m|ve|ll|d)|let|lets|lemme|allow|permit|time|gotta|better|best|"
    r"please|return|coming|going|myself)\b",
    FLAGS,
)


_PERSONAL = frozenset(["new-start", "properly", "answer-question", "keep-doing", "on-mind", "failed"])
_NOT_PERSONAL = frozenset({"i-realise", "i-wonder"})


def cue(name: str, weight: float, pattern: str, *, own: bool = False, anchored: bool = False) -> Cue:
    """A cue from its pattern (case does not matter)."""
    first_person = name in _PERSONAL or (name.startswith("i-") and name not in _NOT_PERSONAL)
    return Cue(name, weight, re.compile(pattern, FLAGS), own, anchored, first_person)
