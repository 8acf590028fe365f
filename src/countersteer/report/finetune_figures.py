"""The figure of fine-tuning: the share of corrections in training against what the tuned model does under steering.

One panel each for the multi-attempt rate (steered and not), the improvement rate beside its resample baseline, and the
recovery above that baseline. Arms are recognised by their adapter's recorded ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 700
STEERED, PLAIN = "steered", "not steered"
_TRAINED = frozenset({"adapter", "recalibrate"})
_HARD = frozenset({"strength", "strength_scale", "strength_sd", "relative", "steered"})
_IMPROVED, _FRESH = "last attempt beats the first", "a fresh attempt beats it"


def tuned(result: Mapping[str, Any]) -> list[tuple[float, int, Mapping[str, Any]]]:
    """(ratio, seed, arm) of every arm whose adapter records its share of corrections, base and unsteered as ratio 0.

    Only arms that are the base arm but for the adapter, and the same without steering: another prompt, span, layer,
    sampling, clamp or strength would be drawn as if the training had done it. Of an adapter's arms with and without
    strengths of its own, those with them. The untrained model has no share of corrections; it stands at 0 where there
    is no adapter with ratio 0.
    """
    arms = result["arms"]
    if result["base"] not in arms:
        return []
    base = arms[result["base"]]["settings"]
    alike = [arm for arm in arms.values() if _apart(arm["settings"]) == _apart(base) and _strong(arm["settings"], base)]
    own = any(arm["settings"].get("recalibrate") and arm["settings"].get("adapter") for arm in alike)
    found, untrained = [], []
    for arm in alike:
        settings = arm["settings"]
        adapter, again = settings.get("adapter"), bool(settings.get("recalibrate"))
        if adapter is None and not again:
            untrained.append((0.0, 0, arm))
        elif adapter and adapter.get("ratio") is not None and (again == own or not settings.get("steered")):
            found.append((float(adapter["ratio"]), int(adapter.get("seed", 0)), arm))
    return found + (untrained if found and not any(ratio == 0 for ratio, _, _ in found) else [])


def _apart(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an arm sets apart from its adapter and how hard it steers."""
    return {key: value for key, value in settings.items() if key not in _TRAINED | _HARD and value not in (None, False)}


def _strong(settings: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether an arm steers as hard as the base arm, or not at all."""
    if not settings.get("steered"):
        return settings.get("strength") == 0
    return all(settings.get(key) == base.get(key) for key in _HARD)


def dose_response(result: Mapping[str, Any]) -> Any:
    """Three panels over the ratio; None with fewer than two ratios."""
    import altair as alt

    arms = tuned(result)
    if len({ratio for ratio, _, _ in arms}) < 2:
        return None
    steered = [(r, s, a) for r, s, a in arms if a["settings"].get("steered")]
    rates = [
        row for r, s, a in arms
        if (row := _row(r, s, STEERED if a["settings"].get("steered") else PLAIN, a["multi_attempt"]))
    ]  # fmt: skip
    improved = [
        row for r, s, a in steered for name, key in ((_IMPROVED, "improvement"), (_FRESH, "resample_baseline"))
        if (row := _row(r, s, name, a[key]))
    ]  # fmt: skip
    above = [row for r, s, a in steered if (row := _row(r, s, "recovery above the baseline", a["recovery"]))]
    panels = [
        _panel(alt, rows, title, zero=zero)
        for rows, title, zero in (
            (rates, "multi-attempt rate (%)", False),
            (improved, "% of multi-attempt responses", False),
            (above, "points above the resample baseline", True),
        )
        if rows
    ]
    return alt.hconcat(*panels).resolve_scale(color="independent") if panels else None


def _row(ratio: float, seed: int, kind: str, data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not data or data["value"] is None:
        return None
    low, high = data["interval"] or (data["value"], data["value"])
    return {"ratio": 100 * ratio, "seed": seed, "kind": kind, "value": 100 * data["value"],
            "low": 100 * (data["value"] if low is None else low),
            "high": 100 * (data["value"] if high is None else high)}  # fmt: skip


def _panel(alt: Any, rows: Sequence[Mapping[str, Any]], title: str, *, zero: bool) -> Any:
    """One panel; with `zero` a dashed line at 0, and no legend, since the axis says what the dots are."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        x=alt.X("ratio:Q", title="% of corrections in training", axis=alt.Axis(tickCount=5)),
        color=alt.Color("kind:N", title=None, sort=kinds, legend=None if zero else alt.Legend(columns=1)),
    )
    bars = base.mark_rule(strokeWidth=1, opacity=0.5).encode(y=alt.Y("low:Q", title=title), y2="high:Q")
    dots = base.mark_point(filled=True, size=45, opacity=0.9).encode(y=alt.Y("value:Q", title=title))
    line = base.mark_line(strokeWidth=2).encode(y=alt.Y("mean(value):Q", title=title))
    drawn = bars + line + dots
    if zero:
        drawn = alt.Chart(alt.Data(values=[{"at": 0}])).mark_rule(strokeDash=[4, 3]).encode(y="at:Q") + drawn
    return drawn.properties(width=WIDTH // 3 - 70, height=180)
