"""Every arm against base: difference and ratio with intervals, a p-value, Holm over the arms per metric.

Trials pair by latent, prompt and seed; a pair counts if it is valid in both arms. Clusters are latents. Arms that share
no planned trial with what they are compared with (other prompts, directions of their own) cannot pair: they are
compared as two samples, and every row says whether it is paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from countersteer.report.metrics import METRICS, RATES, Generators, values
from countersteer.report.outcomes import Outcome
from countersteer.statistics import contrast, holm
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
        found[name] = _rows(outcomes, references[other], effects, lambda m, name=name: rng("contrast", name, m))
        for row in found[name].values():
            row["against"] = other
    for metric in METRICS:
        adjusted = holm([rows[metric]["p"] for rows in found.values()])
        for rows, p in zip(found.values(), adjusted, strict=True):
            rows[metric]["p_holm"] = p
    return found


def _rows(
    outcomes: Sequence[Outcome], reference: Mapping[Any, Outcome], effects: Mapping[str, float], rng: Any
) -> dict[str, dict[str, Any]]:
    """One arm against the trials of another, by key."""
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


def _row(made: Contrast, status: str, *, paired: bool, sizes: tuple[int, int]) -> dict[str, Any]:
    data = made.as_dict()
    keys = ("difference", "ratio", "interval", "ratio_interval", "p", "pairs")
    sides = {"arm_value": made.value, "base_value": made.base, "latents": made.clusters}
    for limits in (data["interval"], data["ratio_interval"]):
        if isinstance(limits, list):
            limits[:] = [v if v is None else v + 0.0 for v in limits]  # -0.0 is 0.0 to a reader
    trials = {"paired": paired, "arm_trials": sizes[0], "base_trials": sizes[1]}
    return {**{k: data[k] for k in keys}, "p_holm": None, "status": status, **sides, **trials}
