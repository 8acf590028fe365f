"""The rows of one step of order in one layer: what they read and write, and on whose positions they act.

Everything is a buffer of fixed shape that is edited in place, many lanes or rows at a time: what a request costs by
itself is a few small operations per layer and step, however many requests come and go together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from countersteer.edits.apply import knots_as
from countersteer.edits.edit import Edit

NOWHERE = 2**31 - 1
"""A position beyond every text in the int32 buffers."""


class Rows(nn.Module):
    """Parameters per row; per lane and row the positions [start, stop) on which it acts and the number of its edit
    among the lane's (`part`)."""

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
    part: Tensor

    def __init__(self, rows: int, lanes: int, d_model: int, parts: int, device: torch.device) -> None:
        super().__init__()
        self.parts = parts

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
        buffer("part", (lanes, rows), 0, torch.int32)

    def writes(
        self, h: Tensor, wide: Tensor, f: Tensor, on: Tensor, lane: Tensor, spread: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """W^T f(x) [tokens, d_model], the sum of the edits' own writes, and what each of them does to `h` by itself:
        three columns [tokens] per edit, inside its span, changed, |h' - h| / |h|.

        `wide` is h in float32, `spread` marks the positions that enter a mean.
        """
        size = wide.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        part = self.part[lane] if self.parts > 1 else None
        total: Tensor | None = None
        own: list[Tensor] = []
        for number in range(self.parts):
            mine = on if part is None else on & (part == number)
            write = (f if part is None else torch.where(mine, f, torch.zeros_like(f))) @ self.write
            total = write if total is None else total + write
            new = torch.where(write != 0, (wide + write).to(h.dtype), h)
            moved = (new.float() - wide).norm(dim=1) / size
            inside = mine.any(1)
            changed = inside & (new != h).any(1)
            relative = torch.where(inside & spread, moved, torch.zeros_like(moved))
            own += [inside.float(), changed.float(), relative]
        assert total is not None
        return total, own

    def put(self, rows: Sequence[int], edits: Sequence[Edit]) -> None:
        """Write the parameters of edits, one after the other, into rows."""
        at = torch.tensor(rows, device=self.read.device)
        empty = [torch.zeros(e.rows, e.d_model) if e.read is None else e.read.float() for e in edits]
        self.read[at] = torch.cat(empty).to(self.read)
        for name in ("write", "bias", "slope", "intercept"):
            getattr(self, name)[at] = torch.cat([getattr(e, name).float() for e in edits]).to(self.read)
        for name in ("lo", "hi"):
            knots = torch.cat([knots_as(getattr(e, name), torch.float32) for e in edits])
            getattr(self, name)[at] = knots.to(self.read.device)
        setter = torch.tensor([e.setter for e in edits for _ in range(e.rows)])
        self.setter[at] = setter.to(self.read.device)

    def switch(self, lanes: Tensor, start: Tensor, stop: Tensor, part: Tensor) -> None:
        """On which positions of lanes [n] each row acts and for which of their edits: all [n, rows], int32."""
        self.start.index_copy_(0, lanes, start)
        self.stop.index_copy_(0, lanes, stop)
        self.part.index_copy_(0, lanes, part)

    def shut(self, lanes: Tensor) -> None:
        """Switch lanes [n] off."""
        self.start.index_fill_(0, lanes, NOWHERE)
        self.stop.index_fill_(0, lanes, 0)
