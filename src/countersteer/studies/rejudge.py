"""Grading a run's responses again by another judge, beside the first grades: nothing is generated.

The sample takes multi-attempt responses first, then single-attempt ones spread evenly over the arms, then any. People
are a judge too: their labels come from a CSV. ESR paper, experiment 7.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint, rng
from countersteer.core.trial import OK, Attempt, Grade
from countersteer.judging.offline import OfflineJudge
from countersteer.judging.references import ReferenceSet
from countersteer.store import Run, Trial
from countersteer.studies.generate import bounded
from countersteer.studies.judges import JudgeOptions, LanguageJudge, Spent, quiet
from countersteer.studies.schema_judge import JudgeSection

FLOOR = 100
"""Single-attempt responses per arm that are taken before any others (the paper: at least 100 per model)."""
RECOVERED = 70.0
"""Whole responses rated at least this of 100 count as recovered (the paper: 7 of 10)."""
COLUMNS = ("arm", "ordinal", "scores")


def sample(run: Run, size: int, *, seed: int = 0) -> list[Trial]:
    """At most `size` graded trials with distinct texts: multi-attempt, then stratified over arms, then random."""
    several: list[Trial] = []
    single: dict[str, list[Trial]] = {}
    seen: set[tuple[str, str]] = set()
    for trial in run.trials():
        if trial.status != OK or not trial.text or (trial.plan.prompt, trial.text) in seen:
            continue
        seen.add((trial.plan.prompt, trial.text))
        (several if len(trial.scores) > 1 else single.setdefault(trial.plan.arm, [])).append(trial)
    draw = rng(seed, "rejudge")
    chosen = [several[i] for i in draw.permutation(len(several))][:size]
    left: list[Trial] = []
    for arm in sorted(single):
        mixed = [single[arm][i] for i in draw.permutation(len(single[arm]))]
        share = min(FLOOR, max((size - len(several)) // max(len(single), 1), 0))
        chosen += mixed[:share]
        left += mixed[share:]
    chosen += [left[i] for i in draw.permutation(len(left))]
    return chosen[:size]


def judge_named(judge: str, *, base_url: str | None = None) -> JudgeSection:
    """The settings of a language model as judge, PROVIDER/NAME. Raises InputError."""
    try:
        return JudgeSection(model=judge, base_url=base_url)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--base-url" if first["loc"] == ("base_url",) else "--judge"
        given = "" if option == "--base-url" else f" {judge!r}"
        what = first["msg"].removeprefix("Value error, ")
        hint = "" if option == "--base-url" else "; a name of your own goes with --labels, a CSV of grades"
        raise InputError(f"{option}{given} {what}{hint}") from None


async def rejudge(
    run: Run, judge: str, *, size: int, options: JudgeOptions | None = None, seed: int = 0,
    progress: Callable[[int, int], None] | None = None, base_url: str | None = None, spent: Spent | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Grade a sample by `judge` ("offline" or PROVIDER/NAME) and keep the grades under that judge's key.

    Returns {"judge", "key", "sampled", "graded"}. Raises InputError for a run without grades to compare with.
    """
    if not run.judge:
        raise InputError(f"{run.folder} has no grades yet; finish the run before judging it again")
    trials = sample(run, size, seed=seed)
    if not trials:
        raise InputError(f"{run.folder} has no graded response to judge again")
    if judge == "offline":
        offline = OfflineJudge(references(run))
        if offline.key == run.judge:
            raise InputError(f"{offline.name} graded {run.folder} in the first place; name another judge")
        await _grade(run, trials, offline.key, _plain(offline), progress)
        return _record(run, offline.name, offline.key, "rules", len(trials))
    section = judge_named(judge, base_url=base_url)
    language = LanguageJudge(section, options or JudgeOptions(), run, spent or quiet)
    try:
        if language.judge.key == run.judge:
            raise InputError(f"{judge} graded {run.folder} in the first place; name another judge")
        await _grade(run, trials, language.judge.key, language.judge.grade, progress, language.workers)
    finally:
        await language.close()
    return _record(run, language.judge.name, language.judge.key, "model", len(trials))


async def rate_whole(
    run: Run, judge: str, *, size: int, options: JudgeOptions | None = None, seed: int = 0,
    progress: Callable[[int, int], None] | None = None, base_url: str | None = None, spent: Spent | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Rate a sample of whole responses by a language model with the rubric "recovery", kept under a key of its own.

    A rating of 0-10 is kept as one attempt of 0-100 over the whole text, its kind as the flag "kind:...". Returns
    {"judge", "key", "sampled", "rated", "recovered", "kinds"}. Raises InputError.
    """
    if judge == "offline":
        raise InputError(
            "the offline judge rates whole responses in every report of a run that it graded; name a language model"
        )
    trials = sample(run, size, seed=seed) if run.judge else []
    if not trials:
        raise InputError(f"{run.folder} has no graded response to rate as a whole")
    section = judge_named(judge, base_url=base_url)
    language = LanguageJudge(section, options or JudgeOptions(), run, spent or quiet)
    try:
        from countersteer.judging.llm import LLMRater

        rater = LLMRater(language.caller, "recovery")

        async def rate(prompt: str, text: str, *, label: str | None = None) -> Grade:
            found = await rater.rate(prompt=prompt, response=text, label=label)
            if found.value is None:
                return Grade(found.status, (), found.judge, found.reason)
            whole = Attempt(0, len(text), 10.0 * found.value.score)
            return Grade(OK, (whole,), found.judge, None, (f"kind:{found.value.kind}",))

        await _grade(run, trials, rater.key, rate, progress, language.workers)
    finally:
        await language.close()
    judges = [j for j in run.fact("whole_judges", []) if j["key"] != rater.key]
    run.set_facts(whole_judges=[*judges, {"name": rater.name, "key": rater.key}])
    ratings = [run.grade(t.plan.prompt, t.plan.label, t.text or "", judge=rater.key) for t in trials]
    rated = [r for r in ratings if r is not None and r["status"] == OK]
    kinds = [str(flag).removeprefix("kind:") for r in rated for flag in r["flags"]]
    return {
        "judge": rater.name,
        "key": rater.key,
        "sampled": len(trials),
        "rated": len(rated),
        "recovered": sum(r["attempts"][0]["score"] >= RECOVERED for r in rated),
        "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    }


def _plain(judge: OfflineJudge) -> Callable[..., Any]:
    async def grade(prompt: str, text: str, *, label: str | None = None) -> Grade:
        return judge.grade(prompt, text, label=label)

    return grade


async def _grade(
    run: Run, trials: Sequence[Trial], key: str, ask: Callable[..., Any],
    progress: Callable[[int, int], None] | None, workers: int = 32,
) -> None:  # fmt: skip
    done = 0

    async def one(trial: Trial) -> None:
        nonlocal done
        plan, text = trial.plan, trial.text or ""
        if run.grade(plan.prompt, plan.label, text, judge=key) is None:
            grade = await ask(plan.prompt, text, label=plan.label)
            run.add_grade(plan.prompt, plan.label, text, grade, judge=key)
        done += 1
        if progress:
            progress(done, len(trials))

    await bounded(trials, one, workers=workers)


def references(run: Run) -> ReferenceSet:
    """The run's unsteered responses as a reference set. Raises InputError if it has none."""
    texts = run.reference_texts()
    if not texts:
        raise InputError(f"{run.folder} holds no unsteered reference responses, which the offline judge scores against")
    return ReferenceSet.of(texts)


def human(run: Run, path: str | Path, *, name: str) -> dict[str, Any]:
    """Labels of people from a CSV with the columns arm, ordinal, scores ("20;85": one score per attempt; empty: none).

    Raises InputError naming the line for an unknown trial, a bad score, or a repeated trial.
    """
    rows = _rows(Path(path))
    key = f"human:{name}:{fingerprint(rows)}"
    wanted = {(arm, ordinal): (line, scores) for line, arm, ordinal, scores in rows}
    if len(wanted) != len(rows):
        raise InputError(f"{path} labels a trial twice; keep one line of the two")
    found = 0
    for trial in run.trials():
        line, scores = wanted.pop((trial.plan.arm, trial.plan.ordinal), (0, ()))
        if not line:
            continue
        if not trial.text:
            raise InputError(f"{path}, line {line}: that trial has no response ({trial.status})")
        attempts = tuple(Attempt(0, len(trial.text), score) for score in scores)
        grade = Grade(OK if attempts else "no-attempt", attempts, name)
        run.add_grade(trial.plan.prompt, trial.plan.label, trial.text, grade, judge=key)
        found += 1
    if wanted:
        (arm, ordinal), (line, _) = next(iter(wanted.items()))
        raise InputError(f"{path}, line {line}: {run.folder} has no trial {ordinal} in arm {arm!r}")
    return _record(run, name, key, "human", found)


def _rows(path: Path) -> list[tuple[int, str, int, tuple[float, ...]]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read labels {path}: {getattr(error, 'strerror', None) or error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if not set(COLUMNS) <= set(reader.fieldnames or ()):
        raise InputError(f"{path} needs the columns {', '.join(COLUMNS)}")
    out = []
    for row in reader:
        try:
            scores = tuple(float(part) for part in (row["scores"] or "").replace(",", ";").split(";") if part.strip())
            if not all(0 <= score <= 100 for score in scores):
                raise ValueError
            out.append((reader.line_num, str(row["arm"]), int(row["ordinal"] or ""), scores))
        except ValueError:
            raise InputError(
                f"{path}, line {reader.line_num}: ordinal must be a whole number and scores numbers from 0 to 100"
            ) from None
    if not out:
        raise InputError(f"{path} holds no label")
    return out


def _record(run: Run, name: str, key: str, kind: str, count: int) -> dict[str, Any]:
    judges = [j for j in run.fact("judges", []) if j["key"] != key]
    run.set_facts(judges=[*judges, {"name": name, "key": key, "kind": kind}])
    return {"judge": name, "key": key, "sampled": count}
