"""The hooks that apply edits and record readouts inside a model's forward pass.

Before each forward the engine says which token belongs to whom (`slot`, `position`, both flattened [tokens], slot -1
for padding). A hook on each decoder layer in use then edits the residual stream through that layer's row table and
keeps the readouts. Hooks are added on first use and all removed by `close`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from countersteer.core.request import LayerReceipt
from countersteer.edits.apply import wide_dtype
from countersteer.edits.edit import Edit
from countersteer.edits.table import RowTable
from countersteer.edits.vectors import ReadRows
from countersteer.engines.embedded.layers import residual, with_residual


class SteeringHooks:
    """Row tables and readouts of a model's layers for `slots` requests at once."""

    def __init__(self, layers: nn.ModuleList, slots: int, d_model: int, dtype: torch.dtype) -> None:
        self.layers, self.slots, self.d_model, self.dtype = layers, slots, d_model, dtype
        self.tables: dict[int, RowTable] = {}
        self.readers: dict[int, dict[int, tuple[ReadRows, int]]] = {}
        self.values: dict[int, list[tuple[int, Tensor]]] = {}
        self.slot: Tensor | None = None
        self.position: Tensor | None = None
        self.decoding = False
        """Whether every token of this forward has a slot of its own and lies behind position 0."""
        self.handles: dict[int, Any] = {}
        self.originals: dict[int, Tensor] | None = None
        """Residuals before any write, by layer, where several sets of hooks share a model: all read the same h."""

    def install(self, slot: int, edits: Iterable[Edit], prompt_tokens: int, *, measure_only: bool = False) -> None:
        """Give a slot its edits, with fresh receipts; with `measure_only` nothing is written."""
        edits = tuple(edits)
        for layer in sorted({e.site.layer for e in edits} | set(self.tables)):
            table = self.tables.get(layer)
            if table is None:
                device = next(self.layers[layer].parameters()).device
                table = RowTable(layer, self.slots, self.d_model, dtype=self.dtype, device=device)
                self.tables[layer] = table
                self._hook(layer)
            table.install(slot, edits, prompt_tokens, measure_only=measure_only)

    def turn(self, slot: int, position: int) -> None:
        """The slot's response has restarted: spans that follow the text turn at `position`."""
        for table in self.tables.values():
            table.turn(slot, position)

    def pause(self, slot: int, position: int) -> None:
        """The slot's edits rest from `position` on, until `resume`."""
        for table in self.tables.values():
            table.pause(slot, position)

    def resume(self, slot: int, position: int) -> None:
        """The slot's edits act again from `position` on."""
        for table in self.tables.values():
            table.resume(slot, position)

    def read(self, slot: int, groups: Iterable[ReadRows]) -> None:
        """Record readouts for a slot; `collect` returns their columns in the order of `groups`."""
        for column, rows in enumerate(groups):
            self.readers.setdefault(rows.site.layer, {})[slot] = (rows, column)
            self._hook(rows.site.layer)
        self.values[slot] = []

    def receipts(self, slot: int, tokens: int) -> tuple[LayerReceipt, ...]:
        """One receipt per edited layer of a slot, layers ascending."""
        found = (self.tables[layer].receipt(slot, tokens) for layer in sorted(self.tables))
        return tuple(r for r in found if r is not None)

    def collect(self, slot: int) -> Tensor | None:
        """The slot's readouts so far, [positions, n] on the CPU, or None if it has none."""
        parts = self.values.get(slot)
        if parts is None:
            return None
        columns: dict[int, list[Tensor]] = {}
        for column, value in parts:
            columns.setdefault(column, []).append(value)
        return torch.cat([torch.cat(columns[c]) for c in sorted(columns)], dim=1).cpu() if columns else None

    def release(self, slot: int) -> None:
        """Forget a slot."""
        for table in self.tables.values():
            table.remove(slot)
        for readers in self.readers.values():
            readers.pop(slot, None)
        self.values.pop(slot, None)

    def close(self) -> None:
        """Remove every hook from the model."""
        for handle in self.handles.values():
            handle.remove()
        self.handles.clear()

    def _hook(self, layer: int) -> None:
        if layer in self.handles:
            return

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            return self._on_layer(layer, output)

        self.handles[layer] = self.layers[layer].register_forward_hook(hook)

    def _on_layer(self, layer: int, output: Any) -> Any:
        if self.slot is None or self.position is None:
            return output
        table, readers = self.tables.get(layer), self.readers.get(layer)
        if not readers and (table is None or not table.active):
            return output
        h = residual(output)
        flat = h.reshape(-1, h.shape[-1])
        if table is not None and table.active:
            read = flat if self.originals is None else self.originals.setdefault(layer, flat)
            new = table.apply(read, self.slot, self.position, decoding=self.decoding)
            if read is not flat:  # what others wrote stays; this set's write is added to it
                wide = wide_dtype(h.dtype)
                new = (flat.to(wide) + (new.to(wide) - read.to(wide))).to(h.dtype)
            flat = new
            output = with_residual(output, flat.view(h.shape))
        for slot, (rows, column) in (readers or {}).items():
            mine = (self.slot == slot).nonzero()[:, 0]
            if len(mine):
                self.values[slot].append((column, rows.values(flat[mine])))
        return output
