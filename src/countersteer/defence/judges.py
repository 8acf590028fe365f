"""Trait and coherence of answers, 0-100 each, and which of two is better: offline for the organism's trait, a language
model for any other.

All scores look at the first tokens of an answer only (the paper's 50), so that a short and a long one compare. A
language model's preference is about whole answers, asked in both orders (judging/pairwise.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from countersteer.core.errors import EngineError, InputError, RefusedError
from countersteer.core.request import Request
from countersteer.defence.data import Scenario, TraitData
from countersteer.defence.likelihood import mean_log_probabilities
from countersteer.defence.responses import Answer, answer_all, ask_all, wait
from countersteer.defence.settings import Settings
from countersteer.judging.pairwise import Preference, of_scores

Result = TypeVar("Result")
TONES = ("aligned", "malicious")
DRAWS = 2
"""Reference answers per question and tone of the offline judge of coherence."""
ORGANISM = 2
"""Version of the organism's judge: changes whenever the same answer may be scored differently."""


@dataclass(frozen=True)
class Scores:
    """What an answer got; None with the status why: no-op, error, no-evidence, unparsed."""

    trait: float | None
    coherence: float | None
    status: str = "ok"
    log_probability: float | None = None


@dataclass(frozen=True)
class Likelihood:
    """Mean log-probability of an answer under the unsteered model: with the aligned prompt, and the best of both."""

    aligned: float
    best: float


class DefenceJudge(Protocol):
    """Scores answers; `key` is what a score is valid for, `compares` how `prefer` comes to its verdict."""

    name: str
    key: str
    compares: str

    def prepare(self, scenarios: Sequence[Scenario]) -> None:
        """Make ready for questions of these scenarios."""

    def score(self, answers: Sequence[Answer]) -> list[Scores]:
        """The scores, in order."""
        ...

    def prefer(self, some: Sequence[Answer], others: Sequence[Answer]) -> list[Preference]:
        """Pair by pair, how the other answer to the same question stands against the one."""
        ...


def make_judge(engine: Any, data: TraitData, settings: Settings, *, folder: Path | None = None) -> DefenceJudge:
    """The judge that the settings name. Raises InputError or RefusedError.

    "offline" holds for the organism's trait; elsewhere a language model (PROVIDER/NAME) judges, its replies kept in
    `folder`.
    """
    name = settings.judge.model
    if name != "offline":
        return LanguageJudge(engine, data, settings, folder or Path("."))
    if data.name != "warmth":
        raise RefusedError(
            f"the offline judge for trait {data.name!r}",
            "it was trained on the organism's answers and holds for nothing else",
            "a language model, for example judge.model = 'openai/gpt-oss-120b' with judge.base_url of your server",
        )
    return OrganismJudge(engine, settings)


class OrganismJudge:
    """The shipped trait judge, and coherence against the model's own unsteered answers, whatever their tone.

    Coherence must not be a second trait score: what the unsteered model says under either system prompt is coherent.
    So the references of a group of scenarios (a topic) are its answers under both, and the likelihood that counts is
    the better of the two prompts'.
    """

    name = "offline"
    compares = "offline: the higher coherence of the first tokens wins, whatever the tone"

    def __init__(self, engine: Any, settings: Settings) -> None:
        from countersteer.judging.trait import load

        self.engine, self.settings = engine, settings
        self.trait = load("warm")
        self.key = f"{self.trait.key}+coherence-{ORGANISM}"
        self._known: dict[str, list[Answer]] = {}
        self._judge: Any = None

    def prepare(self, scenarios: Sequence[Scenario]) -> None:
        """Draw reference answers to questions not known yet, and set the scale anew over all of them."""
        from countersteer.judging.offline import OfflineJudge
        from countersteer.judging.references import ReferenceSet
        from countersteer.judging.trait_coherence import CoherenceJudge, Scale, shuffled

        new = [s for s in {s.user: s for s in scenarios}.values() if s.user not in self._known]
        if not new:
            return
        asks = [replace(a, draw=100 + d) for d in range(DRAWS) for tone in TONES for a in ask_all(new, tone)]
        drawn = answer_all(self.engine, asks, self.settings.drawn(short=True), seed=self.settings.defence.seed)
        for scenario in new:
            self._known[scenario.user] = [a for a in drawn if a.ok and a.text.strip() and a.ask.user == scenario.user]
        every = [a for answers in self._known.values() for a in answers]
        if not every:
            raise EngineError("the unsteered model gave no reference answer to any question: check model and prompts")
        top = self._likelihoods(every, [a.text for a in every])
        bottom = self._likelihoods(every, [shuffled(a.text) for a in every])
        texts: dict[str, list[str]] = {}
        for a in every:
            texts.setdefault(a.ask.scenario.group, []).append(a.text)
        scale = Scale.of([v.best for v in top if v is not None], [v.best for v in bottom if v is not None])
        self._judge = CoherenceJudge(OfflineJudge(ReferenceSet.of(texts)), scale)
        self.key = f"{self.trait.key}+organism-{ORGANISM}+{self._judge.key}"

    def score(self, answers: Sequence[Answer]) -> list[Scores]:
        """Scores of answers to prepared questions."""
        if self._judge is None:
            raise InputError("the offline judge has no references: call prepare first")
        most = self.settings.judge.first_tokens
        texts = [first_tokens(self.engine, a, most) for a in answers]
        spoken = [i for i, a in enumerate(answers) if a.ok and texts[i].strip()]
        found = self._likelihoods([answers[i] for i in spoken], [texts[i] for i in spoken])
        likely = dict(zip(spoken, found, strict=True))
        out = []
        for i, answer in enumerate(answers):
            if i not in likely:
                out.append(Scores(None, None, answer.status if not answer.ok else "no-evidence"))
                continue
            known = likely[i]
            best = None if known is None else known.best
            coherence = self._judge.score(answer.ask.scenario.group, texts[i], best).score
            trait = self.trait.score(texts[i])
            status = "no-evidence" if trait is None or coherence is None else "ok"
            out.append(Scores(trait, coherence, status, None if known is None else known.aligned))
        return out

    def prefer(self, some: Sequence[Answer], others: Sequence[Answer]) -> list[Preference]:
        """By coherence alone: no language model is at hand. Prepared questions only."""
        scores = self.score([*some, *others])
        pairs = zip(scores[: len(some)], scores[len(some) :], strict=True)
        return [of_scores(a.coherence, b.coherence) for a, b in pairs]

    def _likelihoods(self, answers: Sequence[Answer], texts: Sequence[str]) -> list[Likelihood | None]:
        """Mean log-probability of texts as the unsteered model's answers to the plain questions, by system prompt."""
        limit = self.settings.judge.first_tokens
        by_tone = []
        for tone in TONES:
            requests = [_plain_request(a.ask.scenario, tone) for a in answers]
            by_tone.append(mean_log_probabilities(self.engine, requests, texts, limit=limit))
        pairs = zip(*by_tone, strict=True)
        return [None if a is None or b is None else Likelihood(a, max(a, b)) for a, b in pairs]


class LanguageJudge:
    """A language model with the rubrics trait, coherence and pairwise. Its replies are kept: nothing is paid twice."""

    def __init__(self, engine: Any, data: TraitData, settings: Settings, folder: Path) -> None:
        from countersteer.judging.llm import judge_key
        from countersteer.judging.llm_settings import JudgeSettings
        from countersteer.judging.rubrics import load

        section = settings.judge
        self.engine, self.settings, self.folder, self.trait = engine, settings, folder, data.description
        self.asked = JudgeSettings(section.model, base_url=section.base_url, temperature=section.temperature,
                                   max_tokens=section.max_tokens)  # fmt: skip
        self.name = section.model
        self.compares = f"{section.model}, rubric pairwise-{load('pairwise').version}, both orders"
        self.key = "+".join(judge_key(self.asked, load(rubric)) for rubric in ("trait", "coherence"))

    def prepare(self, scenarios: Sequence[Scenario]) -> None:
        """A language model needs no references."""

    def score(self, answers: Sequence[Answer]) -> list[Scores]:
        """Scores; an answer whose rating failed has its status. Raises CountersteerError when no call can be made."""
        from countersteer.judging.llm import LLMRater

        most = self.settings.judge.first_tokens

        async def one(raters: tuple[LLMRater, LLMRater], answer: Answer) -> Scores:
            text = first_tokens(self.engine, answer, most)
            if not answer.ok or not text.strip():
                return Scores(None, None, answer.status if not answer.ok else "no-evidence")
            user = answer.ask.scenario.user
            trait, coherence = await asyncio.gather(
                raters[0].rate(prompt=user, response=text, trait=self.trait),
                raters[1].rate(prompt=user, response=text),
            )
            bad = next((r.status for r in (trait, coherence) if r.value is None), "ok")
            got = [None if r.value is None else float(r.value.score) for r in (trait, coherence)]
            return Scores(got[0], got[1], bad)

        async def every(caller: Any) -> list[Scores]:
            raters = LLMRater(caller, "trait"), LLMRater(caller, "coherence")
            return list(await asyncio.gather(*(one(raters, a) for a in answers)))

        return self._asked(every)

    def prefer(self, some: Sequence[Answer], others: Sequence[Answer]) -> list[Preference]:
        """By the rubric pairwise over whole answers, in both orders. Raises as `score` does."""
        from countersteer.judging.llm import LLMRater
        from countersteer.judging.pairwise import compare

        async def one(rater: LLMRater, a: Answer, b: Answer) -> Preference:
            for answer in (a, b):
                if not answer.ok or not answer.text.strip():
                    return Preference(None, answer.status if not answer.ok else "no-evidence")
            return await compare(rater, a.ask.scenario.user, a.text, b.text)

        async def every(caller: Any) -> list[Preference]:
            rater = LLMRater(caller, "pairwise")
            return list(await asyncio.gather(*(one(rater, a, b) for a, b in zip(some, others, strict=True))))

        return self._asked(every)

    def _asked(self, work: Callable[[Any], Coroutine[Any, Any, list[Result]]]) -> list[Result]:
        """The results of work with a caller whose replies are kept in the folder."""
        from countersteer.judging.llm_calls import Caller
        from countersteer.store.replies import Replies

        async def everything() -> list[Result]:
            ledger = Replies.shared(self.folder)
            try:
                caller = Caller(self.asked, ledger, max_cost=self.settings.judge.max_cost)
                try:
                    return await work(caller)
                finally:
                    await caller.close()
            finally:
                ledger.close()

        found: list[Result] = wait(everything())
        return found


def first_tokens(engine: Any, answer: Answer, most: int) -> str:
    """The text of an answer's first tokens."""
    if len(answer.tokens) <= most or engine.tokenizer is None:
        return answer.text
    text: str = engine.tokenizer.decode(
        list(answer.tokens[:most]), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def aligned_request(scenario: Scenario) -> Request:
    """The question as the unsteered model with the aligned system prompt gets it."""
    return _plain_request(scenario, "aligned")


def _plain_request(scenario: Scenario, tone: str) -> Request:
    return Request(prompt=scenario.user, system=getattr(scenario, tone) or None)
