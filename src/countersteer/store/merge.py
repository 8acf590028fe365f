"""Merging shards: runs of one study, each with a part of the responses and grades, into one run.

Shards must agree on everything that was decided before the trials: study, model, SAE, prompts, judge, latents,
calibration, plan. Where two hold the same response or grade, they must hold the same text.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint
from countersteer.store.database import FILE
from countersteer.store.errors import RunRefusedError, one_line
from countersteer.store.run import Run

_UNION = {
    "completions": ("key", "text"),
    "grades": ("response || judge", "grade"),
    "calibration": ("ordinal", "key"),
    "resamples": ("arm || ' ' || ordinal || ' ' || draw", "key"),
    "replies": ("key", "text"),
}
"""Tables whose rows are put together: what identifies a row, and what must then agree."""
_SAME = ("latents", "refs", "trials")


def merge(
    shards: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Merge runs into a new one in `out`; returns {"run", "shards", "responses", "grades", "missing", "finished"}.

    `progress(done, total)`: shards put in. Raises InputError, RunRefusedError (shards that do not belong
    together, `out` in use), StoreError.
    """
    folders = [Path(shard) for shard in shards]
    if len(folders) < 2:
        raise InputError("merging needs at least two runs")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("the same run is given twice; give each shard once")
    target = Path(out)
    if Run.exists(target):
        raise RunRefusedError(f"{target} holds a run already; choose another folder with --out")
    _check(folders)
    with one_line(target, "make the run folder"):
        target.mkdir(parents=True, exist_ok=True)
        (target / "study.toml").write_bytes((folders[0] / "study.toml").read_bytes())
    partial = target / (FILE + ".part")
    partial.unlink(missing_ok=True)
    try:
        with one_line(target, "merge into"), closing(sqlite3.connect(folders[0] / FILE)) as first:
            first.execute("VACUUM INTO ?", (str(partial),))
        with one_line(target, "merge into"), closing(sqlite3.connect(partial, isolation_level=None)) as into:
            for number, folder in enumerate(folders[1:], 2):
                _add(into, folder)
                if progress is not None:
                    progress(number, len(folders))
        os.replace(partial, target / FILE)
    finally:
        partial.unlink(missing_ok=True)
    return _finish(target, folders)


def _check(folders: Sequence[Path]) -> None:
    """Raise unless all shards were planned alike."""
    known: dict[str, Any] = {}
    for folder in folders:
        with Run.open(folder) as run:
            if not run.arms():
                raise RunRefusedError(f"{folder} has no planned trials yet; let it run until its trials begin")
            facts = {
                "study": run.header.get("identity", run.study),
                "inputs": run.header.get("inputs"),
                "judge": run.fact("judge"),
                "calibration": [run.fact("calibration"), run.fact("calibration_added")],
                "arms": run.arms(),
                **{table: _digest(run, table) for table in _SAME},
            }
        for name, value in facts.items():
            if known.setdefault(name, value) != value:
                raise RunRefusedError(
                    f"{folder} has another {name} than {folders[0]}; only shards of one run can merge"
                )


def _digest(run: Run, table: str) -> str:
    keep = {"latents": "rank", "refs": "ordinal", "trials": "arm, ordinal"}[table]
    rolling = ""
    for row in run._rows(f"SELECT * FROM {table} ORDER BY {keep}"):
        rolling = fingerprint([rolling, list(row)])
    return rolling


def _add(into: sqlite3.Connection, folder: Path) -> None:
    """Add the rows that a shard has more. Raises RunRefusedError where two shards disagree."""
    into.execute("ATTACH ? AS shard", (f"{(folder / FILE).resolve()}",))
    try:
        into.execute("BEGIN IMMEDIATE")
        tables = {name for (name,) in into.execute("SELECT name FROM shard.sqlite_master WHERE type = 'table'")}
        for table, (identity, content) in _UNION.items():
            if table not in tables:
                continue
            a, b = (_of(alias, identity) for alias in ("a", "b"))
            clash = into.execute(
                f"SELECT {a} FROM main.{table} a JOIN shard.{table} b ON {a} = {b}"
                f" WHERE a.{content} <> b.{content} LIMIT 1"
            ).fetchone()
            if clash:
                raise RunRefusedError(
                    f"{folder} holds another entry in {table} for {str(clash[0])[:40]} than the shards before it;"
                    " one of them was made with other software or hardware, leave it out"
                )
            into.execute(f"INSERT OR IGNORE INTO main.{table} SELECT * FROM shard.{table}")
        if "requests" in tables:
            into.execute(
                "INSERT INTO main.requests (key, judge, state, cost, reason)"
                " SELECT key, judge, state, cost, reason FROM shard.requests"
            )
        into.execute("COMMIT")
    except BaseException:
        if into.in_transaction:
            into.execute("ROLLBACK")
        raise
    finally:
        into.execute("DETACH shard")


def _of(alias: str, identity: str) -> str:
    """The identifying expression with its columns taken from one of two tables."""
    parts = [part.strip() for part in identity.split("||")]
    return " || ".join(part if part.startswith("'") else f"{alias}.{part}" for part in parts)


def _finish(target: Path, folders: Sequence[Path]) -> dict[str, Any]:
    """Say whether the merged run is whole: each trial with a response and a grade. Add up what shared ledgers paid."""
    shared: dict[str, Any] = {}
    for folder in folders:
        with Run.open(folder) as shard:
            for name, value in shard.fact("shared_judging", {}).items():
                shared[name] = shared.get(name, 0) + value
    with Run.open(target, write=True) as run:
        if shared:
            run.set_facts(shared_judging=shared)
        missing = run.missing()
        ungraded = sum(trial.status == "pending" for trial in run.trials())
        finished = missing == 0 and ungraded == 0
        run.set_facts(finished=finished)
        responses = int(next(run._rows("SELECT COUNT(*) FROM completions"))[0])
        grades = int(next(run._rows("SELECT COUNT(*) FROM grades"))[0])
    return {
        "run": str(target),
        "shards": len(folders),
        "responses": responses,
        "grades": grades,
        "missing": missing + ungraded,
        "finished": finished,
    }
