"""Asking a language model through Inspect's model layer: one place for money, pace, retries and faults.

Every request is entered in the ledger before it leaves and settled when it ends, so requests counted are requests made
and a killed run knows what it may have spent. Retries are ours alone (the client's and Inspect's are off). Each request
runs in a task of its own: what Inspect keeps per context goes when the task ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from countersteer.core.errors import CountersteerError, InputError
from countersteer.core.reply import Ledger, Reply
from countersteer.judging.llm_batch import BatchWorker
from countersteer.judging.llm_budget import Breaker, Budget, CostCapError, JudgeDownError, Pace
from countersteer.judging.llm_redact import Redactor
from countersteer.judging.llm_settings import JudgeSettings
from countersteer.judging.parse import bounded

log = logging.getLogger(__name__)
_LONGEST_WAIT = 600.0
_SCHEMA_OVERHEAD = 256


class CallFailed(Exception):
    """One call failed for good; the message is the reason, without secrets."""


class JudgeRefusedError(CountersteerError):
    """The provider refuses every call (key, rights, model name, quota): going on is pointless."""


@dataclass(frozen=True)
class Question:
    """What is asked: `key` identifies it with the settings; `judge` names who asks, for the ledger."""

    key: str
    judge: str
    system: str
    user: str
    schema: dict[str, Any]
    schema_name: str


@dataclass(frozen=True)
class Waits:
    """Seconds between tries: `first` doubling up to `longest`, half of it drawn at random."""

    first: float = 0.5
    longest: float = 60.0

    def seconds(self, attempt: int) -> float:
        """How long to wait before try `attempt` + 1."""
        full = min(self.first * 2**attempt, self.longest)
        return full * random.uniform(0.5, 1.0)


@dataclass
class Used:
    """What one caller used: requests made, USD, tokens of the replies that came, replies without a known price."""

    requests: int = 0
    usd: float = 0.0
    unpriced: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class Caller:
    """Answers questions from the ledger, else by asking the model. Use inside one event loop; `close` when done.

    `spent` is called after each request with (USD so far, cap or None). Raises InputError for a model that Inspect
    cannot load and for a cap without a known price.
    """

    def __init__(
        self,
        settings: JudgeSettings,
        ledger: Ledger,
        *,
        max_cost: float | None = None,
        waits: Waits | None = None,
        breaker: Breaker | None = None,
        spent: Callable[[float, float | None], None] | None = None,
    ) -> None:
        self.settings = settings
        self.price = settings.known_price()
        if max_cost is not None and self.price is None:
            raise InputError(
                f"--max-cost needs the price of {settings.model}, which is not in the price table; give"
                " --prices FILE with an entry for it"
            )
        self._ledger = ledger
        self.budget = Budget(max_cost, ledger.spent())
        self.used = Used()
        self._pace = Pace(settings.requests_per_minute, settings.tokens_per_minute)
        self._breaker = breaker or Breaker()
        self._waits = waits or Waits()
        self._redact = Redactor.of()
        self._room = asyncio.Semaphore(settings.at_once)
        self._busy: dict[str, asyncio.Task[Reply]] = {}
        self._spent = spent
        self._closed = self._answered = False
        self._refused: JudgeRefusedError | None = None
        self._structured: bool | None = None if settings.structured else False
        self._model = load_model(settings, self._redact)
        self._worker = BatchWorker(self._redact) if settings.batch else None
        self._retired: list[Any] = []
        self._configs: dict[tuple[str, str | None], Any] = {}

    async def ask(self, question: Question) -> Reply:
        """The reply to a question. Raises CallFailed, and CountersteerError when no call can be made any more."""
        kept = self._ledger.reply(question.key)
        if kept is not None:
            return kept
        task = self._busy.get(question.key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._tried(question))
            self._busy[question.key] = task
            task.add_done_callback(lambda done: self._forget(question.key, done))
        return await asyncio.shield(task)

    def _forget(self, key: str, task: asyncio.Task[Reply]) -> None:
        self._busy.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever asked has been told

    async def close(self, *, grace: float = 30.0) -> None:
        """Let requests under way end, for at most `grace` seconds, so that what is paid for is kept; start no other."""
        self._closed = True
        tasks = list(self._busy.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._worker is not None:
            self._worker.close()
        for model in (self._model, *self._retired):
            with contextlib.suppress(Exception):  # a client that cannot be closed holds nothing of ours
                await model.api.aclose()

    async def _tried(self, question: Question) -> Reply:
        """Try until there is a reply."""
        async with self._room:
            reason = ""
            for attempt in range(self.settings.tries):
                if self._refused is not None:
                    raise self._refused
                if self._closed:
                    raise CallFailed("the judge was closed before it was asked")
                await self._breaker.enter()
                try:
                    return await self._once(question)
                except _Again as again:
                    reason = again.reason
                    if again.everyone:
                        self._pace.pause(min(again.wait or self._waits.seconds(attempt), _LONGEST_WAIT))
                    elif not again.at_once:
                        await asyncio.sleep(min(again.wait or self._waits.seconds(attempt), _LONGEST_WAIT))
            raise CallFailed(f"gave up after {self.settings.tries} tries, last: {reason}")

    def _worst(self, question: Question) -> float:
        if self.price is None:
            return 0.0
        schema = len(str(question.schema)) + _SCHEMA_OVERHEAD if self._structured is not False else 0
        return self.price.worst(question.system + question.user + " " * schema, self.settings.max_tokens)

    async def _once(self, question: Question) -> Reply:
        """One request, from its reservation to its settlement."""
        worst = self._worst(question)
        try:
            await self._pace.turn((len(question.system) + len(question.user)) // 4 + self.settings.max_tokens)
            await self.budget.reserve(worst)
        except BaseException:
            self._breaker.neutral()
            raise
        try:
            number = self._ledger.begin(question.key, question.judge, worst)
        except BaseException:
            self._breaker.neutral()
            self.budget.settle(worst, 0.0)
            raise
        self.used.requests += 1
        worker = self._worker
        try:
            output = await self._generate(question)
        except asyncio.CancelledError:
            self._end(number, "lost", worst, worst, "cancelled")
            self._breaker.neutral()
            raise
        except Exception as error:
            self._renew(worker)
            raise self._failure(error, number, worst) from None
        reply = self._reply(output, worst)
        self.budget.settle(worst, reply.cost or 0.0)
        self.used.usd += reply.cost or 0.0
        self.used.unpriced += reply.cost is None
        self.used.input_tokens += reply.input_tokens + reply.cached_tokens
        self.used.output_tokens += reply.output_tokens
        self._ledger.end(number, "ok", reply.cost or 0.0, reply=reply)
        self._breaker.success()
        self._answered = True
        self._tell()
        if self._structured is None:
            self._structured = True
        return reply

    def _renew(self, used: BatchWorker | None) -> None:
        """A model whose batches have ended for good is put aside, once: later questions go to a new one."""
        if used is not None and used is self._worker and used.broken:
            self._retired.append(self._model)
            self._model, self._worker = load_model(self.settings, self._redact), BatchWorker(self._redact)

    async def _generate(self, question: Question) -> Any:
        """Ask the provider through its Inspect API.

        What Inspect's `Model` adds around that (retries, slots, a record of every call) is done here already, and would
        cost more than all the rest of a grade.
        """
        from inspect_ai.model import ChatMessageSystem, ChatMessageUser

        messages = [ChatMessageSystem(content=question.system), ChatMessageUser(content=question.user)]
        api, config = self._model.api, self._config(question)
        if self._worker is not None:
            result = await self._worker.run(lambda: api.generate(messages, [], "none", config))
        else:
            async with asyncio.timeout(self.settings.seconds):
                result = await api.generate(messages, [], "none", config)
        output = result[0] if isinstance(result, tuple) else result
        if isinstance(output, Exception):
            raise output
        return output

    def _config(self, question: Question) -> Any:
        """The model's settings with the question's schema, if it takes one. A copy: a provider may change it."""
        from inspect_ai.model import GenerateConfig

        schema = json.dumps(question.schema) if self._structured is not False else None
        made = self._configs.get((question.schema_name, schema))
        if made is None:
            own = GenerateConfig()
            if schema is not None:
                own = GenerateConfig(response_schema=_schema(question.schema_name, schema))
            made = self._configs[question.schema_name, schema] = self._model.config.merge(own)
        return made.model_copy()

    def _reply(self, output: Any, worst: float) -> Reply:
        usage = output.usage
        text = self._redact(output.completion or "")
        if usage is None:  # not told what it cost: count the most it can have cost
            return Reply(bounded(text), _stop(output), 0, 0, 0, None if self.price is None else worst)
        cached = usage.input_tokens_cache_read or 0
        fresh = usage.input_tokens + (usage.input_tokens_cache_write or 0)
        cost = None
        if self.price is not None:
            written = 1.25 if usage.input_tokens_cache_write else 1.0
            cost = self.price.cost(input=round(fresh * written), output=usage.output_tokens, cached=cached)
        return Reply(bounded(text), _stop(output), fresh, usage.output_tokens, cached, cost)

    def _end(self, number: int, state: str, worst: float, cost: float, reason: str) -> None:
        self.budget.settle(worst, cost)
        self.used.usd += cost
        self._ledger.end(number, state, cost, reason=reason)
        self._tell()

    def _failure(self, error: Exception, number: int, worst: float) -> Exception:
        """Settle a failed request and say what its failure means."""
        found = classify(error, self._model)
        reason = self._redact.one_line(found.error)
        self._end(number, "refused" if found.status else "lost", worst, 0.0 if found.status else worst, reason)
        log.debug("judge request %d failed: %s", number, reason)
        if found.fatal or (found.status in (403, 404) and not self._answered and self._structured is not None):
            self._breaker.neutral()
            self._refused = JudgeRefusedError(
                f"{self.settings.model} refuses to judge: {reason}; check the model's name, its key and its quota"
            )
            return self._refused
        if found.kind == "bad":
            self._breaker.neutral()
            if self._structured is None and found.status in (400, 403, 404, 422):
                self._structured = False  # the provider may not know structured output: ask once more without
                return _Again(reason, None, at_once=True)
            return CallFailed(reason)
        if found.kind == "rate":
            self._breaker.neutral()
            return _Again(reason, found.wait, everyone=True)
        self._breaker.failure(reason)
        return _Again(reason, found.wait)

    def _tell(self) -> None:
        if self._spent is not None:
            self._spent(self.budget.spent, self.budget.cap)


class _Again(Exception):
    """A try failed in a way that another one may not."""

    def __init__(self, reason: str, wait: float | None, *, everyone: bool = False, at_once: bool = False) -> None:
        self.reason, self.wait, self.everyone, self.at_once = reason, wait, everyone, at_once


@dataclass(frozen=True)
class Failure:
    """What a failed request means. `status`: HTTP status, None if there was no answer, so that it may be billed."""

    error: BaseException
    kind: str
    status: int | None
    wait: float | None
    fatal: bool = False


def classify(error: BaseException, model: Any) -> Failure:
    """Sort an error of Inspect or a provider's client into rate, transient or bad, with the wait it asks for."""
    inner = error
    last = getattr(error, "last_attempt", None)
    if last is not None and last.exception() is not None:
        inner = last.exception()
    cause = inner.__cause__ if type(inner).__name__ == "ModelGenerateError" and inner.__cause__ else inner
    status = getattr(cause, "status_code", None) or getattr(inner, "status_code", None)
    status = status if isinstance(status, int) and status >= 400 else None
    wait = None
    retry = status is None
    with contextlib.suppress(Exception):  # a provider's own judgement, where it has one
        decision = model.api.should_retry(cause)
        retry = retry or bool(decision)
        wait = getattr(decision, "retry_after", None)
        if getattr(decision, "kind", "") == "rate_limit" and status is None:
            status = 429
    text = str(getattr(cause, "body", "") or cause)
    if status == 429:
        return Failure(cause, "rate", status, wait, fatal="insufficient_quota" in text)
    if status is not None and (status >= 500 or status in (408, 409, 425) or retry):
        return Failure(cause, "transient", status, wait)
    return Failure(cause, "bad" if status is not None else "transient", status, wait, fatal=status == 401)


@cache
def _schema(name: str, schema: str) -> Any:
    """A response schema that is shared, not copied: Inspect copies the configuration of every call several times."""
    from inspect_ai.model import ResponseSchema
    from inspect_ai.util import JSONSchema

    class Shared(ResponseSchema):
        def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Shared:
            return self

    return Shared(name=name, json_schema=JSONSchema.model_validate_json(schema))


def _stop(output: Any) -> str:
    return str(output.choices[0].stop_reason) if output.choices else "unknown"


def load_model(settings: JudgeSettings, redact: Redactor) -> Any:
    """The Inspect model of a judge, its own retries off. Raises InputError."""
    try:
        from inspect_ai.model import BatchConfig, GenerateConfig, get_model
    except ImportError:
        raise InputError(
            f"judge {settings.model} needs Inspect, which is not installed; pip install 'countersteer[judge]'"
        ) from None
    every = settings.batch_seconds
    config = GenerateConfig(
        max_retries=0,
        attempt_timeout=None if settings.batch else settings.seconds,
        max_connections=settings.at_once,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        batch=BatchConfig(size=settings.batch_size, tick=every, send_delay=every) if settings.batch else None,
    )
    try:
        model = get_model(settings.model, config=config, base_url=settings.base_url, memoize=False)
    except Exception as error:  # Inspect raises many kinds for a missing key, package or provider
        raise InputError(f"judge {settings.model} cannot be used: {redact.one_line(error)}") from None
    client: Any = getattr(model.api, "client", None)
    if hasattr(client, "max_retries"):
        client.max_retries = 0
    return model


__all__ = ["CallFailed", "Caller", "CostCapError", "JudgeDownError", "JudgeRefusedError", "Question", "Waits"]
