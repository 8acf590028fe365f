"""Beginning a run with what another run of the same study decided before its trials.

Copied are the header, the judge's references, the latents, every calibration and the planned trials; not copied are
trials' responses, grades, replies of judges and their cost, which stay counted where they were paid. So shards of one
study share one calibration, whatever hardware they run on.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from countersteer.store import schema
from countersteer.store.database import FILE
from countersteer.store.errors import RunRefusedError, one_line
from countersteer.store.run import Run

_MADE_LATER = ("grades", "replies", "requests", "resamples")
_FACTS_OF_RESULTS = ("finished", "seconds", "judges", "whole_judges", "episode_judges", "trace", "shared_judging")


def begin_from(source: str | os.PathLike[str], out: str | os.PathLike[str], *, study: str) -> bool:
    """Make the run in `out` begin with the calibration of the run in `source`; False if it was begun with it already.

    `study`: the resolved study (TOML) of both. Raises RunRefusedError if the source is of another study or not yet
    calibrated, or `out` holds a run with another calibration; StoreError.
    """
    origin, target = Path(source), Path(out)
    if origin.resolve() == target.resolve():
        raise RunRefusedError(f"{origin} cannot begin with its own calibration; give the folder of another run")
    with Run.open(origin, study=study) as run:
        if not run.fact("calibrated"):
            raise RunRefusedError(f"{origin} has no calibration yet; let it run until its trials begin")
        decided = _decided(run)
    if Run.exists(target):
        with Run.open(target, study=study) as run:
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
            db.executemany("DELETE FROM facts WHERE name = ?", ((name,) for name in _FACTS_OF_RESULTS))
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
    own = [run.fact(f"calibration:{arm}") for arm in sorted(run.arms())]
    return [run.calibration(), own, run.header.get("inputs"), run.fact("judge")]
