"""The metrics of an arm with their intervals (ESR paper, definitions of section "metrics").

Over valid trials: mean first-attempt score; multi-attempt rate; ESR rate (more than one attempt, the last strictly
above the first). Over multi-attempt trials: improvement rate, its resample baseline, recovery (improvement minus that
baseline), mean improvement; and whole-response recovery, over those rated as a whole. Over trials with a given prefix
whose continuation was judged by itself: its first score. A metric with an empty denominator is None, with the reason in
`missing`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from countersteer.report.outcomes import Outcome
from countersteer.statistics import Rate, ResampleBaseline, Retry, design_effect, mean, rate, resample_baseline, wilson

RATES = ("multi_attempt", "improvement", "esr", "whole_response")
METRICS = ("first_attempt", "multi_attempt", "improvement", "esr")
"""The metrics that arms are contrasted on."""
Generators = Callable[..., np.random.Generator]


def values(metric: str, outcomes: Sequence[Outcome]) -> list[float | None]:
    """A metric's value per trial, [n]; None outside the metric's denominator. 0/1 for rates, 0-100 for scores.

    Written out per metric: this is asked millions of times in a report of 100,000 trials.
    """
    match metric:
        case "first_attempt":
            return [o.scores[0] if o.scores else None for o in outcomes]
        case "multi_attempt":
            return [float(len(o.scores) > 1) if o.scores else None for o in outcomes]
        case "esr":
            return [float(len(o.scores) > 1 and o.scores[-1] > o.scores[0]) if o.scores else None for o in outcomes]
        case "improvement":
            return [float(o.scores[-1] > o.scores[0]) if len(o.scores) > 1 else None for o in outcomes]
        case "mean_improvement":
            return [o.scores[-1] - o.scores[0] if len(o.scores) > 1 else None for o in outcomes]
        case "whole_response":
            return [None if o.whole is None or not o.scores else float(o.whole) for o in outcomes]
        case "continuation":
            return [o.continuation for o in outcomes]
    raise ValueError(f"unknown metric {metric!r}")


def _codes(labels: Sequence[Hashable]) -> Any:
    """Labels as numbers, which every estimator then takes without looking at each."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels], dtype=np.int64)


def zero_event_effects(arms: Mapping[str, Sequence[Outcome]]) -> dict[str, float]:
    """Per rate, the design effect of the arm with the most events: it serves the arms that have none."""
    found = {}
    for metric in RATES:
        best, most = 1.0, 0.0
        for outcomes in arms.values():
            events = values(metric, outcomes)
            total = sum(event for event in events if event is not None)
            if total > most:
                best, most = design_effect(events, [o.latent for o in outcomes]), total
        found[metric] = best
    return found


def measure(outcomes: Sequence[Outcome], *, effects: Mapping[str, float], rng: Generators) -> dict[str, Any]:
    """Every metric of one arm as {"value", "interval", "interval_new_prompts", "wilson", "n"}, or None.

    `effects` as `zero_event_effects` gives; `rng(name)` a generator per name. `missing` says why a metric is None;
    `resamples` how the baseline was counted (ties, draws without a score).
    """
    latents, prompts = _codes([o.latent for o in outcomes]), _codes([o.prompt for o in outcomes])
    found: dict[str, Any] = {}
    for metric in ("first_attempt", "mean_improvement", "continuation"):
        found[metric] = mean(values(metric, outcomes), latents, prompts, rng(metric)).as_dict()
    for name in ("interval", "interval_new_prompts"):
        for metric in ("first_attempt", "continuation"):
            found[metric][name] = _within(found[metric][name], 100.0)
    for metric in RATES:
        found[metric] = rate(values(metric, outcomes), latents, prompts, deff_at_zero=effects[metric]).as_dict()
    found |= _against_fresh(outcomes, rng)
    order = (
        "first_attempt",
        "multi_attempt",
        "improvement",
        "resample_baseline",
        "recovery",
        "esr",
        "mean_improvement",
        "whole_response",
        "continuation",
    )
    missing = {name: _why(name, outcomes) for name in order if not found[name]["n"]}
    metrics = {name: None if name in missing else found[name] for name in order}
    return {**metrics, "missing": missing, "resamples": found["resamples"]}


def _against_fresh(outcomes: Sequence[Outcome], rng: Generators) -> dict[str, Any]:
    """The resample baseline of the multi-attempt trials, and recovery above it."""
    retries = [
        Retry(o.latent, o.prompt, o.scores[0], o.scores[-1], tuple(score for score, _ in o.fresh))
        for o in outcomes
        if o.multi
    ]
    found = resample_baseline(retries, rng("resample"))
    interval = found.recovery_interval
    known = interval is not None and interval.low != interval.high  # a point says that nothing varied, not certainty
    return {
        "resample_baseline": _share(found.baseline),
        "recovery": {
            "value": found.recovery,
            "interval": interval.as_list() if interval and known else None,
            "interval_new_prompts": None,
            "wilson": None,
            "n": found.trials,
            "p": found.p,
            "p_holm": None,
            "latents": found.clusters,
            "detectable": _detectable(found),
        },
        "resamples": {
            "trials": found.trials,
            "without_fresh": found.without_fresh,
            "draws": sum(len(retry.fresh) for retry in retries),
            "draws_without_score": found.missing_fresh,
            "improved": found.improved.value,
            "improved_ties": found.improved_ties,
            "baseline_ties": found.baseline_ties,
        },
    }


def _detectable(found: ResampleBaseline) -> float | None:
    """The smallest recovery that is found four times in five at 5%; None where too little varies to say."""
    if not found.error:
        return None
    return float((stats.t.isf(0.025, found.clusters - 1) + stats.t.ppf(0.8, found.clusters - 1)) * found.error)


def _share(found: Rate) -> dict[str, Any]:
    """A mean of shares as plain data: limits kept within 0 to 1.

    Where every draw of the bootstrap gives the same value, Wilson's interval on the number of latents instead.
    """
    data = found.as_dict()
    interval = found.interval
    if interval and interval.low == interval.high and found.value is not None:
        data["interval"] = wilson(found.value * found.clusters, found.clusters).as_list()
    return {name: _within(data[name], 1.0) if name.startswith("interval") else data[name] for name in data}


def _within(limits: Any, top: float) -> list[float | None] | None:
    """Limits cut to 0 .. top."""
    return None if limits is None else [None if v is None else min(max(v, 0.0), top) for v in limits]


def _why(metric: str, outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return "no trial"
    if not any(o.valid for o in outcomes):
        return "no valid trial"
    if metric == "continuation":
        return "what the model wrote after a given prefix was not judged by itself"
    if metric in ("improvement", "mean_improvement") or not any(o.multi for o in outcomes):
        return "no multi-attempt trial"
    if metric == "whole_response":
        return "no multi-attempt trial was rated as a whole"
    return "no fresh attempts were drawn"
