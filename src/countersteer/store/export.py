"""Writing a run's trials to other formats: JSON Lines (one line per trial, sorted by arm and key), Parquet, Inspect."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError, nearest
from countersteer.core.trial import OK
from countersteer.store.errors import one_line
from countersteer.store.reading import RunReader
from countersteer.store.rows import Trial

FORMATS = ("jsonl", "parquet", "inspect")


def record(trial: Trial) -> dict[str, Any]:
    """One exported trial: key, arm, latent, label, strength, prompt, seed, text, status, grade, receipt.

    One that is missing has a reason in words as well, where there is one.
    """
    plan = trial.plan
    why = {} if trial.status == OK or trial.reason is None else {"reason": trial.reason}
    return {
        "key": plan.key,
        "arm": plan.arm,
        "latent": plan.latent,
        "label": plan.label,
        "strength": plan.strength,
        "prompt": plan.prompt,
        "seed": plan.seed,
        "text": trial.text,
        "status": trial.status,
        **why,
        "grade": trial.grade,
        "receipt": trial.receipt,
    }


def records(run: RunReader) -> Iterator[dict[str, Any]]:
    """Every trial of a run as plain data, sorted by (arm, key), ties by the order of the plan."""
    judge = run.judge
    for arm in sorted(run.trial_counts()):
        for plan in sorted(run.planned(arm), key=lambda p: (p.key, p.ordinal)):
            yield record(run.trial(plan, judge=judge))


def lines(run: RunReader) -> Iterator[str]:
    """`records` as JSON Lines, without line ends."""
    for item in records(run):
        yield json.dumps(item, ensure_ascii=False, allow_nan=False)


def export(
    run: RunReader, out: str | os.PathLike[str], *, form: str = "jsonl",
    progress: Callable[[int, int], None] | None = None,
) -> int:  # fmt: skip
    """Write a run's trials to `out`, whole or not at all; returns how many. Raises InputError, StoreError.

    `progress(done, total)`: trials written.
    """
    if form not in FORMATS:
        raise InputError(f"unknown export format {form!r}{nearest(form, FORMATS)}; known: {', '.join(FORMATS)}")
    if not Path(out).name or Path(out).is_dir():
        raise InputError(f"--out {out} is a folder; name a file in it")
    if form == "parquet":
        from countersteer.store.export_parquet import export_parquet

        return export_parquet(run, out, progress=progress)
    if form == "inspect":
        from countersteer.store.export_inspect import export_inspect

        return export_inspect(run, out, progress=progress)
    target = Path(out)
    temporary = target.with_name(target.name + ".part")
    count, total = 0, sum(run.trial_counts().values())
    with one_line(target, "write"):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                for line in lines(run):
                    file.write(f"{line}\n")
                    count += 1
                    if progress is not None:
                        progress(count, total)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return count
