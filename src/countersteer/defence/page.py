"""The page of a scorecard: one self-contained HTML file, no network, no script, readable light, dark and on paper.

Whatever a model or a scenario said is escaped by the template engine; figures are inline SVG.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from countersteer.report.svg import COLOURS, draw, inline

WIDTH = 620


def write(card: Mapping[str, Any], target: Path, *, swept: Mapping[str, Any] | None = None) -> None:
    """Write the page whole or not at all; `swept`: the facts of the sweep, for its frontier. Raises OSError."""
    text = page(card, swept=swept)
    temporary = target.with_name(target.name + ".part")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    os.replace(temporary, target)


def page(card: Mapping[str, Any], *, swept: Mapping[str, Any] | None = None) -> str:
    """The page as text."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loaders = [PackageLoader("countersteer.defence", "pages"), PackageLoader("countersteer.report", "pages")]
    environment = Environment(loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    environment.globals.update(number=number, limits=limits, percent=percent, percent_limits=percent_limits)
    figures = []
    for name, title, caption, chart in (
        ("attack", "Under attack", "Trait and coherence on the report split, 95% intervals; dashed: the floor.",
         _attack(card)),
        ("frontier", "What the sweep saw", "Every point tried on all scenarios of the choose split; dashed: the floor.",
         None if swept is None else _frontier(swept)),
        ("turns", "Over a conversation", "Means by turn.", _turns(card)),
    ):  # fmt: skip
        if chart is not None:
            svg = Markup(inline(draw(chart), name, f"{title}. {caption}"))
            figures.append({"name": name, "title": title, "caption": caption, "svg": svg})
    lead = headline(card)
    return environment.get_template("scorecard.html.j2").render(card=card, figures=figures, headline=lead)


def headline(card: Mapping[str, Any]) -> str:
    """The result in one or two sentences."""
    attack = card["attack"]
    row, low, high = (attack[f"{k}"] for k in ("malicious, defended", "malicious, undefended", "aligned, undefended"))
    share = row["recovered"]
    kept = row["coherence"]["value"] is not None and row["coherence"]["value"] >= card["floor"]
    said = "no share of the gap could be measured"
    if share["value"] is not None:
        said = f"{percent(share['value'])} {percent_limits(share)} of the gap between the baselines is closed"
    return (
        f"Under the malicious system prompt the trait is {number(row['trait'])} with the defence,"
        f" {number(low['trait'])} without, and {number(high['trait'])} under the aligned prompt: {said}."
        f" Coherence {number(row['coherence'])} is {'above' if kept else 'BELOW'} the floor of {card['floor']:.1f}."
    )


def number(value: Mapping[str, Any] | None, digits: int = 1) -> str:
    """A mean's value in words."""
    return "–" if not value or value["value"] is None else f"{value['value']:.{digits}f}"


def limits(value: Mapping[str, Any] | None, digits: int = 1) -> str:
    """Its interval in words."""
    if not value or not value.get("interval") or None in value["interval"]:
        return ""
    low, high = value["interval"]
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def percent(value: float | None) -> str:
    """A share in per cent."""
    return "–" if value is None else f"{100 * value:.0f}%"


def percent_limits(value: Mapping[str, Any]) -> str:
    """A share's interval in per cent."""
    if not value.get("interval") or None in value["interval"]:
        return ""
    return f"[{percent(value['interval'][0])}, {percent(value['interval'][1])}]"


def _attack(card: Mapping[str, Any]) -> Any:
    import altair as alt

    rows = []
    for name, row in (*card["attack"].items(), *card["points"].items()):
        for kind in ("trait", "coherence"):
            if row[kind]["value"] is not None:
                low, high = row[kind]["interval"] or [row[kind]["value"]] * 2
                rows.append({"arm": name, "kind": kind, "value": row[kind]["value"], "low": low, "high": high})
    if not rows:
        return None
    order = [*card["attack"], *card["points"]]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("arm:N", sort=order, title=None), yOffset=alt.YOffset("kind:N", sort=["trait", "coherence"]),
        color=alt.Color("kind:N", sort=["trait", "coherence"], title=None),
    )  # fmt: skip
    scale = alt.Scale(domain=[0, 100])
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title="0 to 100", scale=scale), x2="high:Q")
    dots = base.mark_point(filled=True, size=60, opacity=1).encode(x=alt.X("value:Q", title="0 to 100", scale=scale))
    floor = alt.Chart(alt.Data(values=[{"floor": card["floor"]}])).mark_rule(strokeDash=[5, 4], color=COLOURS[4])
    return (bars + dots + floor.encode(x=alt.X("floor:Q", title="0 to 100"))).properties(
        width=WIDTH, height=alt.Step(16)
    )


def _frontier(swept: Mapping[str, Any]) -> Any:
    import altair as alt

    rows = [
        {"arm": arm, "trait": p["trait"]["value"], "coherence": p["coherence"]["value"],
         "kind": "chosen" if found["chosen"] == p["name"] else "tried"}
        for arm, found in swept["arms"].items() for m in found["methods"].values() for p in m["points"]
        if p["trait"]["value"] is not None and p["coherence"]["value"] is not None and p["keeps_floor"] is not None
    ]  # fmt: skip
    if not rows:
        return None
    scale = alt.Scale(domain=[0, 100])
    dots = alt.Chart(alt.Data(values=rows)).mark_point(filled=True, opacity=0.85).encode(
        x=alt.X("coherence:Q", title="coherence", scale=scale), y=alt.Y("trait:Q", scale=scale),
        color=alt.Color("arm:N", title=None), shape=alt.Shape("kind:N", title=None),
        size=alt.condition("datum.kind == 'chosen'", alt.value(160), alt.value(45)),
    )  # fmt: skip
    floor = alt.Chart(alt.Data(values=[{"floor": swept["floor"]}])).mark_rule(strokeDash=[5, 4], color=COLOURS[4])
    return (dots + floor.encode(x=alt.X("floor:Q", title="coherence"))).properties(width=WIDTH, height=300)


def _turns(card: Mapping[str, Any]) -> Any:
    import altair as alt

    talks = card.get("conversations")
    if not talks:
        return None
    rows = [
        {"mode": mode, "kind": kind, "turn": row["turn"],
         "value": row[kind]["value"] * (100 if kind == "reuse" else 1)}
        for mode, found in talks["modes"].items() for row in found.get("by_turn", ())
        for kind in ("trait", "coherence", "reuse") if row[kind]["value"] is not None
    ]  # fmt: skip
    if not rows:
        return None
    panels = []
    for kind, title in (("trait", "trait"), ("coherence", "coherence"), ("reuse", "reused sentences, %")):
        some = [r for r in rows if r["kind"] == kind]
        if some:
            panels.append(alt.Chart(alt.Data(values=some)).mark_line(point=True).encode(
                x=alt.X("turn:O", title="turn", axis=alt.Axis(labelAngle=0)),
                y=alt.Y("value:Q", title=title, scale=alt.Scale(domain=[0, 100])),
                color=alt.Color("mode:N", title=None, legend=alt.Legend(columns=2)),
            ).properties(width=WIDTH // 3 - 40, height=170))  # fmt: skip
    return alt.hconcat(*panels)
