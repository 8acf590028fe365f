"""A run: the result of a study on disk, a folder with `study.toml` and `run.db`.

Every result is one transaction, so a process killed at any moment loses at most what it was generating. Writing
takes the folder's lock; reading does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from countersteer.core.trial import Grade
from countersteer.store import schema
from countersteer.store.database import FILE, connect, transaction
from countersteer.store.errors import RunRefusedError, one_line
from countersteer.store.lock import FolderLock
from countersteer.store.reading import RunReader
from countersteer.store.replies import Replies
from countersteer.store.rows import Answer, LatentRow, Planned, Reference, Resample, Response, response_key

FORMAT = 1
MAX_TEXT = 4_000_000
"""Longest text stored, in characters; a longer response is recorded as an error."""
MAX_REASON = 2_000
_PLANNED = ("refs", "latents", "trials", "resamples", "grades", "arm_latents")
_RECEIPT = json.JSONEncoder(allow_nan=False)
_GRADE = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


class Run(RunReader):
    """A run that can be read, and written when it was created or opened with `write=True`."""

    def __init__(self, folder: Path, connection: sqlite3.Connection, lock: FolderLock | None) -> None:
        super().__init__(folder, connection)
        self._lock = lock

    @classmethod
    def exists(cls, folder: str | os.PathLike[str]) -> bool:
        """Whether the folder holds a run already (a file left by a process killed before its header does not count)."""
        path = Path(folder) / FILE
        if not path.is_file() or path.stat().st_size == 0:
            return False
        connection = connect(path, write=False)
        try:
            with one_line(path, "open"):
                return schema.version(connection) > 0
        finally:
            connection.close()

    @classmethod
    def create(cls, folder: str | os.PathLike[str], study: str, header: dict[str, Any]) -> Run:
        """Make a new run in `folder` (made if missing) and hold its lock.

        `study` is the resolved study, TOML. Raises RunRefusedError if the folder holds a run already, cannot be
        written, or is in use.
        """
        where = Path(folder)
        with one_line(where, "make the run folder"):
            where.mkdir(parents=True, exist_ok=True)
        run = cls._writer(where)
        try:
            if schema.version(run._db):
                raise RunRefusedError(f"{where} holds a run already; open it, or choose another folder")
            with one_line(where, "write study.toml in"):
                _replace(where / "study.toml", study)
            with transaction(run._db, run.path):
                schema.migrate(run._db, run.path)
                run._set("header", {"format": FORMAT, **header})
                run._set("study", study)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, write: bool = False) -> Run:
        """Open a run. Raises RunRefusedError if there is none, it is of a newer version, or (to write) read-only or in
        use.
        """
        where = Path(folder)
        if write:
            if not (where / FILE).is_file():
                raise RunRefusedError(f"{where} holds no run (no {FILE}); give the folder that `run --out` wrote")
            run = cls._writer(where)
        else:
            run = cls(where, connect(where / FILE, write=False), None)
        try:
            with one_line(run.path, "open"):
                found = schema.check(run._db, run.path)
            if found == 0:
                raise RunRefusedError(f"{where} holds no finished header; delete {FILE} there and run the study again")
            if found < len(schema.MIGRATIONS):
                if not write:
                    run.close()
                    cls.open(where, write=True).close()  # brings it up to date, if nobody else is writing it
                    return cls.open(where)
                with transaction(run._db, run.path):
                    schema.migrate(run._db, run.path)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def _writer(cls, where: Path) -> Run:
        lock = FolderLock(where)
        try:
            return cls(where, connect(where / FILE, write=True), lock)
        except BaseException:
            lock.release()
            raise

    def restart(self, study: str, header: dict[str, Any]) -> None:
        """Give a run that has not begun another study. Raises RunRefusedError for one that has.

        What was planned goes; what was asked of a judge's model stays paid for.
        """
        if self.begun:
            raise RunRefusedError(f"{self.folder} holds a run that has begun; choose another folder")
        with one_line(self.folder, "write study.toml in"):
            _replace(self.folder / "study.toml", study)
        with transaction(self._db, self.path):
            for table in _PLANNED:
                self._db.execute(f"DELETE FROM {table}")
            self._db.execute("DELETE FROM facts WHERE name NOT IN ('shared_judging', 'seconds')")
            self._set("header", {"format": FORMAT, **header})
            self._set("study", study)

    def grow(self, study: str, header: dict[str, Any], *, forget: Iterable[str] = (), **facts: Any) -> None:
        """Go on with a study that holds more than before, at once: its text, the header, facts to set and to forget."""
        with one_line(self.folder, "write study.toml in"):
            _replace(self.folder / "study.toml", study)
        with transaction(self._db, self.path):
            self._db.executemany("DELETE FROM facts WHERE name = ?", ((name,) for name in forget))
            for name, value in {**facts, "header": header, "study": study, "finished": False}.items():
                self._set(name, value)

    def close(self) -> None:
        """Close the database and give the folder back. Safe to call twice."""
        with contextlib.suppress(sqlite3.Error):  # a full disk: the log stays and the next opening replays it
            self._db.close()
        if self._lock:
            self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _set(self, name: str, value: Any) -> None:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        self._db.execute(
            "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, text)
        )

    def _many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        with transaction(self._db, self.path):
            self._db.executemany(sql, rows)

    def set_facts(self, **facts: Any) -> None:
        """Record facts (JSON values) in one transaction."""
        with transaction(self._db, self.path):
            for name, value in facts.items():
                self._set(name, value)

    def note(self, text: str, *, instead_of: str | None = None) -> None:
        """Add a remark in words, once. `instead_of`: remarks that hold these words go."""
        notes = self.notes
        if text not in notes:
            self.set_facts(notes=[*(n for n in notes if instead_of is None or instead_of not in n), text])

    def plan_references(self, references: Iterable[Reference]) -> None:
        """Record the planned reference responses."""
        self._many("INSERT INTO refs VALUES (?, ?, ?, ?)", ((r.ordinal, r.prompt, r.seed, r.key) for r in references))

    def plan_latents(self, latents: Iterable[LatentRow], **facts: Any) -> None:
        """Record the chosen latents, or more of them, and what is known with them (facts), at once.

        Of a latent that is there already the unit is set, and its status taken back: it is to be calibrated.
        """
        there = {row.latent for row in self.latents()}
        with transaction(self._db, self.path):
            for row in latents:
                if row.latent in there:
                    again = "UPDATE latents SET unit = ?, status = NULL WHERE latent = ?"
                    self._db.execute(again, (row.unit, row.latent))
                else:
                    self._db.execute("INSERT INTO latents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", _values(row))
            for name, value in facts.items():
                self._set(name, value)

    def add_answer(self, answer: Answer) -> None:
        """Record one calibration answer."""
        with transaction(self._db, self.path):
            self._db.execute("INSERT OR IGNORE INTO calibration VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", _values(answer))

    def freeze_calibration(self, artefact: dict[str, Any] | None, latents: Iterable[LatentRow]) -> None:
        """Record the calibration artefact and its latents' strengths, at once. They never change afterwards.

        A later artefact, of latents that came later, is kept beside the first.
        """
        with transaction(self._db, self.path):
            if self.fact("calibration") is None:
                self._set("calibration", artefact)
            else:
                self._set("calibration_added", [*self.fact("calibration_added", []), artefact])
            self._set("calibrated", True)
            self._db.executemany(
                "UPDATE latents SET unit = ?, strength = ?, low = ?, high = ?, status = ? WHERE latent = ?",
                ((r.unit, r.strength, r.low, r.high, r.status, r.latent) for r in latents),
            )

    def plan_trials(
        self, trials: Iterable[Planned], arms: dict[str, dict[str, Any]], base_arm: str, **facts: Any
    ) -> None:
        """Record the planned trials of some arms, those arms, and facts, at once; arms already planned stay."""
        with transaction(self._db, self.path):
            marks = ", ".join("?" * 12)
            self._db.executemany(f"INSERT INTO trials VALUES ({marks})", (_values(row) for row in trials))
            for name, value in {**facts, "arms": {**self.arms(), **arms}, "base_arm": base_arm}.items():
                self._set(name, value)

    def add_resamples(self, resamples: Iterable[Resample]) -> None:
        """Record planned fresh first attempts; those already planned stay."""
        self._many("INSERT OR IGNORE INTO resamples VALUES (?, ?, ?, ?, ?)", (_values(r) for r in resamples))

    def add_response(self, response: Response) -> Response:
        """Record what the engine gave for a key, and return it as recorded (a text beyond bounds is an error)."""
        if len(response.text) > MAX_TEXT:
            reason = f"the response has {len(response.text)} characters, more than {MAX_TEXT}"
            response = Response(response.key, "error", prompt_tokens=response.prompt_tokens, reason=reason)
        self._one(
            "INSERT OR IGNORE INTO completions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                response.key,
                response.status,
                response.text,
                array("i", response.token_ids).tobytes(),
                response.prompt_tokens,
                response.finish,
                None if response.receipt is None else _RECEIPT.encode(response.receipt),
                None if response.reason is None else response.reason[:MAX_REASON],
            ),
        )
        return response

    @property
    def replies(self) -> Replies:
        """The run's own replies of language models and the ledger of requests."""
        return Replies(self._db, self.path)

    def drop(self, statuses: Iterable[str], graded: Iterable[tuple[str, str | None, str]]) -> int:
        """Make results missing again: responses of these statuses, and the run's grades of (prompt, label, text)."""
        wanted = [(status,) for status in statuses]
        keys = [(response_key(prompt, label, text), self.judge) for prompt, label, text in graded]
        with transaction(self._db, self.path):
            changed = self._db.total_changes
            self._db.executemany("DELETE FROM completions WHERE status = ?", wanted)
            self._db.executemany("DELETE FROM grades WHERE response = ? AND judge = ?", keys)
            changed = self._db.total_changes - changed
            if changed:
                self._set("finished", False)
        return changed

    def add_grade(self, prompt: str, label: str | None, text: str, grade: Grade, *, judge: str) -> None:
        """Record one judge's grade of one response."""
        self.keep_grade(response_key(prompt, label, text), grade, judge=judge)

    def keep_grade(self, response: str, grade: Grade, *, judge: str) -> None:
        """Record one judge's grade of the response of this key (`rows.response_key`)."""
        row = (response, judge, grade.status, _GRADE.encode(grade.to_dict()))
        self._one("INSERT OR IGNORE INTO grades VALUES (?, ?, ?, ?)", row)

    def kept_grade(self, response: str, *, judge: str) -> Grade | None:
        """The grade of the response of this key by a judge, or None."""
        for (text,) in self._rows("SELECT grade FROM grades WHERE response = ? AND judge = ?", (response, judge)):
            return Grade.from_dict(json.loads(text))
        return None

    def _one(self, sql: str, values: Sequence[Any]) -> None:
        """One statement, which is a transaction of its own. Raises StoreError in one line."""
        try:
            self._db.execute(sql, values)
        except (sqlite3.Error, OSError):
            with one_line(self.path, "write to"):
                raise


def _values(row: Any) -> tuple[Any, ...]:
    return tuple(vars(row).values())


def _replace(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
