"""How close a text lies to a prompt in meaning, for prompts of which no other reference answer is known.

Texts are weighted sums of the word pieces' vectors (those of the restart model: all-MiniLM-L6-v2's, centred and of unit
length), a piece weighing the more the fewer prompts use it; likeness is their cosine. It knows neither order nor
grammar, and tells a subject by words that the prompt does not have.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from countersteer.judging.affinity import COMMON
from countersteer.judging.restart_model import prepared, shipped

Array = NDArray[np.float32]
_LEAST = 0.05


@cache
def _vectors() -> Array:
    """The word pieces' vectors [pieces, width], centred, of unit length."""
    words = shipped().tensors["words"]
    centred = words - words.mean(0)
    made: Array = centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(1e-6)
    return made


def _counts(text: str) -> Counter[int]:
    """A text's word pieces with their counts, without marks and function words."""
    found = shipped().pieces.encode(prepared(text))
    told = zip(found.ids, found.tokens, strict=True)
    return Counter(number for number, token in told if token not in COMMON and any(c.isalnum() for c in token))


class Likeness:
    """Cosines between texts and prompts, words weighed by how many of the prompts (with their answers) use them."""

    def __init__(self, prompts: Sequence[str], texts: Sequence[Sequence[str]]) -> None:
        """`texts[i]`: answers to prompt i."""
        self._used: Counter[int] = Counter()
        for prompt, answers in zip(prompts, texts, strict=True):
            self._used.update(set().union(*(_counts(text) for text in (prompt, *answers))))
        self._all = len(prompts) + 1
        self._prompts = [self._vector(prompt) for prompt in prompts]

    def _vector(self, text: str) -> Array:
        """The text's direction [width]; zero for a text without words."""
        counts = _counts(text)
        if not counts:
            return np.zeros(_vectors().shape[1], np.float32)
        weights = [
            (1 + math.log(count)) * max(math.log(self._all / (self._used[number] + 0.5)), _LEAST)
            for number, count in counts.items()
        ]
        total = np.array(weights, np.float32) @ _vectors()[list(counts)]
        made: Array = total / max(float(np.linalg.norm(total)), 1e-6)
        return made

    def of(self, text: str, prompt: int) -> float:
        """Cosine of a text and prompt number `prompt`."""
        return float(self._vector(text) @ self._prompts[prompt])
