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

from countersteer.core.fingerprint import rng
from countersteer.report.calibrated import calibrated
from countersteer.report.contrasts import compare, contrasts, correct, matched_prefixes
from countersteer.report.facts import counted, note_of, same_text, turned
from countersteer.report.found import experiments
from countersteer.report.metrics import METRICS, measure, values, zero_event_effects
from countersteer.report.outcomes import Outcome, collect, without_degraded
from countersteer.report.whole import CAUTION, whole_responses
from countersteer.statistics import among, holm
from countersteer.store.reading import RunReader

CAVEAT = "The organism is a test animal: its numbers are not evidence about real models."


def summarise(run: RunReader) -> dict[str, Any]:
    """The result of a run, finished or not, as plain JSON data. Raises StoreError.

    run, study, model, base, finished, arms, contrasts, contrasts_without_degraded, detectors_against_random,
    matched_prefix, levels, calibration, whole_response, experiments, tokens, judging, seconds, notes, caveat. See
    docs/report.md for every key.
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
        facts = counted(outcomes)
        facts["same_as_base"] = None if name == base else len(same_text(outcomes, arms.get(base, [])))
        metrics = measure(outcomes, effects=effects, rng=partial(draws, name))
        same = clean_effects == effects and clean[name] == outcomes
        rest = (
            metrics
            if same
            else measure(clean[name], effects=clean_effects, rng=partial(draws, name, "without degraded"))
        )
        facts["turned"] = turned(described[name], outcomes)
        note = note_of(described[name], outcomes, arms.get(base, []) if name != base else [])
        left = {"valid": sum(o.valid for o in clean[name]), **rest}
        return {**facts, **metrics, "note": note, "settings": described[name], "without_degraded": left}

    against = {name: arm["against"] for name, arm in described.items() if arm.get("against") in arms}
    compared = contrasts(arms, base, effects=effects, rng=draws, against=against)
    again = compared
    if anything_degraded:
        again = contrasts(clean, base, effects=clean_effects, rng=partial(draws, "without degraded"), against=against)
    measured = {name: one(name) for name in arms}
    recovered = [m["recovery"] for m in measured.values() if m["recovery"]]
    for metric, p in zip(recovered, holm([m["p"] for m in recovered]), strict=True):
        metric["p_holm"] = p
    is_organism = str(study.get("model", "")).startswith("organism")
    return {
        "run": str(run.folder),
        "study": run.header.get("study"),
        "model": study.get("model"),
        "base": base,
        "finished": run.finished,
        "arms": measured,
        "contrasts": compared,
        "contrasts_without_degraded": again,
        "detectors_against_random": _against_random(arms, described, effects, draws),
        "matched_prefix": matched_prefixes(arms, described, draws),
        "levels": _levels(arms, described, draws),
        "calibration": calibrated(run, arms.get(base, []), draws),
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
        name: compare(
            arms[own], {o.key: o for o in arms[name]}, effects, lambda m, name=name: draws(name, "contrast", own, m)
        )
        for name in sets
    }
    for metric in METRICS:
        correct([rows[metric] for rows in found.values()])
        for name, rows in found.items():
            rows[metric] |= {"arm": own, "against": name}
    return found


def _levels(
    arms: Mapping[str, Sequence[Outcome]], described: Mapping[str, Any], draws: Any
) -> dict[str, dict[str, Any]]:
    """Per family of levels of one arm (`sweep@-1`, `sweep@0`, ...): do they differ among themselves at all?

    {ROOT: {"arms": [...], METRIC: {"p", "latents"}}}, by shuffling levels within whole latents.
    """
    families: dict[str, list[str]] = {}
    for name, settings in described.items():
        root, at, _ = name.rpartition("@")
        if at and ("strength_sd" in settings or "strength_scale" in settings) and not settings.get("clamp_rule"):
            families.setdefault(root, []).append(name)
    found = {}
    for root, names in families.items():
        if len(names) < 3 or len({_level(described[name]) for name in names}) < len(names):
            continue
        tests = {}
        for metric in METRICS:
            given = {n: (values(metric, arms[n]), [o.latent for o in arms[n]]) for n in names}
            made = among(given, draws("levels", root, metric))
            tests[metric] = {"p": made.p, "latents": made.latents}
        found[root] = {"arms": names, **tests}
    return found


def _level(settings: Mapping[str, Any]) -> Any:
    return settings.get("strength_sd", settings.get("strength_scale"))
