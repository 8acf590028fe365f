"""What can be asked of a run on disk: its facts, and its rows as frozen data, streamed.

Nothing here writes. A run can be read while another process writes it.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from countersteer.store.database import FILE
from countersteer.store.errors import one_line
from countersteer.store.rows import (
    PENDING,
    Answer,
    FreshAttempt,
    LatentRow,
    Planned,
    Reference,
    Resample,
    Response,
    Trial,
    response_key,
)

_PAGE = 1000
_PLANNED = "arm, ordinal, key, latent, label, strength, prompt, user, system, prefix, seed, planned_status"


class RunReader:
    """Read access to a run. `folder` is the run's folder; every error is a one-line StoreError."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self._db = connection

    @property
    def path(self) -> Path:
        """The database file."""
        return self.folder / FILE

    def _rows(self, sql: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        with one_line(self.path, "read"):
            yield from self._db.execute(sql, values)

    def fact(self, name: str, default: Any = None) -> Any:
        """A fact about the run (JSON value), or `default`."""
        for (value,) in self._rows("SELECT value FROM facts WHERE name = ?", (name,)):
            return json.loads(value)
        return default

    @property
    def header(self) -> dict[str, Any]:
        """Format version, code version, packages, device, engine, the study's settings and which were defaulted."""
        return dict(self.fact("header", {}))

    @property
    def study(self) -> str:
        """The study as resolved, TOML."""
        return str(self.fact("study", ""))

    @property
    def notes(self) -> list[str]:
        """Remarks in words, in the order they came up."""
        return list(self.fact("notes", []))

    @property
    def finished(self) -> bool:
        """Whether every planned trial has a response and a grade, or a status that says why not."""
        return bool(self.fact("finished", False))

    @property
    def judge(self) -> str | None:
        """Key of the judge whose grades this run reports, or None before the references are frozen."""
        judge = self.fact("judge")
        return None if judge is None else str(judge["key"])

    @property
    def base_arm(self) -> str:
        """Name of the arm that every contrast is against."""
        return str(self.fact("base_arm", "base"))

    def arms(self) -> dict[str, dict[str, Any]]:
        """Every arm (expanded levels included) in the study's order, with its settings; empty before the plan."""
        return dict(self.fact("arms", {}))

    def calibration(self) -> dict[str, Any] | None:
        """The frozen calibration artefact, or None (not calibrated yet, or nothing to calibrate)."""
        artefact = self.fact("calibration")
        return None if artefact is None else dict(artefact)

    def latents(self) -> list[LatentRow]:
        """The chosen latents in the order they were drawn."""
        sql = "SELECT rank, latent, label, concreteness, unit, strength, low, high, status FROM latents ORDER BY rank"
        return [LatentRow(*row) for row in self._rows(sql)]

    def references(self) -> list[Reference]:
        """The planned unsteered responses of the judge's reference set."""
        return [Reference(*row) for row in self._rows("SELECT ordinal, prompt, seed, key FROM refs ORDER BY ordinal")]

    def answers(self) -> list[Answer]:
        """The calibration's answered queries in order."""
        sql = "SELECT ordinal, latent, prompt, strength, key, status, score, text, reason FROM calibration"
        return [Answer(*row) for row in self._rows(sql + " ORDER BY ordinal")]

    def planned(self, arm: str | None = None) -> Iterator[Planned]:
        """Planned trials of one arm or of all, by arm and ordinal. Read in pages, so that writing can go on."""
        for name in sorted(self.trial_counts()) if arm is None else [arm]:
            after = -1
            while True:
                sql = f"SELECT {_PLANNED} FROM trials WHERE arm = ? AND ordinal > ? ORDER BY ordinal LIMIT {_PAGE}"
                page = [Planned(*row) for row in self._rows(sql, (name, after))]
                yield from page
                if len(page) < _PAGE:
                    break
                after = page[-1].ordinal

    def trial_counts(self) -> dict[str, int]:
        """Number of planned trials per arm."""
        return {arm: int(n) for arm, n in self._rows("SELECT arm, COUNT(*) FROM trials GROUP BY arm")}

    def response(self, key: str) -> Response | None:
        """What the engine gave for a key, or None."""
        sql = "SELECT key, status, text, token_ids, prompt_tokens, finish, receipt, reason FROM completions"
        for row in self._rows(sql + " WHERE key = ?", (key,)):
            return _response(row)
        return None

    def grade(self, prompt: str, label: str | None, text: str, *, judge: str | None = None) -> dict[str, Any] | None:
        """The grade of a response by `judge` (default: the run's own), or None."""
        judge = judge or self.judge
        key = response_key(prompt, label, text)
        for (grade,) in self._rows("SELECT grade FROM grades WHERE response = ? AND judge = ?", (key, judge)):
            return dict(json.loads(grade))
        return None

    def trials(self, arm: str | None = None, *, judge: str | None = None) -> Iterator[Trial]:
        """Trials of one arm or of all with response, status, grade and receipt, by arm and ordinal, streamed."""
        judge = judge or self.judge
        for plan in self.planned(arm):
            yield self.trial(plan, judge=judge)

    def trial(self, plan: Planned, *, judge: str | None = None) -> Trial:
        """A planned trial with all that is known of it."""
        judge = judge or self.judge
        if plan.planned_status:
            return Trial(plan, plan.planned_status, None, None, None, None, 0)
        response = self.response(plan.key)
        if response is None:
            return Trial(plan, PENDING, None, None, None, None, 0)
        tokens = len(response.token_ids)
        if response.status != "ok":
            text = response.text or None
            return Trial(plan, response.status, response.reason, text, response.receipt, None, tokens)
        text = (plan.prefix or "") + response.text
        grade = self.grade(plan.prompt, plan.label, text, judge=judge) if judge else None
        status = PENDING if grade is None else str(grade["status"])
        reason = None if grade is None else grade.get("reason")
        return Trial(plan, status, reason, text, response.receipt, grade, tokens)

    def with_status(self, statuses: Iterable[str], *, judge: str | None = None) -> Iterator[Trial]:
        """Trials of these statuses, fresh draws included."""
        wanted = set(statuses)
        judge = judge or self.judge
        for trial in self.trials(judge=judge):
            if trial.status in wanted:
                yield trial
        sql = f"SELECT {', '.join('t.' + c for c in _PLANNED.split(', '))}, r.key, r.seed FROM resamples r"
        for row in self._rows(f"{sql} JOIN trials t ON t.arm = r.arm AND t.ordinal = r.ordinal"):
            plan = Planned(**{**Planned(*row[:-2]).__dict__, "key": row[-2], "seed": row[-1]})
            trial = self.trial(plan, judge=judge)
            if trial.status in wanted:
                yield trial

    def judging(self) -> dict[str, Any]:
        """What the run's own ledger says of its judge: {"requests", "states", "usd"}."""
        states = dict(self._rows("SELECT state, COUNT(*) FROM requests GROUP BY state ORDER BY state"))
        usd = float(next(self._rows("SELECT COALESCE(SUM(cost), 0) FROM requests"))[0])
        return {"requests": sum(states.values()), "states": states, "usd": usd}

    def resamples(self, arm: str | None = None) -> Iterator[Resample]:
        """Planned fresh first attempts, by arm, ordinal and draw."""
        where, values = ("", ()) if arm is None else (" WHERE arm = ?", (arm,))
        sql = f"SELECT arm, ordinal, draw, key, seed FROM resamples{where} ORDER BY arm, ordinal, draw"
        for row in self._rows(sql, values):
            yield Resample(*row)

    def fresh_attempts(self, arm: str, *, judge: str | None = None) -> Iterator[FreshAttempt]:
        """The resampled responses of one arm with the score of their first attempt, by ordinal and draw."""
        judge = judge or self.judge
        plans: dict[int, Planned] = {}
        for row in self._rows(
            f"SELECT {_PLANNED} FROM trials WHERE arm = ? AND ordinal IN"
            " (SELECT DISTINCT ordinal FROM resamples WHERE arm = ?)",
            (arm, arm),
        ):
            plans[row[1]] = Planned(*row)
        for draw in self.resamples(arm):
            plan = plans[draw.ordinal]
            changed = Planned(**{**plan.__dict__, "key": draw.key, "seed": draw.seed})
            trial = self.trial(changed, judge=judge)
            attempts = (trial.grade or {}).get("attempts") or [{}]
            first = attempts[0].get("score")
            yield FreshAttempt(arm, draw.ordinal, draw.draw, trial.status, first, trial.text)

    def tokens(self) -> dict[str, int]:
        """Tokens of all stored responses: {"prompt": ..., "generated": ...}."""
        row = next(
            self._rows("SELECT COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(LENGTH(token_ids)), 0) FROM completions")
        )
        return {"prompt": int(row[0]), "generated": int(row[1]) // 4}

    def missing(self) -> int:
        """How many distinct responses of planned trials and resamples are not there yet."""
        sql = (
            "SELECT COUNT(*) FROM (SELECT key FROM trials WHERE planned_status IS NULL UNION SELECT key FROM resamples)"
            " WHERE key NOT IN (SELECT key FROM completions)"
        )
        return int(next(self._rows(sql))[0])


def _response(row: tuple[Any, ...]) -> Response:
    ids = array("i")
    ids.frombytes(row[3])
    receipt = None if row[6] is None else json.loads(row[6])
    return Response(row[0], row[1], row[2], tuple(ids), row[4], row[5], receipt, row[7])
