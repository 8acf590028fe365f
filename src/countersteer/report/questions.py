"""The questions that a study answers, one section each, in the order a reader has them.

A question is asked if the run has what answers it: arms, recognised by what they set, or a fact of the run.
"""

from __future__ import annotations

from collections.abc import Callable

from countersteer.report import sections_arms as arms
from countersteer.report import sections_clamps as clamps
from countersteer.report import sections_inside as inside
from countersteer.report import sections_model as model
from countersteer.report import sections_study as study
from countersteer.report.section import Result, Section

ORDER: tuple[Callable[[Result], Section | None], ...] = (
    model.resists,
    model.recovers,
    model.calibrated,
    model.strength,
    inside.search,
    clamps.causal,
    clamps.random,
    inside.content,
    arms.sustained,
    arms.turned,
    arms.corrective,
    arms.prompts,
    arms.elsewhere,
    inside.trace,
    inside.whole,
    arms.trained,
    inside.judges,
    study.against_base,
    study.degraded,
    study.missing,
)


def questions(result: Result) -> list[Section]:
    """The sections of a run that has arms or facts for them, in order."""
    return [section for make in ORDER if (section := make(result)) is not None]
