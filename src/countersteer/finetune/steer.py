"""Training under active steering: the edits of each example applied in the forward pass, gradients flowing through.

Every row of a batch may have its own intervention, or none. The arithmetic is that of the engines (`edits.apply`), on
the positions that each edit's span holds; padding is on the right, so a position is its column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from countersteer.core.errors import InputError
from countersteer.edits.apply import apply
from countersteer.edits.edit import Intervention
from countersteer.engines.embedded.layers import find_layers, residual, with_residual


class TrainingSteer:
    """Hooks on a model's layers that steer the rows of the batch set by `rows`. `close` removes them."""

    def __init__(self, module: nn.Module, interventions: Sequence[Intervention | None]) -> None:
        """`interventions`: one per example of the training set. Raises InputError for a layer or width out of range."""
        self._layers = find_layers(module)
        self._interventions = list(interventions)
        self._current: list[tuple[Intervention | None, int, int]] = []
        self.steered_tokens = 0
        """Token positions changed so far: proof that training was steered."""
        wanted: set[int] = set()
        for given in self._interventions:
            for edit in given.edits if given is not None else ():
                if edit.site.layer >= len(self._layers):
                    raise InputError(f"an edit is at layer {edit.site.layer}, the model has {len(self._layers)}")
                if edit.span.restart:
                    raise InputError(f"span {edit.span} follows generated text; training has none")
                wanted.add(edit.site.layer)
            if given is not None and given.gate is not None:
                raise InputError("a request-level gate needs a pass over the prompt first; train without it")
        self._handles = [self._layers[layer].register_forward_hook(self._hook(layer)) for layer in sorted(wanted)]

    def rows(self, indices: Sequence[int], prompt_tokens: Sequence[int], lengths: Sequence[int]) -> None:
        """Which example each row of the next forward is, the tokens of its prompt, and of its text."""
        given = [self._interventions[i] for i in indices]
        self._current = list(zip(given, prompt_tokens, lengths, strict=True))

    def close(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            h = residual(output)
            if not self._current:
                return output
            if len(self._current) != h.shape[0]:
                raise InputError(f"a batch of {h.shape[0]} rows was announced as {len(self._current)}")
            return with_residual(output, torch.stack([self._row(h[i], i, layer) for i in range(h.shape[0])]))

        return hook

    def _row(self, h: Tensor, row: int, layer: int) -> Tensor:
        given, prompt, length = self._current[row]
        if given is None:
            return h
        new = apply(h[:length], given.edits, layer=layer, prompt_tokens=prompt)
        with torch.no_grad():
            self.steered_tokens += int((new != h[:length]).any(-1).sum())
        return torch.cat([new, h[length:]]) if length < h.shape[0] else new
