"""Every arm against base: difference and ratio with intervals, a p-value, Holm over the arms per metric.

Trials pair by latent, prompt and seed; a pair counts if it is valid in both arms. Clusters are latents. Arms that share
no planned trial with what they are compared with (other prompts, directions of their own) cannot pair: they are
compared as two samples, and every row says whether it is paired, what it is against, and the smallest effect that it
would have found four times in five.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from countersteer.report.metrics import METRICS, RATES, Generators, values
from countersteer.report.outcomes import Outcome
from countersteer.statistics import contrast, holm, smallest
from countersteer.statistics.contrasts import Contrast
from countersteer.statistics.unpaired import unpaired


def contrasts(
    arms: Mapping[str, Sequence[Outcome]],
    base: str,
    *,
    effects: Mapping[str, float],
    rng: Generators,
    against: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Per arm and metric: difference, interval, ratio, ratio_interval, p, p_holm, paired, pairs, status, against.

    Also the sizes of both denominators (arm_n, base_n) and `detectable`: {"rise", "fall", "few_latents", "arms"}, in
    the metric's own unit at Holm's first level 5% / arms; None where there is nothing to compute it from.

    `against`: arms that are compared with another arm than base.

    status: "ok", or why something is None: "no-pairs" (no trial is valid in both), "no-data" (a side has an empty
    denominator), "zero-events" (base is 0, so there is no ratio).
    """
    references: dict[str, dict[Any, Outcome]] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, outcomes in arms.items():
        if name == base:
            continue
        other = (against or {}).get(name, base)
        if other not in references:
            references[other] = {o.key: o for o in arms.get(other, ())}
        found[name] = compare(outcomes, references[other], effects, lambda m, name=name: rng("contrast", name, m))
        for row in found[name].values():
            row["against"] = other
    for metric in METRICS:
        correct([rows[metric] for rows in found.values()])
    return found


def matched_prefixes(
    arms: Mapping[str, Sequence[Outcome]], described: Mapping[str, Mapping[str, Any]], rng: Generators
) -> dict[str, dict[str, Any]]:
    """Arms with a prefix matched to another arm's against that arm: the score of what the model wrote, as in a row.

    The given texts differ by design, so scores that include them would compare what was given.
    """
    found = {}
    for name, settings in described.items():
        rule = settings.get("prefix")
        other = rule.get("matched") if isinstance(rule, Mapping) else None
        if other is None or other not in arms:
            continue
        theirs = {o.key: o for o in arms[other] if o.continuation is not None}
        left = [o for o in arms[name] if o.continuation is not None and o.key in theirs]
        right = [theirs[o.key] for o in left]
        clusters = np.array([o.latent for o in left], dtype=np.int64)
        row = _pairs("continuation", left, right, clusters, 1.0, rng("matched prefix", name))
        found[name] = {**row, "against": other}
    correct(list(found.values()))
    return found


def correct(rows: Sequence[dict[str, Any]]) -> None:
    """Fill in p_holm and `detectable` of rows that are one family of tests."""
    count = sum(row["p"] is not None for row in rows)
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
        made = row.pop("made", None)
        seen = None if made is None or not count else smallest(made, alpha=0.05 / count)
        row["detectable"] = seen and {"rise": seen.rise, "fall": seen.fall, "few_latents": seen.few, "arms": count}


def compare(
    outcomes: Sequence[Outcome], reference: Mapping[Any, Outcome], effects: Mapping[str, float], rng: Any
) -> dict[str, dict[str, Any]]:
    """One arm against the trials of another, by key: rows per metric, not yet corrected (`correct`)."""
    met = [(o, reference[o.key]) for o in outcomes if o.key in reference]
    if outcomes and reference and not met:
        left, right = [o for o in outcomes if o.valid], [o for o in reference.values() if o.valid]
        if left and right:
            return {m: _two_samples(m, left, right, effects.get(m, 1.0), rng(m)) for m in METRICS}
    both = [(o, other) for o, other in met if o.valid and other.valid]
    left, right = [o for o, _ in both], [o for _, o in both]
    clusters = np.array([o.latent for o in left], dtype=np.int64)
    return {m: _pairs(m, left, right, clusters, effects.get(m, 1.0), rng(m)) for m in METRICS}


def _pairs(
    metric: str, left: Sequence[Outcome], right: Sequence[Outcome], clusters: Any, effect: float, rng: Any
) -> dict[str, Any]:
    """One metric over trials that pair, in one order."""
    one, other = _array(values(metric, left)), _array(values(metric, right))
    made = contrast(one, other, clusters, rng, binary=metric in RATES, deff_at_zero=effect if len(left) else 1.0)
    status = str(made.ratio_status) if len(left) else "no-pairs"
    return _row(made, status, paired=True, sizes=(len(left), len(left)))


def _two_samples(
    metric: str, left: Sequence[Outcome], right: Sequence[Outcome], effect: float, rng: Any
) -> dict[str, Any]:
    """One metric over the valid trials of two arms that do not pair."""
    one, other = values(metric, left), values(metric, right)
    clusters, others = [o.latent for o in left], [o.latent for o in right]
    made = unpaired(one, other, clusters, others, rng, binary=metric in RATES, deff_at_zero=effect)
    return _row(made, str(made.ratio_status), paired=False, sizes=(len(left), len(right)))


def _array(given: list[float | None]) -> Any:
    """Events as whole numbers where none is missing, which the estimators take without looking at each."""
    whole = all(v is not None and v.is_integer() for v in given)
    return np.array(given, dtype=np.int64) if whole and given else given


def as_row(made: Contrast) -> dict[str, Any]:
    """A contrast with a fixed value as a row of one sample, not yet corrected."""
    return _row(made, str(made.ratio_status), paired=True, sizes=made.sizes)


def _row(made: Contrast, status: str, *, paired: bool, sizes: tuple[int, int]) -> dict[str, Any]:
    data = made.as_dict()
    keys = ("difference", "ratio", "interval", "ratio_interval", "p", "pairs")
    sides = {"arm_value": made.value, "base_value": made.base, "latents": made.clusters}
    sides |= {"arm_n": made.sizes[0], "base_n": made.sizes[1]}
    for limits in (data["interval"], data["ratio_interval"]):
        if isinstance(limits, list):
            limits[:] = [v if v is None else v + 0.0 for v in limits]  # -0.0 is 0.0 to a reader
    trials = {"paired": paired, "arm_trials": sizes[0], "base_trials": sizes[1]}
    return {**{k: data[k] for k in keys}, "p_holm": None, "status": status, **sides, **trials, "made": made}
