"""The figures of a run, from its summary and its calibration answers. Each is a function that gives an altair chart.

`figures` collects those that a run has data for; `readme_figure` writes the one that opens the README.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from countersteer.report.experiment_figures import compared, detectors, traced
from countersteer.report.finetune_figures import dose_response
from countersteer.report.svg import COLOURS, draw, inline
from countersteer.report.words import NAMES
from countersteer.store.errors import one_line
from countersteer.store.reading import RunReader

WIDTH = 700
MAX_POINTS = 1500
MAX_ROWS = 40


@dataclass(frozen=True)
class Figure:
    """One figure of the page: `svg` is inline, `caption` says in words what is shown."""

    name: str
    title: str
    caption: str
    svg: str


def figures(run: RunReader, result: Mapping[str, Any]) -> list[Figure]:
    """Every figure that the run has data for, drawn."""
    made = []
    plain = [n for n, a in result["arms"].items() if n == result["base"] or not a["settings"].get("steered")][:4]
    for name, title, caption, chart in (
        ("rates", "How often the model begins again, and ends better", _RATES, rates(result)),
        ("recovery", "Is correcting itself better than trying again?", _RECOVERY, recovery(result)),
        ("scores", "Scores of first attempts, all arms", _SCORES, scores(result)),
        ("first_scores", "Scores of first attempts", _SCORES, scores(result, plain)),
        ("changes", "What the later attempts change", _CHANGES, changes(result, plain)),
        ("dose", "Dose and response", _DOSE, dose(run, result)),
        ("levels", "Strength against resistance", _LEVELS, levels(result)),
        ("strengths", "Calibrated strengths", _STRENGTHS, strengths(run)),
        ("finetuned", "Trained self-correction", _FINETUNED, dose_response(result)),
        ("compared", "Every arm against what it is compared with", _COMPARED, compared(result)),
        ("detectors", "Latents that tell a mismatched answer", _DETECTORS, detectors(result)),
        ("traced", "Activations around the correction", _TRACED, traced(result)),
    ):
        if chart is not None:
            made.append(Figure(name, title, caption, inline(draw(chart), name, f"{title}. {caption}")))
    return made


_FINETUNED = (
    "Share of self-correction examples in training against what the tuned model does on the study's prompts; 0 is"
    " the untrained model. Dots are adapters with 95% intervals, the line their mean; dashed is no better than a fresh"
    " attempt."
)
_COMPARED = "Paired difference in multi-attempt rate with its 95% interval; dashed is no difference."
_DETECTORS = "The latents of highest AUC; dashed is the 95% point of the largest AUC under the permutation null."
_TRACED = "Mean activation of the traced latents by tokens from the correction, with 95% bootstrap intervals."
_RATES = "Share of valid responses with 95% intervals for these prompts."
_RECOVERY = (
    "Of the responses with more than one attempt: the share whose last attempt beats the first, beside the share of"
    " fresh first attempts (new seeds) that beat it. 95% intervals."
)
_SCORES = "Share of valid responses by the score of their first attempt, 0 to 100."
_CHANGES = "Responses with more than one attempt, by score of the last attempt less that of the first."
_DOSE = (
    "Calibration responses: score of the first attempt against strength, relative to each latent's unit. Dots are"
    " responses, the line is their mean in bins of equal counts, dashed is the target."
)
_LEVELS = "Arms that differ in strength only, in multiples of the calibrated strength. Bars are 95% intervals."
_STRENGTHS = "Each latent's calibrated strength with its 90% interval, relative to its unit, in ascending order."


def _interval_chart(
    rows: Sequence[Mapping[str, Any]], *, title: str, order: Sequence[str], kinds: Sequence[str]
) -> Any:
    """Points with intervals, one row per arm, one colour and offset per kind."""
    import altair as alt

    base = alt.Chart(alt.Data(values=list(rows))).encode(
        y=alt.Y("arm:N", sort=list(order), title=None),
        yOffset=alt.YOffset("kind:N", sort=list(kinds)),
        color=alt.Color("kind:N", sort=list(kinds), title=None),
    )
    x = alt.X("value:Q", title=title, scale=alt.Scale(zero=True, nice=True), axis=alt.Axis(tickCount=8))
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title, axis=alt.Axis(tickCount=8)), x2="high:Q")
    return (bars + base.mark_point(filled=True, size=70, opacity=1).encode(x=x)).properties(
        width=WIDTH, height=alt.Step(18)
    )


def _row(arm: str, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    low, high = data["interval"] or (data["value"], data["value"])
    return {"arm": arm, "kind": kind, "value": 100 * data["value"], "low": 100 * low, "high": 100 * high}


def rates(result: Mapping[str, Any]) -> Any:
    """Multi-attempt and ESR rate per arm."""
    kinds = ("multi_attempt", "esr")
    rows = [_row(n, NAMES[k], arm[k]) for n, arm in result["arms"].items() for k in kinds if arm[k]]
    if not rows:
        return None
    return _interval_chart(
        rows, title="% of valid responses", order=list(result["arms"]), kinds=[NAMES[k] for k in kinds]
    )


def recovery(result: Mapping[str, Any]) -> Any:
    """Improvement rate beside its resample baseline, per arm that has both."""
    names = {"improvement": "last attempt beats the first", "resample_baseline": "a fresh attempt beats it"}
    arms = {n: arm for n, arm in result["arms"].items() if arm["improvement"] and arm["resample_baseline"]}
    rows = [_row(n, names[k], arm[k]) for n, arm in arms.items() for k in names]
    if not rows:
        return None
    title = "% of responses with more than one attempt"
    return _interval_chart(rows, title=title, order=list(arms), kinds=list(names.values()))


def scores(result: Mapping[str, Any], arms: Sequence[str] | None = None) -> Any:
    """Histogram of first-attempt scores, one panel per arm (of `arms`, or of all)."""
    return _histograms(result, "first_scores", (0.0, 100.0), arms, title="score of the first attempt", share=True)


def changes(result: Mapping[str, Any], arms: Sequence[str] | None = None) -> Any:
    """Histogram of last less first score, one panel per arm with multi-attempt responses (of `arms`, or of all)."""
    return _histograms(result, "changes", (-100.0, 100.0), arms, title="last attempt less first attempt", share=False)


def _histograms(
    result: Mapping[str, Any], key: str, span: tuple[float, float], names: Sequence[str] | None, *, title: str,
    share: bool,
) -> Any:  # fmt: skip
    import altair as alt

    rows = []
    for name, arm in result["arms"].items():
        if names is not None and name not in names:
            continue
        counts = arm[key]
        total = sum(counts)
        step = (span[1] - span[0]) / max(len(counts), 1)
        for i, count in enumerate(counts):
            if total:
                height = 100 * count / total if share else count
                rows.append({"arm": name, "from": span[0] + i * step, "to": span[0] + (i + 1) * step, "n": height})
    if not rows:
        return None
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    chart = alt.Chart(alt.Data(values=rows)).mark_bar(color=COLOURS[0]).encode(
        x=alt.X("from:Q", bin="binned", title=title, scale=alt.Scale(domain=list(span)), axis=alt.Axis(tickCount=5)),
        x2="to:Q",
        y=alt.Y("n:Q", title="% of responses" if share else "responses", axis=alt.Axis(tickCount=3, tickMinStep=1)),
    )  # fmt: skip
    panels = chart.properties(width=WIDTH // 2 - 40, height=90)
    return panels.facet(facet=alt.Facet("arm:N", sort=arms, title=None), columns=2)


def dose(run: RunReader, result: Mapping[str, Any]) -> Any:
    """Calibration answers: first-attempt score against relative strength, with the mean in bins of equal counts."""
    import altair as alt

    answers = [(a.strength, 100 * a.score) for a in run.answers() if a.score is not None]
    if len(answers) < 3:
        return None
    answers.sort()
    bins = max(min(len(answers) // 20, 20), 3)
    edges = [round(i * len(answers) / bins) for i in range(bins + 1)]
    means = [
        {"strength": sum(s for s, _ in part) / len(part), "score": sum(y for _, y in part) / len(part)}
        for part in (answers[a:b] for a, b in pairwise(edges))
        if part
    ]
    every = -(-len(answers) // MAX_POINTS)
    dots = [{"strength": s, "score": y} for s, y in answers[::every]]
    unit = (
        "median |h| / |decoder row|" if (result["calibration"] or {}).get("units") == "relative" else "latent's units"
    )
    x = alt.X("strength:Q", title=f"strength ({unit})", axis=alt.Axis(tickCount=8))
    y = alt.Y("score:Q", title="score of the first attempt", scale=alt.Scale(domain=[0, 100]))
    chart = alt.Chart(alt.Data(values=dots)).mark_circle(size=16, opacity=0.3, color=COLOURS[4]).encode(x=x, y=y)
    chart += alt.Chart(alt.Data(values=means)).mark_line(color=COLOURS[0], point=True, strokeWidth=2.5).encode(x=x, y=y)
    target = (result["calibration"] or {}).get("target")
    if target is not None:
        line = alt.Chart(alt.Data(values=[{"score": 100 * target}])).mark_rule(strokeDash=[5, 4], color=COLOURS[1])
        chart += line.encode(y=y)
    return chart.properties(width=WIDTH, height=230)


def levels(result: Mapping[str, Any]) -> Any:
    """Multi-attempt and ESR rate, and first-attempt score, against the multiple of the calibrated strength."""
    import altair as alt

    extra = ("suffix", "prefix", "system", "clamp", "strength", "adapter")
    base = result["arms"].get(result["base"], {}).get("settings", {})
    arms = [
        arm for arm in result["arms"].values()
        if "strength_scale" in arm["settings"] and not any(k in arm["settings"] for k in extra)
        and all(arm["settings"].get(k) == base.get(k) for k in ("span", "layer"))
    ]  # fmt: skip
    if len({arm["settings"]["strength_scale"] for arm in arms}) < 3:
        return None
    panels = []
    for kinds, title in ((("multi_attempt", "esr"), "% of responses"), (("first_attempt",), "first-attempt score")):
        factor = 1 if kinds == ("first_attempt",) else 100
        rows = [
            {"scale": arm["settings"]["strength_scale"], "kind": NAMES[k], "value": factor * arm[k]["value"],
             "low": factor * (arm[k]["interval"] or [arm[k]["value"]] * 2)[0],
             "high": factor * (arm[k]["interval"] or [arm[k]["value"]] * 2)[1]}
            for arm in arms for k in kinds if arm[k]
        ]  # fmt: skip
        lines = alt.Chart(alt.Data(values=rows)).encode(
            x=alt.X("scale:Q", title="strength / calibrated strength", axis=alt.Axis(tickCount=6)),
            color=alt.Color("kind:N", title=None, sort=[NAMES[k] for k in (*kinds, "first_attempt")]),
        )
        bars = lines.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q", title=title), y2="high:Q")
        marks = lines.mark_line(point=True, strokeWidth=2).encode(y=alt.Y("value:Q", title=title))
        panels.append((bars + marks).properties(width=WIDTH // 2 - 50, height=190))
    return alt.hconcat(*panels).resolve_scale(color="independent")


def strengths(run: RunReader) -> Any:
    """Calibrated strengths in ascending order with their intervals; beyond 40 latents without their names."""
    import altair as alt

    found = [r for r in run.latents() if r.status == "ok" and r.strength is not None and r.unit]
    if not found:
        return None
    rows: list[dict[str, Any]] = []
    names: list[str] = []
    for rank, row in enumerate(sorted(found, key=lambda r: (r.strength or 0.0) / (r.unit or 1.0)), 1):
        unit, value = row.unit or 1.0, row.strength or 0.0
        low, high = (value if end is None else end for end in (row.low, row.high))
        name = f"{row.latent} {row.label or ''}".strip()
        names.append(name if len(name) <= 42 else f"{name[:40]}…")
        rows.append({"latent": names[-1], "rank": rank, "value": value / unit, "low": low / unit, "high": high / unit})
    many = len(rows) > MAX_ROWS
    title = "strength (relative to the latent's unit)"
    if many:
        place = alt.Y("rank:O", title="latents", axis=alt.Axis(labels=False, ticks=False, grid=False))
    else:
        place = alt.Y("latent:N", title=None, sort=names, axis=alt.Axis(labelLimit=260))
    base = alt.Chart(alt.Data(values=rows)).encode(y=place)
    low_end = alt.X("low:Q", title=title, axis=alt.Axis(tickCount=8))
    bars = base.mark_rule(strokeWidth=1.5, color=COLOURS[4]).encode(x=low_end, x2="high:Q")
    dots = base.mark_circle(size=20 if many else 45, color=COLOURS[0], opacity=1).encode(
        x=alt.X("value:Q", title=title)
    )
    height = 320 if many else alt.Step(15)
    return (bars + dots).properties(width=WIDTH if many else WIDTH - 200, height=height)


def readme_figure(run: RunReader, result: Mapping[str, Any], target: str | os.PathLike[str]) -> None:
    """Write one SVG of a run's result on white: scores before and after, and the rates per arm. Raises StoreError."""
    import altair as alt

    title = alt.TitleParams(
        "Pushed off topic, does the model catch itself?",
        subtitle=f"{result['model']}: rates per arm, 95% intervals"
        + (" (a test animal, not evidence about real models)" if result["caveat"] else ""),
    )
    chart = rates(result)
    if chart is None:
        chart = alt.Chart(alt.Data(values=[{"text": "no valid trial yet"}])).mark_text().encode(text="text:N")
    svg = draw(chart.properties(title=title), size=13).replace("currentColor", "#1b1f24")
    svg = svg.replace('fill="transparent"', 'fill="white"', 1)
    path = Path(target)
    with one_line(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(svg, encoding="utf-8")
