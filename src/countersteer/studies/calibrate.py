"""The calibration stage: ask, generate, grade, tell, round by round, then freeze.

Answers are stored by the number of their query, and a calibrator's state is a function of what it was told, so a
resumed calibration is the one that was interrupted. Latents that a run grew by are calibrated by themselves, beginning
where the frozen ones lie: those never change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from countersteer.core.errors import StoreError
from countersteer.core.trial import OK
from countersteer.statistics.calibration import BisectionCalibrator, Calibrator, PooledCalibrator, Query, freeze
from countersteer.store import Answer, LatentRow, Planned, Run
from countersteer.store.arm_calibration import ArmCalibration
from countersteer.studies.arms import Arm
from countersteer.studies.generate import Generator, bounded
from countersteer.studies.plan import calibration_size, calibration_tokens
from countersteer.studies.schema import CalibrationSection
from countersteer.studies.spec import Spec
from countersteer.studies.steering import Steering, sampling_seed

Progress = Callable[[int, int], None]


KNOWN = 3
"""Frozen latents from which the range to expect a later one's strength in is known."""


def calibrator(
    spec: Spec, latents: Sequence[LatentRow], prompts: int, *, known: Sequence[float] = ()
) -> Calibrator:  # fmt: skip
    """The calibrator that a study asks for, over latent ids and prompt numbers. Raises InputError.

    `known`: strengths of latents calibrated before, whose median is the centre in place of the study's.
    """
    section = spec.settings.calibration
    common: dict[str, Any] = {
        "latents": [row.latent for row in latents],
        "prompts": list(range(prompts)),
        "lo": section.low,
        "hi": section.high,
        "centre": _centre(section, known),
        "target": section.target / 100,
        "seed": spec.settings.study.seed,
    }
    if section.method == "pooled":
        return PooledCalibrator(**common)
    given = {k: getattr(section, k) for k in ("rounds", "per_round", "prior_sd") if getattr(section, k) is not None}
    return BisectionCalibrator(**common, **given)


def _centre(section: CalibrationSection, known: Sequence[float]) -> float:
    if len(known) < KNOWN:
        return section.centre
    margin = 0.01 * (section.high - section.low)
    return float(np.clip(np.median(known), section.low + margin, section.high - margin))


async def calibrate(
    spec: Spec, run: Run | ArmCalibration, prompts: Sequence[str], *, steering: Steering, generator: Generator,
    progress: Progress, arm: Arm | None = None,
) -> None:  # fmt: skip
    """Find the strength of every latent that has none and freeze it in the run. Does nothing if that was done.

    `arm`: under its conditions, and into its own part of the run, instead of base's.
    """
    frozen = [row for row in run.latents() if row.status is not None]
    rows = [row for row in run.latents() if row.status is None]
    if not rows:
        return
    if arm is None and not spec.needs_calibration:
        run.freeze_calibration(None, [replace(row, status="not needed") for row in rows])
        return
    known = [row.strength / row.unit for row in frozen if row.status == OK and row.strength and row.unit]
    unit = {row.latent: row.unit or 1.0 for row in rows}
    labels = {row.latent: row.label for row in rows}
    own = arm is not None
    base = arm or next(arm for arm in spec.arms if arm.name == spec.base)
    arm = replace(base, sampling=replace(base.sampling, max_tokens=calibration_tokens(spec)))
    engine = calibrator(spec, rows, len(prompts), known=known)
    answers = run.answers()
    first = 1 + max((answer.ordinal for answer in answers if answer.latent not in unit), default=-1)
    stored = {answer.ordinal - first: answer for answer in answers if answer.latent in unit}
    total = calibration_size(spec, own=own) * len(rows)

    async def answer(query: Query) -> None:
        latent = int(query.latent)
        plan = _plan(spec, arm, query, unit[latent], prompts, labels[latent])
        found = await _answer(first + query.index, query.strength, plan, arm, steering, generator)
        run.add_answer(found)
        stored[query.index] = found
        progress(len(stored), total)

    progress(len(stored), total)
    while queries := engine.ask():
        missing = [query for query in queries if query.index not in stored]
        for query in queries:
            if query.index in stored:
                _same(run, query, stored[query.index])
                plan = _plan(spec, arm, query, unit[int(query.latent)], prompts, labels[int(query.latent)])
                steering.checked(steering.request(arm, plan), stored[query.index].key)
        await bounded(missing, answer, workers=generator.workers)
        for query in queries:
            engine.tell(query.index, stored[query.index].score)
    context = {"units": spec.settings.calibration.units, "unit": {str(k): v for k, v in unit.items()},
               "judge": run.judge, "arm": base.describe(), "header": run.header.get("inputs")}  # fmt: skip
    artefact = freeze(engine, context)
    estimates = engine.result()
    run.freeze_calibration(artefact, [_row(row, estimates[row.latent], unit[row.latent]) for row in rows])


def _row(row: LatentRow, found: Any, unit: float) -> LatentRow:
    """A latent with its strength in its own units."""
    strength, low, high = (None if v is None else v * unit for v in (found.strength, found.low, found.high))
    return replace(row, strength=strength, low=low, high=high, status=found.status)


def _plan(spec: Spec, arm: Arm, query: Query, unit: float, prompts: Sequence[str], label: str | None) -> Planned:
    latent, prompt = int(query.latent), prompts[int(query.prompt)]
    seed = sampling_seed(spec.settings.study.seed, "calibration", latent, query.index)
    return Planned(
        "calibration",
        query.index,
        "",
        latent,
        label,
        query.strength * unit,
        prompt,
        arm.user_turn(prompt, label),
        arm.text("system", label),
        arm.text("prefix", label),
        seed,
    )


async def _answer(
    ordinal: int, strength: float, plan: Planned, arm: Arm, steering: Steering, generator: Generator
) -> Answer:
    request = steering.request(arm, plan)
    key = steering.key(request)
    response = await generator.limited(key, request)
    common = (ordinal, plan.latent, plan.prompt, strength, key)
    if response.status != OK:
        return Answer(*common, response.status, None, response.text, response.reason)
    text = (plan.prefix or "") + response.text
    grade = await generator.judge(plan.prompt, plan.label, text)
    first = grade.attempts[0].score if grade.status == OK and grade.attempts else None
    status = grade.status if first is None else OK
    return Answer(*common, status, None if first is None else first / 100, text, grade.reason)


def _same(run: Run | ArmCalibration, query: Query, answer: Answer) -> None:
    """A stored answer must be to this very query."""
    if (answer.latent, answer.strength) != (query.latent, query.strength):
        raise StoreError(
            f"{run.folder}: the stored calibration does not fit its study (query {query.index});"
            " it was made by another version, start a new run"
        )
