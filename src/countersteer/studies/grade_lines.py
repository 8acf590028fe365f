"""Grading a file of prompts and responses with a language model: `countersteer grade FILE --judge PROVIDER/NAME`.

The lines that come out are those of the offline judge (`judging.grade_file`), with the model's grades. Replies and the
ledger of requests lie beside the output, so a file that was stopped by its cost cap, a fault or a kill goes on where it
was, and nothing is paid twice; a shared folder saves what other runs asked already. One process at a time works on an
output: two would each spend up to the cap.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.reply import Ledger
from countersteer.core.trial import Grade
from countersteer.judging.grade_file import read_lines, write_lines
from countersteer.judging.llm import LLMJudge, LLMRater, Rating
from countersteer.judging.llm_calls import Caller
from countersteer.judging.llm_settings import JudgeSettings
from countersteer.judging.rubrics import load
from countersteer.store.errors import one_line
from countersteer.store.lock import FolderLock
from countersteer.store.replies import Replies
from countersteer.store.shared_replies import SharedLedger
from countersteer.studies.drive import drive
from countersteer.studies.generate import bounded
from countersteer.studies.judges import JudgeOptions, paced

BESIDE = ".replies"
"""What is added to the output's name for the folder of its replies."""


def grade_lines(
    path: str | Path, out: str | Path, *, judge: str, rubric: str = "attempts", base_url: str | None = None,
    options: JudgeOptions | None = None, progress: Callable[[int, int], None] | None = None,
    spent: Callable[[float, float | None], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Grade every line of a JSONL file and write the lines with their "grade" to `out`, in order and at once.

    `rubric`: "attempts" or a file of that kind gives "grade"; trait, coherence, recovery and episodes give "rating" (a
    line needs "trait" for the first). Returns counts: "lines", "statuses", "multi_attempt" (attempts only), "prompts",
    "judge", "judge_key", "references" (None), "requests", "usd" (all requests for this file so far). Raises
    InputError, and CountersteerError when no more calls can be made: what was replied is kept.
    """
    how = options or JudgeOptions()
    rows = read_lines(path)
    asked = load(rubric)
    settings = paced(JudgeSettings(judge, base_url=base_url), how)
    if asked.name == "concreteness":
        raise InputError("the rubric concreteness rates labels, not responses; a study uses it to choose its latents")
    if asked.name == "pairwise":
        raise InputError(
            "the rubric pairwise compares two answers, and a line holds one; a defence's scorecard uses it"
        )
    if "trait" in asked.fields and (bare := next((n for n, row in enumerate(rows, 1) if not _trait(row)), 0)):
        raise InputError(f"{path}: graded line {bare} has no 'trait', which this rubric needs; say what to look for")
    target = Path(out)
    if not target.parent.is_dir():
        raise InputError(f"cannot write {target}: there is no folder {target.parent}; choose another --out")
    folder = target.with_name(target.name + BESIDE)
    made: list[Any] = [None] * len(rows)
    found: dict[str, Any] = {}

    async def go(ledger: Ledger) -> None:
        caller = Caller(settings, ledger, max_cost=how.max_cost, spent=spent)
        judging: LLMJudge | LLMRater
        judging = LLMJudge(caller, rubric=rubric) if asked.name == "attempts" else LLMRater(caller, rubric)
        done = 0

        async def one(n: int) -> None:
            nonlocal done
            row = rows[n]
            if isinstance(judging, LLMJudge):
                made[n] = await judging.grade(row["prompt"], row["response"], label=row.get("label"))
            else:
                fields = {"prompt": row["prompt"], "response": row["response"], "label": row.get("label")}
                made[n] = await judging.rate(**fields, trait=_trait(row))
            done += 1
            if progress is not None:
                progress(done, len(rows))

        try:
            await bounded(range(len(rows)), one, workers=2 * settings.at_once)
        finally:
            await caller.close()
        found.update(judge=judging.name, judge_key=judging.key)

    with one_line(folder, "make the folder of replies"):
        folder.mkdir(parents=True, exist_ok=True)
    with closing(_Held(folder)) as held:
        own = held.replies
        if how.cache is None:
            drive(go(own))
        else:
            with closing(SharedLedger(own, how.cache)) as shared:
                drive(go(shared))
        found.update(requests=own.requests(), usd=own.spent())
    write_lines(target, [_line(row, result, asked.name) for row, result in zip(rows, made, strict=True)])
    several = {"multi_attempt": sum(len(grade.attempts) > 1 for grade in made)} if asked.name == "attempts" else {}
    return {
        "lines": len(rows),
        "statuses": dict(sorted(Counter(result.status for result in made).items())),
        **several,
        "prompts": len({row["prompt"].strip() for row in rows}),
        "references": None,
        **found,
    }


class _Held:
    """The replies of an output, held by this process alone. Raises RunRefusedError naming the process that has them."""

    def __init__(self, folder: Path) -> None:
        self._lock = FolderLock(folder)
        try:
            self.replies = Replies.shared(folder)
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Give the folder back."""
        self.replies.close()
        self._lock.release()


def _trait(row: dict[str, Any]) -> str | None:
    trait = row.get("trait")
    return trait if isinstance(trait, str) and trait.strip() else None


def _line(row: dict[str, Any], result: Grade | Rating, rubric: str) -> str:
    """A line of the output: the given one with its grade, or with its rating."""
    if isinstance(result, Grade):
        return json.dumps({**row, "grade": result.to_dict()}, ensure_ascii=False)
    value = {} if result.value is None else vars(result.value)
    rating = {"rubric": rubric, "status": result.status, "judge": result.judge, "reason": result.reason, **value}
    return json.dumps({**row, "rating": rating}, ensure_ascii=False)
