"""Corrections from templates: sentences on 50 subjects that nobody asked about, and ways of saying so.

"general" is for language models at large. "organism" takes the stretches and restarts from the words of the organism's
own corpus, the only words that it can spell. Answers come from the model itself (`answers`).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Protocol

import numpy as np

from countersteer.core.errors import InputError, nearest
from countersteer.core.fingerprint import named_seed, rng
from countersteer.finetune.compose import correction, spread
from countersteer.finetune.examples import Example
from countersteer.organism import corpus

NAMES = ("general", "organism")


class Templates(Protocol):
    """Where stretches and acknowledgements come from."""

    def stretch(self, prompt: str, draw: np.random.Generator) -> str:
        """Two to four sentences on something else than the prompt asks about."""
        ...

    def acknowledgement(self, prompt: str, draw: np.random.Generator) -> str:
        """Words that notice it."""
        ...


@dataclass(frozen=True)
class Subject:
    """A subject, the words by which a prompt asks about it, and sentences on it."""

    name: str
    words: tuple[str, ...]
    sentences: tuple[str, ...]

    def asked_by(self, prompt: str) -> bool:
        """Whether a prompt has one of the words, in the singular or a regular plural."""
        found = re.findall(r"\w+", prompt.lower())
        return any(a == b or a in (f"{b}s", f"{b}es") for a in found for b in self.words)


@dataclass(frozen=True)
class General:
    """Subjects with their sentences, and acknowledgements that fit any question."""

    subjects: tuple[Subject, ...]
    acknowledgements: tuple[str, ...]

    def stretch(self, prompt: str, draw: np.random.Generator) -> str:
        """Two to four sentences of one subject that the prompt does not ask about."""
        fitting = [subject.sentences for subject in self.subjects if not subject.asked_by(prompt)]
        chosen = fitting[int(draw.integers(len(fitting)))]
        return " ".join(chosen[: int(draw.integers(2, min(4, len(chosen)) + 1))])

    def acknowledgement(self, prompt: str, draw: np.random.Generator) -> str:
        """One of the acknowledgements."""
        return self.acknowledgements[int(draw.integers(len(self.acknowledgements)))]


class Organism:
    """Stretches and restarts of the organism's corpus; the topic of a prompt is known from its words."""

    def __init__(self) -> None:
        self._topics = corpus.topics()
        self._frames = corpus.wordings()["sentences"]["plain"]

    def stretch(self, prompt: str, draw: np.random.Generator) -> str:
        """One to three sentences about another topic that is not held out."""
        own = self._topic(prompt)
        others = [t for t in self._topics if t is not own and not t.held_out]
        topic = others[int(draw.integers(len(others)))]
        count, out = int(draw.integers(1, 4)), []
        if not topic.goals:
            chosen = draw.permutation(len(topic.stages[0]))[:count]
            return " ".join(_capital(_pick(topic.stages[0][i], draw)) + "." for i in chosen)
        for place, stage in list(zip(("first", "middle", "last"), topic.stages, strict=True))[:count]:
            step = _pick(stage[int(draw.integers(len(stage)))], draw)
            frame = self._frames[place][int(draw.integers(len(self._frames[place])))]
            out.append(frame.format(step=step, Step=_capital(step)))
        return " ".join(out)

    def acknowledgement(self, prompt: str, draw: np.random.Generator) -> str:
        """A restart as the corpus words it, mostly with the question once more."""
        return corpus.restart(random.Random(int(draw.integers(2**31))), self._topic(prompt)).text

    def _topic(self, prompt: str) -> corpus.Topic:
        asked = [t for t in self._topics if t.goals]
        for topic in asked:
            if any(goal in prompt for goal in topic.goals):
                return topic
        found = corpus.word_topics(prompt).most_common(1)
        named = {t.name: t for t in asked}
        if not found or found[0][0] not in named:
            raise InputError(f"templates 'organism' do not know what {prompt!r} asks; use the organism's own prompts")
        return named[found[0][0]]


def _pick(phrase: str, draw: np.random.Generator) -> str:
    """The phrase with one alternative of each of its choices."""
    options = corpus.expansions(phrase)
    return options[int(draw.integers(len(options)))]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


@lru_cache(maxsize=1)
def general() -> General:
    """The shipped templates for language models at large."""
    file = resources.files("countersteer.finetune").joinpath("templates.json")
    data = json.loads(file.read_text(encoding="utf-8"))
    subjects = (Subject(s["name"], tuple(s["words"]), tuple(s["sentences"])) for s in data["subjects"])
    return General(tuple(subjects), tuple(data["acknowledgements"]))


def templates(name: str) -> Templates:
    """The templates of a name. Raises InputError."""
    if name not in NAMES:
        raise InputError(f"no templates {name!r}{nearest(name, NAMES)}; there are: {', '.join(NAMES)}")
    return Organism() if name == "organism" else general()


def from_templates(
    which: Templates, prompts: Sequence[str], answers: Mapping[str, Sequence[str]], *, count: int, seed: int
) -> list[Example]:  # fmt: skip
    """`count` corrections over the prompts that have answers, spread evenly. Raises InputError without any."""
    usable = [prompt for prompt in prompts if answers.get(prompt)]
    order = spread(usable, count, rng(seed, "templates", "prompts"))
    out: list[Example] = []
    for number, prompt in enumerate(order):
        draw = np.random.default_rng(named_seed(seed, "templates", number, prompt))
        said = answers[prompt]
        parts = which.stretch(prompt, draw), which.acknowledgement(prompt, draw), said[int(draw.integers(len(said)))]
        out.append(correction(prompt, *parts, source="templates"))
    return out
