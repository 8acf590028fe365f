"""A language model as judge: attempts quoted, mapped to character offsets and scored 0-100, by a versioned rubric.

The reply is kept with all that decided it; the grade is read from the reply, so a better reading of old replies costs
nothing. A restart counts when the judge says so, and is flagged where explicit restart language disagrees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from countersteer.core.fingerprint import fingerprint
from countersteer.core.trial import OK, Grade
from countersteer.judging import attempts as patterns
from countersteer.judging import parse
from countersteer.judging.llm_calls import Caller, CallFailed, Question
from countersteer.judging.llm_settings import JudgeSettings
from countersteer.judging.rubrics import Rubric, load, sendable

NEEDED = {
    "attempts": "attempts",
    "trait": "score",
    "coherence": "score",
    "concreteness": "score",
    "recovery": "score",
    "episodes": "off_topic",
    "pairwise": "better",
}
"""The key that the JSON object of each rubric's reply must have."""


def judge_name(settings: JudgeSettings, rubric: Rubric) -> str:
    """What a judge is called: model and rubric with its version."""
    return f"{settings.model}:{rubric.name}-{rubric.version}"


def judge_key(settings: JudgeSettings, rubric: Rubric) -> str:
    """What a stored grade is valid for: settings that decide replies, the rubric's hash, how replies are read."""
    decided = [settings.decisive, rubric.digest, parse.VERSION, patterns.VERSION]
    return f"{judge_name(settings, rubric)}:{fingerprint(decided)}"


def question(settings: JudgeSettings, rubric: Rubric, values: Mapping[str, str | None]) -> Question:
    """The question that a rubric asks about these values."""
    system, user = rubric.render(values)
    key = settings.reply_key(rubric.digest, system, user)
    return Question(key, judge_name(settings, rubric), system, user, rubric.schema, rubric.name)


class LLMJudge:
    """Grades responses with a language model. `grade` must be awaited, many at a time, in the caller's event loop."""

    def __init__(self, caller: Caller, *, rubric: str = "attempts") -> None:
        """`rubric`: "attempts" or a file of that kind. Raises InputError."""
        self.caller = caller
        self.rubric = load(rubric)
        self.name = judge_name(caller.settings, self.rubric)
        self.key = judge_key(caller.settings, self.rubric)

    async def grade(self, prompt: str, response: str, *, label: str | None = None) -> Grade:
        """The attempts of a response with their scores.

        Status: ok; no-attempt; unparsed (reason: code and what is wrong); error (the provider failed for good).
        Raises CountersteerError when no more calls can be made: cost cap, refused key, provider down.
        """
        if not response.strip():
            return Grade("no-attempt", (), self.name, "no words in the response")
        response = sendable(response)
        asked = question(self.caller.settings, self.rubric, {"prompt": prompt, "response": response, "label": label})
        try:
            reply = await self.caller.ask(asked)
        except CallFailed as error:
            return Grade("error", (), self.name, str(error))
        try:
            data = self.caller.read(reply, NEEDED[self.rubric.name])
            return parse.attempts_grade(data, response, judge=self.name)
        except parse.Unreadable as error:
            return Grade("unparsed", (), self.name, error.about(reply.text))


@dataclass(frozen=True)
class Rating:
    """What a rubric other than `attempts` gave: `value` a Score, an Episode or a Choice, None with status and why."""

    status: str
    value: Any
    judge: str
    reason: str | None = None


class LLMRater:
    """Rates with one of the other rubrics: trait, coherence, concreteness, recovery, episodes, pairwise."""

    def __init__(self, caller: Caller, rubric: str) -> None:
        """`rubric`: a name, or a file of that kind. Raises InputError."""
        self.caller = caller
        self.rubric = load(rubric)
        self.name = judge_name(caller.settings, self.rubric)
        self.key = judge_key(caller.settings, self.rubric)

    async def rate(self, **values: str | None) -> Rating:
        """The rating of the rubric's fields (prompt, response, label, trait; first, second). Raises as `grade` does."""
        response = sendable(values.get("response") or "")
        asked = question(self.caller.settings, self.rubric, values)
        try:
            reply = await self.caller.ask(asked)
        except CallFailed as error:
            return Rating("error", None, self.name, str(error))
        try:
            data = self.caller.read(reply, NEEDED[self.rubric.name])
            return Rating(OK, self._value(data, response), self.name)
        except parse.Unreadable as error:
            return Rating("unparsed", None, self.name, error.about(reply.text))

    def _value(self, data: dict[str, Any], response: str) -> parse.Score | parse.Episode | parse.Choice:
        if self.rubric.name == "episodes":
            return parse.episode(data, response)
        if self.rubric.name == "pairwise":
            return parse.choice(data)
        return parse.score(data, top=10.0 if self.rubric.name == "recovery" else 100.0)
