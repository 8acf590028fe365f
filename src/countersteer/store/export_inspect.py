"""A run as an Inspect log: the study is the task, each trial a sample, each attempt a span of its events.

The file is written sample by sample, so memory stays flat, in the layout of Inspect's `.eval` (a zip of JSON), from
Inspect's own types. It says the same every time it is written: identifiers come from the trials' keys, times from the
study file.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint
from countersteer.store.errors import one_line
from countersteer.store.reading import RunReader
from countersteer.store.rows import Trial

SCORERS = ("first_attempt", "last_attempt", "attempts", "esr")
"""Scores of a valid trial: of its first and last attempt (0-100), their number, and whether it corrected itself."""


def scores(trial: Trial) -> dict[str, float]:
    """The scores of a trial, empty unless it is valid."""
    found = trial.scores
    if trial.status != "ok" or not found:
        return {}
    corrected = float(len(found) > 1 and found[-1] > found[0])
    return dict(zip(SCORERS, (found[0], found[-1], float(len(found)), corrected), strict=True))


@dataclass
class _Means:
    """Sums per arm and scorer, while the samples go by."""

    sums: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    samples: int = 0
    completed: int = 0

    def add(self, arm: str, values: Mapping[str, float]) -> None:
        self.samples += 1
        self.completed += bool(values)
        for name, value in values.items():
            count, total = self.sums.get((arm, name), (0, 0.0))
            self.sums[arm, name] = count + 1, total + value


def export_inspect(
    run: RunReader, out: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None
) -> int:
    """Write a run's trials as an Inspect log to `out` (*.eval), whole or not at all; returns how many.

    Raises InputError without Inspect or for another file ending, StoreError.
    """
    target = Path(out)
    if target.suffix != ".eval":
        raise InputError(f"an Inspect log must end in .eval, not {target.name!r}; give --out NAME.eval")
    try:
        import inspect_ai  # noqa: F401
    except ImportError:
        raise InputError("the inspect format needs Inspect; pip install 'countersteer[judge]'") from None
    temporary = target.with_name(target.name + ".part")
    with one_line(target, "write"):
        try:
            count = _write(run, temporary, progress)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return count


def _write(run: RunReader, path: Path, progress: Callable[[int, int], None] | None) -> int:
    from inspect_ai.log import EvalSample

    created = _created(run)
    ids: list[str] = []
    means = _Means()
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=5, allowZip64=True) as log,
        tempfile.TemporaryFile() as summaries,
    ):
        counts = run.trial_counts()
        eval_spec = _spec(run, created, [f"{arm}-{i}" for arm, n in sorted(counts.items()) for i in range(n)])
        log.writestr("_journal/start.json", _json({"version": 2, "eval": eval_spec, "plan": {"name": "study"}}))
        judge = run.judge
        for trial in run.trials(judge=judge):
            sample: EvalSample = _sample(trial, created, judge)
            ids.append(str(sample.id))
            log.writestr(f"samples/{sample.id}_epoch_1.json", _json(sample))
            summaries.write(b"," if means.samples else b"[")
            summaries.write(_json(sample.summary()))
            means.add(trial.plan.arm, scores(trial))
            if progress is not None:
                progress(means.samples, len(eval_spec.dataset.sample_ids))
        summaries.write(b"]" if means.samples else b"[]")
        summaries.seek(0)
        with log.open("summaries.json", "w") as entry:
            while chunk := summaries.read(1 << 20):
                entry.write(chunk)
        log.writestr("header.json", _json(_header(run, eval_spec, created, means)))
    return means.samples


def _json(value: Any) -> bytes:
    """Inspect's data or plain data as JSON bytes."""
    import json

    if isinstance(value, dict):
        plain = {
            k: v.model_dump(mode="json", exclude_none=True) if hasattr(v, "model_dump") else v for k, v in value.items()
        }
        return json.dumps(plain, ensure_ascii=False).encode("utf-8", "replace")
    return json.dumps(value.model_dump(mode="json", exclude_none=True), ensure_ascii=False).encode("utf-8", "replace")


def _created(run: RunReader) -> datetime:
    """When the study was begun: the time of its file in the run."""
    file = run.folder / "study.toml"
    return datetime.fromtimestamp(int(file.stat().st_mtime) if file.is_file() else 0, UTC)


def _spec(run: RunReader, created: datetime, ids: Sequence[str]) -> Any:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalRevision, EvalSpec

    header = run.header
    settings = header.get("settings", {})
    identity = fingerprint([run.study, header.get("inputs")])
    git = header.get("git") or {}
    revision = None
    if git.get("revision"):
        revision = EvalRevision(type="git", origin="", commit=git["revision"], dirty=git.get("dirty"))
    packages = {k: v for k, v in (header.get("packages") or {}).items() if v}
    return EvalSpec(
        eval_id=identity,
        run_id=identity,
        task_id=identity,
        created=created.isoformat(),
        task=_task(run),
        task_version=header.get("format", 0),
        task_args={"study": settings},
        dataset=EvalDataset(name=_task(run), samples=len(ids), sample_ids=list(ids)),
        model=f"countersteer/{settings.get('study', {}).get('model', 'unknown')}",
        config=EvalConfig(),
        revision=revision,
        packages=packages,
        metadata={
            "arms": run.arms(),
            "base_arm": run.base_arm,
            "judge": run.fact("judge"),
            "inputs": header.get("inputs"),
            "calibration": (run.calibration() or {}).get("digest"),
            "judging": run.judging(),
            "trace": run.fact("trace"),
            "notes": run.notes,
            "finished": run.finished,
        },
    )


def _task(run: RunReader) -> str:
    return str(run.header.get("study") or "study").removesuffix(".toml").replace(":", "-").replace("/", "-")


def _sample(trial: Trial, created: datetime, judge: str | None) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, ModelOutput, ModelUsage
    from inspect_ai.scorer import Score

    plan = trial.plan
    name = f"{plan.arm}-{plan.ordinal}"
    unique = fingerprint([plan.arm, plan.ordinal, plan.key])
    question = [ChatMessageUser(content=plan.user, id=f"{unique}-user")]
    if plan.system is not None:
        question = [ChatMessageSystem(content=plan.system, id=f"{unique}-system"), *question]  # type: ignore[list-item]
    answer = ChatMessageAssistant(content=trial.text or "", id=f"{unique}-answer", source="generate")
    usage = ModelUsage(output_tokens=trial.tokens, total_tokens=trial.tokens)
    output = ModelOutput.from_message(answer)
    output = output.model_copy(update={"model": "countersteer", "usage": usage})
    made = {
        key: Score(value=value, answer=trial.text if key == "first_attempt" else None, metadata={"judge": judge})
        for key, value in scores(trial).items()
    }
    return EvalSample(
        id=name,
        epoch=1,
        uuid=unique,
        input=plan.user,
        target="",
        messages=[*question, answer],
        output=output,
        scores=made or None,
        metadata={
            "key": plan.key,
            "arm": plan.arm,
            "latent": plan.latent,
            "label": plan.label,
            "strength": plan.strength,
            "seed": plan.seed,
            "prompt": plan.prompt,
            "prefix": plan.prefix,
            "status": trial.status,
            "reason": trial.reason,
            "grade": trial.grade,
            "receipt": trial.receipt,
        },
        events=_events(trial, unique, created),
    )


def _events(trial: Trial, unique: str, created: datetime) -> list[Any]:
    """A span per attempt with its text and score, so that a viewer shows where the answer began again."""
    from inspect_ai.event import InfoEvent, SpanBeginEvent, SpanEndEvent

    events: list[Any] = []
    for n, attempt in enumerate((trial.grade or {}).get("attempts", ()), 1):
        span = f"{unique}-attempt-{n}"
        common: dict[str, Any] = {"timestamp": created, "working_start": 0.0, "span_id": span}
        facts = {k: attempt[k] for k in ("start", "end", "score", "restart")}
        text = (trial.text or "")[attempt["start"] : attempt["end"]]
        begin = SpanBeginEvent(
            uuid=f"{span}-begin", id=span, name=f"attempt {n}", type="attempt", metadata=facts, **common
        )
        info = InfoEvent(uuid=f"{span}-text", source="countersteer", data={**facts, "text": text}, **common)
        events += [begin, info, SpanEndEvent(uuid=f"{span}-end", id=span, **common)]
    return events


def _header(run: RunReader, spec: Any, created: datetime, means: _Means) -> dict[str, Any]:
    from inspect_ai.log import EvalMetric, EvalPlan, EvalResults, EvalScore, EvalStats

    rows = []
    for scorer in SCORERS:
        of = {arm: found for (arm, name), found in means.sums.items() if name == scorer}
        if not of:
            continue
        scored = sum(count for count, _ in of.values())
        metrics = {arm: EvalMetric(name=arm, value=total / count) for arm, (count, total) in sorted(of.items())}
        left = means.samples - scored
        rows.append(
            EvalScore(name=scorer, scorer=scorer, scored_samples=scored, unscored_samples=left, metrics=metrics)
        )
    tokens = run.tokens()
    results = EvalResults(total_samples=means.samples, completed_samples=means.completed, scores=rows)
    stats = EvalStats(started_at=created.isoformat(), completed_at=created.isoformat())
    return {
        "version": 2,
        "status": "success" if run.finished else "started",
        "eval": spec,
        "plan": EvalPlan(name="study"),
        "results": results,
        "stats": stats,
        "log_updates": [],
        "tags": [],
        "metadata": {"generated_tokens": tokens["generated"]},
    }
