"""A worker's side of steering: lanes for requests, the token-to-lane index, what was measured.

Driven by the worker: `begin` before a step (requests that came and went), `fill` once the runner has ordered its
batch, `end` after it. Nothing here raises into the worker; what went wrong is kept under the request's id.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from countersteer.core.errors import InputError
from countersteer.engines.vllm.plan import READS, Ledger, Piece, check_fits, pieces_of
from countersteer.engines.vllm.private import layers_of
from countersteer.engines.vllm.settings import Settings
from countersteer.engines.vllm.store import Store
from countersteer.engines.vllm.ticket import Ticket
from countersteer.engines.vllm.unit import Index, Unit

log = logging.getLogger(__name__)
KEPT = 2048
"""Finished requests whose results are kept until they are collected."""


@dataclass
class Lane:
    """A request in flight: its ticket, its lane, and what was recorded. `done` positions have been measured."""

    number: int
    ticket: Ticket
    prompt_tokens: int
    pieces: tuple[Piece, ...]
    rows: list[tuple[Piece, list[int], bool]]
    first: int | None = None
    done: int = 0
    values: dict[int, list[Tensor]] = field(default_factory=dict)
    taken: dict[int, list[Tensor]] = field(default_factory=dict)
    taken_count: int = 0


class Steering:
    """Tables of the editable layers of this worker's pipeline stage, hooked onto them."""

    def __init__(self, model: Any, settings: Settings, store: Store, *, facts: dict[str, Any]) -> None:
        self.settings, self.store = settings, store
        self.n_layers, self.d_model = facts["n_layers"], facts["d_model"]
        device = facts["device"]
        self.index = Index(facts["tokens"], device)
        self.layers = layers_of(model)
        outside = [n for n in (*settings.layers, *settings.capture) if n >= self.n_layers]
        if outside:
            raise InputError(f"vLLM settings name layers {outside}, but the model has layers 0..{self.n_layers - 1}")
        self.units: dict[int, Unit] = {}
        for number, layer in self.layers.items():
            editable = not settings.layers or number in settings.layers
            capture = number in settings.capture
            if editable or capture:
                unit = Unit(
                    self.index,
                    settings,
                    d_model=self.d_model,
                    dtype=facts["dtype"],
                    editable=editable,
                    capture=capture,
                )
                self.units[number] = unit
                layer.countersteer = unit
                layer.register_forward_hook(_hook)
        self.ledger = Ledger(settings)
        self.lanes: dict[str, Lane] = {}
        self.free = list(range(settings.lanes, 0, -1))
        self.finished: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.filled = 0
        self.slices: list[tuple[Lane, int, int, int]] = []

    @property
    def table_bytes(self) -> int:
        """Bytes of all buffers."""
        seen = {b.data_ptr(): b.nbytes for unit in self.units.values() for b in unit.buffers()}
        return sum(seen.values())

    def begin(self, gone: set[str], new: list[tuple[str, Any, int]]) -> None:
        """Requests that ended before this step, and (id, extra_args, prompt tokens) of those that begin in it."""
        for request in gone:
            self._guard(request, lambda request=request: self._leave(request))
        for request, extra, prompt_tokens in new:
            if extra:
                self._guard(
                    request,
                    lambda r=request, e=extra, p=prompt_tokens: self._enter(r, e, p),
                )

    def _guard(self, request: str, work: Any) -> None:
        try:
            work()
        except Exception as error:  # a worker that raises takes the whole engine down
            log.warning("request %s cannot be steered: %s", request, error)
            self.finished[request] = {"error": " ".join(str(error).split())[:300]}

    def _enter(self, request: str, extra: Any, prompt_tokens: int) -> None:
        ticket = Ticket.of(extra)
        if ticket is None or request in self.lanes:
            return
        try:
            steer = self.store.get(ticket.steer) if ticket.steer else None
            pieces = pieces_of(steer, self.store.reads(ticket.reads) if ticket.reads else ())
            check_fits(pieces, self.settings, n_layers=self.n_layers, d_model=self.d_model)
            if not self.ledger.fits(pieces):
                raise InputError("the row tables are full")
            rows = self.ledger.reserve(request, pieces)
        except Exception as error:
            if ticket.id:
                self._keep(ticket.id, {"error": " ".join(str(error).split())[:300]})
            raise
        lane = Lane(self.free.pop(), ticket, prompt_tokens, pieces, rows)
        self.lanes[request] = lane
        for unit in {p.layer: self.units.get(p.layer) for p in pieces}.values():
            if unit is not None:
                unit.open(lane.number)
        for piece, numbers, fresh in rows:
            unit = self.units.get(piece.layer)
            if unit is None:
                continue
            if piece.edit is not None:
                table = unit.tables[piece.stage]
                if fresh:
                    table.put(numbers, piece.edit)
                table.switch(lane.number, numbers, piece.edit.span.bounds(prompt_tokens))
            elif piece.read is not None and fresh:
                unit.put_read(numbers, piece.read)

    def _leave(self, request: str) -> None:
        lane = self.lanes.pop(request, None)
        if lane is None:
            return
        if lane.ticket.id:
            self._keep(lane.ticket.id, {"lane": lane, "sums": self._snapshot(lane)})
        for number in {p.layer for p in lane.pieces}:
            if number in self.units:
                self.units[number].shut(lane.number)
        for piece, rows in self.ledger.release(request):
            unit = self.units.get(piece.layer)
            if unit is not None and piece.stage != READS:
                unit.tables[piece.stage].clear(rows)
        self.free.append(lane.number)

    def _keep(self, key: str, value: dict[str, Any]) -> None:
        self.finished[key] = value
        while len(self.finished) > KEPT:
            self.finished.popitem(last=False)

    def fill(self, requests: list[str], scheduled: np.ndarray, computed: np.ndarray) -> None:
        """Write the token index of a step: its requests in order, their numbers of scheduled and computed tokens."""
        self.slices = []
        if not self.lanes and not self.filled:
            return
        tokens = int(scheduled.sum())
        at = np.zeros((3, max(tokens, self.filled)), dtype=np.int64)
        begin = 0
        for request, count, start in zip(requests, scheduled.tolist(), computed.tolist(), strict=True):
            lane, end = self.lanes.get(request), begin + count
            if lane is not None:
                position = np.arange(start, start + count)
                at[0, begin:end], at[2, begin:end] = lane.number, position
                at[1, begin:end] = np.where(position >= lane.done, lane.number, 0)
                fresh = max(lane.done - start, 0)
                if fresh < count:
                    self.slices.append((lane, begin + fresh, end, start + fresh))
                if lane.first is None:
                    lane.first = start
                lane.done = max(lane.done, start + count)
            begin = end
        self.index.at[:, : at.shape[1]].copy_(torch.from_numpy(at))
        self.filled = tokens if self.slices or at[0].any() else 0

    def end(self) -> None:
        """Keep this step's readouts and captures."""
        slices, self.slices = self.slices, []
        for lane, begin, stop, position in slices:
            for piece, numbers, _ in lane.rows:
                if piece.stage == READS and piece.layer in self.units:
                    part = self.units[piece.layer].values[begin:stop, numbers]
                    lane.values.setdefault(piece.layer, []).append(part.clone())
            if lane.ticket.capture:
                self._take(lane, begin, stop, position)

    def _take(self, lane: Lane, begin: int, stop: int, position: int) -> None:
        """Residuals of one stretch of a text, kept or reduced."""
        ticket = lane.ticket
        low = max(ticket.start, 0 if ticket.reduce == "none" else 1) - position
        high = (stop - begin) if ticket.stop is None else min(ticket.stop - position, stop - begin)
        low = max(low, 0)
        if high <= low:
            return
        for number in ticket.capture:
            unit = self.units.get(number)
            if unit is None or not unit.capture:
                continue
            h = unit.taken[begin + low : begin + high]
            kept = lane.taken.setdefault(number, [])
            if ticket.reduce == "none":
                kept.append(h.clone())
            elif not kept:
                kept.append(h.amax(0) if ticket.reduce == "max" else h.float().sum(0))
            elif ticket.reduce == "max":
                kept[0] = torch.maximum(kept[0], h.amax(0))
            else:
                kept[0] = kept[0] + h.float().sum(0)
        lane.taken_count += high - low

    def _snapshot(self, lane: Lane) -> dict[int, dict[str, Any]]:
        """A copy of a lane's sums, one entry per edited layer of this stage, still on the device."""
        out: dict[int, dict[str, Any]] = {}
        for number in sorted({p.layer for p in lane.pieces if p.edit is not None}):
            unit = self.units.get(number)
            if unit is None:
                continue
            pairs = []
            for piece, numbers, _ in lane.rows:
                if piece.layer == number and piece.edit is not None:
                    table = unit.tables[piece.stage]
                    pairs.append((table.before[lane.number, numbers], table.after[lane.number, numbers]))
            out[number] = {
                "sums": torch.cat([unit.stats[lane.number], unit.peaks[lane.number]]),
                "before": [b for b, _ in pairs],
                "after": [a for _, a in pairs],
            }
        return out

    def collect(self, ids: list[str]) -> list[dict[str, Any]]:
        """What was measured for each id, as plain data and bytes; `{}` where this worker knows nothing of it."""
        live = {lane.ticket.id: lane for lane in self.lanes.values() if lane.ticket.id}
        out = []
        for key in ids:
            found = self.finished.pop(key, None)
            if found is None and key in live:
                found = {"lane": live[key], "sums": self._snapshot(live[key])}
            out.append({} if found is None else self._plain(found))
        return out

    def _plain(self, found: dict[str, Any]) -> dict[str, Any]:
        if "error" in found:
            return found
        lane: Lane = found["lane"]
        layers = {
            str(number): {
                "sums": entry["sums"].tolist(),
                "before": [t.tolist() for t in entry["before"]],
                "after": [t.tolist() for t in entry["after"]],
            }
            for number, entry in found["sums"].items()
        }
        tensors = {f"read.{n}": torch.cat(parts).cpu().contiguous() for n, parts in lane.values.items()}
        for number, parts in lane.taken.items():
            value = parts[0] if lane.ticket.reduce != "none" else torch.cat(parts)
            if lane.ticket.reduce == "mean":
                value = value / lane.taken_count
            tensors[f"capture.{number}"] = value.cpu().contiguous()
        head = {"layers": layers, "first": lane.first or 0, "computed": lane.done}
        return {"head": json.dumps(head), "arrays": save(tensors) if tensors else b""}


def _hook(module: Any, args: Any, output: Any) -> Any:
    return module.countersteer(output)
