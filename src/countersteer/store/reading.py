"""What can be asked of a run on disk: its facts, and its rows as frozen data, streamed.

Nothing here writes. A run can be read while another process writes it.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from countersteer.store.facts import RunFacts
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


class RunReader(RunFacts):
    """Read access to a run, facts and rows. Every error is a one-line StoreError."""

    def latents(self) -> list[LatentRow]:
        """The chosen latents in the order they were drawn."""
        sql = "SELECT rank, latent, label, concreteness, unit, strength, low, high, status FROM latents ORDER BY rank"
        return [LatentRow(*row) for row in self._rows(sql)]

    def references(self) -> list[Reference]:
        """The planned unsteered responses of the judge's reference set."""
        return [Reference(*row) for row in self._rows("SELECT ordinal, prompt, seed, key FROM refs ORDER BY ordinal")]

    def reference_texts(self) -> dict[str, list[str]]:
        """The unsteered responses of the reference set by prompt, as far as they are there, empty ones left out."""
        texts: dict[str, list[str]] = {}
        for planned in self.references():
            response = self.response(planned.key)
            if response is not None and response.status == "ok" and response.text.strip():
                texts.setdefault(planned.prompt, []).append(response.text)
        return texts

    def answers(self) -> list[Answer]:
        """The calibration's answered queries in order."""
        sql = "SELECT ordinal, latent, prompt, strength, key, status, score, text, reason FROM calibration"
        return [Answer(*row) for row in self._rows(sql + " ORDER BY ordinal")]

    def planned(self, arm: str | None = None) -> Iterator[Planned]:
        """Planned trials of one arm or of all, by arm and ordinal. Read in pages, so that writing can go on."""
        for page in self._pages(arm):
            yield from page

    def _pages(self, arm: str | None) -> Iterator[list[Planned]]:
        for name in sorted(self.trial_counts()) if arm is None else [arm]:
            after = -1
            while True:
                sql = f"SELECT {_PLANNED} FROM trials WHERE arm = ? AND ordinal > ? ORDER BY ordinal LIMIT {_PAGE}"
                page = [Planned(*row) for row in self._rows(sql, (name, after))]
                yield page
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
        for page in self._pages(arm):
            yield from self._filled(page, judge)

    def trial(self, plan: Planned, *, judge: str | None = None) -> Trial:
        """A planned trial with all that is known of it."""
        return self._filled([plan], judge or self.judge)[0]

    def _filled(self, plans: Sequence[Planned], judge: str | None) -> list[Trial]:
        """Planned trials with all that is known of them, in order: two queries for a whole page."""
        wanted = [plan.key for plan in plans if not plan.planned_status]
        sql = "SELECT key, status, text, LENGTH(token_ids), receipt, reason, finish FROM completions WHERE key"
        responses = {row[0]: row for row in self._among(sql, wanted)}
        graded: list[str | None] = []
        own = "imported" in self.header  # a published judge may grade equal texts differently
        for plan in plans:
            row = responses.get(plan.key) if judge and not plan.planned_status else None
            told = None if row is None or row[1] != "ok" else (plan.prefix or "") + row[2]
            graded.append(None if told is None else response_key(plan.prompt, plan.label, told))
        sql = "SELECT response, grade FROM grades WHERE judge = ? AND response"
        grades = dict(self._among(sql, [key for key in graded if key is not None], judge))
        given = dict(self._among(sql, wanted, judge)) if own else {}
        return [
            _trial(plan, responses.get(plan.key), given.get(plan.key, None if key is None else grades.get(key)))
            for plan, key in zip(plans, graded, strict=True)
        ]

    def _among(self, sql: str, keys: Sequence[str], *first: Any) -> Iterator[tuple[Any, ...]]:
        """Rows of a query whose last column is one of `keys`."""
        for start in range(0, len(keys), _PAGE):
            part = keys[start : start + _PAGE]
            yield from self._rows(f"{sql} IN ({', '.join('?' * len(part))})", (*first, *part))

    def with_status(self, statuses: Iterable[str], *, judge: str | None = None) -> Iterator[Trial]:
        """Trials of these statuses, fresh draws included."""
        wanted = set(statuses)
        judge = judge or self.judge
        for trial in self.trials(judge=judge):
            if trial.status in wanted:
                yield trial
        sql = f"SELECT {', '.join('t.' + c for c in _PLANNED.split(', '))}, r.key, r.seed FROM resamples r"
        rows = list(self._rows(f"{sql} JOIN trials t ON t.arm = r.arm AND t.ordinal = r.ordinal"))
        plans = [replace(Planned(*row[:-2]), key=row[-2], seed=row[-1]) for row in rows]
        for start in range(0, len(plans), _PAGE):
            yield from (t for t in self._filled(plans[start : start + _PAGE], judge) if t.status in wanted)

    def judging(self) -> dict[str, Any]:
        """What the run asked of language models: {"requests", "states", "usd", "unpriced", "input_tokens", ...}.

        From its own ledger, and from the count that it keeps of what it asked through a shared one. A request whose end
        is not known counts with the most it can have cost; `unpriced` replies have no known price and are not in `usd`.
        """
        states = dict(self._rows("SELECT state, COUNT(*) FROM requests GROUP BY state ORDER BY state"))
        usd = float(next(self._rows("SELECT COALESCE(SUM(cost), 0) FROM requests"))[0])
        sums = "SELECT COALESCE(SUM(input + cached), 0), COALESCE(SUM(output), 0), COUNT(*) - COUNT(cost) FROM replies"
        read, written, unpriced = next(self._rows(sums))
        shared = self.fact("shared_judging", {})
        return {
            "requests": sum(states.values()) + int(shared.get("requests", 0)),
            "states": states,
            "usd": usd + float(shared.get("usd", 0.0)),
            "unpriced": int(unpriced) + int(shared.get("unpriced", 0)),
            "input_tokens": int(read) + int(shared.get("input_tokens", 0)),
            "output_tokens": int(written) + int(shared.get("output_tokens", 0)),
        }

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
        draws = list(self.resamples(arm))
        for start in range(0, len(draws), _PAGE):
            part = draws[start : start + _PAGE]
            trials = self._filled([replace(plans[d.ordinal], key=d.key, seed=d.seed) for d in part], judge)
            for draw, trial in zip(part, trials, strict=True):
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


def _trial(plan: Planned, row: tuple[Any, ...] | None, graded: str | None) -> Trial:
    """A trial from its response (key, status, text, bytes of ids, receipt, reason, finish) and its grade (JSON)."""
    if plan.planned_status:
        return Trial(plan, plan.planned_status, None, None, None, None, 0)
    if row is None:
        return Trial(plan, PENDING, None, None, None, None, 0)
    _, status, text, size, receipt, reason, finish = row
    measured = None if receipt is None else json.loads(receipt)
    if status != "ok":
        return Trial(plan, status, reason, text or None, measured, None, size // 4, finish)
    grade = None if graded is None else dict(json.loads(graded))
    known = PENDING if grade is None else str(grade["status"])
    why = None if grade is None else grade.get("reason")
    return Trial(plan, known, why, (plan.prefix or "") + text, measured, grade, size // 4, finish)


def _response(row: tuple[Any, ...]) -> Response:
    ids = array("i")
    ids.frombytes(row[3])
    receipt = None if row[6] is None else json.loads(row[6])
    return Response(row[0], row[1], row[2], tuple(ids), row[4], row[5], receipt, row[7])
