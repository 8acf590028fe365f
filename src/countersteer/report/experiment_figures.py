"""Figures of the experiments: arms against what they are compared with, detectors, traces around a correction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from countersteer.report.svg import COLOURS

WIDTH = 700


def compared(result: Mapping[str, Any]) -> Any:
    """Difference in multi-attempt rate of every arm, with its interval; None without contrasts."""
    import altair as alt

    rows = []
    for name, metrics in result["contrasts"].items():
        row = metrics["multi_attempt"]
        if row["difference"] is not None and row["interval"]:
            low, high = (100 * v if v is not None else None for v in row["interval"])
            rows.append({"arm": name, "value": 100 * row["difference"], "low": low, "high": high})
    if len(rows) < 2:
        return None
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("arm:N", sort=[r["arm"] for r in rows], title=None))
    title = "difference in multi-attempt rate (points)"
    bars = base.mark_rule(strokeWidth=2, color=COLOURS[4]).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    zero = alt.Chart(alt.Data(values=[{"x": 0}])).mark_rule(strokeDash=[5, 4]).encode(x="x:Q")
    dots = base.mark_point(filled=True, size=70, opacity=1, color=COLOURS[0]).encode(x=alt.X("value:Q", title=title))
    return (zero + bars + dots).properties(width=WIDTH - 160, height=alt.Step(18))


def detectors(result: Mapping[str, Any]) -> Any:
    """AUC of the chosen latents against Cohen's d, with the null's 95% point of the largest AUC; None without."""
    import altair as alt

    found = result["experiments"]["detectors"]
    if not found or not found["table"]:
        return None
    rows = [{"auc": r["auc"], "d": r["cohen_d"], "kind": "chosen" if r["selected"] else "not chosen"}
            for r in found["table"]]  # fmt: skip
    dots = alt.Chart(alt.Data(values=rows)).mark_circle(size=55, opacity=0.8).encode(
        x=alt.X("auc:Q", title="AUC, shuffled against matched", scale=alt.Scale(zero=False)),
        y=alt.Y("d:Q", title="Cohen's d"),
        color=alt.Color("kind:N", title=None, sort=["chosen", "not chosen"]),
    )  # fmt: skip
    null = alt.Chart(alt.Data(values=[{"auc": found["null_95"]}])).mark_rule(strokeDash=[5, 4]).encode(x="auc:Q")
    return (null + dots).properties(width=WIDTH - 60, height=210)


def traced(result: Mapping[str, Any]) -> Any:
    """Mean activation around the correction, episodes beside matched single-attempt responses; None without."""
    import altair as alt

    found = result["experiments"]["trace"]
    if not found or found["status"] != "ok":
        return None
    names = {"episodes": "episodes", "matched": "single-attempt, matched"}
    rows = [
        {"token": (r["from"] + r["to"]) / 2, "value": r["mean"], "low": r["low"] if r["low"] is not None else r["mean"],
         "high": r["high"] if r["high"] is not None else r["mean"], "kind": names[kind]}
        for kind, curve in found["curves"].items() for r in curve if r["n"]
    ]  # fmt: skip
    if not rows:
        return None
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("token:Q", title="tokens from the correction"),
        color=alt.Color("kind:N", title=None, sort=list(names.values())),
    )
    band = base.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", title="mean activation"), y2="high:Q")
    line = base.mark_line(strokeWidth=2).encode(y=alt.Y("value:Q", title="mean activation"))
    zero = alt.Chart(alt.Data(values=[{"x": 0}])).mark_rule(strokeDash=[5, 4]).encode(x="x:Q")
    return (zero + band + line).properties(width=WIDTH - 60, height=210)
