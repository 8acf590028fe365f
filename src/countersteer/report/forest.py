"""Interval plots drawn directly as SVG: one row per arm, one dot with its interval per measure, a dashed line at zero.

Most figures of the page are of this kind, and drawing them by a chart library would cost more time than everything
else in a report. The SVG follows the page as the others do: text takes `currentColor`, nothing is painted behind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from countersteer.report.svg import COLOURS

WIDTH, LABELS, RIGHT = 860, 230, 20
ROW, GAP, TOP, BOTTOM = 15, 9, 34, 44
MOST = 34
"""Characters of a row's name before it is cut."""


@dataclass(frozen=True)
class Dot:
    """A value with its interval (None: none known; an end that is None is not bounded)."""

    kind: str
    value: float
    low: float | None = None
    high: float | None = None
    known: bool = True


@dataclass(frozen=True)
class Forest:
    """Rows (name, dots), the title of the axis, and whether zero matters (differences)."""

    rows: tuple[tuple[str, tuple[Dot, ...]], ...]
    axis: str
    zero: bool = False
    reference: float | None = None
    """Where the dashed line stands if not at zero."""


def dot(kind: str, value: float | None, interval: Sequence[float | None] | None, factor: float) -> Dot | None:
    """A dot from a metric's value and interval, times `factor`; None without a value."""
    if value is None:
        return None
    if not interval:
        return Dot(kind, factor * value, known=False)
    low, high = (None if end is None else factor * end for end in interval)
    return Dot(kind, factor * value, low, high)


def draw(forest: Forest, label: str) -> str:
    """The plot as an inline SVG element; `label` is read aloud."""
    rows = [(name, dots) for name, dots in forest.rows if dots]
    kinds = list(dict.fromkeys(d.kind for _, dots in rows for d in dots))
    colours = {kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(kinds)}
    line = 0.0 if forest.zero and forest.reference is None else forest.reference
    ends = [v for _, dots in rows for d in dots for v in (d.value, d.low, d.high) if v is not None]
    ticks = _ticks(min([*ends, *([] if line is None else [line])]), max([*ends, *([] if line is None else [line])]))
    lowest, highest = ticks[0], ticks[-1]

    def x(value: float) -> float:
        share = (value - lowest) / (highest - lowest)
        return LABELS + min(max(share, 0.0), 1.0) * (WIDTH - LABELS - RIGHT)

    body, y = _legend(kinds, colours), float(TOP)
    marks = []
    for name, dots in rows:
        height = ROW * len(dots)
        shown = name if len(name) <= MOST else name[: MOST - 1] + "…"
        marks.append(f'<text x="{LABELS - 10}" y="{y + height / 2 + 4:.1f}" text-anchor="end">{escape(shown)}</text>')
        for i, one in enumerate(dots):
            at = y + ROW * (i + 0.5)
            if one.known:
                low = lowest if one.low is None else one.low
                high = highest if one.high is None else one.high
                marks.append(f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{at:.1f}" y2="{at:.1f}"'
                             f' stroke="{colours[one.kind]}" stroke-width="2"/>')  # fmt: skip
            fill = colours[one.kind] if one.known else "none"
            marks.append(f'<circle cx="{x(one.value):.1f}" cy="{at:.1f}" r="4" fill="{fill}"'
                         f' stroke="{colours[one.kind]}" stroke-width="1.5"/>')  # fmt: skip
        y += height + GAP
    body += [
        f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{TOP - 6}" y2="{y:.1f}" stroke="#8a8f98" stroke-opacity="0.3"/>'
        f'<text x="{x(t):.1f}" y="{y + 15:.1f}" text-anchor="middle">{_number(t)}</text>'
        for t in ticks
    ]
    if line is not None:
        body.append(f'<line x1="{x(line):.1f}" x2="{x(line):.1f}" y1="{TOP - 6}" y2="{y:.1f}" stroke="currentColor"'
                    ' stroke-dasharray="5 4"/>')  # fmt: skip
    middle = (LABELS + WIDTH - RIGHT) / 2
    body.append(f'<text x="{middle:.0f}" y="{y + 34:.1f}" text-anchor="middle">{escape(forest.axis)}</text>')
    tall = y + BOTTOM
    return (
        f'<svg role="img" aria-label="{escape(label, quote=True)}" width="{WIDTH}" height="{tall:.0f}"'
        f' viewBox="0 0 {WIDTH} {tall:.0f}" font-size="12" fill="currentColor">{"".join(body + marks)}</svg>'
    )


def _legend(kinds: Sequence[str], colours: dict[str, str]) -> list[str]:
    """The measures by colour, above the rows; nothing for a single one."""
    if len(kinds) < 2:
        return []
    out, at = [], float(LABELS)
    for kind in kinds:
        out.append(f'<circle cx="{at + 5:.0f}" cy="12" r="4" fill="{colours[kind]}"/>'
                   f'<text x="{at + 14:.0f}" y="16">{escape(kind)}</text>')  # fmt: skip
        at += 34 + 6.6 * len(kind)
    return out


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers from at or below `low` to at or above `high`."""
    reach = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(reach))
    step = next(s * power for s in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if reach / (s * power) <= 7)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * k for k in range(first, max(last, first + 1) + 1)]


def _number(value: float) -> str:
    return f"{value:.10g}".replace("-", "−") if abs(value) > 1e-9 else "0"
