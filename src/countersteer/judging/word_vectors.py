"""Word vectors: what words the restart model has never been fitted on are taken to mean.

20,000 frequent English words with 64 numbers each, from GloVe (Pennington, Socher, Manning 2014; Public Domain
Dedication and License), centred and projected on their first principal components by `bench/word_vectors.py`. Stored
as one byte per number; read once, on first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

_SPOKEN = MappingProxyType(
    {"n't": "not", "'s": "is", "'m": "am", "'re": "are", "'ve": "have", "'ll": "will", "'d": "would"}
    | {"im": "i", "ive": "i", "thats": "that", "dont": "not", "didnt": "not", "isnt": "not", "wasnt": "not"}
)


@cache
def _index() -> Mapping[str, int]:
    words = resources.files("countersteer.judging").joinpath("word_vectors.txt").read_text("utf-8").split("\n")
    return MappingProxyType({word: row for row, word in enumerate(words, start=1) if word})


@cache
def vectors() -> NDArray[np.float32]:
    """[words + 1, 64], scaled to a root mean square of 1; row 0, zero, is every word without a vector."""
    from safetensors.numpy import load

    stored = load(resources.files("countersteer.judging").joinpath("word_vectors.safetensors").read_bytes())
    table = stored["vectors"].astype(np.float32) * stored["scale"].astype(np.float32)
    return np.vstack([np.zeros((1, table.shape[1]), np.float32), table])


def row(word: str) -> int:
    """Row of a lower-case word in `vectors()`; 0 if it has none. A compound counts as its last known part."""
    index = _index()
    found = index.get(_SPOKEN.get(word, word), 0)
    if not found and "-" in word:
        found = index.get(word.replace("-", ""), 0) or index.get(word.rsplit("-", 1)[-1], 0)
    return found
