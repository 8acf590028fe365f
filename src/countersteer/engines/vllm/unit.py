"""The layer operation: edits, receipts, readouts and captures of one decoder layer for a mixed batch of tokens.

It is traced into vLLM's compiled graph, so there is no branch on data: every token passes the whole table, and rows
are switched on per token by its lane's positions [start, stop). The formula is that of `edits.table`, on buffers that
never move (a replayed CUDA graph reads them in place). Lane 0 belongs to nobody.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from countersteer.core.span import END
from countersteer.edits.apply import knots_as, piecewise
from countersteer.edits.edit import Edit
from countersteer.edits.vectors import ReadRows
from countersteer.engines.vllm.settings import Settings

NOWHERE = 2**31 - 1
"""A position beyond every text in the int32 buffers."""
SEEN, CHANGED, MOVED = 0, 1, 2
LARGEST, MISSED = 0, 1


class Index(nn.Module):
    """Which lane and position each token of the running batch has: `at` [3, tokens] = lane, receipt lane, position."""

    at: Tensor

    def __init__(self, tokens: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("at", torch.zeros(3, tokens, dtype=torch.int64, device=device), persistent=False)


class Rows(nn.Module):
    """The rows of one step of order: parameters per row, positions per lane and row, sums of reads per lane and row."""

    read: Tensor
    write: Tensor
    bias: Tensor
    lo: Tensor
    hi: Tensor
    slope: Tensor
    intercept: Tensor
    setter: Tensor
    start: Tensor
    stop: Tensor
    before: Tensor
    after: Tensor

    def __init__(self, rows: int, lanes: int, d_model: int, device: torch.device) -> None:
        super().__init__()

        def buffer(name: str, shape: tuple[int, ...], fill: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
            self.register_buffer(name, torch.full(shape, fill, dtype=dtype, device=device), persistent=False)

        for name in ("read", "write"):
            buffer(name, (rows, d_model))
        buffer("bias", (rows,))
        buffer("lo", (rows,), -math.inf)
        buffer("hi", (rows,), math.inf)
        for name in ("slope", "intercept"):
            buffer(name, (rows, 3))
        buffer("setter", (rows,), 0, torch.bool)
        buffer("start", (lanes, rows), NOWHERE, torch.int32)
        buffer("stop", (lanes, rows), 0, torch.int32)
        for name in ("before", "after"):
            buffer(name, (lanes, rows))

    def put(self, rows: list[int], edit: Edit) -> None:
        """Write an edit's parameters into rows."""
        at = torch.tensor(rows, device=self.read.device)
        self.read[at] = 0 if edit.read is None else edit.read.to(self.read)
        for name in ("write", "bias", "slope", "intercept"):
            getattr(self, name)[at] = getattr(edit, name).to(self.read)
        self.lo[at] = knots_as(edit.lo, torch.float32).to(self.lo.device)
        self.hi[at] = knots_as(edit.hi, torch.float32).to(self.hi.device)
        self.setter[at] = edit.setter

    def clear(self, rows: list[int]) -> None:
        """Make rows write nothing."""
        at = torch.tensor(rows, device=self.read.device)
        for name in ("read", "write", "bias", "slope", "intercept"):
            getattr(self, name)[at] = 0

    def switch(self, lane: int, rows: list[int], bounds: tuple[int, int]) -> None:
        """A lane's positions on which rows act."""
        at = torch.tensor(rows, device=self.read.device)
        self.start[lane, at], self.stop[lane, at] = min(bounds[0], NOWHERE), min(bounds[1], NOWHERE)


class Unit(nn.Module):
    """All tables of one layer. `forward` takes and returns what the decoder layer returns."""

    stats: Tensor
    peaks: Tensor
    read: Tensor
    read_bias: Tensor
    values: Tensor
    taken: Tensor

    def __init__(
        self, index: Index, settings: Settings, *, d_model: int, dtype: torch.dtype, editable: bool, capture: bool
    ) -> None:
        super().__init__()
        device, lanes = index.at.device, settings.lanes + 1
        self.index, self.editable, self.capture = index, editable, capture
        self.reads = settings.reads if editable else 0
        sizes = settings.rows if editable else ()
        self.steps = nn.ModuleList(Rows(rows, lanes, d_model, device) for rows in sizes)
        tokens = index.at.shape[1]
        for name, shape in (
            ("stats", (lanes, 3)),
            ("peaks", (lanes, 2)),
            ("read", (self.reads, d_model)),
            ("read_bias", (self.reads,)),
            ("values", (tokens if self.reads else 0, self.reads)),
        ):
            self.register_buffer(name, torch.zeros(shape, device=device), persistent=False)
        held = torch.zeros(tokens if capture else 0, d_model, dtype=dtype, device=device)
        self.register_buffer("taken", held, persistent=False)

    def forward(self, output: Any) -> Any:
        pair = isinstance(output, tuple)
        hidden = output[0] if pair else output
        h = hidden + output[1] if pair else hidden
        out = self.edit(h) if self.editable else h
        n = h.shape[0]
        if self.reads:
            self.values[:n] = torch.addmm(self.read_bias, out.float(), self.read.T)
        if self.capture:
            self.taken[:n] = out
        if not self.editable:
            return output
        changed = (out != h).any(1, keepdim=True)
        # A changed token leaves as (h', 0), so that what the next layer adds up is exactly h'; others stay untouched.
        hidden = torch.where(changed, out, hidden)
        if not pair:
            return hidden
        residual = torch.where(changed, torch.zeros_like(output[1]), output[1])
        return (hidden, residual, *output[2:])

    def edit(self, h: Tensor) -> Tensor:
        """h' [tokens, d_model]; receipts are brought up to date."""
        n = h.shape[0]
        lane, owner, position = self.index.at[0, :n], self.index.at[1, :n], self.index.at[2, :n]
        spread = (position > 0)[:, None]
        where = position[:, None].to(torch.int32)
        out = h
        inside = torch.zeros_like(position, dtype=torch.bool)
        reads: list[tuple[Rows, Tensor, Tensor, Tensor]] = []
        rows: Rows
        for rows in self.steps:  # type: ignore[assignment]
            on = (where >= rows.start[lane]) & (where < rows.stop[lane])
            wide = out.float()
            x = torch.addmm(rows.bias, wide, rows.read.T)
            f = piecewise(x, rows.lo, rows.hi, rows.slope, rows.intercept)
            f = torch.where(on, f, torch.zeros_like(f))
            total = f @ rows.write
            out = torch.where(total != 0, (wide + total).to(h.dtype), out)
            inside = inside | on.any(1)
            reads.append((rows, on, x, f))
        changed = (out != h).any(1)
        moved = (out.float() - h.float()).norm(dim=1)
        size = h.float().norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        relative = torch.where(inside & (position > 0), moved / size, torch.zeros_like(moved))
        missed = torch.zeros_like(moved)
        wide = out.float()
        for rows, on, x, f in reads:
            after = torch.addmm(rows.bias, wide, rows.read.T)
            zero = torch.zeros_like(x)
            counted = on & spread
            rows.before.index_add_(0, owner, torch.where(counted, x, zero))
            rows.after.index_add_(0, owner, torch.where(counted, after, zero))
            aimed = on & rows.setter & (f != 0)
            missed = torch.maximum(missed, torch.where(aimed, (after - x - f).abs(), zero).amax(1))
        sums = torch.stack([inside.float(), (inside & changed).float(), relative], 1)
        self.stats.index_add_(0, owner, sums)
        peaks = torch.stack([relative, missed], 1)
        self.peaks.scatter_reduce_(0, owner[:, None].expand(-1, 2), peaks, "amax")
        return out

    def put_read(self, rows: list[int], group: ReadRows) -> None:
        """Write readout rows."""
        at = torch.tensor(rows, device=self.read.device)
        self.read[at], self.read_bias[at] = group.read.to(self.read), group.bias.to(self.read)

    @property
    def tables(self) -> list[Rows]:
        """The tables of the steps, in order."""
        return [t for t in self.steps if isinstance(t, Rows)]

    def open(self, lane: int) -> None:
        """Start a lane's receipt at zero, with nothing switched on."""
        self.stats[lane], self.peaks[lane] = 0, 0
        for rows in self.tables:
            rows.start[lane], rows.stop[lane] = NOWHERE, 0
            rows.before[lane], rows.after[lane] = 0, 0

    def shut(self, lane: int) -> None:
        """Switch a lane off."""
        for rows in self.tables:
            rows.start[lane], rows.stop[lane] = NOWHERE, 0


assert NOWHERE < END
