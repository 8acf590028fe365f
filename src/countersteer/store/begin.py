"""Beginning a run with what another run of the same study decided before its trials.

Copied are the header, the judge's references, the latents, every calibration and the planned trials; not copied are
trials' responses, grades, replies of judges and their cost, which stay counted where they were paid. So shards of one
study share one calibration, whatever hardware they run on, and a study with other arms need not calibrate again.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from countersteer.store import schema
from countersteer.store.database import FILE
from countersteer.store.errors import RunRefusedError, one_line
from countersteer.store.run import Run

_MADE_LATER = ("grades", "replies", "requests", "resamples")
_FACTS_OF_RESULTS = (
    "finished", "seconds", "judges", "whole_judges", "episode_judges", "trace", "shared_judging", "detectors_steered",
    "grown",
)  # fmt: skip
_FACTS_OF_ARMS = ("calibration", "calibrated", "calibration_added", "directions")
_TABLES_OF_ARMS = ("trials", "arm_latents", "arm_calibration")


def begin_from(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, study: str, header: Mapping[str, Any],
    arms: Collection[str],
) -> bool:  # fmt: skip
    """Make the run in `out` begin with the calibration of the run in `source`; False if it was begun with it already.

    `study` (TOML) and `header` are those of the new run, `arms` the arms whose plans are taken over. Raises
    RunRefusedError if `out` holds a run with another calibration; StoreError.
    """
    origin, target = Path(source), Path(out)
    if origin.resolve() == target.resolve():
        raise RunRefusedError(f"{origin} cannot begin with its own calibration; give the folder of another run")
    with Run.open(origin) as run:
        decided = _decided(run)
        dropped = [name for name in run.arms() if name not in arms]
        facts = {
            "arms": {name: arm for name, arm in run.arms().items() if name in arms},
            "random_sets": {
                root: sets for root, sets in run.fact("random_sets", {}).items()
                if any(name.split("@", 1)[0] == root for name in arms)
            },
            "planned_steps": {name: n for name, n in run.fact("planned_steps", {}).items() if name in arms},
            "study": study,
            "header": {**header, "taken_over": origin.name},
        }  # fmt: skip
    if Run.exists(target):
        with Run.open(target) as run:
            if run.begun and _decided(run) == decided:
                return False
        raise RunRefusedError(f"{target} was begun without the calibration of {origin}; choose another folder")
    with one_line(target, "make the run folder"):
        target.mkdir(parents=True, exist_ok=True)
        (target / "study.toml").write_text(study, encoding="utf-8")
    partial = target / (FILE + ".part")
    partial.unlink(missing_ok=True)
    try:
        with one_line(origin, "copy"), closing(sqlite3.connect(origin / FILE)) as copied:
            copied.execute("VACUUM INTO ?", (str(partial),))
        with one_line(target, "write to"), closing(sqlite3.connect(partial, isolation_level=None)) as db:
            schema.check(db, partial)
            db.execute("BEGIN")
            db.execute("DELETE FROM completions WHERE key NOT IN (SELECT key FROM refs)")
            for table in _MADE_LATER:
                db.execute(f"DELETE FROM {table}")
            for table in _TABLES_OF_ARMS:
                db.executemany(f"DELETE FROM {table} WHERE arm = ?", ((name,) for name in dropped))
            gone = [*_FACTS_OF_RESULTS, *(f"{fact}:{name}" for fact in _FACTS_OF_ARMS for name in dropped)]
            db.executemany("DELETE FROM facts WHERE name = ?", ((name,) for name in gone))
            for name, value in facts.items():
                told = json.dumps(value, ensure_ascii=False, allow_nan=False)
                db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, told))
            db.execute("COMMIT")
            db.execute("VACUUM")
        with one_line(target, "write to"):
            os.replace(partial, target / FILE)
    finally:
        partial.unlink(missing_ok=True)
    with Run.open(target, write=True) as run:
        run.note(f"references, latents, calibration and plan were taken over from another run ({origin.name})")
    return True


def _decided(run: Run) -> list[object]:
    """What two runs with one calibration have in common."""
    given = run.header.get("inputs", {})
    return [run.calibration(), run.fact("judge"), *(given.get(name) for name in ("model", "engine", "sae", "prompts"))]
