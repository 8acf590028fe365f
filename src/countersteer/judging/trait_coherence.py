"""An offline judge of coherence: an answer is as coherent as it is on topic and as the unsteered model finds it likely.

Both parts are measured against frozen references: the offline attempt score, and the answer's mean log-probability
under the unsteered model with the aligned system prompt. 100 is what unsteered answers reach; 0 is what their own words
reach in a random order. The lower part counts: fluent text about something else and shuffled words on topic both fail.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint, named_seed
from countersteer.judging.offline import OfflineJudge

VERSION = 1


def shuffled(text: str) -> str:
    """The words of a text in a random order that depends on the text only."""
    words = text.split()
    random.Random(named_seed(0, "shuffled", text)).shuffle(words)
    return " ".join(words)


@dataclass(frozen=True)
class Scale:
    """Mean log-probabilities that mean 100 (unsteered answers) and 0 (their words shuffled)."""

    top: float
    bottom: float

    @classmethod
    def of(cls, answers: Sequence[float], shuffled_answers: Sequence[float]) -> Scale:
        """From the references' likelihoods: the median of the answers, the mean of the shuffled. Raises InputError."""
        if not answers or not shuffled_answers:
            raise InputError("a scale of coherence needs the likelihoods of some answers and of their shuffled words")
        top, bottom = median(answers), fmean(shuffled_answers)
        if not top > bottom:
            raise InputError("the unsteered answers are no likelier than their shuffled words: check model and prompts")
        return cls(top, bottom)

    def score(self, mean: float) -> float:
        """0-100 for a mean log-probability."""
        return min(100.0, max(0.0, 100.0 * (mean - self.bottom) / (self.top - self.bottom)))


@dataclass(frozen=True)
class Coherence:
    """What an answer got: `score` is the lower of its parts, None (no reference, or no words) if one is missing."""

    score: float | None
    topic: float | None
    fluency: float | None


class CoherenceJudge:
    """Scores answers given their likelihood, which an engine measures (`engines.embedded.likelihood`)."""

    def __init__(self, topics: OfflineJudge, scale: Scale) -> None:
        """`topics`: the offline judge over the unsteered answers with the aligned prompt."""
        self.topics = topics
        self.scale = scale

    @property
    def key(self) -> str:
        """What a stored score is valid for."""
        return f"coherence-{VERSION}:{fingerprint([VERSION, self.topics.key, self.scale])}"

    def score(self, prompt: str, answer: str, mean_log_probability: float | None) -> Coherence:
        """The coherence of an answer to `prompt`."""
        topic = self.topics.score(prompt, answer) if answer.strip() else None
        fluency = None if mean_log_probability is None else round(self.scale.score(mean_log_probability), 1)
        both = None if topic is None or fluency is None else min(topic, fluency)
        return Coherence(both, topic, fluency)
