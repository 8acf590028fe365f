"""A run's result for the terminal: a headline in words, the arms, the contrasts with base, what to beware of."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from countersteer.report.words import NAMES, WHY, headline, limits, number, p_value, warnings
from countersteer.report.words import spent as judge_spent

COLUMNS = ("first_attempt", "multi_attempt", "esr", "improvement", "resample_baseline")
CONTRASTED = ("first_attempt", "multi_attempt", "esr", "improvement")
HEADS = {
    "first_attempt": "first-attempt\nscore",
    "multi_attempt": "multi-attempt\nrate",
    "esr": "ESR\nrate",
    "improvement": "improvement\nrate",
    "resample_baseline": "resample\nbaseline",
}
_MIN_WIDTH = 112


def render(result: Mapping[str, Any], *, width: int | None = None, colour: bool | None = None) -> str:
    """The result of `summarise` as text, `width` columns wide (default: the terminal's), coloured on a terminal."""
    from rich.console import Console
    from rich.text import Text

    buffer = io.StringIO()
    on_terminal = sys.stdout.isatty() if colour is None else colour
    columns = width or max(shutil.get_terminal_size().columns, _MIN_WIDTH)
    console = Console(file=buffer, width=columns, force_terminal=on_terminal, no_color=not on_terminal, highlight=False)
    title = f"{result['study'] or 'study'} on {result['model'] or 'a model'}"
    console.print(Text(title, style="bold"))
    console.print(Text(headline(result)))
    console.print(_arms(result))
    if result["contrasts"]:
        console.print(_contrasts(result))
    console.print(Text(_calibration(result)))
    tokens, seconds = result["tokens"], result["seconds"]
    spent = "" if seconds is None else f", {seconds:,.0f} s"
    console.print(Text(f"{tokens['generated']:,} tokens generated for {tokens['prompt']:,} prompt tokens{spent}"))
    if result["judging"]:
        console.print(Text(judge_spent(result["judging"])))
    for note in result["notes"]:
        console.print(Text(f"note: {note}"))
    for warning in warnings(result):
        console.print(Text(f"! {warning}", style="bold yellow"))
    return buffer.getvalue()


def _arms(result: Mapping[str, Any]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    caption = "95% intervals for these prompts (effective-n Wilson; scores: bootstrap over latents)"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
    table.add_column("arm", overflow="fold", min_width=_name_width(result))
    for name in ("valid", "acted"):
        table.add_column(name, justify="right")
    for metric in COLUMNS:
        table.add_column(HEADS[metric], justify="right", no_wrap=True)
    for name, arm in result["arms"].items():
        cells = [_cell(metric, arm[metric]) for metric in COLUMNS]
        valid = f"{arm['valid']:,}\nof {arm['trials']:,}"
        table.add_row(Text(name), Text(valid), Text(f"{arm['acted']:,}"), *(Text(cell) for cell in cells))
    return table


def _name_width(result: Mapping[str, Any]) -> int:
    return min(max((len(name) for name in result["arms"]), default=3), 24)


def _cell(metric: str, data: Mapping[str, Any] | None) -> str:
    if not data:
        return "–"
    count = f" /{data['n']}" if metric in ("improvement", "resample_baseline") else ""
    return f"{number(metric, data['value'])}{count}\n{limits(metric, data['interval'])}"


def _contrasts(result: Mapping[str, Any]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    caption = "differences with 95% intervals, rates in points; p from swapping arms within latents, Holm over the arms"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
    table.add_column(f"against {result['base']}\nunless named", overflow="fold", min_width=_name_width(result))
    for metric in CONTRASTED:
        table.add_column(NAMES[metric], justify="right", no_wrap=True)
    for name, metrics in result["contrasts"].items():
        against = metrics[CONTRASTED[0]]["against"]
        shown = name if against == result["base"] else f"{name}\n  against {against}"
        table.add_row(Text(shown), *(Text(_shift(metric, metrics[metric])) for metric in CONTRASTED))
    return table


def _shift(metric: str, row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return WHY[row["status"]]
    shift = number(metric, row["difference"], sign=True).removesuffix(" points")
    unpaired = "" if row["paired"] else "unpaired"
    last = ", ".join(part for part in (unpaired, p_value(row["p_holm"])) if part)
    lines = [f"{shift} {limits(metric, row['interval'])}".strip(), last]
    return "\n".join(line for line in lines if line)


def _calibration(result: Mapping[str, Any]) -> str:
    found = result["calibration"]
    if not found:
        return "calibration: none (strengths were given)"
    counts, spread = found["counts"], found["relative"]
    text = f"calibration: {counts.get('ok', 0)} of {counts['latents']} latents ({found['method']})"
    if spread:
        unit = "median |h| / |decoder row|" if found["units"] == "relative" else "the latents' own units"
        middle = f"{spread['median']:.2f} (quartiles {spread['q1']:.2f}-{spread['q3']:.2f}; {unit})"
        text += f", median strength {middle}"
    return f"{text}, digest {str(found['digest'])[:12]}"
