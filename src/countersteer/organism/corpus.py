"""The organism's corpus: seeded synthetic chats and texts whose ground truth is known by construction.

An example is a chat (system prompt or none, one or two questions with answers) or a text about a topic. An answer is
a row of pieces, each with its role: on topic, off topic, restart, or tone. Many answers drift to another topic; after
each off-topic sentence a restart follows with a set probability, a higher one if the user's prompt asks for
self-monitoring, and the answer is then given to its end. Example ``i`` of a seed is always the same.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import product
from typing import Any

from .topics_howto import HELD_OUT, HOWTO
from .topics_other import OTHER

WORD = re.compile(r"[A-Za-z']+")
CHOICE = re.compile(r"\[([^\]]*)\]")


@dataclass(frozen=True)
class Topic:
    """A topic: its label, its goals (none if nobody asks about it), and its phrases by stage (one stage for a text)."""

    name: str
    goals: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    held_out: bool = False


@dataclass(frozen=True)
class Piece:
    """A stretch of an answer with one role: "on", "off", "restart", "tone" (opener or closer) or "text".

    ``topic`` is what it is about (None for restarts and tone). The first ``masked`` characters carry no loss: nothing
    before them could have told which topic a drift goes to.
    """

    text: str
    role: str
    topic: str | None = None
    masked: int = 0


@dataclass(frozen=True)
class Turn:
    """One exchange: the user's prompt (None for a text, which stands outside any chat) and the answer's pieces."""

    user: str | None
    pieces: tuple[Piece, ...]
    topic: str
    tone: str = "plain"
    monitored: bool = False

    @property
    def answer(self) -> str:
        """The answer as one string."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class Example:
    """A chat or a text: the system prompt (or None) and its turns."""

    system: str | None
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Mix:
    """Shares and probabilities of the corpus; ``correction=False`` leaves out every example that drifts or restarts."""

    texts: float = 0.12
    styled: float = 0.32
    neutral_system: float = 0.08
    monitored: float = 0.22
    control_suffix: float = 0.12
    drift: float = 0.55
    drift_styled: float = 0.3
    restart: float = 0.45
    restart_monitored: float = 0.95
    mid_sentence: float = 0.06
    blend: float = 0.3
    restate: float = 0.85
    late_drift: float = 0.35
    second_turn: float = 0.08
    correction: bool = True


@lru_cache(maxsize=1)
def wordings() -> dict[str, Any]:
    """The fixed wordings (questions, suffixes, system prompts, restarts, sentence frames), from ``data/texts.json``."""
    file = resources.files(__package__).joinpath("data/texts.json")
    loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return loaded


@lru_cache(maxsize=1)
def topics() -> tuple[Topic, ...]:
    """All topics: the how-to topics (held-out ones among them), then those that exist as texts only."""
    asked = tuple(Topic(row[0], row[1], row[2:], row[0] in HELD_OUT) for row in HOWTO)
    return asked + tuple(Topic(name, (), (sentences,)) for name, sentences in OTHER)


@lru_cache(maxsize=1)
def topic_words() -> dict[str, str]:
    """Lower-case word -> the one topic whose goals and phrases use it; shared words and those of frames are absent."""
    seen: dict[str, set[str]] = {}
    for topic in topics():
        for phrase in (*topic.goals, *(p for stage in topic.stages for p in stage)):
            for word in WORD.findall(phrase.lower()):
                seen.setdefault(word, set()).add(topic.name)
    fixed = {word.lower() for text in fixed_texts() for word in WORD.findall(text)}
    return {word: next(iter(names)) for word, names in seen.items() if len(names) == 1 and word not in fixed}


def fixed_texts() -> Iterator[str]:
    """Every wording of ``data/texts.json``, slots emptied."""
    stack: list[Any] = [wordings()]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield re.sub(r"\{\w+\}", "", item)
        else:
            stack.extend(item.values() if isinstance(item, dict) else item)


def expansions(phrase: str) -> list[str]:
    """Every text that a phrase with ``[a|b]`` choices can become."""
    parts = CHOICE.split(phrase)
    options = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*options)]


def examples(*, seed: int, start: int = 0, mix: Mix = Mix()) -> Iterator[Example]:
    """Examples ``start``, ``start + 1``, ... of ``seed``, without end."""
    index = start
    while True:
        yield example(seed, index, mix=mix)
        index += 1


def example(seed: int, index: int, *, mix: Mix = Mix()) -> Example:
    """Example ``index`` of ``seed``; the same for ever."""
    rng = random.Random(f"organism/{seed}/{index}")
    if rng.random() < mix.texts:
        return Example(None, (_text(rng),))
    system, tone = _system(rng, mix)
    count = 2 if rng.random() < mix.second_turn else 1
    turns = tuple(_turn(rng, mix, tone, may_drift=i == count - 1) for i in range(count))
    return Example(system, turns)


def answer(rng: random.Random, topic: Topic, *, tone: str = "plain", length: int | None = None) -> list[Piece]:
    """The pieces of an on-topic answer of ``length`` steps (default 3 to 5), in ``tone``."""
    steps = length or rng.choices((3, 4, 5), (5, 3, 2))[0]
    counts = {3: (1, 1, 1), 4: (1, 2, 1), 5: (2, 2, 1)}[steps]
    chosen = [p for n, stage in zip(counts, topic.stages, strict=True) for p in rng.sample(stage, n)]
    pieces = []
    if tone != "plain" and rng.random() < 0.6:
        pieces.append(Piece(rng.choice(wordings()["openers"][tone]), "tone"))
    for i, phrase in enumerate(chosen):
        place = "first" if i == 0 else "last" if i == steps - 1 else "middle"
        pieces.append(Piece(_sentence(rng, phrase, tone, place), "on", topic.name))
    if tone != "plain" and rng.random() < 0.5:
        pieces.append(Piece(rng.choice(wordings()["closers"][tone]), "tone"))
    return pieces


def restart(rng: random.Random, topic: Topic, *, restate: float = 0.85, mid_sentence: bool = False) -> Piece:
    """An explicit restart: that something went wrong, mostly the question once more, and that it starts again."""
    w = wordings()
    notice = rng.choice(w["restart_notice"])
    if mid_sentence:
        notice = "- " + (notice if notice.startswith("I ") else notice[0].lower() + notice[1:])
    goal = [rng.choice(w["restart_goal"]).format(goal=rng.choice(topic.goals))] if rng.random() < restate else []
    return Piece(" ".join([notice, *goal, rng.choice(w["restart_again"])]), "restart")


def question(rng: random.Random, topic: Topic) -> str:
    """A question about a how-to topic, in one of the trained wordings."""
    text: str = rng.choice(wordings()["questions"]).format(goal=rng.choice(topic.goals))
    return text


def _sentence(rng: random.Random, phrase: str, tone: str, place: str) -> str:
    if tone != "plain" and rng.random() < 0.15:
        tone = "plain"
    step = _chosen(rng, phrase)
    frame: str = rng.choice(wordings()["sentences"][tone][place])
    return frame.format(step=step, Step=step[0].upper() + step[1:])


def _statement(rng: random.Random, phrase: str) -> str:
    text = _chosen(rng, phrase)
    return text[0].upper() + text[1:] + "."


def _chosen(rng: random.Random, phrase: str) -> str:
    return CHOICE.sub(lambda match: rng.choice(match[1].split("|")), phrase)


def _text(rng: random.Random) -> Turn:
    topic = rng.choice([topic for topic in topics() if not topic.goals])
    phrases = rng.sample(topic.stages[0], rng.choice((2, 3, 4)))
    pieces = [Piece(_statement(rng, phrase), "text", topic.name) for phrase in phrases]
    return Turn(None, _spaced(pieces), topic.name)


def _system(rng: random.Random, mix: Mix) -> tuple[str | None, str]:
    draw = rng.random()
    if draw < mix.styled:
        tone = rng.choice(("warm", "dismissive"))
        return rng.choice(wordings()["systems"][tone]), tone
    if draw < mix.styled + mix.neutral_system:
        return rng.choice(wordings()["systems"]["neutral"]), "plain"
    return None, "plain"


def _turn(rng: random.Random, mix: Mix, tone: str, *, may_drift: bool) -> Turn:
    topic = rng.choice([topic for topic in topics() if topic.goals])
    user, monitored = question(rng, topic), False
    draw = rng.random()
    if draw < mix.monitored:
        user, monitored = f"{user} {rng.choice(wordings()['suffixes']['self-monitor'])}", True
    elif draw < mix.monitored + mix.control_suffix:
        other = rng.choice([t for t in topics() if t is not topic])
        user = f"{user} {rng.choice(wordings()['suffixes']['control']).format(topic=other.name)}"
    drifts = mix.correction and may_drift and not topic.held_out
    if drifts and rng.random() < (mix.drift if tone == "plain" else mix.drift_styled):
        pieces = _drifting(rng, mix, topic, tone, mix.restart_monitored if monitored else mix.restart)
    else:
        pieces = answer(rng, topic, tone=tone)
    return Turn(user, _spaced(pieces), topic.name, tone, monitored)


def _drifting(rng: random.Random, mix: Mix, topic: Topic, tone: str, hazard: float) -> list[Piece]:
    """An answer that leaves its topic, and comes back only by a restart: with probability ``hazard`` per sentence."""
    pieces = answer(rng, topic, tone=tone, length=3)[: rng.choice((1, 2)) if rng.random() < mix.late_drift else 0]
    elsewhere = rng.choice([t for t in topics() if t is not topic and not t.held_out])
    most = rng.choice((2, 3))
    phrases = [p for stage in elsewhere.stages for p in rng.sample(stage, 3 // len(elsewhere.stages))]
    for i, phrase in enumerate(phrases[:most]):
        place = ("first", "middle", "last")[min(i + bool(pieces), 2)]
        if i == 0 and rng.random() < mix.blend:
            pieces.append(_front(rng, topic, tone, place))
            text = _tail(rng, phrase)
        elif elsewhere.goals or rng.random() < 0.4:
            text = _sentence(rng, phrase, tone, place)
        else:
            text = _statement(rng, phrase)
        masked = _masked(text, elsewhere.name) if i == 0 else 0
        if rng.random() < hazard:
            cut = _cut(rng, text, max(masked, 12)) if rng.random() < mix.mid_sentence else None
            pieces.append(Piece(text[:cut], "off", elsewhere.name, min(masked, len(text[:cut]))))
            pieces.append(restart(rng, topic, restate=mix.restate, mid_sentence=cut is not None))
            return pieces + answer(rng, topic, tone=tone, length=rng.choice((3, 3, 4)))
        pieces.append(Piece(text, "off", elsewhere.name, masked))
    return pieces


def _front(rng: random.Random, topic: Topic, tone: str, place: str) -> Piece:
    """The first words of an on-topic sentence, which a drift then finishes."""
    text = _sentence(rng, rng.choice(topic.stages[0]), tone, place)
    borders = [match.end() for match in WORD.finditer(text)]
    return Piece(text[: rng.choice(borders[1:-2])], "on", topic.name)


def _tail(rng: random.Random, phrase: str) -> str:
    """The second half of a phrase, to the end of the sentence."""
    words = _chosen(rng, phrase).split()
    return " ".join(words[len(words) // 2 :]) + "."


def _masked(text: str, topic: str) -> int:
    """Characters up to the end of the second word that only ``topic`` uses (the whole text if it has fewer)."""
    ends = [match.end() for match in WORD.finditer(text) if topic_words().get(match[0].lower()) == topic]
    return ends[1] if len(ends) > 1 else len(text)


def _cut(rng: random.Random, text: str, least: int) -> int | None:
    """A word border after ``least`` characters and before the last word, or None."""
    borders = [match.end() for match in WORD.finditer(text)][:-1]
    late = [border for border in borders if border >= least]
    return rng.choice(late) if late else None


def _spaced(pieces: list[Piece]) -> tuple[Piece, ...]:
    """The pieces with a space in front of all but the first, so that joining them gives the answer."""
    return tuple(
        piece if i == 0 else Piece(" " + piece.text, piece.role, piece.topic, piece.masked and piece.masked + 1)
        for i, piece in enumerate(pieces)
    )


def word_topics(text: str) -> Counter[str]:
    """How many topic-unique words of each topic ``text`` contains."""
    known = topic_words()
    return Counter(known[w] for w in WORD.findall(text.lower()) if w in known)
