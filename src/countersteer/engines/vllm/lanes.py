"""Requests that come and go, written into a layer's tables: all of a step at once.

A worker with a thousand small operations between two steps would idle its device. So the requests of a step are
gathered, and each table is brought up to date with a handful of operations whatever their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from countersteer.edits.edit import Edit
from countersteer.engines.vllm.plan import READS, Piece
from countersteer.engines.vllm.rows import NOWHERE, Rows
from countersteer.engines.vllm.ticket import Ticket
from countersteer.engines.vllm.unit import Unit

Placed = tuple[Piece, list[int], bool]
"""A piece, the numbers of its rows, and whether they are new."""


@dataclass
class Lane:
    """A request in flight: its ticket, its lane, and what was recorded. `done` positions have been measured.

    `pauses`: positions [from, to) at which its edits rest. `columns`: per layer, its own among the layer's readouts;
    `steps`: the steps that read it, in order. `spent`: its residuals were handed out, nothing of it is kept any more.
    """

    number: int
    ticket: Ticket
    prompt_tokens: int
    placed: Sequence[Placed]
    first: int | None = None
    done: int = 0
    pauses: tuple[tuple[int, int, str], ...] = ()
    steps: list[Any] = field(default_factory=list)
    taken: dict[int, list[Tensor]] = field(default_factory=dict)
    taken_count: int = 0
    spent: bool = False

    def __post_init__(self) -> None:
        self.edited = sorted({p.layer for p, _, _ in self.placed if p.stage != READS})
        self.columns = {p.layer: rows for p, rows, _ in self.placed if p.stage == READS}

    def edits_at(self, layer: int) -> list[tuple[Piece, list[int]]]:
        """The pieces of edits at a layer with the numbers of their rows, in the order of the plan."""
        return [(p, rows) for p, rows, _ in self.placed if p.layer == layer and p.stage != READS]


def close(units: Mapping[int, Unit], lanes: Sequence[Lane]) -> dict[int, dict[int, tuple[Tensor, int]]]:
    """Switch lanes off. Returns by lane and layer where its sums are: (a copy of many lanes' sums, the row)."""
    out: dict[int, dict[int, tuple[Tensor, int]]] = {lane.number: {} for lane in lanes}
    for layer in {layer for lane in lanes for layer in lane.edited}:
        unit = units.get(layer)
        if unit is None:
            continue
        here = [lane for lane in lanes if layer in lane.edited]
        at = torch.tensor([lane.number for lane in here], device=unit.sums.device)
        copy = unit.measured(at)
        for row, lane in enumerate(here):
            out[lane.number][layer] = copy, row
        unit.shut(at)
    return out


def open_(units: Mapping[int, Unit], lanes: Sequence[Lane]) -> None:
    """Write new rows and switch lanes on."""
    for layer in {layer for lane in lanes for layer in lane.edited}:
        unit = units.get(layer)
        if unit is None:
            continue
        here = [lane for lane in lanes if layer in lane.edited]
        at = torch.tensor([lane.number for lane in here], device=unit.sums.device)
        unit.open(at)
        for stage, table in enumerate(unit.tables):
            _open_table(table, at, [[x for x in lane.placed if x[0].layer == layer and x[0].stage == stage]
                                    for lane in here], [lane.prompt_tokens for lane in here])  # fmt: skip
    for lane in lanes:
        for piece, rows, fresh in lane.placed:
            if piece.read is not None and fresh and piece.layer in units:
                units[piece.layer].put_read(rows, piece.read)


def _open_table(table: Rows, lanes: Tensor, placed: Sequence[Sequence[Placed]], prompts: Sequence[int]) -> None:
    """One table's rows for several lanes."""
    count, size = len(placed), table.bias.shape[0]
    if not any(placed):
        return
    start = np.full((count, size), NOWHERE, dtype=np.int32)
    stop = np.zeros((count, size), dtype=np.int32)
    part = np.zeros((count, size), dtype=np.int32)
    fresh_rows: list[int] = []
    fresh_edits: list[Edit] = []
    for i, (pieces, prompt) in enumerate(zip(placed, prompts, strict=True)):
        for piece, rows, fresh in pieces:
            assert piece.edit is not None
            low, high = piece.edit.span.bounds(prompt)
            start[i, rows], stop[i, rows], part[i, rows] = min(low, NOWHERE), min(high, NOWHERE), piece.part
            if fresh:
                fresh_rows += rows
                fresh_edits.append(piece.edit)
    if fresh_rows:
        table.put(fresh_rows, fresh_edits)
    device = table.bias.device
    table.switch(lanes, *(torch.from_numpy(a).to(device, non_blocking=True) for a in (start, stop, part)))
