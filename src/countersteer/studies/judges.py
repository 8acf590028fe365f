"""From a study's [judge] section to a judge: the offline one, or a language model with its pace and its cost cap."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.trial import STATUSES
from countersteer.judging.llm_settings import JudgeSettings
from countersteer.judging.prices import Price
from countersteer.store import Run
from countersteer.store.replies import Replies
from countersteer.store.shared_replies import SharedLedger
from countersteer.studies.schema_judge import JudgeSection

Spent = Callable[[float, float | None], None]
"""Told (USD so far, cap or None) after each request."""
OFFLINE = "the offline judge asks nobody"
RETRIED = tuple(status for status in STATUSES if status not in ("ok", "uncalibrated"))
"""Statuses that `--retry-status` takes."""


@dataclass(frozen=True)
class JudgeOptions:
    """What a run may spend on its judge and how fast: nothing of it changes a grade.

    max_cost: USD of all requests of the run, earlier ones included. spent_before: USD that other parts of the same work
    have spent and that count as well. prices: a file of prices. cache: a folder of replies that several runs share.
    batch: the provider's batch interface, batch_size questions at a time.
    """

    max_cost: float | None = None
    spent_before: float = 0.0
    prices: str | None = None
    connections: int = 16
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tries: int = 8
    seconds: int = 120
    batch: bool = False
    batch_size: int | None = None
    batch_seconds: float | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        if self.max_cost is not None and not self.max_cost >= 0:
            raise InputError(f"--max-cost must be a number of USD >= 0, got {self.max_cost}")

    def require_offline(self, who: str = OFFLINE) -> None:
        """Raise InputError for what only a language model can be told; a cap and prices hold for a free judge too."""
        given = {
            "--judge-batch": self.batch,
            "--judge-batch-size": self.batch_size,
            "--judge-rpm": self.requests_per_minute,
            "--judge-tpm": self.tokens_per_minute,
            "--judge-cache": self.cache,
        }
        names = [name for name, value in given.items() if value]
        if names:
            raise InputError(f"{who}, so {', '.join(names)} cannot be honoured; leave it out")


def quiet(usd: float, cap: float | None) -> None:
    """Nobody is told what is spent."""


def settings(section: JudgeSection, options: JudgeOptions) -> JudgeSettings:
    """The settings of a study's language-model judge. Raises InputError."""
    given = {name: getattr(section, name) for name in ("temperature", "max_tokens", "seed", "structured")}
    decided = {name: value for name, value in given.items() if value is not None}
    return paced(JudgeSettings(section.model, base_url=section.base_url, **decided), options)


def paced(how: JudgeSettings, options: JudgeOptions) -> JudgeSettings:
    """Settings with the pace and the prices of a run. Raises InputError."""
    return replace(
        how,
        connections=options.connections,
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
        tries=options.tries,
        seconds=options.seconds,
        batch=options.batch,
        batch_size=options.batch_size,
        batch_seconds=options.batch_seconds,
        price_file=options.prices,
    )


def check(section: JudgeSection, options: JudgeOptions) -> None:
    """Refuse what a study's judge cannot do, before anything is loaded or written. Raises InputError."""
    if section.offline:
        options.require_offline()
    else:
        settings(section, options)


def known_price(section: JudgeSection, options: JudgeOptions) -> Price | None:
    """The price of a study's judge; None for the offline one and where it is not known."""
    return None if section.offline else settings(section, options).known_price()


class LanguageJudge:
    """A language model graded by its rubric, over the run's ledger or a shared one. Make it inside the event loop."""

    def __init__(self, section: JudgeSection, options: JudgeOptions, run: Run, spent: Spent) -> None:
        from countersteer.judging.llm import LLMJudge
        from countersteer.judging.llm_calls import Caller

        self._shared = None if options.cache is None else SharedLedger(run.replies, options.cache)
        self.ledger: Replies | SharedLedger = self._shared or run.replies
        before = float(run.fact("shared_judging", {}).get("usd", 0.0)) + options.spent_before
        self.caller = Caller(
            settings(section, options), self.ledger, max_cost=options.max_cost, spent=spent, before=before
        )
        self.judge = LLMJudge(self.caller, rubric=section.rubric or "attempts")
        spent(self.caller.budget.spent, options.max_cost)

    @property
    def workers(self) -> int:
        """How many questions to have under way, so that the judge is never idle."""
        return 2 * self.caller.settings.at_once

    @property
    def known(self) -> dict[str, Any]:
        """What a run records of its judge."""
        rubric = self.judge.rubric
        return {
            "name": self.judge.name,
            "key": self.judge.key,
            "references": None,
            "rubric": {"name": rubric.name, "version": rubric.version, "digest": rubric.digest},
            "settings": self.caller.settings.decisive,
        }

    async def concreteness(self, labels: Sequence[str]) -> list[float | None]:
        """How concrete (0-100) each label of a latent is, by the rubric of that name; None where there is no rating.

        Replies are kept like those about responses.
        """
        from countersteer.judging.llm import LLMRater

        rater = LLMRater(self.caller, "concreteness")
        ratings = await asyncio.gather(*(rater.rate(label=label) for label in labels))
        return [None if rating.value is None else rating.value.score for rating in ratings]

    def forget(self, graded: Iterable[tuple[str, str | None, str]]) -> None:
        """Drop the kept replies about these (prompt, label, text), so that they are asked again."""
        from countersteer.judging.llm import question

        keys = [
            question(self.caller.settings, self.judge.rubric, {"prompt": p, "label": label, "response": text}).key
            for p, label, text in graded
        ]
        self.ledger.forget(keys)

    async def close(self) -> None:
        """Let requests under way end and keep their replies."""
        await self.caller.close()
        if self._shared is not None:
            self._shared.close()


def check_statuses(statuses: Iterable[str]) -> tuple[str, ...]:
    """The statuses to retry. Raises InputError for one that is none."""
    given = tuple(dict.fromkeys(statuses))
    for status in given:
        if status not in RETRIED:
            raise InputError(f"--retry-status {status!r} is not one of {', '.join(RETRIED)}")
    return given


def retry(run: Run, statuses: tuple[str, ...], judge: LanguageJudge | None) -> int:
    """Make trials of these statuses missing again (response or grade, whichever failed); returns how many."""
    if not statuses:
        return 0
    regrade = [
        (trial.plan.prompt, trial.plan.label, trial.text or "")
        for trial in run.with_status(statuses)
        if trial.grade is not None
    ]
    regrade += _alone(run, statuses)
    if judge is not None:
        judge.forget(regrade)
    return run.drop(statuses, regrade)


def _alone(run: Run, statuses: tuple[str, ...]) -> list[tuple[str, str | None, str]]:
    """What was written after a given prefix and, judged by itself, ended with one of these statuses."""
    found = []
    for name, settings in run.arms().items():
        if not settings.get("judged_alone"):
            continue
        for trial in run.trials(name):
            grade = run.grade(trial.plan.prompt, trial.plan.label, trial.written) if trial.written else None
            if grade is not None and grade["status"] in statuses:
                found.append((trial.plan.prompt, trial.plan.label, trial.written))
    return found
