"""The figure of fine-tuning: the share of corrections in training against what the tuned model does under steering.

One panel each for the multi-attempt rate (steered and not), the improvement rate beside its resample baseline, and the
recovery above that baseline. Arms are recognised by their adapter's recorded ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 700
STEERED, PLAIN = "steered", "not steered"
_IMPROVED, _FRESH = "last attempt beats the first", "a fresh attempt beats it"


def tuned(result: Mapping[str, Any]) -> list[tuple[float, int, Mapping[str, Any]]]:
    """(ratio, seed, arm) of every arm whose adapter records its share of corrections, base and unsteered as ratio 0.

    The untrained model has no share of corrections; it stands at 0 where there is no adapter with ratio 0.
    """
    found = []
    for arm in result["arms"].values():
        adapter = arm["settings"].get("adapter") or {}
        if adapter.get("ratio") is not None:
            found.append((float(adapter["ratio"]), int(adapter.get("seed", 0)), arm))
    if found and not any(ratio == 0 for ratio, _, _ in found):
        for arm in result["arms"].values():
            settings = arm["settings"]
            changed = ("adapter", "suffix", "prefix", "system", "clamp", "prompts", "directions", "strength")
            plain = not any(settings.get(key) for key in changed)
            if plain and settings.get("strength_scale", 1.0) == 1.0 and "strength_sd" not in settings:
                found.append((0.0, 0, arm))
    return found


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
