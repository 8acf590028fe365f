"""Whole-response recovery: does a multi-attempt response, read as one piece, get better than it began?

A metric with a name of its own, beside the attempts' and never in their place (ESR paper version 2 reports such a judge
as a limitation: it over-scores against people). A rater's stored ratings are used where the run has any (rubric
"recovery", 0-10, of which 7 counts). The offline judge scores the whole text and compares it with the first attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from countersteer.core.trial import OK
from countersteer.judging.offline import OfflineJudge
from countersteer.judging.references import ReferenceSet
from countersteer.report.outcomes import Rater
from countersteer.store.reading import RunReader
from countersteer.store.rows import Trial

COUNTS = 70.0
"""Ratings are stored 0-100; the paper counts 7 of 10 and above."""
CAUTION = (
    "A judge of the whole response over-scores recovery against people (ESR paper): not to be read as the ESR rate."
)


@dataclass(frozen=True)
class Whole:
    """Who rates whole responses, by which rule in words, and the rule."""

    judge: str
    rule: str
    recovers: Rater


def whole_responses(run: RunReader) -> Whole | None:
    """The rater of a run's whole responses: the last one asked to, else its own offline judge; None without either."""
    asked: list[dict[str, Any]] = run.fact("whole_judges", [])
    if asked:
        key = str(asked[-1]["key"])

        def stored(trial: Trial) -> bool | None:
            found = run.grade(trial.plan.prompt, trial.plan.label, trial.text or "", judge=key)
            if found is None or found["status"] != OK:
                return None
            return float(found["attempts"][0]["score"]) >= COUNTS

        return Whole(str(asked[-1]["name"]), "rated 7 of 10 or more", stored)
    if not (run.judge or "").startswith("offline-"):
        return None
    texts = run.reference_texts()
    if not texts:  # still to come
        return None
    judge = OfflineJudge(ReferenceSet.of(texts))
    if judge.key != run.judge:  # another version of the judge
        return None

    def scored(trial: Trial) -> bool | None:
        text = trial.text or ""
        (one,) = judge.grade_parts(trial.plan.prompt, text, [(0, len(text), None)]).attempts or (None,)
        return None if one is None or one.score is None else one.score > trial.scores[0]

    return Whole(judge.name, "the whole text scores above its first attempt", scored)
