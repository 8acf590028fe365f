"""Every arm against base: paired difference and ratio with intervals, a p-value, Holm over the arms per metric.

Trials pair by latent, prompt and seed; a pair counts if it is valid in both arms. Clusters are latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from countersteer.report.metrics import METRICS, RATES, Generators, values
from countersteer.report.outcomes import Outcome
from countersteer.statistics import contrast, holm, pair


def contrasts(
    arms: Mapping[str, Sequence[Outcome]],
    base: str,
    *,
    effects: Mapping[str, float],
    rng: Generators,
    against: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Per arm and metric: difference, interval, ratio, ratio_interval, p, p_holm, pairs, status, against.

    `against`: arms that are compared with another arm than base.

    status: "ok", or why something is None: "no-pairs" (no trial is valid in both), "no-data" (a side has an empty
    denominator), "zero-events" (base is 0, so there is no ratio).
    """
    references: dict[str, dict[Any, Outcome]] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, outcomes in arms.items():
        if name != base:
            other = (against or {}).get(name, base)
            if other not in references:
                references[other] = {o.key: o for o in arms.get(other, ()) if o.valid}
            reference = references[other]
            both = [(o, reference[o.key]) for o in outcomes if o.valid and o.key in reference]
            found[name] = {m: _one(m, both, effects.get(m, 1.0), rng("contrast", name, m)) for m in METRICS}
            for row in found[name].values():
                row["against"] = other
    for metric in METRICS:
        adjusted = holm([rows[metric]["p"] for rows in found.values()])
        for rows, p in zip(found.values(), adjusted, strict=True):
            rows[metric]["p_holm"] = p
    return found


def _one(metric: str, both: Sequence[tuple[Outcome, Outcome]], effect: float, rng: Any) -> dict[str, Any]:
    left, right = [o for o, _ in both], [o for _, o in both]
    pairs = pair(
        {o.key: v for o, v in zip(left, values(metric, left), strict=True)},
        {o.key: v for o, v in zip(right, values(metric, right), strict=True)},
    )
    made = contrast(
        pairs.arm, pairs.base, pairs.clusters, rng, binary=metric in RATES, deff_at_zero=effect if both else 1.0
    )
    data = made.as_dict()
    status = data.pop("ratio_status") if both else "no-pairs"
    keys = ("difference", "ratio", "interval", "ratio_interval", "p", "pairs")
    sides = {"arm_value": made.value, "base_value": made.base, "latents": made.clusters}
    for limits in (data["interval"], data["ratio_interval"]):
        if isinstance(limits, list):
            limits[:] = [v if v is None else v + 0.0 for v in limits]  # -0.0 is 0.0 to a reader
    return {**{k: data[k] for k in keys}, "p_holm": None, "status": status, **sides}
