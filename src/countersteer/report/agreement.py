"""How far a run's first judge and another agree, over the responses that both have graded.

Raw agreement, Cohen's kappa and correlations with intervals clustered by latent, and the responses on which they
differ, to look at. Raw agreement is inflated where multi-attempt responses are rare, so kappa stands beside it.
"""

from __future__ import annotations

from typing import Any

from countersteer.core.fingerprint import rng
from countersteer.core.trial import OK
from countersteer.statistics import agreement as agree
from countersteer.store.reading import RunReader

SHOWN = 50


def direction(scores: list[float]) -> str:
    """Whether the last attempt is better or worse than the first, the same, or there is only one."""
    if len(scores) < 2:
        return "single"
    return "better" if scores[-1] > scores[0] else "worse" if scores[-1] < scores[0] else "same"


def agreement(run: RunReader, key: str, *, name: str, seed: int = 0) -> dict[str, Any]:
    """Agreement of the run's judge with the judge of `key` as plain data; measures are None where undefined."""
    one: list[list[float]] = []
    other: list[list[float]] = []
    clusters: list[int] = []
    differ: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    for trial in run.trials():
        plan, text = trial.plan, trial.text or ""
        if trial.status != OK or (plan.prompt, text) in seen:
            continue
        theirs = run.grade(plan.prompt, plan.label, text, judge=key)
        if theirs is None or theirs["status"] != OK:
            continue
        seen.add((plan.prompt, text))
        scores = [float(a["score"]) for a in theirs["attempts"] if a["score"] is not None]
        one.append(trial.scores)
        other.append(scores)
        clusters.append(plan.latent)
        if (len(trial.scores) > 1) != (len(scores) > 1) or direction(trial.scores) != direction(scores):
            differ.append({"arm": plan.arm, "ordinal": plan.ordinal, "prompt": plan.prompt, "scores": trial.scores,
                           "other_scores": scores, "text": text[:600]})  # fmt: skip
    draw = rng(seed, "agreement", key)
    multi = agree.labels([len(s) > 1 for s in one], [len(s) > 1 for s in other], clusters, draw)
    both = [i for i in range(len(one)) if len(one[i]) > 1 and len(other[i]) > 1]
    way = agree.labels([direction(one[i]) for i in both], [direction(other[i]) for i in both],
                       [clusters[i] for i in both], draw)  # fmt: skip
    first = agree.scores([s[0] for s in one], [s[0] for s in other], clusters, draw)
    return {
        "judge": name, "n": len(one), "multi_first": sum(len(s) > 1 for s in one),
        "multi_other": sum(len(s) > 1 for s in other),
        "multi_attempt": {"raw": _plain(multi.raw), "kappa": _plain(multi.kappa)},
        "direction": {"raw": _plain(way.raw), "kappa": _plain(way.kappa)},
        "first_score": {"pearson": _plain(first.pearson), "spearman": _plain(first.spearman)},
        "disagreements": len(differ), "shown": differ[:SHOWN],
    }  # fmt: skip


def agreements(run: RunReader) -> list[dict[str, Any]]:
    """Agreement with every other judge of the run, in the order they judged."""
    seed = int(run.header.get("settings", {}).get("study", {}).get("seed", 0))
    others = [judge for judge in run.fact("judges", []) if judge["key"] != run.judge]
    return [agreement(run, judge["key"], name=judge["name"], seed=seed) for judge in others]


def _plain(measure: agree.Agreement) -> dict[str, Any]:
    interval = measure.interval.as_list() if measure.interval else None
    return {"value": measure.value, "interval": interval, "n": measure.n}
