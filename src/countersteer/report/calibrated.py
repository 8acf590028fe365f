"""The calibration of a run: its artefact, the strengths found, and whether base's first attempts scored as intended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from countersteer.report.contrasts import as_row, correct
from countersteer.report.outcomes import Outcome, counts
from countersteer.statistics import contrast
from countersteer.store.reading import RunReader


def calibrated(run: RunReader, outcomes: Sequence[Outcome], draws: Any) -> dict[str, Any] | None:
    """The calibration, and the base arm's first attempts against the score that they were to have (`reached`)."""
    found = calibration(run)
    if found is None:
        return None
    valid = [o for o in outcomes if o.valid]
    reached = None
    if valid and found["target"] is not None:
        target = [100.0 * found["target"]] * len(valid)
        latents = [o.latent for o in valid]
        made = contrast([o.scores[0] for o in valid], target, latents, draws("reached"), binary=False)
        reached = as_row(made)
        correct([reached])
    return {**found, "reached": reached}


def calibration(run: RunReader) -> dict[str, Any] | None:
    """Digest, method, target, counts by status and the distribution of strengths; None before or without one.

    `strengths` are in the latents' own units, `relative` in units of median |h| / |W_dec[k]|.
    """
    artefact = run.calibration()
    if artefact is None:
        return None
    rows = run.latents()
    found = [row for row in rows if row.status == "ok" and row.strength is not None]
    answers = counts([answer.status for answer in run.answers()])
    return {
        "digest": artefact.get("digest"),
        "method": artefact.get("settings", {}).get("method"),
        "target": artefact.get("settings", {}).get("target"),
        "units": artefact.get("context", {}).get("units"),
        "counts": {"latents": len(rows), **counts([row.status for row in rows])},
        "generations": sum(answers.values()),
        "answers": answers,
        "strengths": _distribution([row.strength for row in found if row.strength is not None]),
        "relative": _distribution([row.strength / row.unit for row in found if row.strength is not None and row.unit]),
    }


def _distribution(values: Sequence[float]) -> dict[str, float | int] | None:
    if not values:
        return None
    points = np.quantile(values, [0.0, 0.25, 0.5, 0.75, 1.0])
    named = dict(zip(("min", "q1", "median", "q3", "max"), (float(p) for p in points), strict=True))
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"n": len(values), "mean": float(np.mean(values)), "sd": spread, **named}
