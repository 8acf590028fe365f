"""Charts as inline SVG: Vega-Lite drawn on this machine by vl-convert, no network, no script.

The SVG follows the page: text and lines take `currentColor`, the background is transparent, ids are made unique, so
that several figures live in one page, light or dark.
"""

from __future__ import annotations

import re
from typing import Any

_INK = "#010203"  # stands for the page's own text colour until the SVG is made
_NAMESPACES = re.compile(r'\sxmlns(?::\w+)?="[^"]*"')
_IDS = re.compile(r'\bid="([^"]+)"')
COLOURS = ("#3b7dd8", "#d9762b", "#2a9d74", "#b0569c", "#8a8f98", "#c9a227")
"""Colours that stay readable on white and on near-black."""


def _config(size: int) -> dict[str, Any]:
    plain = {"labelColor": _INK, "titleColor": _INK, "labelFontSize": size, "titleFontSize": size}
    return {
        "aria": False,
        "background": "transparent",
        "font": "Arial, sans-serif",
        "view": {"stroke": "transparent"},
        "axis": {**plain, "gridColor": "#8a8f9840", "domainColor": "#8a8f98", "tickColor": "#8a8f98", "labelLimit": 260,
                 "titleFontWeight": "normal"},
        "legend": {**plain, "labelLimit": 260, "titleFontWeight": "normal", "orient": "top",
                   "columnPadding": 30, "symbolSize": 90},
        "header": {**plain, "labelFontWeight": "bold", "labelLimit": 400},
        "title": {"color": _INK, "subtitleColor": _INK, "fontSize": size + 1, "anchor": "start"},
        "text": {"color": _INK, "fontSize": size},
        "rule": {"color": _INK},
        "range": {"category": list(COLOURS)},
    }  # fmt: skip


def draw(chart: Any, *, size: int = 12) -> str:
    """An altair chart as a complete SVG document with a transparent background, text in `currentColor`."""
    import vl_convert

    spec = chart.to_dict()
    spec["config"] = _config(size)
    svg: str = vl_convert.vegalite_to_svg(spec)
    return svg.replace(_INK, "currentColor")


def inline(svg: str, name: str, label: str) -> str:
    """An SVG document as an element of an HTML page: `label` is read aloud, ids get `name` in front."""
    from html import escape

    body = _NAMESPACES.sub("", svg)
    for found in set(_IDS.findall(body)):
        body = body.replace(f'id="{found}"', f'id="{name}-{found}"').replace(f"url(#{found})", f"url(#{name}-{found})")
        body = body.replace(f'href="#{found}"', f'href="#{name}-{found}"')
    return body.replace("<svg ", f'<svg role="img" aria-label="{escape(label, quote=True)}" ', 1)
