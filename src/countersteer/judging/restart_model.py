"""A small fitted language model that reads a response and says, word by word, where it abandons what it wrote.

A BERT encoder (Devlin et al. 2019) fine-tuned from all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0) by
`bench/fit_restarts.py` on labelled texts. Its weights lie in the package as one byte per number and are multiplied with
numpy alone, so that a grade needs no deep-learning library. Two outputs per word piece: the log odds that a restart
begins there, and that it belongs to restart language.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from countersteer.judging.prose import normal

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Array = NDArray[np.float32]

PROMPT, WINDOW, MARGIN = 40, 300, 40
"""Word pieces of the prompt that are read; of the response in one pass; left and right of a pass that count in the
next or the last one only."""
_EPSILON = 1e-12


@dataclass(frozen=True)
class Reading:
    """The T word pieces of a response: their offsets in characters [T], which of them open a word, and two log odds.

    `begins`: that a restart begins there; `language`: that the piece is part of restart language.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    opens: NDArray[np.bool_]
    begins: Array
    language: Array


def prepared(text: str) -> str:
    """The text as the model reads it: one kind of quote, line ends as a mark of their own; the same length.

    Half a surrogate pair, which no tokenizer takes, becomes "?".
    """
    return normal(text).replace("\n", "¶").encode("utf-8", "replace").decode()


def tokenizer_of(vocabulary: Mapping[str, int]) -> Tokenizer:
    """BERT's uncased word pieces over a vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    made = Tokenizer(models.WordPiece(dict(vocabulary), unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def windows(count: int) -> list[tuple[int, int, int, int]]:
    """How a response of `count` word pieces is read: (first, last, first kept, last kept) of each pass, ends out."""
    found, at = [], 0
    while True:
        stop = min(count, at + WINDOW)
        kept = at + MARGIN if at else 0
        found.append((at, stop, kept, count if stop == count else stop - MARGIN))
        if stop == count:
            return found
        at = stop - 2 * MARGIN


def _normed(x: Array, weight: Array, bias: Array) -> Array:
    x = x - x.mean(-1, keepdims=True)
    scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + _EPSILON)
    made: Array = x / scale * weight + bias
    return made


def _gelu(x: Array) -> Array:
    """The Gaussian error unit in its tanh form (Hendrycks & Gimpel 2016)."""
    y = x * x
    y *= 0.044715
    y += 1
    y *= x
    y *= 0.7978845608028654
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= 0.5
    return y


def _softmax(x: Array) -> Array:
    x -= x.max(-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(-1, keepdims=True)
    return x


@dataclass(frozen=True)
class RestartModel:
    """The encoder's tensors by name, matrices as [in, out]; its word pieces; the log odds at which a restart begins."""

    tensors: Mapping[str, Array]
    pieces: Tokenizer
    layers: int
    heads: int
    threshold: float

    def encoded(self, ids: list[int], second: int) -> Array:
        """Outputs [T, 2] for word pieces [T], of which those from `second` on belong to the response."""
        w = self.tensors
        types = (np.arange(len(ids)) >= second).astype(np.int64)
        x = w["words"][ids] + w["positions"][: len(ids)] + w["types"][types]
        x = _normed(x, w["norm.weight"], w["norm.bias"])
        size, width = len(ids), x.shape[1]
        for layer in range(self.layers):

            def linear(value: Array, name: str, at: int = layer) -> Array:
                made: Array = value @ w[f"{at}.{name}.weight"] + w[f"{at}.{name}.bias"]
                return made

            parts = linear(x, "attend").reshape(size, 3, self.heads, -1).transpose(1, 2, 0, 3)
            scores = parts[0] @ parts[1].transpose(0, 2, 1)
            scores *= np.float32(parts.shape[-1] ** -0.5)
            mixed = (_softmax(scores) @ parts[2]).transpose(1, 0, 2).reshape(size, width)
            x = _normed(x + linear(mixed, "mix"), w[f"{layer}.mixed.weight"], w[f"{layer}.mixed.bias"])
            wide = _gelu(linear(x, "widen"))
            x = _normed(x + linear(wide, "narrow"), w[f"{layer}.narrowed.weight"], w[f"{layer}.narrowed.bias"])
        out: Array = x @ w["out.weight"] + w["out.bias"]
        return out

    def read(self, response: str, prompt: str | None = None) -> Reading:
        """A response read in windows, each behind the beginning of its prompt; linear in the response's length."""
        opening, closing = self.pieces.token_to_id("[CLS]"), self.pieces.token_to_id("[SEP]")
        assert opening is not None and closing is not None, "the vocabulary lacks the encoder's marks"
        asked = self.pieces.encode(prepared(prompt)).ids[:PROMPT] if prompt else []
        found = self.pieces.encode(prepared(response))
        front = [opening, *asked, closing]
        logits = np.zeros((len(found.ids), 2), np.float32)
        for start, stop, kept, last in windows(len(found.ids)) if found.ids else []:
            ids = [*front, *found.ids[start:stop], closing]
            made = self.encoded(ids, len(front))[len(front) : -1]
            logits[kept:last] = made[kept - start : last - start]
        offsets = np.array(found.offsets, np.int64).reshape(-1, 2)
        opens = np.array([not token.startswith("##") for token in found.tokens], np.bool_)
        return Reading(offsets[:, 0], offsets[:, 1], opens, logits[:, 0], logits[:, 1])


def loaded(data: bytes, words: list[str]) -> RestartModel:
    """The model in a safetensors file, whose matrices are bytes with a scale per row; `words`: its vocabulary."""
    from safetensors.numpy import load

    held = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    stored = load(data)
    tensors = {
        name: value.astype(np.float32) * stored[f"{name}.scale"] if value.dtype == np.int8 else value.astype(np.float32)
        for name, value in stored.items()
        if not name.endswith(".scale")
    }
    pieces = tokenizer_of({word: number for number, word in enumerate(words)})
    return RestartModel(tensors, pieces, int(held["layers"]), int(held["heads"]), float(held["threshold"]))


@cache
def shipped() -> RestartModel:
    """The model in the package."""
    here = resources.files("countersteer.judging")
    words = here.joinpath("restart_words.txt").read_text("utf-8").split("\n")
    return loaded(here.joinpath("restart_model.safetensors").read_bytes(), words)
