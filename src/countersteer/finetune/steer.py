"""Training under active steering: the edits of each example applied in the forward pass, gradients flowing through.

Every row of a batch may have its own intervention, or none. The arithmetic is that of the engines (`edits.apply`), on
the positions that each edit's span holds; padding is on the right, so a position is its column. What the edits did is
measured on the tensor handed on, as in the engines, and an unconditional edit that changed no token ends the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from countersteer.core.errors import InputError, NoOpError
from countersteer.core.request import EditReceipt, LayerReceipt, Receipt
from countersteer.edits.apply import apply
from countersteer.edits.edit import Intervention
from countersteer.edits.receipts import no_op
from countersteer.engines.embedded.layers import find_layers, residual, with_residual

Row = tuple[Intervention | None, int, int]
"""What a row of a batch is steered by, the tokens of its prompt, and of its text."""


class TrainingSteer:
    """Hooks on a model's layers that steer the rows of the batch set by `rows`. `close` removes them."""

    def __init__(self, module: nn.Module, interventions: Sequence[Intervention | None]) -> None:
        """`interventions`: one per example, by its number. Raises InputError for a layer or width out of range."""
        self._layers = find_layers(module)
        self._interventions = list(interventions)
        self._current: list[Row] = []
        self._measured: dict[tuple[int, int], tuple[list[Tensor], list[int]]] | None = None
        self.totals: dict[str, dict[str, float]] = {}
        """Per site: examples met under steering, tokens seen and changed, and the sum and maximum of |h' - h| / |h|."""
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

    def require(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Raise InputError unless every span holds a position, given each example's tokens of prompt and text."""
        for number, (given, (prompt, length)) in enumerate(zip(self._interventions, sizes, strict=True), 1):
            for edit in given.edits if given is not None else ():
                if not edit.span.count(prompt, length):
                    raise InputError(
                        f"example {number} cannot be trained under steering: span {edit.span} holds none of its"
                        f" {length} tokens; widen the span"
                    )

    def rows(self, indices: Sequence[int], prompt_tokens: Sequence[int], lengths: Sequence[int]) -> None:
        """Which example each row of the next forward is, the tokens of its prompt, and of its text."""
        given = [self._interventions[i] for i in indices]
        self._current = list(zip(given, prompt_tokens, lengths, strict=True))
        self._measured = {}

    def check(self, *, count: bool = True) -> None:
        """Read what the forward since `rows` measured, and add it to the totals with `count`. Raises NoOpError."""
        measured, self._measured = self._measured or {}, None
        for row, (given, prompt, length) in enumerate(self._current):
            if given is None:
                continue
            receipt = self._receipt(given, row, measured)
            why = no_op(given, receipt, prompt_tokens=prompt, tokens=length)
            if why is not None:
                raise NoOpError(f"training under steering was not steered: {why}")
            for layer in receipt.layers if count else ():
                self._add(layer)

    def receipts(self) -> list[dict[str, Any]]:
        """The totals in words, one entry per site."""
        return [
            {
                "site": site, "examples": int(t["examples"]), "tokens_seen": int(t["seen"]),
                "tokens_changed": int(t["changed"]),
                "mean_relative": round(t["sum"] / t["measured"], 6) if t["measured"] else None,
                "max_relative": round(t["max"], 6) if t["measured"] else None,
            }
            for site, t in sorted(self.totals.items())
        ]  # fmt: skip

    def go_on(self, totals: Mapping[str, Mapping[str, float]]) -> None:
        """Continue the totals of an interrupted training."""
        self.totals = {site: dict(given) for site, given in totals.items()}

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
        old = h[:length]
        new = apply(old, given.edits, layer=layer, prompt_tokens=prompt)
        if self._measured is not None:  # not when checkpointing computes the layer again in the backward pass
            self._measured[row, layer] = self._measure(old.detach(), new.detach(), given, layer, prompt)
        return torch.cat([new, h[length:]]) if length < h.shape[0] else new

    @staticmethod
    @torch.no_grad()
    def _measure(
        old: Tensor, new: Tensor, given: Intervention, layer: int, prompt: int
    ) -> tuple[list[Tensor], list[int]]:  # fmt: skip
        """Tokens changed, sum and maximum of |h' - h| / |h|, tokens seen, those without BOS, changed by each edit; and
        the tokens that each edit's span holds. The numbers stay on the device.
        """
        edits = [e for e in given.edits if e.site.layer == layer]
        places = torch.arange(old.shape[0], device=old.device)
        inside = torch.zeros(old.shape[0], dtype=torch.bool, device=old.device)
        seen = []
        for edit in edits:
            first, stop = edit.span.bounds(prompt)
            inside |= (places >= first) & (places < stop)
            seen.append(edit.span.count(prompt, old.shape[0]))
        moved = (new != old).any(-1)
        relative = ((new - old).float().norm(dim=-1) / old.float().norm(dim=-1).clamp_min(1e-12)) * inside
        relative[0] = 0.0  # BOS: its norm is no measure
        numbers = [moved.sum(), relative.sum(), relative.max(), inside.sum(), inside[1:].sum()]
        for edit in edits if len(edits) > 1 else ():
            alone = apply(old, (edit,), layer=layer, prompt_tokens=prompt)
            numbers.append((alone != old).any(-1).sum())
        return numbers, seen

    def _receipt(
        self, given: Intervention, row: int, measured: Mapping[tuple[int, int], tuple[list[Tensor], list[int]]]
    ) -> Receipt:  # fmt: skip
        layers = []
        for layer in sorted({edit.site.layer for edit in given.edits}):
            numbers, seen = measured[row, layer]
            changed, total, most, inside, counted, *alone = torch.stack([n.double() for n in numbers]).tolist()
            edits = [e for e in given.edits if e.site.layer == layer]
            layers.append(LayerReceipt(
                str(edits[0].site), int(inside), int(changed), total / counted if counted else None,
                most if counted else None, conditional=all(e.conditional for e in edits),
                edits=tuple(
                    EditReceipt(e.method, n, int(c), None, conditional=e.conditional)
                    for e, n, c in zip(edits, seen, alone, strict=True)
                ) if alone else (),
            ))  # fmt: skip
        return Receipt(tuple(layers), "training")

    def _add(self, layer: LayerReceipt) -> None:
        zero = dict.fromkeys(("examples", "seen", "changed", "measured", "sum", "max"), 0.0)
        total = self.totals.setdefault(layer.site, zero)
        total["examples"] += 1
        total["seen"] += layer.tokens_seen
        total["changed"] += layer.tokens_changed
        if layer.mean_relative is not None and layer.max_relative is not None:
            total["measured"] += 1
            total["sum"] += layer.mean_relative
            total["max"] = max(total["max"], layer.max_relative)
