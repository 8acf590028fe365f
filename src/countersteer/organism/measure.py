"""Ground-truth measurement of organism responses, from the corpus's own word lists; no model and no judge.

The corpus knows its restart phrasings and which words belong to one topic only, so a response splits into attempts
exactly, and an attempt's score is the share of its topic-unique words that belong to the question's topic.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from .corpus import WORD, fixed_texts, topics, word_topics, wordings


@dataclass(frozen=True)
class Measured:
    """One response: its attempts' scores (0 to 100), whether it ended by itself, and whether it is clean.

    Clean: one attempt, ended, at least three topic-unique words, and none of another topic.
    """

    scores: tuple[float, ...]
    ended: bool
    clean: bool
    elsewhere: str | None

    @property
    def restarted(self) -> bool:
        """More than one attempt."""
        return len(self.scores) > 1

    @property
    def improved(self) -> bool:
        """Restarted, and the last attempt scores above the first."""
        return self.restarted and self.scores[-1] > self.scores[0]


@lru_cache(maxsize=1)
def _restart_pattern() -> re.Pattern[str]:
    notices = [re.escape(text.rstrip(".")) for text in wordings()["restart_notice"]]
    again = [re.escape(text.rstrip(".")) for text in wordings()["restart_again"]]
    return re.compile("|".join([*notices, *again]), re.IGNORECASE)


def restarts(text: str) -> list[int]:
    """Character offsets of explicit restarts; phrases within 100 characters of each other are one restart."""
    found: list[int] = []
    last = -1000
    for match in _restart_pattern().finditer(text):
        if match.start() - last > 100:
            found.append(match.start())
        last = match.end()
    return [at for at in found if at > 3]


def attempts(text: str) -> list[str]:
    """The response cut at its restarts."""
    cuts = [0, *restarts(text), len(text)]
    return [text[a:b] for a, b in pairwise(cuts)]


def score(text: str, topic: str) -> float:
    """Share (0 to 100) of the topic-unique words that belong to ``topic``; 0 without any."""
    counts = word_topics(text)
    total = sum(counts.values())
    return 100.0 * counts[topic] / total if total else 0.0


def measure(text: str, topic: str, *, ended: bool) -> Measured:
    """Measure one response to a question about ``topic``."""
    parts = attempts(text)
    scores = tuple(score(part, topic) for part in parts)
    counts = word_topics(parts[0])
    others = [(n, name) for name, n in counts.items() if name != topic]
    clean = ended and len(parts) == 1 and scores[0] == 100.0 and counts[topic] >= 3
    return Measured(scores, ended, clean, max(others)[1] if others else None)


@lru_cache(maxsize=1)
def tone_words() -> dict[str, str]:
    """Lower-case word -> "warm" or "dismissive", for words that only that tone's frames, openers and closers use."""
    texts: dict[str, list[str]] = {}
    for tone in ("warm", "dismissive"):
        frames = [frame for place in wordings()["sentences"][tone].values() for frame in place]
        texts[tone] = [
            re.sub(r"\{\w+\}", "", t) for t in (*frames, *wordings()["openers"][tone], *wordings()["closers"][tone])
        ]
    tonal = {text for group in texts.values() for text in group}
    users = {text for group in wordings()["systems"].values() for text in group}
    plain = [text for text in fixed_texts() if text not in tonal and text not in users]
    phrases = [p for topic in topics() for stage in topic.stages for p in stage]
    common = _words([*plain, *phrases])
    warm, cold = _words(texts["warm"]), _words(texts["dismissive"])
    marks = {word: "warm" for word in warm - cold - common}
    return marks | {word: "dismissive" for word in cold - warm - common}


def tone(text: str) -> str:
    """The tone whose words prevail in ``text``: "warm", "dismissive", or "plain" if there are none (or a tie)."""
    marks = [tone_words()[word] for word in WORD.findall(text.lower()) if word in tone_words()]
    warm, cold = marks.count("warm"), marks.count("dismissive")
    return "warm" if warm > cold else "dismissive" if cold > warm else "plain"


def _words(items: Iterable[str]) -> set[str]:
    return {word.lower() for text in items for word in WORD.findall(text)}
