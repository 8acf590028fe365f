"""Runs with known contents, written through the store's own interface, for the tests of the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from countersteer.core.trial import Attempt, Grade
from countersteer.statistics.calibration import Estimate
from countersteer.statistics.calibration.artefact import pack
from countersteer.store import Answer, LatentRow, Planned, Resample, Response, Run

JUDGE = "judge-1"
WORDS = "Fold the towel. "
RESTART = "Wait, let me try again. "
DEGRADED = "tide tide tide tide tide tide. "


@dataclass(frozen=True)
class T:
    """A trial to plant: its attempts' scores, or a status; fresh first scores; whether the text is degraded."""

    latent: int
    prompt: str
    scores: tuple[float, ...] = ()
    status: str = "ok"
    fresh: tuple[float | None, ...] = ()
    degraded: bool = False
    changed: int = 9
    text: str | None = None
    steered: bool = True
    clamp: tuple[int, float] | None = None
    """Tokens that a clamp changed by itself, and its mean |h' - h| / |h|."""


@dataclass(frozen=True)
class Planted:
    """Everything of a run to plant. `arms`: trials by arm; `settings`: what each arm is said to set."""

    arms: dict[str, list[T]]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    model: str = "acme/model"
    labels: dict[int, str] = field(default_factory=dict)
    finished: bool = True
    base: str = "base"
    uncalibrated: tuple[int, ...] = ()


def pieces(scores: tuple[float, ...], words: str) -> tuple[str, tuple[Attempt, ...]]:
    """A text with one stretch per score, and its attempts."""
    text, attempts = "", []
    for number, score in enumerate(scores):
        start = len(text)
        text += (RESTART if number else "") + words
        attempts.append(Attempt(start, len(text), score, RESTART.strip() if number else None))
    return text, tuple(attempts)


def receipt(changed: int, clamp: tuple[int, float] | None = None) -> dict[str, Any]:
    layer: dict[str, Any] = {
        "site": "resid_post.3", "tokens_seen": 20, "tokens_changed": changed, "mean_relative": 0.5 if changed else 0.0,
        "max_relative": 0.75 if changed else 0.0, "before": [0.0], "after": [1.0], "missed_target": None,
        "conditional": False,
    }  # fmt: skip
    if clamp is not None:
        add = {"method": "add", "tokens_seen": 20, "tokens_changed": changed, "mean_relative": 0.5, "before": [],
               "conditional": False}  # fmt: skip
        held = {**add, "method": "ablate", "tokens_changed": clamp[0], "mean_relative": clamp[1], "conditional": True}
        layer["edits"] = [add, held]
    return {"layers": [layer], "engine": "planted/1", "notes": []}


def plant(folder: Path, planted: Planted) -> Run:
    """Write a run and return it, open for writing."""
    study = {"kind": "esr", "model": planted.model, "sae": planted.model, "seed": 3, "span": "all"}
    header = {
        "countersteer": "0.1.0", "study": "planted", "base_arm": planted.base, "python": "3.11", "platform": "test",
        "settings": {"study": study, "sampling": {"temperature": 0.6}}, "defaulted": ["sampling.temperature"],
        "packages": {"numpy": "2"}, "git": {"revision": "abc" * 10, "dirty": True},
        "engine": {"device": "cpu", "layers": 6}, "inputs": {"model": "m" * 32, "engine": "planted"},
    }  # fmt: skip
    run = Run.create(folder, '[study]\nmodel = "m"\n', header)
    run.set_facts(judge={"key": JUDGE, "name": "offline"}, seconds=12.5, finished=planted.finished)
    latents = sorted({t.latent for trials in planted.arms.values() for t in trials})
    _calibrate(run, planted, latents)
    settings = {
        name: {"strength_scale": 1.0, "span": "all", "layer": None, "steered": True, **planted.settings.get(name, {})}
        for name in planted.arms
    }
    run.plan_trials(
        (plan_of(planted, arm, i, t) for arm, ts in planted.arms.items() for i, t in enumerate(ts)), settings,
        planted.base,
    )  # fmt: skip
    for arm, trials in planted.arms.items():
        for i, t in enumerate(trials):
            _answer(run, planted, plan_of(planted, arm, i, t), t)
    return run


def plan_of(planted: Planted, arm: str, ordinal: int, t: T) -> Planned:
    strength = None if t.status == "uncalibrated" else 2.0 if t.steered else 0.0
    return Planned(
        arm, ordinal, f"key-{arm}-{ordinal}", t.latent, planted.labels.get(t.latent), strength, t.prompt, t.prompt,
        None, None, 1000 + t.latent, "uncalibrated" if t.status == "uncalibrated" else None,
    )  # fmt: skip


def _calibrate(run: Run, planted: Planted, latents: list[int]) -> None:
    rows = [LatentRow(i, latent, planted.labels.get(latent)) for i, latent in enumerate(latents)]
    run.plan_latents(rows)
    estimates, done = {}, []
    for i, row in enumerate(rows):
        missing = row.latent in planted.uncalibrated
        value = None if missing else 1.0 + 0.1 * i
        bounds = (None, None) if value is None else (value - 0.2, value + 0.3)
        status = "uncalibrated" if missing else "ok"
        estimates[row.latent] = Estimate(value, *bounds, status, 25)  # type: ignore[arg-type]
        own = tuple(None if v is None else 2.0 * v for v in (value, *bounds))
        done.append(LatentRow(i, row.latent, row.label, None, 2.0, *own, status))
        for k, (strength, score) in enumerate([(0.5, 0.9), (1.0, 0.6), (2.0, 0.05)]):
            run.add_answer(Answer(3 * i + k, row.latent, "p0", strength, f"c{i}-{k}", "ok", score, "text"))
    artefact = pack({"method": "pooled", "target": 0.3}, estimates, {"units": "relative"})
    run.freeze_calibration(artefact, done)


def _answer(run: Run, planted: Planted, plan: Planned, t: T) -> None:
    if t.status in ("uncalibrated", "pending"):
        return
    words = t.text if t.text is not None else DEGRADED if t.degraded else f"{WORDS}{plan.key}. "
    text, attempts = pieces(t.scores or (0.0,), words)
    proof = receipt(t.changed, t.clamp) if t.steered else {"layers": [], "engine": "planted/1", "notes": []}
    if t.status in ("error", "no-op"):
        run.add_response(Response(plan.key, t.status, "", (), 5, None, None, "it failed"))
        return
    run.add_response(Response(plan.key, "ok", text, (1, 2, 3), 5, "stop", proof))
    graded = Grade(t.status, attempts if t.scores else (), JUDGE)
    run.add_grade(plan.prompt, plan.label, text, graded, judge=JUDGE)
    for draw, score in enumerate(t.fresh):
        key = f"fresh-{plan.key}-{draw}"
        again = f"Fresh {key}."
        run.add_resamples([Resample(plan.arm, plan.ordinal, draw, key, 5000 + draw)])
        run.add_response(Response(key, "ok", again, (4, 5), 5, "stop", proof))
        found = Grade("no-attempt", (), JUDGE) if score is None else Grade("ok", (Attempt(0, 5, score),), JUDGE)
        run.add_grade(plan.prompt, plan.label, again, found, judge=JUDGE)
