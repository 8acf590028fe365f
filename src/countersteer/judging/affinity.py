"""How much of a text's wording belongs to one prompt's references rather than to the other prompts'.

Every word (lightly stemmed; pairs of characters in scripts without spaces) has a mass, large for rare and unseen
words and small for words of many prompts, and for each prompt a membership between 0 (never in its references) and
1 (in its references only). The affinity of a text is the mass-weighted mean membership of its words, so a text half
on and half off topic lies half way. References left out of the count ("leave one out") calibrate it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_WIDE = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_SUFFIX = re.compile(r"(?:ings?|edly|ed|ies|ers?|es|s|ly|ions?|ment|e|y)$")
_COMMON_WORDS = """
a about above after again all also always am an and any are as at back be because been before being below between
both but by can cannot could did do does doing done down during each either else even ever every few first for from
further get gets give go goes good had has have having he help her here hers him his how however i if in into is it
its itself just keep know last least less let like likely look make makes many may me might more most much must my
near need needs never next no nor not now of off often on once one only or other our out over own per perhaps please
rather really same see several shall she should simply since so some something sometimes still such sure take than
that the their them then there these they thing things this those though three through to together too try two under
until up upon us use used using usually very want was way we well were what when where whether which while who whole
why will with within without would yes yet you your yours step steps start begin finally second third answer
question
"""
COMMON = frozenset(_COMMON_WORDS.split())
_MASS_COMMON = 0.03
_SHRINK = 0.08
_PSEUDO_MASS = 0.8


def _stem(word: str) -> str:
    if len(word) <= 4 or not word.isascii():
        return word
    stem = _SUFFIX.sub("", word, count=1)
    return stem if len(stem) >= 3 else word


def words(text: str) -> Counter[str]:
    """The words of a text, stemmed, with their counts; common function words keep their form."""
    counts: Counter[str] = Counter()
    for match in _TOKEN.finditer(text.casefold()):
        word = match[0]
        if _WIDE.search(word):
            counts.update(word[i : i + 2] for i in range(max(1, len(word) - 1)))
            continue
        word = re.sub(r"['’]\w{1,2}$", "", word)
        counts[word if word in COMMON else _stem(word)] += 1
    return counts


def content_words(text: str) -> frozenset[str]:
    """The stemmed words of a text that are not common function words."""
    return frozenset(word for word in words(text) if word not in COMMON)


@dataclass
class Affinity:
    """Word statistics of a reference set; `texts[i]` are the references of prompt i, `prompts[i]` its own words."""

    prompts: Sequence[str]
    texts: Sequence[Sequence[str]]
    weights: Sequence[Sequence[float]] | None = None
    _vocabulary: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._prompt_words = [frozenset(words(prompt)) - COMMON for prompt in self.prompts]
        self.documents = [[words(text) for text in texts] for texts in self.texts]
        for documents in self.documents:
            for document in documents:
                for word in document:
                    self._vocabulary.setdefault(word, len(self._vocabulary))
        for own in self._prompt_words:
            for word in own:
                self._vocabulary.setdefault(word, len(self._vocabulary))
        self._weights = [
            list(self.weights[i]) if self.weights is not None else [1.0] * len(documents)
            for i, documents in enumerate(self.documents)
        ]
        presence = np.zeros((len(self.prompts), len(self._vocabulary)), dtype=np.float32)
        for i, documents in enumerate(self.documents):
            for document, weight in zip(documents, self._weights[i], strict=True):
                presence[i, [self._vocabulary[word] for word in document]] += weight
            presence[i, [self._vocabulary[word] for word in self._prompt_words[i]]] += 1.0
        self._presence = presence
        self._totals = np.array([sum(weights) + 1.0 for weights in self._weights], dtype=np.float32)
        rates = presence / self._totals[:, None]
        self._rate_sum = rates.sum(axis=0)
        self._rates = rates

    def raw(self, counts: Counter[str], prompt: int, *, without: Iterable[int] = ()) -> float:
        """Affinity in [0, 1] of a text's word counts to prompt `prompt`, without some of that prompt's references."""
        known = [(word, self._vocabulary[word], count) for word, count in counts.items() if word in self._vocabulary]
        unknown = sum(
            1.0 + 0.5 * math.log(count)
            for word, count in counts.items()
            if word not in self._vocabulary and word not in COMMON
        )
        if not known:
            return 0.0
        ids = np.array([i for _, i, _ in known])
        damped = 1.0 + 0.5 * np.log(np.array([count for _, _, count in known], dtype=np.float32))
        own_presence = self._presence[prompt, ids].copy()
        total = float(self._totals[prompt])
        for index in without:
            document, weight = self.documents[prompt][index], self._weights[prompt][index]
            own_presence -= np.array([weight if word in document else 0.0 for word, _, _ in known], dtype=np.float32)
            total -= weight
        own = np.clip(own_presence, 0.0, None) / total
        others = len(self.prompts) - 1
        rest = (self._rate_sum[ids] - self._rates[prompt, ids]) / max(others, 1)
        common = np.array([word in COMMON for word, _, _ in known])
        mass = np.where(common, _MASS_COMMON, _mass(np.maximum(rest - 1.0 / max(others, 1), 0.0))) * damped
        membership = np.where((own > 1e-6) & ~common, own / (own + rest + _SHRINK), 0.0)
        distinct = len(counts) / max(1, sum(counts.values()))
        raw = float((mass * membership).sum() / (mass.sum() + unknown + _PSEUDO_MASS))
        return raw * min(1.0, distinct / 0.25)


def _mass(rest: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mass of a word by the share of the other prompts' references that hold it, beyond one whole prompt.

    1 for a word of no or one other prompt (it tells topics apart), near 0 for one of most prompts.
    """
    return np.asarray(np.maximum(_MASS_COMMON, 1.0 - np.log1p(rest * 30.0) / math.log(16.0)), dtype=np.float32)
