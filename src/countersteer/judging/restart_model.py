"""The fitted half of the restart detector: small convolutional networks over words and what stands around them.

Their weights come from `bench/fit_restarts.py` and the labelled texts in the repository; here they are only read and
multiplied, with numpy alone, so that a grade needs no library. The logits of the networks, which differ in their seed,
are averaged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from countersteer.judging.observed import Observation
from countersteer.judging.restart_input import AFTER, BEFORE, WITHIN, Encoded, encode
from countersteer.judging.word_vectors import vectors

Array = NDArray[np.float32]


def _convolved(x: Array, weight: Array, bias: Array, step: int) -> Array:
    """A convolution over words: x [T, in], weight [out, in, 3], the taps `step` words apart, zeros outside."""
    zeros = np.zeros((step, x.shape[1]), np.float32)
    padded = np.vstack([zeros, x, zeros])
    out = bias + x @ weight[:, :, 1].T
    out += padded[: len(x)] @ weight[:, :, 0].T
    out += padded[2 * step :] @ weight[:, :, 2].T
    return out


def _most(y: Array, count: int) -> Array:
    """The largest value of each column in the `count` rows from each row on (values >= 0, zeros outside)."""
    held, size = y, 1
    while size < count:
        step = min(size, count - size)
        held = np.maximum(held, np.vstack([held[step:], np.zeros((min(step, len(held)), y.shape[1]), np.float32)]))
        size += step
    return held


@dataclass(frozen=True)
class RestartModel:
    """The networks' weights by name, the piece features they know, and the logit at which a restart begins."""

    networks: tuple[Mapping[str, Array], ...]
    features: Mapping[str, int]
    threshold: float

    def words(self, encoded: Encoded) -> Array:
        """Log odds [T] that a restart begins at each word."""
        context = np.zeros((len(encoded.names) + 1, len(self.features)), np.float32)
        for k, names in enumerate(encoded.names):
            context[k, [self.features[name] for name in names if name in self.features]] = 1
        made = [self._network(weights, encoded, context) for weights in self.networks]
        logits: Array = np.mean(made, axis=0)
        return logits

    def logits(self, seen: Observation) -> list[tuple[float, int]]:
        """For each place of an observed response, its best word's log odds and that word's offset in characters."""
        encoded = encode(seen)
        if not len(encoded.words):
            return [(-20.0, place.piece.start) for place in seen.places]
        words = self.words(encoded)
        best = [(-20.0, place.piece.start) for place in seen.places]
        for logit, piece, start in zip(words.tolist(), encoded.pieces.tolist(), encoded.starts.tolist(), strict=True):
            if piece >= 0 and logit > best[piece][0]:
                best[piece] = (logit, start)
        return best

    @staticmethod
    def _network(w: Mapping[str, Array], encoded: Encoded, context: Array) -> Array:
        x = np.hstack([vectors()[encoded.words], w["classes.weight"][encoded.classes], encoded.flags])
        x = np.tanh(x @ w["project.weight"].T + w["project.bias"])
        near = np.maximum(_convolved(x, w["near.weight"], w["near.bias"], 1), 0)
        wide = np.maximum(_convolved(near, w["wide.weight"], w["wide.bias"], 2), 0)
        y = np.hstack([near, wide])
        around = np.hstack([np.maximum(x @ w["around.weight"].T + w["around.bias"], 0), wide])
        seen = np.maximum(context @ w["context.weight"].T + w["context.bias"], 0)
        fronts = np.flatnonzero(np.diff(encoded.pieces, prepend=-2))
        whole = np.maximum.reduceat(y, fronts, axis=0)
        inputs = [
            np.repeat(whole, np.diff(fronts, append=len(y)), axis=0),
            y,
            _most(y, WITHIN),
            _most(np.vstack([np.zeros((BEFORE, around.shape[1]), np.float32), around]), BEFORE)[: len(y)],
            np.vstack([_most(around, AFTER), np.zeros((WITHIN, around.shape[1]), np.float32)])[WITHIN:],
            seen[encoded.pieces],
            encoded.numbers,
        ]
        hidden = np.maximum(np.hstack(inputs) @ w["hidden.weight"].T + w["hidden.bias"], 0)
        out: Array = hidden @ w["out.weight"][0] + w["out.bias"][0]
        return out


@cache
def shipped() -> RestartModel:
    """The model in the package."""
    from safetensors.numpy import load

    data = resources.files("countersteer.judging").joinpath("restart_model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    tensors = load(data)
    networks = tuple(
        {name.split(".", 1)[1]: value.astype(np.float32) for name, value in tensors.items() if name.startswith(f"{k}.")}
        for k in range(int(header["networks"]))
    )
    features = {name: k for k, name in enumerate(json.loads(header["features"]))}
    return RestartModel(networks, features, float(header["threshold"]))
