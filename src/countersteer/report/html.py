"""The page of a run: one self-contained HTML file, no network, no script, readable light, dark and on paper.

Everything that a model, a label or a prompt said is escaped by the template engine; figures are inline SVG.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from countersteer.report import forest
from countersteer.report.figures import Figure, figures
from countersteer.report.questions import questions
from countersteer.report.section import Section
from countersteer.report.transcripts import RULE, examples
from countersteer.report.words import NAMES, headline, limits, number, p_value, spent, warnings
from countersteer.store.errors import one_line
from countersteer.store.reading import RunReader

ARM_METRICS = (
    "first_attempt",
    "multi_attempt",
    "esr",
    "improvement",
    "resample_baseline",
    "recovery",
    "whole_response",
)
MAX_LATENTS = 200
MANY_ARMS = 8
"""Beyond this many arms the tables of all arms are folded."""


def write(run: RunReader, result: Mapping[str, Any], target: str | os.PathLike[str]) -> None:
    """Write the page of a run (`result` as `summarise` gives it) whole or not at all. Raises StoreError, OSError."""
    text = page(run, result)
    path = Path(target)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    os.replace(temporary, path)


def page(run: RunReader, result: Mapping[str, Any]) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("countersteer.report", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(number=number, limits=limits, p_value=p_value, names=NAMES, spent=spent)
    with one_line(run.path, "read"):
        made = datetime.fromtimestamp(run.path.stat().st_mtime, tz=UTC)
    latents = run.latents()
    sections = questions(result)
    drawn = {figure.name: figure for figure in figures(run, result)}
    return environment.get_template("report.html.j2").render(
        result=result,
        headline=headline(result),
        sections=[(section, [_shown(f, Markup) for f in _figures(section, drawn)]) for section in sections],
        warnings=warnings(result),
        more=[_shown(drawn[name], Markup) for name in ("rates", "scores") if name in drawn],
        folded=len(result["arms"]) > MANY_ARMS,
        agreement=result["experiments"]["agreement"] or [],
        examples=examples(run),
        rule=RULE,
        arm_metrics=ARM_METRICS,
        facts=facts(run.header),
        settings=settings(run.header),
        latents=latents[:MAX_LATENTS],
        latents_left_out=max(len(latents) - MAX_LATENTS, 0),
        study=run.study,
        written=f"{made:%Y-%m-%d %H:%M} UTC",
    )


def _figures(section: Section, drawn: Mapping[str, Figure]) -> list[Figure]:
    """The figures of a section: its own plot first."""
    own = []
    if section.forest is not None:
        told = f"{section.question} Dots with 95% intervals; an open dot has none."
        own.append(Figure(f"of-{section.name}", "", told, forest.draw(section.forest, told)))
    return own + [drawn[name] for name in section.figures if name in drawn]


def _shown(figure: Figure, safe: Callable[[str], str]) -> dict[str, str]:
    return {"name": figure.name, "title": figure.title, "caption": figure.caption, "svg": safe(figure.svg)}


def facts(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What made the run: engine, inputs, versions, machine, revision; name and value."""
    found = [(f"engine {name}", _text(value)) for name, value in header.get("engine", {}).items()]
    found += [(f"fingerprint of {name}", _text(value)) for name, value in header.get("inputs", {}).items()]
    found += [(name, _text(header[name])) for name in ("python", "platform") if header.get(name)]
    found += [(name, _text(version)) for name, version in header.get("packages", {}).items() if version]
    git = header.get("git")
    if git:
        dirty = " with uncommitted changes" if git.get("dirty") else ""
        found.append(("git revision", f"{git['revision']}{dirty}"))
    return found


def settings(header: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Every setting of the study: name, value, whether it was defaulted."""
    defaulted = set(header.get("defaulted", ()))
    return [
        (name, _text(value), any(name == d or name.startswith(f"{d}.") for d in defaulted))
        for name, value in _flat(header.get("settings", {}), "")
    ]


def _flat(value: Any, name: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{name}.{key}" if name else str(key))]
    return [(name, value)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
