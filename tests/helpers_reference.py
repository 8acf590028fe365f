"""The reference for generation: a transformers model, plain forward hooks with formulas written out here, no cache.

`write`s are functions from a layer's residuals [tokens, d_model] to what is added to them; each has a span. Every
token is chosen after a pass over the whole text so far, so nothing is shared with the code under test: no cache, no
slot, no row table, no `edits.apply`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import countersteer as cs
from helpers_models import decoder_layers


@dataclass(frozen=True)
class Write:
    """What is added at the output of `layer` to positions of `span`: `delta(h)` [tokens, d_model]."""

    layer: int
    delta: Callable[[Tensor], Tensor]
    span: str = "all"
    order: int = 0


def in_span(span: str, positions: Tensor, prompt: int) -> Tensor:
    """Which positions a span holds, spelled out."""
    if span.startswith("from("):
        return positions >= int(span[5:-1])
    if span.startswith("until("):
        return positions < int(span[6:-1])
    if span == "prompt":
        return positions < prompt
    if span == "response":
        return positions >= prompt
    if span == "generation":
        return positions >= prompt - 1
    assert span == "all"
    return positions >= 0


@contextmanager
def plain_hooks(model: Any, writes: Sequence[Write], prompt: int) -> Iterator[list[Tensor]]:
    """Hooks that edit full passes over one text; yields the per-layer sums of changed tokens as they happen."""
    changed: list[Tensor] = []
    handles = []
    layers = decoder_layers(model)
    for layer in sorted({w.layer for w in writes}):
        here = [w for w in writes if w.layer == layer]

        def hook(module: Any, args: Any, output: Any, here: list[Write] = here) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            before, positions = h, torch.arange(h.shape[1])
            for order in sorted({w.order for w in here}):
                total = torch.zeros_like(h)
                for w in here:
                    if w.order == order:
                        total[0] += w.delta(h[0]) * in_span(w.span, positions, prompt)[:, None]
                h = h + total
            changed.append((h != before).any(-1)[0])
            return (h, *output[1:]) if isinstance(output, tuple) else h

        handles.append(layers[layer].register_forward_hook(hook))
    try:
        yield changed
    finally:
        for handle in handles:
            handle.remove()


def uniform(seed: int, position: int) -> float:
    """The documented noise: 53 bits of BLAKE2b over (seed mod 2^63, response position), as a number in [0, 1)."""
    digest = hashlib.blake2b(struct.pack("<qq", seed % 2**63, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def pick(logits: Tensor, text: list[int], sampling: cs.Sampling, position: int) -> int:
    """The next token by transformers' own processors, drawn by inverting the cumulative distribution."""
    ids, scores = torch.tensor([text]), logits[None].double()
    if sampling.repetition_penalty != 1:
        scores = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(ids, scores)
    if sampling.temperature == 0:
        return int(scores.argmax())
    scores = TemperatureLogitsWarper(float(sampling.temperature))(ids, scores)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    weights = scores[0].softmax(0).tolist()
    draw = uniform(sampling.seed, position) * sum(weights)
    total = 0.0
    for token, weight in enumerate(weights):
        total += weight
        if draw < total:
            return token
    return max(t for t, w in enumerate(weights) if w > 0)


def reference(
    model: Any,
    prompt: Sequence[int],
    writes: Sequence[Write] = (),
    *,
    sampling: cs.Sampling,
    ends: Sequence[int] = (),
) -> list[int]:
    """The tokens of one request, each after a full pass without a cache."""
    text = list(prompt)
    with plain_hooks(model, writes, len(prompt)), torch.inference_mode():
        for position in range(sampling.max_tokens):
            logits = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
            text.append(pick(logits, text, sampling, position))
            if text[-1] in ends:
                break
    return text[len(prompt) :]


def residuals(model: Any, prompt: Sequence[int], layer: int) -> Tensor:
    """The clean residuals [tokens, d_model] of a text at a layer's output."""
    kept: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output)[0].clone())

    handle = decoder_layers(model)[layer].register_forward_hook(keep)
    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([list(prompt)]), use_cache=False)
    finally:
        handle.remove()
    return kept[0]
