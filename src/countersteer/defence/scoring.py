"""Conditions answered and scored: arrays of trait and coherence per scenario, and their means with intervals.

Intervals are cluster bootstraps over groups of scenarios; what is missing stays out of the mean and is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from countersteer.core.errors import RefusedError
from countersteer.core.fingerprint import rng
from countersteer.defence.data import Scenario
from countersteer.defence.judges import DefenceJudge, Scores, aligned_request, first_tokens
from countersteer.defence.likelihood import mean_log_probabilities
from countersteer.defence.responses import Answer, Ask, answer_all
from countersteer.defence.settings import Settings
from countersteer.judging.pairwise import Preference
from countersteer.statistics import bootstrap
from countersteer.statistics.groups import codes, sums

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Condition:
    """The answers of one condition and their scores, one per scenario, in order."""

    answers: tuple[Answer, ...]
    scores: tuple[Scores, ...]

    @property
    def traits(self) -> list[float | None]:
        """Trait per scenario."""
        return [s.trait for s in self.scores]

    @property
    def coherences(self) -> list[float | None]:
        """Coherence per scenario."""
        return [s.coherence for s in self.scores]

    def array(self) -> Floats:
        """[scenarios, 2]: trait and coherence, NaN where missing."""
        rows = [(s.trait, s.coherence) for s in self.scores]
        return np.array([[np.nan if v is None else v for v in row] for row in rows], np.float64).reshape(-1, 2)


def answered(
    engine: Any, judge: DefenceJudge, asks: Sequence[Ask], settings: Settings, *, short: bool, progress: Any = None
) -> Condition:
    """Answers to `asks` and their scores; `short` stops at the tokens that are scored.

    Whole answers get their likelihood even from a judge that needs none, where the engine can read it.
    """
    answers = answer_all(engine, asks, settings.drawn(short=short), seed=settings.defence.seed, progress=progress)
    scores = judge.score(answers)
    if not short:
        scores = _likely(engine, answers, scores, settings.judge.first_tokens)
    return Condition(tuple(answers), tuple(scores))


def _likely(engine: Any, answers: Sequence[Answer], scores: list[Scores], most: int) -> list[Scores]:
    """Scores with the log-probability filled in where the judge gave none."""
    left = [i for i, (a, s) in enumerate(zip(answers, scores, strict=True)) if a.ok and s.log_probability is None]
    texts = [first_tokens(engine, answers[i], most) for i in left]
    try:
        found = mean_log_probabilities(engine, [aligned_request(answers[i].ask.scenario) for i in left], texts,
                                       limit=most)  # fmt: skip
    except RefusedError:  # another engine: the scorecard shows that it was not measured
        return scores
    given = dict(zip(left, found, strict=True))
    return [replace(s, log_probability=given[i]) if i in given else s for i, s in enumerate(scores)]


def summary(condition: Condition, seed: int, name: str) -> dict[str, Any]:
    """Means of trait, coherence and log-probability with intervals, and what is missing."""
    scenarios = [a.ask.scenario for a in condition.answers]
    statuses = Counter(s.status for s in condition.scores)
    likely = [s.log_probability for s in condition.scores]
    return {
        "trait": mean(condition.traits, scenarios, seed, name, "trait"),
        "coherence": mean(condition.coherences, scenarios, seed, name, "coherence"),
        "cross_entropy": mean([None if v is None else -v for v in likely], scenarios, seed, name, "cross-entropy"),
        "n": len(scenarios),
        "statuses": dict(statuses),
    }


def mean(values: Sequence[float | None], scenarios: Sequence[Scenario], seed: int, *names: str) -> dict[str, Any]:
    """{"value", "interval", "n"}: the mean with its interval over groups of scenarios."""
    found = bootstrap.mean(values, [s.group for s in scenarios], [s.id for s in scenarios], rng(seed, "mean", *names))
    interval = found.interval.as_list() if found.interval else None
    return {"value": found.value, "interval": interval, "n": found.n}


def difference(
    one: Sequence[float | None], other: Sequence[float | None], scenarios: Sequence[Scenario], seed: int, *names: str
) -> dict[str, Any]:
    """Mean paired difference one - other with its interval."""
    gaps = [None if a is None or b is None else a - b for a, b in zip(one, other, strict=True)]
    return mean(gaps, scenarios, seed, "difference", *names)


def preferred(
    found: Sequence[Preference], scenarios: Sequence[Scenario], seed: int, *names: str
) -> dict[str, Any]:  # fmt: skip
    """The share of pairs whose second answer is better, ties half, with its interval; and the verdicts counted.

    "swapped": the share of verdicts that followed the order of the answers (None where only one order exists).
    """
    values = [p.value for p in found]
    orders = [p.swapped for p in found if p.swapped is not None]
    return {
        **mean(values, scenarios, seed, "preferred", *names),
        "better": sum(v == 1.0 for v in values),
        "ties": sum(v == 0.5 for v in values),
        "worse": sum(v == 0.0 for v in values),
        "missing": sum(v is None for v in values),
        "swapped": sum(orders) / len(orders) if orders else None,
    }


def recovered(
    defended: Sequence[float | None], malicious: Sequence[float | None], aligned: Sequence[float | None],
    scenarios: Sequence[Scenario], seed: int, *names: str,
) -> dict[str, Any]:  # fmt: skip
    """Share of the gap between the baselines that is closed, (defended - malicious) / (aligned - malicious).

    A ratio of means over scenarios that have all three, with its bootstrap interval; None where there is no gap.
    """
    rows = [(d, m, a) for d, m, a in zip(defended, malicious, aligned, strict=True)]
    kept = [i for i, row in enumerate(rows) if None not in row]
    if not kept:
        return {"value": None, "interval": None, "n": 0}
    table = np.array([rows[i] for i in kept], np.float64)
    group = codes([scenarios[i].group for i in kept], expected=len(kept), what="groups")
    count = int(group.max()) + 1
    closed, gap = table[:, 0] - table[:, 1], table[:, 2] - table[:, 1]
    totals = np.stack([sums(closed, group, count=count), sums(gap, group, count=count)], axis=1)
    total = totals.sum(0)
    if not total[1] > 0:
        return {"value": None, "interval": None, "n": len(kept)}
    found = bootstrap.interval(totals, bootstrap.ratio_of_sums, rng(seed, "recovered", *names))
    return {"value": float(total[0] / total[1]), "interval": found.as_list() if found else None, "n": len(kept)}
