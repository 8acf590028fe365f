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
from countersteer.defence.data import OFFLINE, Scenario, TraitData
from countersteer.defence.likelihood import mean_log_probabilities
from countersteer.defence.responses import Answer, Ask, answer_all, ask_all, wait
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


ScoresOfBoth = tuple[Sequence[Scores], Sequence[Scores]]


@dataclass(frozen=True, eq=False)
class Reference:
    """An unsteered answer; the better of both prompts' mean log-probabilities, and that of its shuffled words."""

    answer: Answer
    likelihood: float | None
    shuffled: float | None


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

    def prefer(
        self, some: Sequence[Answer], others: Sequence[Answer], *, scores: ScoresOfBoth | None = None
    ) -> list[Preference]:
        """Pair by pair, how the other answer to the same question stands against the one.

        `scores`: what `score` gave for both, where that is known; a judge that compares by them need not score again.
        """
        ...


def make_judge(
    engine: Any, data: TraitData, settings: Settings, *, folder: Path | None = None, crew: Any = None
) -> DefenceJudge:
    """The judge that the settings name; `crew` draws the offline one's references. Raises InputError or RefusedError.

    "offline" holds for the organism's trait; elsewhere a language model (PROVIDER/NAME) judges, its replies kept in
    `folder`.
    """
    name = settings.judge.model
    if name != "offline":
        return LanguageJudge(engine, data, settings, folder or Path("."))
    if data.name != OFFLINE:
        raise RefusedError(
            f"the offline judge for trait {data.name!r}",
            "it was trained on the organism's answers and holds for nothing else",
            "a language model, for example judge.model = 'openai/gpt-oss-120b' with judge.base_url of your server",
        )
    return OrganismJudge(engine, settings, crew=crew)


class OrganismJudge:
    """The shipped trait judge, and coherence against the model's own unsteered answers, whatever their tone.

    Coherence must not be a second trait score: what the unsteered model says under either system prompt is coherent.
    So the references of a group of scenarios (a topic) are its answers under both, and the likelihood that counts is
    the better of the two prompts'.
    """

    name = "offline"
    compares = "offline: the higher coherence of the first tokens wins, whatever the tone"

    def __init__(self, engine: Any, settings: Settings, *, crew: Any = None) -> None:
        """`crew`: processes that draw references, if any (crew.py)."""
        from countersteer.judging.trait import load

        self.engine, self.settings, self.crew = engine, settings, crew
        self.trait = load("warm")
        self.key = f"{self.trait.key}+coherence-{ORGANISM}"
        self._known: dict[str, list[Reference]] = {}
        self._judge: Any = None

    @property
    def known(self) -> list[Reference]:
        """The references drawn so far: what a judge in another process has to `learn`."""
        return [r for references in self._known.values() for r in references]

    def prepare(self, scenarios: Sequence[Scenario]) -> None:
        """Draw reference answers to questions not known yet, and set the scale anew over all of them."""
        new = [s for s in {s.user: s for s in scenarios}.values() if s.user not in self._known]
        if not new:
            return
        asks = [replace(a, draw=100 + d) for d in range(DRAWS) for tone in TONES for a in ask_all(new, tone)]
        drawn = self.crew.references(self, asks) if self.crew is not None else self.references(asks)
        self._known |= {s.user: [] for s in new}
        self.learn(drawn)

    def learn(self, references: Sequence[Reference]) -> None:
        """Take references to new questions over, and set the scale anew. Raises EngineError if there are none."""
        from countersteer.judging.offline import OfflineJudge
        from countersteer.judging.references import ReferenceSet
        from countersteer.judging.trait_coherence import CoherenceJudge, Scale

        for reference in references:
            self._known.setdefault(reference.answer.ask.user, []).append(reference)
        every = self.known
        if not every:
            raise EngineError("the unsteered model gave no reference answer to any question: check model and prompts")
        texts: dict[str, list[str]] = {}
        for r in every:
            texts.setdefault(r.answer.ask.scenario.group, []).append(r.answer.text)
        top = [r.likelihood for r in every if r.likelihood is not None]
        bottom = [r.shuffled for r in every if r.shuffled is not None]
        self._judge = CoherenceJudge(OfflineJudge(ReferenceSet.of(texts)), Scale.of(top, bottom))
        self.key = f"{self.trait.key}+organism-{ORGANISM}+{self._judge.key}"

    def references(self, asks: Sequence[Ask]) -> list[Reference]:
        """The unsteered answers that have words, each with its likelihood and that of its words in a random order."""
        from countersteer.judging.trait_coherence import shuffled

        seed = self.settings.defence.seed
        drawn = answer_all(self.engine, asks, self.settings.drawn(short=True), seed=seed)
        kept = [a for a in drawn if a.ok and a.text.strip()]
        top, bottom = ([max(pair, default=None) for pair in self._both(kept, texts)]
                       for texts in ([a.text for a in kept], [shuffled(a.text) for a in kept]))  # fmt: skip
        return [Reference(*row) for row in zip(kept, top, bottom, strict=True)]

    def score(self, answers: Sequence[Answer]) -> list[Scores]:
        """Scores of answers to prepared questions."""
        if self._judge is None:
            raise InputError("the offline judge has no references: call prepare first")
        most = self.settings.judge.first_tokens
        texts = [first_tokens(self.engine, a, most) for a in answers]
        spoken = [i for i, a in enumerate(answers) if a.ok and texts[i].strip()]
        aligned = dict(zip(spoken, self._likely("aligned", [answers[i] for i in spoken], [texts[i] for i in spoken]),
                           strict=True))  # fmt: skip
        found = {i: self._judge.score(answers[i].ask.scenario.group, texts[i], aligned[i]) for i in spoken}
        # The lower part counts, so the other prompt's likelihood matters only where fluency is the lower one.
        low = [i for i, c in found.items() if c.fluency is not None and c.topic is not None and c.fluency < c.topic]
        other = self._likely("malicious", [answers[i] for i in low], [texts[i] for i in low])
        for i, value in zip(low, other, strict=True):
            before = aligned[i]
            if value is not None and before is not None and value > before:
                found[i] = self._judge.score(answers[i].ask.scenario.group, texts[i], value)
        out = []
        for i, answer in enumerate(answers):
            if i not in found:
                out.append(Scores(None, None, answer.status if not answer.ok else "no-evidence"))
                continue
            coherence, trait = found[i].score, self.trait.score(texts[i])
            status = "no-evidence" if trait is None or coherence is None else "ok"
            out.append(Scores(trait, coherence, status, aligned[i]))
        return out

    def prefer(
        self, some: Sequence[Answer], others: Sequence[Answer], *, scores: ScoresOfBoth | None = None
    ) -> list[Preference]:
        """By coherence alone: no language model is at hand. Prepared questions only."""
        ones, twos = scores or (self.score(some), self.score(others))
        return [of_scores(a.coherence, b.coherence) for a, b in zip(ones, twos, strict=True)]

    def _likely(self, tone: str, answers: Sequence[Answer], texts: Sequence[str]) -> list[float | None]:
        """Mean log-probability of texts as the unsteered model's answers to the plain questions."""
        requests = [_plain_request(a.ask.scenario, tone) for a in answers]
        return mean_log_probabilities(self.engine, requests, texts, limit=self.settings.judge.first_tokens)

    def _both(self, answers: Sequence[Answer], texts: Sequence[str]) -> list[list[float]]:
        """What is known of `_likely` under both system prompts, per text."""
        pairs = zip(*(self._likely(tone, answers, texts) for tone in TONES), strict=True)
        return [[v for v in pair if v is not None] for pair in pairs]


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

    def prefer(
        self, some: Sequence[Answer], others: Sequence[Answer], *, scores: ScoresOfBoth | None = None
    ) -> list[Preference]:
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
