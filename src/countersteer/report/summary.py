"""The result of a run as one JSON object: what `run --json` and `report --json` print and the page is made from.

Arms with their metrics and intervals, contrasts with base, calibration, cost. Everything also without degraded
responses. Deterministic: each bootstrap and permutation draws from the study's seed by name.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from countersteer.core.fingerprint import rng
from countersteer.core.trial import OK
from countersteer.report.contrasts import contrasts
from countersteer.report.metrics import METRICS, measure, zero_event_effects
from countersteer.report.outcomes import Outcome, collect, counts, without_degraded
from countersteer.report.questions import experiments
from countersteer.report.whole import CAUTION, whole_responses
from countersteer.statistics import holm
from countersteer.store.reading import RunReader
from countersteer.store.rows import PENDING

CAVEAT = "The organism is a test animal: its numbers are not evidence about real models."
BINS = 20


def summarise(run: RunReader) -> dict[str, Any]:
    """The result of a run, finished or not, as plain JSON data. Raises StoreError.

    run, study, model, base, finished, arms, contrasts, contrasts_without_degraded, calibration, whole_response,
    experiments, tokens, judging, seconds, notes, caveat. See docs/report.md for every key.
    """
    with _unwalked():
        return _summarise(run)


@contextmanager
def _unwalked() -> Iterator[None]:
    """Keep the cycle collector from walking 100,000 small records, which hold no cycles, again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was:
            gc.enable()


def _summarise(run: RunReader) -> dict[str, Any]:
    study = run.header.get("settings", {}).get("study", {})
    draws = partial(rng, int(study.get("seed", 0)), "report")
    described = run.arms()
    rated = whole_responses(run)
    arms = {name: collect(run, name, None if rated is None else rated.recovers) for name in described}
    gc.freeze()  # statsmodels collects cycles each time it corrects p-values
    clean = {name: without_degraded(outcomes) for name, outcomes in arms.items()}
    base = run.base_arm
    effects, clean_effects = zero_event_effects(arms), zero_event_effects(clean)
    anything_degraded = any(o.degraded for outcomes in arms.values() for o in outcomes)

    def one(name: str) -> dict[str, Any]:
        outcomes = arms[name]
        facts = _facts(outcomes)
        facts["same_as_base"] = None if name == base else len(_same(outcomes, arms.get(base, [])))
        metrics = measure(outcomes, effects=effects, rng=partial(draws, name))
        same = clean_effects == effects and clean[name] == outcomes
        rest = (
            metrics
            if same
            else measure(clean[name], effects=clean_effects, rng=partial(draws, name, "without degraded"))
        )
        note = _note(described[name], outcomes, arms.get(base, []) if name != base else [])
        left = {"valid": sum(o.valid for o in clean[name]), **rest}
        return {**facts, **metrics, "note": note, "settings": described[name], "without_degraded": left}

    against = {name: arm["against"] for name, arm in described.items() if arm.get("against") in arms}
    compared = contrasts(arms, base, effects=effects, rng=draws, against=against)
    again = compared
    if anything_degraded:
        again = contrasts(clean, base, effects=clean_effects, rng=partial(draws, "without degraded"), against=against)
    is_organism = str(study.get("model", "")).startswith("organism")
    return {
        "run": str(run.folder),
        "study": run.header.get("study"),
        "model": study.get("model"),
        "base": base,
        "finished": run.finished,
        "arms": {name: one(name) for name in arms},
        "contrasts": compared,
        "contrasts_without_degraded": again,
        "detectors_against_random": _against_random(arms, described, effects, draws),
        "calibration": calibration(run),
        "whole_response": None if rated is None else {"judge": rated.judge, "rule": rated.rule, "caution": CAUTION},
        "experiments": experiments(run),
        "tokens": run.tokens(),
        "judging": judging(run),
        "seconds": run.fact("seconds"),
        "notes": run.notes,
        "caveat": CAVEAT if is_organism else None,
    }


def judging(run: RunReader) -> dict[str, Any] | None:
    """What the run's language-model judges were asked and cost; None if none was asked.

    `usd` is None where the price of a reply is not known; `states`: how requests of the run's own ledger ended.
    """
    used = run.judging()
    if not used["requests"]:
        return None
    return {**used, "usd": None if used["unpriced"] else used["usd"]}


def _against_random(
    arms: Mapping[str, Sequence[Outcome]], described: Mapping[str, Any], effects: Mapping[str, float], draws: Any
) -> dict[str, Any]:
    """The first arm that clamps detectors against every random set, set by set: rows as in `contrasts`."""
    rules = {name: settings.get("clamp_rule") for name, settings in described.items()}
    own = next((name for name, rule in rules.items() if isinstance(rule, str)), None)
    sets = [name for name, rule in rules.items() if isinstance(rule, Mapping)]
    if own is None:
        return {}
    found = {
        name: contrasts({name: arms[name], own: arms[own]}, name, effects=effects, rng=partial(draws, name))[own]
        for name in sets
    }
    for metric in METRICS:
        adjusted = holm([rows[metric]["p"] for rows in found.values()])
        for rows, p in zip(found.values(), adjusted, strict=True):
            rows[metric] |= {"p_holm": p, "arm": own}
    return found


def _facts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts of an arm: trials, statuses, receipts, attempts, scores."""
    valid = [o for o in outcomes if o.valid]
    relative = [o.relative for o in outcomes if o.acted and o.relative is not None]
    strengths = [o.strength for o in outcomes if o.strength is not None]
    first = [o.scores[0] for o in valid]
    change = [o.scores[-1] - o.scores[0] for o in valid if o.multi]
    return {
        "trials": len(outcomes),
        "valid": len(valid),
        "statuses": counts([o.status for o in outcomes]),
        "acted": sum(o.acted for o in outcomes),
        "degraded": sum(o.degraded for o in outcomes),
        "latents": len({o.latent for o in valid}),
        "prompts": len({o.prompt for o in valid}),
        "attempts": {str(k): sum(len(o.scores) == k for o in valid) for k in sorted({len(o.scores) for o in valid})},
        "first_scores": [int(n) for n in np.histogram(first, bins=BINS, range=(0.0, 100.0))[0]],
        "changes": [int(n) for n in np.histogram(change, bins=BINS, range=(-100.0, 100.0))[0]],
        "mean_strength": float(np.mean(strengths)) if strengths else None,
        "perturbation": float(np.mean(relative)) if relative else None,
        "clamp": _clamp(outcomes),
    }


def _clamp(outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """What the clamps of an arm did by themselves, as measured; None without clamps or without their receipts."""
    told = [o for o in outcomes if o.clamp_acted is not None]
    if not told:
        return None
    moved = [o.clamp_relative for o in told if o.clamp_relative is not None]
    return {
        "responses": len(told),
        "acted": sum(bool(o.clamp_acted) for o in told),
        "perturbation": float(np.mean(moved)) if moved else None,
    }


def _note(settings: Mapping[str, Any], outcomes: Sequence[Outcome], base: Sequence[Outcome]) -> str | None:
    """What a reader must know of an arm before reading its numbers, in words, or None."""
    notes = []
    done = [o for o in outcomes if o.status not in (PENDING, "uncalibrated")]
    waiting = sum(o.status == PENDING for o in outcomes)
    if waiting:
        notes.append(f"{waiting} of {len(outcomes)} trials are still to be run")
    if done and not any(o.valid for o in outcomes):
        notes.append("no trial is valid, so there is nothing to compute rates from")
    intended = settings.get("steered") or settings.get("clamp")
    if done and intended and not any(o.acted for o in outcomes):
        notes.append("nothing ever acted: no edit of this arm changed a token of any response")
    held = _clamp(outcomes)
    if held and not held["acted"] and any(o.acted for o in outcomes):
        notes.append("the clamp never acted: it changed no token of any response, only the steering did")
    same = _same(outcomes, base)
    if same and len(same) == sum(o.status == OK for o in outcomes):
        notes.append("every response equals that of base: what this arm changes had no effect on the text")
    return "; ".join(notes) or None


def _same(outcomes: Sequence[Outcome], base: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes whose text equals that of base's trial of the same latent, prompt and seed."""
    theirs = {o.key: o.text_hash for o in base if o.status == OK}
    return [o for o in outcomes if o.status == OK and theirs.get(o.key) == o.text_hash]


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
