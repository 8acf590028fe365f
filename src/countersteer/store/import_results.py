"""Published result files of the ESR reference code as a run: `results_by_feature` with `trials` and `score.attempts`.

A file must have results_by_feature, trials, and per trial score.attempts with their scores. The names of the other
fields could not be confirmed, so several are known for each; what is not there is left out, and every field that was
not read is named in a note of the run. A trial with an error, without a score or without a scored attempt keeps a
status and is in no denominator.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint
from countersteer.core.trial import OK, Attempt, Grade
from countersteer.store.rows import LatentRow, Planned, Response
from countersteer.store.run import Run

LIMIT = 2 << 30
_PROMPT = ("prompt", "question", "instruction", "user_prompt", "input")
_TRIALS = ("trials", "results")
_ATTEMPTS = ("attempts", "attempt_scores")
_SCORE = ("score", "grade", "rating")
_GRADED = ("score", "grade", "judge_score", "judgement", "judgment")
_ATTEMPT = ("attempt", "text", "content", "quote")
_ERROR = ("error", "exception")
_SEED = ("seed", "random_seed", "sampling_seed")
_FEATURE = ("feature_index_in_sae", "feature_index", "index_in_sae", "feature_id", "index", "feature")
_LABEL = ("feature_label", "label", "feature_description", "feature_name", "description")
_STRENGTH = ("boost", "strength", "threshold", "boost_value", "steering_strength", "boost_level", "coefficient")
_RESPONSE = ("response", "completion", "text", "output", "response_text", "generated_text")
_PLACES = ("experiment_config", "config", "settings", "metadata")
_READ = {
    "file": {"results_by_feature", *_PLACES},
    "feature": {*_FEATURE, *_LABEL, *_STRENGTH, *_TRIALS},
    "trial": {*_PROMPT, *_RESPONSE, *_STRENGTH, *_GRADED, *_ERROR, *_SEED},
    "score": set(_ATTEMPTS),
    "attempt": {*_SCORE, *_ATTEMPT},
}
"""The fields that are read, by what they belong to; all others are named in a note."""


def import_results(file: str | Path, out: str | os.PathLike[str]) -> Run:
    """Write the results of `file` into a new run in `out` and return it, open for reading.

    Raises InputError naming the place for a file of another shape.
    """
    path = Path(file)
    data = _read(path)
    features = data.get("results_by_feature") if isinstance(data, Mapping) else None
    if not isinstance(features, list | Mapping) or not features:
        raise InputError(f"{path} has no results_by_feature: it is not a result file of the ESR reference code")
    config: Mapping[str, Any] = next((data[k] for k in _PLACES if isinstance(data.get(k), Mapping)), {})
    model = str(config.get("model_name") or config.get("model") or path.stem)
    judge = str(config.get("judge_model_name") or config.get("judge_model") or "published")
    key = f"imported:{judge}:{fingerprint(features)}"
    rows = list(_trials(path, features))
    if not rows:
        raise InputError(f"{path}: results_by_feature holds no trial")
    study = f'# imported from {path.name}\n[study]\nkind = "esr"\nmodel = {json.dumps(model)}\n'
    settings = {"study": {"kind": "esr", "model": model, "sae": str(config.get("sae", "unknown")), "seed": 0}}
    header = {"study": f"imported {path.name}", "settings": settings, "defaulted": [], "base_arm": "base",
              "imported": dict(config), "inputs": {"model": "unknown", "file": path.name}}  # fmt: skip
    run = Run.create(out, study, header)
    try:
        _write(run, rows, key, judge)
        unread = _unread(data)
        if unread:
            run.note(f"imported: fields that were not read: {', '.join(unread)}")
    except BaseException:
        run.close()
        raise
    run.close()
    return Run.open(out)


def _write(run: Run, rows: list[tuple[Planned, Response | None, Grade | None]], key: str, judge: str) -> None:
    labels: dict[int, str | None] = {}
    for plan, _, _ in rows:
        labels.setdefault(plan.latent, plan.label)
    run.plan_latents(LatentRow(rank, latent, label) for rank, (latent, label) in enumerate(labels.items()))
    arm = {"strength_scale": 1.0, "span": "all", "layer": None, "steered": True}
    run.plan_trials([plan for plan, _, _ in rows], {"base": arm}, "base")
    for plan, response, grade in rows:
        if response is not None:
            run.add_response(response)
        if grade is not None and response is not None:
            run.keep_grade(plan.key, grade, judge=key)
    run.set_facts(judge={"key": key, "name": judge}, finished=True, calibrated=True, calibration=None)
    run.note("imported: what made these responses is not in this run, and there are no receipts")


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > LIMIT:
            raise InputError(f"{path} is larger than {LIMIT >> 30} GiB: is it a result file?")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {' '.join(str(error).split())}") from error


def _trials(path: Path, features: Any) -> Iterator[tuple[Planned, Response | None, Grade | None]]:
    """(plan, response, grade) of every trial."""
    items = features.items() if isinstance(features, Mapping) else enumerate(features)
    ordinal = 0
    for name, feature in items:
        where = f"{path}: results_by_feature[{name}]"
        trials = _first(feature, _TRIALS) if isinstance(feature, Mapping) else None
        if not isinstance(trials, list):
            raise InputError(f"{where} has no list of trials")
        latent = _latent(feature, name, where)
        label = _first(feature, _LABEL)
        for number, trial in enumerate(trials):
            if not isinstance(trial, Mapping):
                raise InputError(f"{where}.trials[{number}] is not an object")
            yield _trial(trial, feature, ordinal, latent, label, f"{where}.trials[{number}]")
            ordinal += 1


def _trial(
    trial: Mapping[str, Any], feature: Mapping[str, Any], ordinal: int, latent: int, label: Any, where: str
) -> tuple[Planned, Response | None, Grade | None]:
    prompt = _first(trial, _PROMPT)
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{where} has no prompt")
    text = _first(trial, _RESPONSE)
    strength = _first(trial, _STRENGTH)
    strength = _first(feature, _STRENGTH) if strength is None else strength
    seed = _first(trial, _SEED)
    key = fingerprint(["imported", ordinal, latent, prompt, text])
    number = float(strength) if isinstance(strength, int | float) and math.isfinite(strength) else None
    plan = Planned(
        "base", ordinal, key, latent, None if label is None else str(label), number, prompt, prompt, None, None,
        seed if isinstance(seed, int) else ordinal,
    )  # fmt: skip
    error = _first(trial, _ERROR)
    if error or not isinstance(text, str):
        return plan, Response(key, "error", reason=str(error or "no response in the file")[:500]), None
    score = _first(trial, _GRADED)
    given = _first(score, _ATTEMPTS) if isinstance(score, Mapping) else None
    if not isinstance(given, list):
        return plan, Response(key, "ok", text), Grade("unparsed", (), "published", "no score.attempts in the file")
    attempts = tuple(_attempts(given, text, where))
    status = OK if any(a.score is not None for a in attempts) else "no-attempt"
    return plan, Response(key, "ok", text), Grade(status, attempts if status == OK else (), "published")


def _attempts(given: list[Any], text: str, where: str) -> Iterator[Attempt]:
    """Attempts with their scores; offsets where the attempt's text is found, else the whole response."""
    at = 0
    for item in given:
        if not isinstance(item, Mapping):
            raise InputError(f"{where}: an attempt is not an object")
        score = _first(item, _SCORE)
        if isinstance(score, bool) or not (score is None or (isinstance(score, int | float) and 0 <= score <= 100)):
            raise InputError(f"{where}: score {score!r} is not a number from 0 to 100")
        words = next((item[k] for k in _ATTEMPT if isinstance(item.get(k), str)), "")
        start = text.find(words, at) if words else -1
        if start >= 0:
            at = start + len(words)
        yield Attempt(max(start, 0), at if start >= 0 else len(text), None if score is None else float(score))


def _unread(data: Mapping[str, Any]) -> list[str]:
    """Fields that were not read, as "trial.name", by name."""
    found: set[str] = set()

    def look(kind: str, item: Any) -> None:
        if isinstance(item, Mapping):
            found.update(f"{kind}.{name}" for name in item if name not in _READ[kind])

    look("file", data)
    features = data["results_by_feature"]
    for feature in features.values() if isinstance(features, Mapping) else features:
        look("feature", feature)
        for trial in _first(feature, _TRIALS):
            look("trial", trial)
            score = _first(trial, _GRADED)
            look("score", score)
            given = _first(score, _ATTEMPTS) if isinstance(score, Mapping) else None
            for attempt in given if isinstance(given, list) else ():
                look("attempt", attempt)
    return sorted(found)


def _latent(feature: Mapping[str, Any], name: Any, where: str) -> int:
    found = _first(feature, _FEATURE)
    found = name if found is None else found
    if isinstance(found, Mapping):
        found = _first(found, _FEATURE)
    try:
        return int(found)
    except (TypeError, ValueError):
        raise InputError(f"{where} does not say which latent it is about") from None


def _first(item: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((item[name] for name in names if item.get(name) is not None), None)
