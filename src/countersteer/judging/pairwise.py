"""Which of two answers is better, asked in both orders: judges favour a place, and only what survives the swap counts.

An answer wins that is preferred wherever it stands. Verdicts that follow the place, and ties in one order against a
win in the other, are resolved as MT-Bench does it (arXiv 2306.05685): a tie.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from countersteer.core.trial import OK
from countersteer.judging.llm import LLMRater

TIE = "tie"


@dataclass(frozen=True)
class Preference:
    """How `other` stands against `one`: 1 better, 0 worse, 0.5 a tie; None with the status why there is no verdict.

    `swapped`: whether the verdict changed with the order (a tie for that reason), None where only one order exists.
    """

    value: float | None
    status: str = OK
    swapped: bool | None = None


async def compare(rater: LLMRater, prompt: str, one: str, other: str) -> Preference:
    """The preference of a language model (rubric "pairwise"), asked in both orders at once.

    Raises CountersteerError when no more calls can be made.
    """
    if one.strip() == other.strip():
        return Preference(0.5, swapped=False)
    straight, turned = await asyncio.gather(
        rater.rate(prompt=prompt, first=one, second=other), rater.rate(prompt=prompt, first=other, second=one)
    )
    bad = next((r.status for r in (straight, turned) if r.value is None), None)
    if bad is not None:
        return Preference(None, bad)
    verdicts = straight.value.better, {"first": "second", "second": "first"}.get(turned.value.better, TIE)
    if verdicts[0] != verdicts[1]:
        return Preference(0.5, swapped=True)
    return Preference({"first": 0.0, "second": 1.0}.get(verdicts[0], 0.5), swapped=False)


def of_scores(one: float | None, other: float | None) -> Preference:
    """The preference of a judge that only scores: the higher score wins, equal ones tie."""
    if one is None or other is None:
        return Preference(None, "no-evidence")
    return Preference(float(other > one) + 0.5 * float(other == one))
