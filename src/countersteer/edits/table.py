"""The formula of an edit over a mixed batch: one table of rows per layer, shared by all requests in flight.

Rows live in stages (stage.py), one per order, so a batch of any interventions costs two small matrix products per
layer. Receipts are accumulated in the same pass, on the tensor that is handed on. Where an intervention has several
edits at a layer, each one's own write is measured as well: one more product per edit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from countersteer.core.request import EditReceipt, LayerReceipt
from countersteer.core.span import END
from countersteer.edits.apply import piecewise, wide_dtype
from countersteer.edits.edit import Edit
from countersteer.edits.stage import Stage

BLOCK = 1 << 15
"""Numbers that are compared at once on a CPU."""


@dataclass
class _Looked:
    """What was looked up for a step's slots: good for the next step too, while slots and table stay as they are."""

    slot: Tensor | None
    changes: int
    bounds: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    everywhere: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Entry:
    """What one slot asked of this layer."""

    edits: tuple[Edit, ...]
    rows: tuple[tuple[int, Tensor], ...]
    prompt_tokens: int
    turn: int | None = None
    pauses: tuple[tuple[int, int], ...] = ()

    def bounds(self, edit: Edit) -> tuple[int, int]:
        """The positions that an edit covers as far as the text is known."""
        return edit.span.turning(self.prompt_tokens, self.turn)

    def spread(self, spans: list[tuple[int, int]], tokens: int) -> int:
        """How many of the first `tokens` positions the spans hold together, position 0 and the pauses left out."""
        held = _union([(max(start, 1), stop) for start, stop in spans], tokens)
        gaps = ((max(a, start), min(b, stop)) for start, stop in held for a, b in self.pauses)
        return sum(stop - start for start, stop in held) - sum(max(b - a, 0) for a, b in gaps)


class RowTable:
    """All edits of one layer over `slots` places in a batch. Row tables differ per layer; slots are the batch's."""

    def __init__(self, layer: int, slots: int, d_model: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.layer, self.slots, self.d_model = layer, slots, d_model
        self.dtype, self.device = dtype, device
        self.stages: dict[int, Stage] = {}
        self.entries: dict[int, _Entry] = {}
        wide = wide_dtype(dtype)
        self.wide = wide
        self.totals = torch.zeros(slots, 3, dtype=wide, device=device)
        """Per slot: tokens seen, tokens changed, sum of |h' - h| / |h| (position 0 left out)."""
        self.peaks = torch.zeros(slots, 2, dtype=wide, device=device)
        """Per slot: largest |h' - h| / |h|, largest missed target."""
        self.none = torch.zeros((), dtype=wide, device=device)
        self.silent = torch.zeros(slots, dtype=torch.bool, device=device)
        self.pause_from = torch.full((slots,), END, dtype=torch.int64, device=device)
        self.pause_to = torch.full((slots,), END, dtype=torch.int64, device=device)
        self.parts = 1
        """Most edits that one slot has here; from 2 on, each edit is measured by itself in `own` [3, slots, parts]:
        tokens seen, tokens changed, sum of |h' - h| / |h|."""
        self.own = torch.zeros(3, slots, 1, dtype=wide, device=device)
        self.silencing = 0
        """Slots that are only measured."""
        self.pausing = False
        self.changes = 0
        """How often slots have got or lost edits or changed their positions: what was looked up before is stale."""
        self.looked = _Looked(None, -1)

    @property
    def active(self) -> bool:
        """Whether any slot edits this layer."""
        return bool(self.entries)

    def install(self, slot: int, edits: tuple[Edit, ...], prompt_tokens: int, *, measure_only: bool = False) -> None:
        """Give a slot the edits of this layer for a prompt of `prompt_tokens` tokens; its receipt starts at zero.

        With `measure_only` the receipt is kept and nothing is written.
        """
        self.remove(slot)
        self.changes += 1
        here = tuple(e for e in edits if e.site.layer == self.layer)
        if not here:
            return
        rows = []
        for part, edit in enumerate(here):
            stage = self.stages.get(edit.order)
            if stage is None:
                stage = Stage(self.slots, self.d_model, self.dtype, self.device)
                self.stages = dict(sorted({**self.stages, edit.order: stage}.items()))
            rows.append((edit.order, stage.hold(edit, slot, edit.span.turning(prompt_tokens, None), part)))
        self.entries[slot] = _Entry(here, tuple(rows), prompt_tokens)
        self.silent[slot] = measure_only
        self.silencing += measure_only
        self.parts = max(len(entry.edits) for entry in self.entries.values())
        if self.parts > self.own.shape[2]:
            self.own = torch.nn.functional.pad(self.own, (0, self.parts - self.own.shape[2]))
        self.own[:, slot] = 0
        self.totals[slot] = 0
        self.peaks[slot] = 0

    def turn(self, slot: int, position: int) -> None:
        """The slot's response has restarted: its spans that follow the text turn at `position`."""
        entry = self.entries.get(slot)
        if entry is None or entry.turn is not None:
            return
        self.entries[slot] = entry = replace(entry, turn=position)
        for edit, (order, rows) in zip(entry.edits, entry.rows, strict=True):
            if edit.span.restart:
                self.stages[order].bound(slot, rows, entry.bounds(edit))
        self.changes += 1

    def pause(self, slot: int, position: int) -> None:
        """The slot's edits rest from `position` on, until `resume`."""
        entry = self.entries.get(slot)
        if entry is not None:
            self.entries[slot] = replace(entry, pauses=(*entry.pauses, (position, END)))
            self.pause_from[slot], self.pause_to[slot] = position, END
            self.pausing = True

    def resume(self, slot: int, position: int) -> None:
        """The slot's edits act again from `position` on."""
        entry = self.entries.get(slot)
        if entry is not None and entry.pauses:
            start = entry.pauses[-1][0]
            self.entries[slot] = replace(entry, pauses=(*entry.pauses[:-1], (start, max(start, position))))
            self.pause_to[slot] = position

    def remove(self, slot: int) -> None:
        """Take a slot's edits away."""
        if (entry := self.entries.pop(slot, None)) is not None:
            self.changes += 1
            self.silencing -= int(self.silent[slot])
            self.silent[slot] = False
            if entry.pauses:
                self.pause_from[slot] = END
                self.pausing = any(e.pauses for e in self.entries.values())
            for stage in self.stages.values():
                stage.release(slot)
            self.parts = max((len(entry.edits) for entry in self.entries.values()), default=1)

    def apply(self, h: Tensor, slot: Tensor, position: Tensor, *, decoding: bool = False) -> Tensor:
        """h' [tokens, d_model] for tokens that belong to `slot` [tokens] at `position` [tokens].

        Slot -1 marks a token of nobody (padding, an unsteered probe). Receipts of the slots are brought up to date;
        what slots that are only measured would have written is in theirs. `decoding`: every token has a slot and none
        is at position 0. A tensor `slot` that is given again must not have changed meanwhile.
        """
        owner = slot if decoding else slot.clamp_min(0)
        live = None if decoding else slot >= 0
        if self.pausing:
            awake = (position < self.pause_from[owner]) | (position >= self.pause_to[owner])
            live = awake if live is None else live & awake
        at, out = position[:, None], h
        inside: Tensor | None = None
        reads = []
        if self.looked.slot is not slot or self.looked.changes != self.changes:
            self.looked = _Looked(slot, self.changes)
        for order, stage in self.stages.items():
            if not stage.held:
                continue
            on, within = self._on(order, stage, owner, live, at)
            wide = out.to(self.wide)
            if stage.reads:
                x = torch.addmm(stage.bias, wide, stage.read.T)
            else:
                x = stage.bias.expand(h.shape[0], -1)
            hi = stage.hi if stage.bent else None
            f = torch.where(on, piecewise(x, stage.lo, hi, stage.slope, stage.intercept), self.none)
            if self.parts > 1:
                self._record_own(stage, out, f, on, owner, position)
            # Where f is 0 the sum is h itself, so tokens that no row acts on stay as they are.
            out = torch.addmm(wide, f, stage.write).to(h.dtype)
            inside = within if inside is None else inside | within
            if stage.reads:
                # A row that a slot does not use may sum up anything: nobody reads it, and `hold` sets it to 0.
                counted = None if live is None and not stage.partial else on if decoding else on & (at > 0)
                reads.append((stage, counted, x, f))
        if inside is None:
            return h
        missed = self._record_reads(out, reads, owner)
        self._record(h, out, inside, owner, inside if decoding else inside & (position > 0), missed)
        if not self.silencing:
            return out
        if self.silencing == len(self.entries):
            return h
        quiet = self.silent[owner] if live is None else self.silent[owner] & live
        return torch.where(quiet[:, None], h, out)

    def _on(
        self, order: int, stage: Stage, owner: Tensor, live: Tensor | None, at: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Which rows act on which tokens [tokens, k], and whether any does [tokens]."""
        looked = self.looked
        if not stage.partial and live is not None:
            on = (stage.stop > 0).index_select(0, owner) & live[:, None]
            return on, on.any(1)
        if not stage.partial:
            if order not in looked.everywhere:
                on = (stage.stop > 0).index_select(0, owner)
                looked.everywhere[order] = on, on.any(1)
            return looked.everywhere[order]
        if order not in looked.bounds:
            looked.bounds[order] = stage.start.index_select(0, owner), stage.stop.index_select(0, owner)
        start, stop = looked.bounds[order]
        on = (at >= start) & (at < stop)
        if live is not None:
            on &= live[:, None]
        return on, on.any(1)

    def _record(
        self, h: Tensor, out: Tensor, inside: Tensor, owner: Tensor, spread: Tensor, missed: Tensor
    ) -> None:  # fmt: skip
        """Count the tokens inside a span and measure |h' - h| / |h| of those that are `spread` (not at position 0).

        `missed` [tokens] goes with the peaks.
        """
        changed, relative = self._moved(h, out)
        changed &= inside
        relative = torch.where(spread, relative, self.none)
        measured = torch.stack([inside.to(self.wide), changed.to(self.wide), relative, missed], 1)
        self.totals.index_add_(0, owner, measured[:, :3])
        self.peaks.scatter_reduce_(0, owner[:, None].expand(-1, 2), measured[:, 2:], "amax")

    def _moved(self, h: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """Per token whether new differs from h, and |new - h| / |h|; [tokens] each.

        On a CPU a block of tokens at a time: the differences then stay in its cache.
        """
        block = len(h) if h.device.type != "cpu" else max(1, BLOCK // h.shape[1])
        changed, relative = [], []
        for start in range(0, len(h), block):
            before = h[start : start + block].to(self.wide)
            moved = new[start : start + block].to(self.wide) - before
            size = torch.linalg.vector_norm(before, dim=1).clamp_min(torch.finfo(self.wide).tiny)
            relative.append(torch.linalg.vector_norm(moved, dim=1) / size)
            # The largest part tells what has changed without underflow; NaN counts as changed.
            changed.append(moved.abs_().amax(1) != 0)
        if len(changed) == 1:
            return changed[0], relative[0]
        return torch.cat(changed), torch.cat(relative)

    def _record_reads(self, out: Tensor, reads: list[Any], owner: Tensor) -> Tensor:
        """Sum x before and after every row that reads; the largest missed target of each token [tokens]."""
        missed: Tensor | None = None
        for stage, counted, x, f in reads:
            after = torch.addmm(stage.bias, out.to(self.wide), stage.read.T)
            both = torch.stack([x, after], 1)
            both = both if counted is None else torch.where(counted[:, None], both, self.none)
            stage.sums.index_add_(0, owner, both)
            if stage.setters:
                aimed = stage.setter & (f != 0)
                worst = torch.where(aimed, (after - x - f).abs(), self.none).amax(1)
                missed = worst if missed is None else torch.maximum(missed, worst)
        return self.none.expand(out.shape[0]) if missed is None else missed

    def _record_own(self, stage: Stage, h: Tensor, f: Tensor, on: Tensor, owner: Tensor, position: Tensor) -> None:
        """Count and measure what each edit's own write would do to `h`, the residual that its stage reads."""
        wide = h.to(self.wide)
        part = stage.part.index_select(0, owner)
        for number in range(self.parts):
            mine = on & (part == number)
            inside = mine.any(1)
            new = torch.addmm(wide, torch.where(mine, f, self.none), stage.write).to(h.dtype)
            changed, relative = self._moved(h, new)
            changed &= inside
            relative = torch.where(inside & (position > 0), relative, self.none)
            sums = torch.stack([inside.to(self.wide), changed.to(self.wide), relative])
            self.own[:, :, number].index_add_(1, owner, sums)

    def receipt(self, slot: int, tokens: int) -> LayerReceipt | None:
        """What was measured for a slot whose first `tokens` positions have been computed; None if it edits nothing."""
        entry = self.entries.get(slot)
        if entry is None:
            return None
        spread = entry.spread([entry.bounds(e) for e in entry.edits], tokens)
        before: list[float] = []
        after: list[float] = []
        own: list[EditReceipt] = []
        several = len(entry.edits) > 1
        for part, (edit, (order, rows)) in enumerate(zip(entry.edits, entry.rows, strict=True)):
            count = entry.spread([entry.bounds(edit)], tokens)
            read: list[float] = []
            if edit.read is not None:
                stage = self.stages[order]
                scale = 1.0 / count if count else math.nan
                read, now = (stage.sums[slot][:, rows] * scale).tolist()
                before += read
                after += now
            if several:
                seen, changed, moved = self.own[:, slot, part].tolist()
                mean = moved / count if count else None
                known = () if any(math.isnan(v) for v in read) else tuple(read)
                own.append(EditReceipt(edit.method, round(seen), round(changed), mean, known, edit.conditional))
        setters = any(e.setter for e in entry.edits)
        whole = not any(math.isnan(v) for v in before + after)
        counts = self.totals[slot].tolist()
        seen, changed, mean = round(counts[0]), round(counts[1]), counts[2] / spread if spread else None
        largest, missed = self.peaks[slot].tolist()
        if not several:
            edit = entry.edits[0]
            own = [EditReceipt(edit.method, seen, changed, mean, tuple(before) if whole else (), edit.conditional)]
        return LayerReceipt(
            site=str(entry.edits[0].site),
            tokens_seen=seen,
            tokens_changed=changed,
            mean_relative=mean,
            max_relative=largest if spread else None,
            before=tuple(before) if whole else (),
            after=tuple(after) if whole else (),
            missed_target=missed if setters else None,
            conditional=all(e.conditional for e in entry.edits),
            edits=tuple(own),
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
