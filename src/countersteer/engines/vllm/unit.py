"""The layer operation: edits, receipts, readouts and captures of one decoder layer for a mixed batch of tokens.

It is traced into vLLM's compiled graph, so there is no branch on data: every token passes the whole table, and rows
are switched on per token by its lane's positions [start, stop). The formula is that of `edits.table`, on buffers that
never move (a replayed CUDA graph reads them in place). Lane 0 belongs to nobody.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from countersteer.core.span import END
from countersteer.edits.apply import piecewise
from countersteer.edits.vectors import ReadRows
from countersteer.engines.vllm.rows import NOWHERE, Rows
from countersteer.engines.vllm.settings import Settings

LANE, OWNER, POSITION, SILENT = 0, 1, 2, 3
"""Rows of the index."""
SEEN, CHANGED = 0, 1
"""The first columns of a unit's sums."""


class Index(nn.Module):
    """What each token of the running batch is: `at` [4, tokens] = its lane, the lane whose receipt it enters, its
    position, and 1 where edits are measured and not written."""

    at: Tensor

    def __init__(self, tokens: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("at", torch.zeros(4, tokens, dtype=torch.int64, device=device), persistent=False)


class Unit(nn.Module):
    """All tables of one layer. `forward` takes and returns what the decoder layer returns."""

    sums: Tensor
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
        self.steps = nn.ModuleList(Rows(rows, lanes, d_model, settings.parts, device) for rows in sizes)
        tokens = index.at.shape[1]
        for name, shape in (
            ("sums", (lanes, 3 + sum(3 * settings.parts + 2 * rows for rows in sizes))),
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
        lane, owner, position = self.index.at[LANE, :n], self.index.at[OWNER, :n], self.index.at[POSITION, :n]
        spread = position > 0
        where = position[:, None].to(torch.int32)
        out = h
        inside = torch.zeros_like(spread)
        steps: list[tuple[Rows, list[Tensor], Tensor, Tensor, Tensor]] = []
        for rows in self.tables:
            on = (where >= rows.start[lane]) & (where < rows.stop[lane])
            wide = out.float()
            x = torch.addmm(rows.bias, wide, rows.read.T)
            f = piecewise(x, rows.lo, rows.hi, rows.slope, rows.intercept)
            f = torch.where(on, f, torch.zeros_like(f))
            total, own = rows.writes(out, wide, f, on, lane, spread)
            out = torch.where(total != 0, (wide + total).to(h.dtype), out)
            inside = inside | on.any(1)
            steps.append((rows, own, on, x, f))
        wide = out.float()
        changed = inside & (out != h).any(1)
        moved = (wide - h.float()).norm(dim=1)
        size = h.float().norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        relative = torch.where(inside & spread, moved / size, torch.zeros_like(moved))
        missed = torch.zeros_like(moved)
        counts, reads = [inside.float(), changed.float(), relative], []
        for rows, own, on, x, f in steps:
            after = torch.addmm(rows.bias, wide, rows.read.T)
            zero = torch.zeros_like(x)
            counted = on & spread[:, None]
            reads += [torch.stack(own, 1), torch.where(counted, x, zero), torch.where(counted, after, zero)]
            aimed = on & rows.setter & (f != 0)
            missed = torch.maximum(missed, torch.where(aimed, (after - x - f).abs(), zero).amax(1))
        self.sums.index_add_(0, owner, torch.cat([torch.stack(counts, 1), *reads], 1))
        peaks = torch.stack([relative, missed], 1)
        self.peaks.scatter_reduce_(0, owner[:, None].expand(-1, 2), peaks, "amax")
        return torch.where((self.index.at[SILENT, :n] != 0)[:, None], h, out)

    def put_read(self, rows: list[int], group: ReadRows) -> None:
        """Write readout rows."""
        at = torch.tensor(rows, device=self.read.device)
        self.read[at], self.read_bias[at] = group.read.to(self.read), group.bias.to(self.read)

    @property
    def tables(self) -> list[Rows]:
        """The tables of the steps, in order."""
        return [t for t in self.steps if isinstance(t, Rows)]

    def open(self, lanes: Tensor) -> None:
        """Start the receipts of lanes [n] at zero. Which rows act on them is each table's `switch`."""
        self.sums.index_fill_(0, lanes, 0)
        self.peaks.index_fill_(0, lanes, 0)

    def shut(self, lanes: Tensor) -> None:
        """Switch lanes [n] off."""
        for rows in self.tables:
            rows.shut(lanes)

    def measured(self, lanes: Tensor) -> Tensor:
        """A copy of what was measured for lanes [n], to be read by `Sums`."""
        return torch.cat([self.peaks.index_select(0, lanes), self.sums.index_select(0, lanes)], 1)


class Sums:
    """Reads one lane's row of `Unit.measured` as plain numbers."""

    def __init__(self, values: list[float], settings: Settings) -> None:
        self.values, self.settings = values, settings

    @property
    def layer(self) -> list[float]:
        """Tokens seen, changed, sum of |h' - h| / |h|, the largest of them, the largest missed target."""
        return [*self.values[2:5], *self.values[:2]]

    def edit(self, stage: int, part: int, rows: list[int]) -> dict[str, list[float]]:
        """One edit's own counts (as the first three of `layer`) and its rows' sums of x before and after."""
        width = 3 * self.settings.parts
        at = 5 + sum(width + 2 * size for size in self.settings.rows[:stage])
        own, before = at + 3 * part, at + width
        after = before + self.settings.rows[stage]
        return {
            "own": self.values[own : own + 3],
            "before": [self.values[before + r] for r in rows],
            "after": [self.values[after + r] for r in rows],
        }


assert NOWHERE < END
