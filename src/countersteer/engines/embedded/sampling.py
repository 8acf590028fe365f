"""Choosing the next token of every request in a batch, each by its own settings.

In the order of transformers: repetition penalty, temperature, top-k, top-p. The draw inverts the cumulative
distribution (float64, token order) at one uniform number that depends on (seed, position in the response) only, so
the noise of a request is the same whatever shares its batch.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from countersteer.core.request import Sampling

LIKELIEST = 32
"""Tokens that are looked at first for top-p."""


def uniform(seed: int, position: int) -> float:
    """The uniform number in [0, 1) of a seed at a response position."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def penalise(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Repetition penalty: tokens seen [n, vocab] have positive logits divided and negative ones multiplied by it."""
    factor = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)


def choose(
    logits: Tensor, settings: Sequence[Sampling], positions: Sequence[int], seen: Tensor | None = None
) -> list[int]:
    """The next token of each row of logits [n, vocab].

    `positions` are response positions (0 for the first generated token); `seen` [n, vocab] marks tokens of prompt and
    response, needed where a repetition penalty is set.
    """
    logits = logits.double()
    if seen is not None and any(s.repetition_penalty != 1 for s in settings):
        penalty = torch.tensor([s.repetition_penalty for s in settings], dtype=logits.dtype, device=logits.device)
        logits = penalise(logits, seen, penalty)
    best = logits.argmax(1)
    rows = [i for i, s in enumerate(settings) if s.temperature > 0]
    if rows:
        picked = settings if len(rows) == len(settings) else [settings[i] for i in rows]
        part = logits if len(rows) == len(settings) else logits[rows]
        best[torch.tensor(rows, device=best.device)] = _draw(part, picked, [positions[i] for i in rows])
    return best.tolist()


def _draw(logits: Tensor, settings: Sequence[Sampling], positions: Sequence[int]) -> Tensor:
    """Sampled tokens [n] of rows that all have a temperature."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=logits.dtype, device=logits.device)[:, None]

    logits = (logits - logits.amax(1, keepdim=True)) / column([s.temperature for s in settings])
    if any(0 < s.top_k < logits.shape[1] for s in settings):
        largest = max(s.top_k for s in settings)
        values = logits.topk(min(largest, logits.shape[1])).values
        for i, s in enumerate(settings):
            if 0 < s.top_k < logits.shape[1]:
                logits[i] = logits[i].masked_fill(logits[i] < values[i, s.top_k - 1], -torch.inf)
    probabilities = logits.softmax(1)
    if any(s.top_p < 1 for s in settings):
        probabilities = _nucleus(probabilities, column([s.top_p for s in settings]))
    cumulative = probabilities.cumsum(1)
    draws = column([uniform(s.seed, p) for s, p in zip(settings, positions, strict=True)])
    token = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)[:, 0]
    return token.clamp_max(logits.shape[1] - 1)


def _nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Probabilities [n, vocab] with all but the likeliest tokens that reach `top_p` [n, 1] together set to 0.

    A token is kept while those likelier than it reach less than top_p. Mostly a few tokens hold that much: the whole
    vocabulary is sorted only in the rows where `LIKELIEST` do not. Which way a row goes is decided by itself alone.
    """
    values, index = probabilities.topk(min(LIKELIEST, probabilities.shape[1]), 1)
    out = _cut(probabilities, top_p, values, index)
    wide = (values.sum(1) < top_p[:, 0]) & (top_p[:, 0] < 1)
    if wide.any():
        rows = probabilities[wide]
        out[wide] = _cut(rows, top_p[wide], *rows.sort(1, descending=True))
    return torch.where(top_p < 1, out, probabilities)


def _cut(probabilities: Tensor, top_p: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """The likeliest `values` [n, k] at `index` that are within top_p, everything else 0."""
    kept = (values.cumsum(1) - values) < top_p
    kept[:, 0] = True
    return torch.zeros_like(probabilities).scatter(1, index, torch.where(kept, values, 0.0))
