"""The formula of an edit over a mixed batch: one table of rows per layer, shared by all requests in flight.

Every slot (place in the batch) owns some rows, each over its own positions [start, stop). Rows are shared by content
and freed by reference count, and the table is edited in place, so a batch of any interventions costs two small
matrix products per layer. Receipts are accumulated in the same pass, on the tensor that is handed on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from countersteer.core.request import LayerReceipt
from countersteer.core.span import END
from countersteer.edits.apply import knots_as, piecewise, wide_dtype
from countersteer.edits.edit import Edit


@dataclass(frozen=True)
class _Held:
    """A stored edit: its rows in a stage's table and how many slots use it."""

    rows: Tensor
    users: set[int]


class _Stage:
    """The rows of one order: [capacity, ...] buffers, and per slot the positions on which each row acts."""

    def __init__(self, slots: int, d_model: int, dtype: torch.dtype, device: torch.device) -> None:
        self.slots, self.d_model = slots, d_model
        self.wide, self.device = wide_dtype(dtype), device
        self.held: dict[str, _Held] = {}
        self.free: list[int] = []
        self.capacity = 0
        self.reads = False
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
        grow("before", (s, k), wide, 0.0, dim=1)
        grow("after", (s, k), wide, 0.0, dim=1)
        self.free = list(range(self.capacity, capacity)) + self.free
        self.capacity = capacity

    def hold(self, edit: Edit, slot: int, bounds: tuple[int, int]) -> Tensor:
        """Store the edit's rows (or share them) and switch them on for a slot; returns the row numbers."""
        # The span is not part of what the rows hold: it is the slot's.
        key = edit.on("all").fingerprint
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
            held = self.held[key] = _Held(rows, set())
            self.reads = self.reads or edit.read is not None
        held.users.add(slot)
        self.start[slot, held.rows], self.stop[slot, held.rows] = bounds
        self.before[slot, held.rows] = 0
        self.after[slot, held.rows] = 0
        return held.rows

    def release(self, slot: int) -> None:
        """Switch a slot's rows off and free those that nobody else uses."""
        self.start[slot], self.stop[slot] = END, 0
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
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class _Entry:
    """What one slot asked of this layer."""

    edits: tuple[Edit, ...]
    rows: tuple[tuple[int, Tensor], ...]
    prompt_tokens: int
    turn: int | None = None

    def bounds(self, edit: Edit) -> tuple[int, int]:
        """The positions that an edit covers as far as the text is known."""
        return edit.span.turning(self.prompt_tokens, self.turn)


class RowTable:
    """All edits of one layer over `slots` places in a batch. Row tables differ per layer; slots are the batch's."""

    def __init__(self, layer: int, slots: int, d_model: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.layer, self.slots, self.d_model = layer, slots, d_model
        self.dtype, self.device = dtype, device
        self.stages: dict[int, _Stage] = {}
        self.entries: dict[int, _Entry] = {}
        wide = wide_dtype(dtype)
        self.seen = torch.zeros(slots, dtype=torch.int64, device=device)
        self.changed = torch.zeros(slots, dtype=torch.int64, device=device)
        self.relative_sum = torch.zeros(slots, dtype=wide, device=device)
        self.relative_max = torch.zeros(slots, dtype=wide, device=device)
        self.missed = torch.zeros(slots, dtype=wide, device=device)

    @property
    def active(self) -> bool:
        """Whether any slot edits this layer."""
        return bool(self.entries)

    def install(self, slot: int, edits: tuple[Edit, ...], prompt_tokens: int) -> None:
        """Give a slot the edits of this layer for a prompt of `prompt_tokens` tokens; its receipt starts at zero."""
        self.remove(slot)
        here = tuple(e for e in edits if e.site.layer == self.layer)
        if not here:
            return
        rows = []
        for edit in here:
            stage = self.stages.get(edit.order)
            if stage is None:
                stage = _Stage(self.slots, self.d_model, self.dtype, self.device)
                self.stages = dict(sorted({**self.stages, edit.order: stage}.items()))
            rows.append((edit.order, stage.hold(edit, slot, edit.span.turning(prompt_tokens, None))))
        self.entries[slot] = _Entry(here, tuple(rows), prompt_tokens)
        for total in (self.seen, self.changed, self.relative_sum, self.relative_max, self.missed):
            total[slot] = 0

    def turn(self, slot: int, position: int) -> None:
        """The slot's response has restarted: its spans that follow the text turn at `position`."""
        entry = self.entries.get(slot)
        if entry is None or entry.turn is not None:
            return
        self.entries[slot] = entry = replace(entry, turn=position)
        for edit, (order, rows) in zip(entry.edits, entry.rows, strict=True):
            if edit.span.restart:
                stage = self.stages[order]
                stage.start[slot, rows], stage.stop[slot, rows] = entry.bounds(edit)

    def remove(self, slot: int) -> None:
        """Take a slot's edits away."""
        if self.entries.pop(slot, None) is not None:
            for stage in self.stages.values():
                stage.release(slot)

    def apply(self, h: Tensor, slot: Tensor, position: Tensor) -> Tensor:
        """h' [tokens, d_model] for tokens that belong to `slot` [tokens] at `position` [tokens].

        Slot -1 marks a token of nobody (padding, an unsteered probe). Receipts of the slots are brought up to date.
        """
        out, inside = h, torch.zeros(h.shape[0], dtype=torch.bool, device=h.device)
        owner = slot.clamp_min(0)
        spread = (position > 0)[:, None]
        reads = []
        for stage in self.stages.values():
            if not stage.held:
                continue
            on = (position[:, None] >= stage.start[owner]) & (position[:, None] < stage.stop[owner])
            on &= (slot >= 0)[:, None]
            wide = out.to(stage.wide)
            if stage.reads:
                x = torch.addmm(stage.bias, wide, stage.read.T)
            else:
                x = stage.bias.expand(h.shape[0], -1)
            f = piecewise(x, stage.lo, stage.hi, stage.slope, stage.intercept)
            f = torch.where(on, f, torch.zeros_like(f))
            total = f @ stage.write
            out = torch.where(total != 0, (wide + total).to(h.dtype), out)
            inside |= on.any(1)
            if stage.reads:
                reads.append((stage, on, x, f))
        self._record(h, out, inside & (slot >= 0), owner, position)
        for stage, on, x, f in reads:
            after = torch.addmm(stage.bias, out.to(stage.wide), stage.read.T)
            zero = torch.zeros_like(x)
            counted = on & spread
            stage.before.index_add_(0, owner, torch.where(counted, x, zero))
            stage.after.index_add_(0, owner, torch.where(counted, after, zero))
            aimed = on & stage.setter
            missed = torch.where(aimed & (f != 0), (after - x - f).abs(), zero).amax(1)
            self.missed.scatter_reduce_(0, owner, missed.to(self.missed.dtype), "amax")
        return out

    def _record(self, h: Tensor, out: Tensor, inside: Tensor, owner: Tensor, position: Tensor) -> None:
        """Count and measure |h' - h| / |h| of the tokens inside a span."""
        wide = self.relative_sum.dtype
        changed = (out != h).any(1)
        moved = (out.to(wide) - h.to(wide)).norm(dim=1)
        size = h.to(wide).norm(dim=1).clamp_min(torch.finfo(wide).tiny)
        relative = torch.where(inside & (position > 0), moved / size, torch.zeros_like(moved))
        self.seen.index_add_(0, owner, inside.long())
        self.changed.index_add_(0, owner, (inside & changed).long())
        self.relative_sum.index_add_(0, owner, relative)
        self.relative_max.scatter_reduce_(0, owner, relative, "amax")

    def receipt(self, slot: int, tokens: int) -> LayerReceipt | None:
        """What was measured for a slot whose first `tokens` positions have been computed; None if it edits nothing."""
        entry = self.entries.get(slot)
        if entry is None:
            return None
        union = _union([entry.bounds(e) for e in entry.edits], tokens)
        spread = sum(stop - max(start, 1) for start, stop in union if stop > max(start, 1))
        before: list[float] = []
        after: list[float] = []
        for edit, (order, rows) in zip(entry.edits, entry.rows, strict=True):
            if edit.read is None:
                continue
            start, stop = entry.bounds(edit)
            count = max(min(stop, tokens) - max(start, 1), 0)
            stage = self.stages[order]
            scale = 1.0 / count if count else math.nan
            before += (stage.before[slot, rows] * scale).tolist()
            after += (stage.after[slot, rows] * scale).tolist()
        setters = any(e.setter for e in entry.edits)
        known = not any(math.isnan(v) for v in before + after)
        return LayerReceipt(
            site=str(entry.edits[0].site),
            tokens_seen=int(self.seen[slot]),
            tokens_changed=int(self.changed[slot]),
            mean_relative=float(self.relative_sum[slot]) / spread if spread else None,
            max_relative=float(self.relative_max[slot]) if spread else None,
            before=tuple(before) if known else (),
            after=tuple(after) if known else (),
            missed_target=float(self.missed[slot]) if setters else None,
            conditional=all(e.conditional for e in entry.edits),
        )


def _union(spans: list[tuple[int, int]], tokens: int) -> list[tuple[int, int]]:
    """The union of [start, stop) spans within the first `tokens` positions, as disjoint spans."""
    out: list[tuple[int, int]] = []
    for start, stop in sorted((a, min(b, tokens)) for a, b in spans):
        if stop <= start:
            continue
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], stop))
        else:
            out.append((start, stop))
    return out
