"""Asking a language model through Inspect's model layer: one place for money, pace, retries and faults.

Every request is entered in the ledger before it leaves and settled when it ends, so requests counted are requests made
and a killed run knows what it may have spent. Retries are ours alone (the client's and Inspect's are off). Each request
runs in a task of its own: what Inspect keeps per context goes when the task ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from countersteer.core.errors import CountersteerError
from countersteer.core.reply import Ledger, Reply
from countersteer.judging.llm_batch import BatchWorker
from countersteer.judging.llm_budget import Breaker, Budget, CostCapError, JudgeDownError, Pace
from countersteer.judging.llm_faults import AgainError, Failure, classify, root
from countersteer.judging.llm_model import Configs, load_model
from countersteer.judging.llm_redact import Redactor
from countersteer.judging.llm_settings import JudgeSettings
from countersteer.judging.llm_wire import SEEN
from countersteer.judging.parse import bounded, find_object

log = logging.getLogger(__name__)
_LONGEST_WAIT = 600.0
_SAID_WAIT = 10.0
"""A wait at least this long is said."""
_SCHEMA_OVERHEAD = 256
_REJECTED = 5
"""So many different questions rejected, and none ever answered: the judge takes none of them."""
_MOST_TOKENS = 10**9
"""No call has more tokens: a server that says so, or fewer than none, has not said what the call cost."""
_ELSEWHERE = 0.2
"""Seconds between looks at a question that another process is asking."""


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


class Caller:
    """Answers questions from the ledger, else by asking the model. Use inside one event loop; `close` when done.

    `spent` is called after each request with (USD so far, cap or None); `before`: USD spent that the ledger does not
    know of. Raises InputError for a model that Inspect cannot load and for a cap without a known price.
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
        before: float = 0.0,
    ) -> None:
        self.settings = settings
        self.price = settings.known_price()
        settings.require(max_cost)
        self._ledger = ledger
        self.budget = Budget(max_cost, ledger.spent() + before)
        self._pace = Pace(settings.requests_per_minute, settings.tokens_per_minute)
        self._breaker = breaker or Breaker()
        self._waits = waits or Waits()
        self._redact = Redactor.of()
        self._room = asyncio.Semaphore(settings.at_once)
        self._busy: dict[str, asyncio.Task[Reply]] = {}
        self._sent: set[str] = set()
        self._spent = spent
        self._closed = self._answered = False
        self._ever_answered = ledger.answered()
        self._rejected: set[str] = set()
        self._refused: JudgeRefusedError | None = None
        self._told: set[str] = set()
        self._structured: bool | None = None if settings.structured else False
        self._model = load_model(settings, self._redact)
        self._worker = BatchWorker(self._redact) if settings.batch else None
        self._retired: list[Any] = []
        self._configs = Configs()

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
        idle = [task for key, task in self._busy.items() if key not in self._sent]
        tasks = [task for key, task in self._busy.items() if key in self._sent]
        for task in idle:
            task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace)
            for task in late:
                task.cancel()
        await asyncio.gather(*idle, *tasks, return_exceptions=True)
        if self._worker is not None:
            self._worker.close()
        for model in (self._model, *self._retired):
            with contextlib.suppress(Exception):  # a client that cannot be closed holds nothing of ours
                await model.api.aclose()

    async def _tried(self, question: Question) -> Reply:
        """Try until there is a reply, once it is certain that no other process is asking the same."""
        async with self._room:
            while not self._ledger.claim(question.key):
                await asyncio.sleep(_ELSEWHERE)
            try:
                kept = self._ledger.reply(question.key)  # it may have come while this one waited
                return kept if kept is not None else await self._tries(question)
            finally:
                self._ledger.release(question.key)

    async def _tries(self, question: Question) -> Reply:
        reason, plain = "", False
        for attempt in range(self.settings.tries):
            if self._refused is not None:
                raise self._refused
            if self._closed:
                raise CallFailed("the judge was closed before it was asked")
            probe = await self._breaker.enter()
            try:
                return await self._once(question, structured=self._structured is not False and not plain, probe=probe)
            except AgainError as again:
                reason, plain = again.reason, plain or again.plain
                if again.plain or self._closed:
                    continue
                wait = min(again.wait or self._waits.seconds(attempt), _LONGEST_WAIT)
                if again.everyone:
                    self._pause(wait, reason)
                else:
                    await asyncio.sleep(wait)
        raise CallFailed(f"gave up after {self.settings.tries} tries, last: {reason}")

    def _pause(self, seconds: float, reason: str) -> None:
        """Let nobody ask for a while, and say so once where it is long."""
        if self._pace.pause(seconds) and seconds >= _SAID_WAIT:
            log.warning("%s asks for a pause of %.0f s (%s)", self.settings.model, seconds, reason)

    def _worst(self, question: Question, structured: bool) -> float:
        if self.price is None:
            return 0.0
        schema = len(str(question.schema)) + _SCHEMA_OVERHEAD if structured else 0
        return self.price.worst(question.system + question.user + " " * schema, self.settings.max_tokens)

    async def _once(self, question: Question, *, structured: bool, probe: bool) -> Reply:
        """One request, from its reservation to its settlement."""
        worst = self._worst(question, structured)
        try:
            await self._pace.turn((len(question.system) + len(question.user)) // 4 + self.settings.max_tokens)
            await self.budget.reserve(worst)
        except BaseException:
            self._breaker.neutral(probe)
            raise
        try:
            number = self._ledger.begin(question.key, question.judge, worst)
        except BaseException:
            self._breaker.neutral(probe)
            self.budget.settle(worst, 0.0)
            raise
        worker = self._worker
        self._sent.add(question.key)
        seen: list[Any] = []
        SEEN.set(seen)
        try:
            output = await self._generate(question, structured)
        except asyncio.CancelledError:
            self._end(number, "lost", worst, worst, "cancelled")
            self._breaker.neutral(probe)
            raise
        except Exception as error:
            self._renew(worker)
            failed = classify(error, self._model, seen)
            raise self._failure(failed, error, question.key, number, worst, structured, probe) from None
        finally:
            self._sent.discard(question.key)
        reply = self._reply(output, worst)
        self.budget.settle(worst, reply.cost or 0.0)
        self._ledger.end(number, "ok", reply.cost or 0.0, reply=reply)
        self._breaker.success()
        self._answered = self._ever_answered = True
        self._tell()
        if self._structured is None:
            self._structured = structured  # whichever way was taken first
        return reply

    def _renew(self, used: BatchWorker | None) -> None:
        """A model whose batches have ended for good is put aside, once: later questions go to a new one."""
        if used is not None and used is self._worker and used.broken:
            self._retired.append(self._model)
            self._model, self._worker = load_model(self.settings, self._redact), BatchWorker(self._redact)

    async def _generate(self, question: Question, structured: bool) -> Any:
        """Ask the provider through its Inspect API.

        What Inspect's `Model` adds around that (retries, slots, a record of every call) is done here already, and would
        cost more than all the rest of a grade.
        """
        from inspect_ai.model import ChatMessageSystem, ChatMessageUser

        messages = [ChatMessageSystem(content=question.system), ChatMessageUser(content=question.user)]
        api = self._model.api
        config = self._configs.of(self._model, question.schema_name, question.schema if structured else None)
        if self._worker is not None:
            result = await self._worker.run(lambda: api.generate(messages, [], "none", config))
        else:
            async with asyncio.timeout(self.settings.seconds):
                result = await api.generate(messages, [], "none", config)
        output = result[0] if isinstance(result, tuple) else result
        if isinstance(output, Exception):
            raise output
        return output

    def read(self, reply: Reply, need: str) -> dict[str, Any]:
        """The JSON object with the key `need` in a reply, without secrets. Raises parse.Unreadable."""
        return dict(self._redact.data(find_object(reply.text, need, stop=reply.stop)))

    def _reply(self, output: Any, worst: float) -> Reply:
        usage = output.usage
        text = self._redact(output.completion or "")
        self._answers_as(str(output.model or ""))
        if usage is None or not _possible(usage):  # not told what it cost: count the most it can have cost
            return Reply(bounded(text), _stop(output), 0, 0, 0, None if self.price is None else worst)
        cached = usage.input_tokens_cache_read or 0
        fresh = usage.input_tokens + (usage.input_tokens_cache_write or 0)
        cost = None
        if self.price is not None:
            written = 1.25 if usage.input_tokens_cache_write else 1.0
            cost = self.price.cost(input=round(fresh * written), output=usage.output_tokens, cached=cached)
            self._check_cost(cost, worst)
        return Reply(bounded(text), _stop(output), fresh, usage.output_tokens, cached, cost)

    def _check_cost(self, cost: float, worst: float) -> None:
        """Say once that the server bills more than a call can cost, by its tokens and the price table."""
        if cost > worst * (1 + 1e-9) and "dear" not in self._told:
            self._told.add("dear")
            log.warning(
                "%s bills a call with %.4f USD that can cost %.4f at most (thinking beyond max_tokens?); a cost cap may"
                " be passed by the difference",
                self.settings.model, cost, worst,
            )  # fmt: skip

    def _answers_as(self, name: str) -> None:
        """Say once that another model answers than was asked."""
        asked, given = self.settings.model.lower(), self._redact(name).lower()
        if given and "other" not in self._told and asked.rpartition("/")[2] not in given and given not in asked:
            self._told.add("other")
            log.warning("%s was asked, and %s answers", self.settings.model, given[:100])

    def _end(self, number: int, state: str, worst: float, cost: float, reason: str) -> None:
        self.budget.settle(worst, cost)
        self._ledger.end(number, state, cost, reason=reason)
        self._tell()

    def _failure(
        self, found: Failure, error: Exception, key: str, number: int, worst: float, structured: bool, probe: bool
    ) -> Exception:  # fmt: skip
        """Settle a failed request and say what its failure means."""
        reason, first = self._redact.one_line(found.error), self._redact.line(root(error))
        reason = self._redact.line(found.said) or (f"{reason} ({first})"[:500] if first else reason)
        self._end(number, "lost" if found.billed else "refused", worst, worst if found.billed else 0.0, reason)
        log.debug("judge request %d failed: %s", number, reason)
        if self._takes_none(found, key, structured):
            self._breaker.neutral(probe)
            self._refused = JudgeRefusedError(
                f"{self.settings.model} refuses to judge: {reason}; check the model's name, its key and its quota"
            )
            return self._refused
        if found.kind == "bad":
            self._breaker.neutral(probe)
            if structured and self._structured is not True and found.status in (400, 403, 404, 422):
                return AgainError(reason, None, plain=True)  # the provider may not know structured output
            return CallFailed(reason)
        if found.kind == "rate":
            self._breaker.neutral(probe)
            return AgainError(reason, found.wait, everyone=True)
        opened = self._breaker.failure(reason, probe)
        if opened is not None:
            log.warning("%s does not answer (%s); one call tries again in %.0f s", self.settings.model, reason, opened)
        return AgainError(reason, found.wait)

    def _takes_none(self, found: Failure, key: str, structured: bool) -> bool:
        """Whether a failure says that every question will be refused."""
        if found.fatal or found.kind != "bad" or self._answered:
            return found.fatal
        if structured and self._structured is not True:
            return False  # it is asked once more, without structured output
        self._rejected.add(key)
        return found.status == 404 or (len(self._rejected) >= _REJECTED and not self._ever_answered)

    def _tell(self) -> None:
        if self._spent is not None:
            self._spent(self.budget.spent, self.budget.cap)


def _possible(usage: Any) -> bool:
    """Whether a call can have used so many tokens."""
    counts = (usage.input_tokens, usage.output_tokens, usage.input_tokens_cache_read, usage.input_tokens_cache_write)
    return all(count is None or 0 <= count <= _MOST_TOKENS for count in counts)


def _stop(output: Any) -> str:
    return str(output.choices[0].stop_reason) if output.choices else "unknown"


__all__ = ["CallFailed", "Caller", "CostCapError", "JudgeDownError", "JudgeRefusedError", "Question", "Waits"]
