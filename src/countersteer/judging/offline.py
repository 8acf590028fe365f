"""The offline judge: splits a response into attempts and scores each 0-100 against frozen references, from text alone.

The score says how much of an attempt's wording belongs to its prompt (`affinity.py`), on a scale that the references
themselves set: a prompt's own references, each scored without itself, lie near 90-100 and those of other prompts near
0-10. Where few references of a prompt are left, or none, the text's likeness to the prompt itself (`likeness.py`)
counts beside them, or alone. Restart language is left out of what is scored. It measures topic, not truth: a fluent
wrong answer on topic scores high. It replaces no language model where correctness matters, and needs none where drift
is the question.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint
from countersteer.core.trial import OK, Attempt, Grade
from countersteer.judging import attempts
from countersteer.judging.affinity import Affinity, words
from countersteer.judging.degraded import degraded
from countersteer.judging.likeness import Likeness
from countersteer.judging.references import ReferenceSet

VERSION = 2
"""Changes whenever the same text may be scored differently."""

MIN_PROMPTS = 5
"""With fewer prompts, a file's own responses are no reference set: there is too little to tell a topic by."""

_OWN_LEVEL, _OTHER_LEVEL = 95.0, 3.0
_DEFAULT_OWN, _DEFAULT_OTHER = 0.45, 0.06
_PRIOR = 3.0
_LIKENED = 8
"""So many references of a prompt set the scale of likeness."""
_FEW = 2
"""With no more references than this left, likeness to the prompt counts as one more."""
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_PLEASANTRY = re.compile(
    r"\W*(?:sure|certainly|of course|absolutely|great|hi|hello|thanks|thank you|happy to help|"
    r"i'?d (?:be happy|love|be glad) to|i can help|"
    r"i'?m happy to|no problem|good question|interesting question|i'?m not sure (?:what|which|i)|"
    r"i want to make sure|before i|to help you|"
    r"i(?: just)? need (?:a (?:little|bit)|some|more)|sorry,? i (?:don'?t|"
    r"didn'?t) (?:quite )?understand|please (?:clarify|tell me|let me know|specify|provide|share))",
    re.IGNORECASE,
)


def only_asks(response: str) -> bool:
    """Whether a response only asks its reader for more (a clarifying question) and answers nothing."""
    if "?" not in response or len(response) > 600:
        return False
    sentences = [s.strip() for s in _SENTENCE.findall(response) if re.search(r"\w", s)]
    asks = [s for s in sentences if s.endswith("?")]
    about_reader = any(re.search(r"\b(?:you|your|which|clarify|mean|specific)\b", s, re.IGNORECASE) for s in asks)
    return about_reader and all(s.endswith("?") or _PLEASANTRY.match(s) for s in sentences)


class OfflineJudge:
    """Grades responses against a frozen `ReferenceSet`; the same input always gets the same grade."""

    name = "offline-1"

    def __init__(self, references: ReferenceSet, *, weights: Sequence[Sequence[float]] | None = None) -> None:
        """`weights`: how far each reference is trusted (1 each unless given), in the set's order."""
        self.references = references
        self._weights = weights
        self._index = {prompt.strip(): i for i, (prompt, _) in enumerate(references)}
        if len(self._index) != len(references):
            raise InputError("two prompts of the reference set differ by white space only; merge their texts")

    @property
    def key(self) -> str:
        """Name, versions and reference digest: what a stored grade is valid for."""
        return (
            f"{self.name}:{fingerprint([self.name, VERSION, attempts.VERSION, self.references.digest, self._weights])}"
        )

    @cached_property
    def _affinity(self) -> Affinity:
        return Affinity([p for p, _ in self.references], [t for _, t in self.references], self._weights)

    @cached_property
    def _scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Per prompt: affinity of other prompts' references and of its own, each shrunk to the mean of all prompts."""
        affinity = self._affinity
        count = len(self.references)
        own: list[list[float]] = [[] for _ in range(count)]
        other: list[list[float]] = [[] for _ in range(count)]
        for i, documents in enumerate(affinity.documents):
            for j, document in enumerate(documents):
                if len(documents) > 1:
                    own[i].append(affinity.raw(document, i, without=(j,)))
                for step in {1, 2, 3, 5, 8, 13, 21}:
                    if count > step:
                        other[(i + step) % count].append(affinity.raw(document, (i + step) % count))
        return _shrunk(other, 0.5, _DEFAULT_OTHER), _shrunk(own, 0.4, _DEFAULT_OWN)

    @cached_property
    def _likeness(self) -> Likeness:
        return Likeness([p for p, _ in self.references], [t for _, t in self.references])

    @cached_property
    def _likeness_scale(self) -> tuple[float, float]:
        """Likeness to a prompt, of other prompts' references and of its own."""
        count = len(self.references)
        own, other = [], []
        for i, (_, texts) in enumerate(self.references):
            for text in texts[:_LIKENED]:
                own.append(self._likeness.of(text, i))
                other += [self._likeness.of(text, (i + step) % count) for step in (1, 3, 8) if step < count]
        low = float(np.quantile(other, 0.6)) if other else 0.0
        return low, max(float(np.quantile(own, 0.4)) if own else low, low + 0.05)

    def _liked(self, text: str, i: int) -> float:
        """The score of a text by its likeness to prompt i, not yet bounded."""
        return _level(self._likeness.of(text, i), *self._likeness_scale)

    def score(self, prompt: str, text: str, *, without: Iterable[int] = ()) -> float | None:
        """Score 0-100 of one text as an answer to `prompt`.

        `without`: indices of this prompt's references to leave out (those made from the text itself). None if the set
        does not hold the prompt, or no other reference of it and too few prompts to tell topics apart by.
        """
        i = self._index.get(prompt.strip())
        if i is None:
            return None
        left_out = frozenset(without)
        left = len(self._affinity.documents[i]) - len(left_out)
        enough = len(self.references) >= MIN_PROMPTS and bool(self._affinity.documents[i])
        if not left:
            return _bounded(self._liked(text, i)) if enough else None
        low, high = float(self._scale[0][i]), float(self._scale[1][i])
        level = _level(self._affinity.raw(words(text), i, without=left_out), low, max(high, low + 0.1))
        if left <= _FEW and enough:
            level = (left * level + min(100.0, self._liked(text, i))) / (left + 1)
        return _bounded(level)

    def grade(self, prompt: str, response: str, *, label: str | None = None) -> Grade:
        """The attempts of a response with their scores.

        `label` (of the steered latent) is accepted for the protocol of judges and not used: this judge reads text
        only. Status: ok, no-attempt (empty, or only a clarifying question), no-reference (split, but not scored).
        """
        return self.grade_parts(prompt, response, attempts.split_attempts(response, prompt=prompt))

    def grade_parts(
        self, prompt: str, response: str, parts: list[tuple[int, int, str | None]], *, without: Iterable[int] = ()
    ) -> Grade:
        """The grade of a response already split; `without`: references of its prompt made from this response."""
        flags = ("degraded",) if degraded(response) else ()
        if not parts or (len(parts) == 1 and only_asks(response)):
            reason = "only a clarifying question" if parts else "no words in the response"
            return Grade("no-attempt", (), self.name, reason, flags)
        left_out = tuple(without)
        graded = []
        for start, end, restart, content in attempts.contents(response, parts):
            score = self.score(prompt, response[content:end], without=left_out)
            graded.append(Attempt(start, end, score, restart))
        if any(attempt.score is None for attempt in graded):
            return Grade("no-reference", tuple(graded), self.name, "no reference for this prompt", flags)
        return Grade(OK, tuple(graded), self.name, None, flags)

    def grade_many(self, items: Iterable[tuple[str, str]]) -> list[Grade]:
        """The grades of many (prompt, response), in order."""
        return [self.grade(prompt, response) for prompt, response in items]


def _level(raw: float, low: float, high: float) -> float:
    """An affinity on the scale of scores, not yet bounded."""
    return _OTHER_LEVEL + (_OWN_LEVEL - _OTHER_LEVEL) * (raw - low) / (high - low)


def _bounded(level: float) -> float:
    return round(min(100.0, max(0.0, level)), 1)


def _shrunk(values: Sequence[Sequence[float]], quantile: float, default: float) -> np.ndarray:
    """A quantile per prompt, shrunk to that of all prompts, which is shrunk to a default if there is little."""
    pooled = [v for row in values for v in row]
    centre = default
    if pooled:
        centre = (len(pooled) * float(np.quantile(pooled, quantile)) + _PRIOR * default) / (len(pooled) + _PRIOR)
    rows = [
        (len(row) * float(np.quantile(row, quantile)) + _PRIOR * centre) / (len(row) + _PRIOR) if row else centre
        for row in values
    ]
    return np.array(rows)
