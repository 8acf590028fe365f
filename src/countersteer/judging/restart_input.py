"""A response as numbers: its words, and the pieces at which a restart could begin, as the restart model reads them.

Words are rows of `word_vectors.py`, with their class (`lexicon.py`) and flags of what stands around them; pieces are
ranges of words, with the features of `clause_features.py` and a few measures of how the text turns towards its prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from countersteer.judging.clause_features import TOKEN, is_content
from countersteer.judging.lexicon import CLASS_OF
from countersteer.judging.observed import Observation
from countersteer.judging.prose import BLANK
from countersteer.judging.word_vectors import row, vectors

CLASSES = tuple(sorted(set(CLASS_OF.values())))
"""Word classes in the order of their numbers, from 1; 0 is none."""
MARKS = (".…", "?", "!", ",;", "—–-", ":", "\n", "([", BLANK + '"*_')
"""Between a word and the next: which of these stand there."""
FLAGS = len(MARKS) + 5
NUMBERS = 8
BEFORE, WITHIN, AFTER = 14, 20, 24
"""How many words the model sees before a word, from it, and after those."""
_FAR = 30
_MARK_OF = {character: number for number, mark in enumerate(MARKS) for character in mark}
_NUMBER_OF = {name: number for number, name in enumerate(CLASSES, start=1)}


@dataclass(frozen=True)
class Encoded:
    """T words and P pieces of one response.

    `words` [T] rows of the vectors; `classes` [T]; `flags` [T, FLAGS] of 0 and 1; `numbers` [T, NUMBERS]; `pieces` [T]
    the piece of each word (-1: of none); `names` the features of each piece; `starts` [T] offsets in characters.
    """

    words: NDArray[np.int32]
    classes: NDArray[np.int32]
    flags: NDArray[np.float32]
    numbers: NDArray[np.float32]
    pieces: NDArray[np.int32]
    names: tuple[tuple[str, ...], ...]
    starts: NDArray[np.int32]


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Row by row; 0 where one of them is zero."""
    size = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    found: NDArray[np.float32] = (a * b).sum(1) / np.maximum(size, 1e-6)
    return found


def encode(seen: Observation) -> Encoded:
    """The observed response for the restart model; linear in its length."""
    reading = seen.reading
    text, count = seen.text, len(reading.words)
    words = np.array([row(word) for word in reading.words], np.int32)
    classes = np.array([_NUMBER_OF.get(name or "", 0) for name in reading.classes], np.int32)
    content = np.array([is_content(word) for word in reading.words], bool)
    pieces = np.full(count, -1, np.int32)
    lengths = np.zeros(count, np.float32)
    flags = np.zeros((count, FLAGS), np.float32)
    for k, place in enumerate(seen.places):
        i, j = reading.span(place.piece.start, place.piece.end)
        pieces[i:j] = k
        lengths[i:j] = min(j - i, 30) / 30
        flags[i : min(i + 1, j), -1] = 1
    for k, end in enumerate(reading.ends):
        gap = text[end : min(end + 12, reading.starts[k + 1] if k + 1 < count else len(text))]
        for character in gap:
            if (mark := _MARK_OF.get(character)) is not None:
                flags[k, mark] = 1
    flags[:, -5] = reading.asked
    flags[:, -4] = [stem is not None and reading.first[stem] < k for k, stem in enumerate(reading.stems)]
    flags[:, -3] = content
    flags[:, -2] = [text[start].isupper() for start in reading.starts]
    return Encoded(
        words,
        classes,
        flags,
        _numbers(seen, words, content & (words > 0), lengths),
        pieces,
        tuple(place.names for place in seen.places),
        np.array(reading.starts, np.int32),
    )


def _numbers(
    seen: Observation, words: NDArray[np.int32], content: NDArray[np.bool_], lengths: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Per word: how close the text before and after it is to the prompt and to each other, and where it stands."""
    table, count = vectors(), len(words)
    asked = [row(word) for word in TOKEN.findall(seen.prompt.lower()) if is_content(word)]
    wanted = table[asked].sum(0)[None, :] if asked else np.zeros((1, table.shape[1]), np.float32)
    sums = np.vstack([np.zeros((1, table.shape[1]), np.float32), np.cumsum(table[words] * content[:, None], axis=0)])
    at = np.arange(count)
    before = sums[at] - sums[np.maximum(0, at - _FAR)]
    after = sums[np.minimum(count, at + WITHIN + _FAR)] - sums[np.minimum(count, at + WITHIN)]
    towards, away = _cosines(after, wanted), _cosines(before, wanted)
    left = np.minimum(count - at, 60) / 60
    known = np.full(count, float(bool(seen.prompt)))
    columns = [away, towards, towards - away, _cosines(before, after), np.minimum(at, 60) / 60, left, lengths, known]
    return np.stack(columns, 1).astype(np.float32)
