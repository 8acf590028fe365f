"""Teacher-forced passes: residuals and readouts of given texts, unsteered.

Texts are batched by length with padding on the right, which a causal decoder never sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from countersteer.core.errors import InputError
from countersteer.core.span import Span
from countersteer.edits.vectors import ReadRows
from countersteer.engines.embedded.layers import residual
from countersteer.engines.embedded.model import LoadedModel

TOKEN_BUDGET = 4096
"""Padded tokens per forward."""


def _batches(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of texts in groups of similar length, each within the token budget."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    groups: list[list[int]] = []
    for i in order:
        group = groups[-1] if groups else None
        if group is not None and len(texts[i]) * (len(group) + 1) <= TOKEN_BUDGET:
            group.append(i)
        else:
            groups.append([i])
    return groups


def capture(model: LoadedModel, texts: Sequence[Sequence[int]], layers: Sequence[int]) -> list[list[Tensor]]:
    """Residuals [tokens, d_model] at the output of each of `layers`, per text, in the model's dtype."""
    out: list[list[Tensor]] = [[] for _ in texts]
    for group in _batches(texts):
        kept: dict[int, Tensor] = {}

        def keep(layer: int, kept: dict[int, Tensor] = kept) -> Any:
            def hook(module: Any, args: Any, output: Any) -> None:
                kept[layer] = residual(output).detach()

            return model.layers[layer].register_forward_hook(hook)

        handles = [keep(layer) for layer in dict.fromkeys(layers)]
        longest = max(len(texts[i]) for i in group)
        ids = torch.tensor([[*texts[i], *[texts[i][-1]] * (longest - len(texts[i]))] for i in group])
        try:
            with torch.inference_mode():
                body = getattr(model.module, "base_model", model.module)
                body(input_ids=ids.to(model.device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        for row, i in enumerate(group):
            out[i] = [kept[layer][row, : len(texts[i])].clone() for layer in layers]
    return out


def reduce_rows(values: Tensor, how: str, span: Span, prompt_tokens: int) -> Tensor:
    """Rows of a span, reduced over positions by "max" or "mean" (position 0 left out of both), or all ("none")."""
    start, stop = span.bounds(prompt_tokens)
    if how == "none":
        return values[start:stop]
    rows = values[max(start, 1) : stop]
    if not len(rows):
        raise InputError(f"span {span} holds no position beyond 0 of a text of {len(values)} tokens")
    return rows.amax(0) if how == "max" else rows.mean(0)


def readout_columns(residuals: Sequence[Tensor], groups: Sequence[ReadRows]) -> Tensor:
    """Readouts [tokens, n] of residuals given per group's site, columns in the groups' order."""
    return torch.cat([rows.values(h) for h, rows in zip(residuals, groups, strict=True)], dim=1)
