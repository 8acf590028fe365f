"""The rows of one order of one layer: buffers that a mixed batch shares, switched on per slot.

Every slot (place in the batch) owns some rows, each over its own positions [start, stop). Rows are shared by content
and freed by reference count, and the buffers are edited in place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from countersteer.core.span import END
from countersteer.edits.apply import knots_as, wide_dtype
from countersteer.edits.edit import Edit


@dataclass(frozen=True)
class Held:
    """A stored edit: its rows in a stage's table and how many slots use it."""

    rows: Tensor
    users: set[int]


class Stage:
    """The rows of one order: [capacity, ...] buffers, and per slot the positions on which each row acts."""

    def __init__(self, slots: int, d_model: int, dtype: torch.dtype, device: torch.device) -> None:
        self.slots, self.d_model = slots, d_model
        self.wide, self.device = wide_dtype(dtype), device
        self.held: dict[str, Held] = {}
        self.free: list[int] = []
        self.capacity = 0
        self.reads = self.setters = self.bent = False
        """Whether any row ever held reads, sets a target, has a second knot."""
        self.partial: set[int] = set()
        """Slots whose rows do not act on every position."""
        self._allocate(8)

    def _allocate(self, capacity: int) -> None:
        """Grow every buffer to `capacity` rows, keeping what is there."""

        def grow(name: str, shape: tuple[int, ...], dtype: torch.dtype, fill: float, dim: int = 0) -> None:
            new = torch.full(shape, fill, dtype=dtype, device=self.device)
            if self.capacity:
                old = getattr(self, name)
                new.narrow(dim, 0, self.capacity).copy_(old)
            setattr(self, name, new)

        k, s, wide = capacity, self.slots, self.wide
        for name, shape in (("read", (k, self.d_model)), ("write", (k, self.d_model)), ("bias", (k,))):
            grow(name, shape, wide, 0.0)
        for name, shape in (("slope", (k, 3)), ("intercept", (k, 3))):
            grow(name, shape, wide, 0.0)
        grow("lo", (k,), wide, -math.inf)
        grow("hi", (k,), wide, math.inf)
        grow("setter", (k,), torch.bool, 0)
        grow("start", (s, k), torch.int64, END, dim=1)
        grow("stop", (s, k), torch.int64, 0, dim=1)
        grow("part", (s, k), torch.int64, -1, dim=1)
        grow("sums", (s, 2, k), wide, 0.0, dim=2)
        self.free = list(range(self.capacity, capacity)) + self.free
        self.capacity = capacity

    def hold(self, edit: Edit, slot: int, bounds: tuple[int, int], part: int) -> Tensor:
        """Store the edit's rows (or share them) and switch them on for a slot, whose edit number `part` they are.

        Returns the row numbers.
        """
        # The span is not part of what the rows hold: it is the slot's.
        key = edit.rows_fingerprint
        held, again = self.held.get(key), 0
        while held is not None and slot in held.users:
            again += 1  # the same edit twice in one intervention adds up: it needs rows of its own
            held = self.held.get(f"{key}/{again}")
        if again:
            key = f"{key}/{again}"
        if held is None:
            while len(self.free) < edit.rows:
                self._allocate(2 * self.capacity)
            rows = torch.tensor([self.free.pop(0) for _ in range(edit.rows)], device=self.device)
            wide, device = self.wide, self.device
            if edit.read is None:
                self.read[rows] = 0
            else:
                self.read[rows] = edit.read.to(device, wide)
            self.write[rows] = edit.write.to(device, wide)
            self.bias[rows] = edit.bias.to(device, wide)
            self.slope[rows] = edit.slope.to(device, wide)
            self.intercept[rows] = edit.intercept.to(device, wide)
            self.lo[rows] = knots_as(edit.lo, wide).to(device)
            self.hi[rows] = knots_as(edit.hi, wide).to(device)
            self.setter[rows] = edit.setter
            held = self.held[key] = Held(rows, set())
            self.reads = self.reads or edit.read is not None
            self.setters = self.setters or edit.setter
            self.bent = self.bent or bool((edit.hi != math.inf).any())
        held.users.add(slot)
        self.bound(slot, held.rows, bounds)
        self.part[slot, held.rows] = part
        self.sums[slot][:, held.rows] = 0
        return held.rows

    def bound(self, slot: int, rows: Tensor, bounds: tuple[int, int]) -> None:
        """Let a slot's rows act on the positions [start, stop)."""
        self.start[slot, rows], self.stop[slot, rows] = bounds
        if bounds != (0, END):
            self.partial.add(slot)

    def release(self, slot: int) -> None:
        """Switch a slot's rows off and free those that nobody else uses."""
        self.start[slot], self.stop[slot] = END, 0
        self.partial.discard(slot)
        for key in [k for k, h in self.held.items() if slot in h.users]:
            held = self.held[key]
            held.users.discard(slot)
            if not held.users:
                self.free.extend(held.rows.tolist())
                self.write[held.rows] = 0
                del self.held[key]

    # The buffers are set by _allocate.
    read: Tensor
    write: Tensor
    bias: Tensor
    slope: Tensor
    intercept: Tensor
    lo: Tensor
    hi: Tensor
    setter: Tensor
    start: Tensor
    stop: Tensor
    part: Tensor
    sums: Tensor
    """Per slot and row: x before and after the writes, summed over positions (position 0 left out)."""
