"""A worker's side of steering: lanes for requests, the token index, what was measured.

Driven by the worker: `begin` before a step (requests that came and went), `fill` once the runner has ordered its
batch, `end` after it. Nothing here raises into the worker; what went wrong is kept under the request's id.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from countersteer.core.errors import InputError
from countersteer.core.span import END
from countersteer.engines.vllm import lanes as tables
from countersteer.engines.vllm.lanes import Lane
from countersteer.engines.vllm.plan import Ledger, Planner
from countersteer.engines.vllm.private import layers_of
from countersteer.engines.vllm.readings import Step, picked
from countersteer.engines.vllm.settings import Settings
from countersteer.engines.vllm.store import Store
from countersteer.engines.vllm.ticket import Ticket
from countersteer.engines.vllm.unit import Index, Sums, Unit

log = logging.getLogger(__name__)
KEPT = 2048
"""Finished requests whose results are kept until they are collected."""


class Steering:
    """Tables of the editable layers of this worker's pipeline stage, hooked onto them."""

    def __init__(self, model: Any, settings: Settings, store: Store, *, facts: dict[str, Any]) -> None:
        self.settings, self.store = settings, store
        self.n_layers, self.d_model = facts["n_layers"], facts["d_model"]
        device = facts["device"]
        self.index = Index(facts["tokens"], device)
        self.layers = layers_of(model)
        self.pools = bool(facts.get("pools", True))
        """Whether this worker pools SAEs: one of those that hold the same residuals does."""
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
        self.planner = Planner(settings, n_layers=self.n_layers, d_model=self.d_model)
        self.ledger = Ledger(settings)
        self.lanes: dict[str, Lane] = {}
        self.numbers: dict[str, int] = {}
        """The lane number of each request in `lanes`."""
        self.done = np.zeros(settings.lanes + 1, dtype=np.int64)
        """Per lane how many positions have been measured."""
        self.only = np.zeros(settings.lanes + 1, dtype=np.int64)
        """1 for lanes whose edits are measured and not written."""
        self.watched = np.zeros(settings.lanes + 1, dtype=bool)
        """Lanes that `fill` must look at one by one: new, captured or with pauses."""
        self.reading = np.zeros(settings.lanes + 1, dtype=bool)
        """Lanes with readouts."""
        self.free = list(range(settings.lanes, 0, -1))
        self.finished: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.failed: set[str] = set()
        """Requests in flight that could not be steered."""
        self.filled = self.steps = 0
        self.slices: list[tuple[Lane, int, int, int]] = []
        self.readers: tuple[list[Lane], int, np.ndarray] | None = None
        """Lanes of a step with readouts, the first token of theirs, and who owns the tokens from there on."""

    @property
    def table_bytes(self) -> int:
        """Bytes of all buffers."""
        seen = {b.data_ptr(): b.nbytes for unit in self.units.values() for b in unit.buffers()}
        return sum(seen.values())

    def begin(
        self,
        gone: Iterable[str],
        new: Iterable[tuple[str, Any, int]],
        pauses: Mapping[str, Sequence[tuple[int, int, str]]] | None = None,
    ) -> None:
        """Requests that ended before this step, (id, extra_args, prompt tokens) of those that begin in it, and the
        positions [from, to) at which the edits of requests rest, where they have changed."""
        gone = list(gone)
        self.failed.difference_update(gone)
        left = [lane for request in gone if (lane := self._leave(request)) is not None]
        if left:
            sums = tables.close(self.units, left)
            for lane in left:
                if lane.ticket.id and not lane.spent:
                    self._keep(lane.ticket.id, {"lane": lane, "sums": sums[lane.number]})
        entered = [lane for r, extra, n in new if extra and (lane := self._guarded(r, extra, n)) is not None]
        if entered:
            tables.open_(self.units, entered)
        for request, stretches in (pauses or {}).items():
            if (lane := self.lanes.get(request)) is not None:
                lane.pauses = tuple((int(a), int(b), str(name)) for a, b, name in stretches)
                self.watched[lane.number] = True

    def _guarded(self, request: str, extra: Any, prompt_tokens: int) -> Lane | None:
        try:
            return self._enter(request, extra, prompt_tokens)
        except Exception as error:  # a worker that raises takes the whole engine down
            log.warning("request %s cannot be steered: %s", request, error)
            self.failed.add(request)
            return None

    def _enter(self, request: str, extra: Any, prompt_tokens: int) -> Lane | None:
        ticket = Ticket.of(extra)
        if ticket is None or request in self.lanes:
            return None
        try:
            steer = self.store.get(ticket.steer) if ticket.steer else None
            pieces = self.planner.pieces(steer, self.store.reads(ticket.reads) if ticket.reads else ())
            if not self.ledger.fits(pieces):
                raise InputError("the row tables are full")
            placed = self.ledger.reserve(request, pieces)
        except Exception as error:
            if ticket.id:
                self._keep(ticket.id, {"error": " ".join(str(error).split())[:300]})
            raise
        number = self.free.pop()
        lane = self.lanes[request] = Lane(number, ticket, prompt_tokens, placed)
        self.numbers[request] = number
        self.done[number], self.only[number], self.watched[number] = 0, ticket.only, True
        self.reading[number] = bool(lane.columns)
        return lane

    def _leave(self, request: str) -> Lane | None:
        lane = self.lanes.pop(request, None)
        if lane is not None:
            self.ledger.release(request)
            del self.numbers[request]
            self.free.append(lane.number)
            lane.done = int(self.done[lane.number])
        return lane

    def _keep(self, key: str, value: dict[str, Any]) -> None:
        self.finished[key] = value
        while len(self.finished) > KEPT:
            self.finished.popitem(last=False)

    def fill(self, requests: Sequence[str], scheduled: np.ndarray, computed: np.ndarray) -> None:
        """Write the token index of a step: its requests in order, their numbers of scheduled and computed tokens."""
        self.slices, self.readers = [], None
        if not self.lanes and not self.filled:
            return
        tokens, where = int(scheduled.sum()), self.numbers
        numbers = np.fromiter((where.get(r, 0) for r in requests), dtype=np.int64, count=len(requests))
        at = np.zeros((4, max(tokens, self.filled)), dtype=np.int64)
        ends = np.cumsum(scheduled, dtype=np.int64)
        begins = ends - scheduled
        done = self.done[numbers]
        lane_of = np.repeat(numbers, scheduled)
        position = np.arange(tokens) - np.repeat(begins - computed, scheduled)
        at[0, :tokens], at[2, :tokens] = lane_of, np.where(lane_of > 0, position, 0)
        at[1, :tokens] = fresh = np.where(position >= np.repeat(done, scheduled), lane_of, 0)
        if (read := self.reading[numbers]).any() and len(rows := np.flatnonzero(self.reading[fresh])):
            owners = fresh[rows[0] : rows[-1] + 1]  # what lies between them is small
            lanes = [self.lanes[requests[i]] for i in np.flatnonzero(read).tolist()]
            self.readers = lanes, int(rows[0]), np.where(self.reading[owners], owners, 0)
        at[3, :tokens] = self.only[lane_of]
        for i in np.flatnonzero(self.watched[numbers]).tolist():
            self._watch(self.lanes[requests[i]], int(begins[i]), int(ends[i]), int(computed[i]), at)
        self.done[numbers] = np.maximum(done, computed + scheduled)
        self.index.at[:, : at.shape[1]].copy_(torch.from_numpy(at))
        self.filled = tokens if numbers.any() else 0

    def _watch(self, lane: Lane, start: int, stop: int, computed: int, at: np.ndarray) -> None:
        """What is special about a lane whose tokens lie at start..stop of the batch, after `computed` positions."""
        for low, high, _ in lane.pauses:
            resting = slice(start + max(low - computed, 0), max(start + min(high, END) - computed, 0))
            at[:2, resting.start : min(resting.stop, stop)] = 0
        taken = bool(lane.ticket.capture)
        fresh = max(int(self.done[lane.number]) - computed, 0)
        if taken and start + fresh < stop:
            self.slices.append((lane, start + fresh, stop, computed + fresh))
        if lane.first is None:
            lane.first = computed
            self.watched[lane.number] = taken or bool(lane.pauses)

    def end(self) -> None:
        """Keep this step's readouts and captures."""
        if self.readers is not None:
            lanes, low, owners = self.readers
            layers = {layer for lane in lanes for layer in lane.columns if layer in self.units}
            high = low + len(owners)
            self.steps += 1
            step = Step(self.steps, owners, {layer: self.units[layer].values[low:high].clone() for layer in layers})
            for lane in lanes:
                lane.steps.append(step)
        for lane, begin, stop, position in self.slices:
            self._take(lane, begin, stop, position)
        self.slices, self.readers = [], None

    def _take(self, lane: Lane, begin: int, stop: int, position: int) -> None:
        """Residuals of one stretch of a text, kept or reduced."""
        ticket = lane.ticket
        if ticket.pooled and not self.pools:
            return
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

    def collect(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """What was measured for each id, as plain data and bytes; `{}` where this worker knows nothing of it."""
        asked = set(ids)
        live = {lane.ticket.id: lane for lane in self.lanes.values() if lane.ticket.id in asked}
        found: list[dict[str, Any]] = []
        for key in ids:
            known = self.finished.pop(key, None)
            if known is None and key in live:
                lane = live[key]
                lane.done = int(self.done[lane.number])
                here = {n: self.units[n] for n in lane.edited if n in self.units}
                at = torch.tensor([lane.number], device=self.index.at.device)
                known = {"lane": lane, "sums": {n: (unit.measured(at), 0) for n, unit in here.items()}}
            found.append(known or {})
        plain: dict[int, list[list[float]]] = {}  # one transfer for all requests that left together
        for known in found:
            for copy, _ in known.get("sums", {}).values():
                if id(copy) not in plain:
                    plain[id(copy)] = copy.tolist()
        lanes = [known["lane"] for known in found if "lane" in known]
        reads = dict(zip(map(id, lanes), picked(lanes), strict=True))
        out = [self._plain(known, plain, reads) for known in found]
        for lane in lanes:
            if lane.ticket.capture and lane.done >= lane.prompt_tokens:
                self._spend(lane)  # residuals are large; a request that is still here would keep them to its end
        return out

    def spend(self, ids: Sequence[str]) -> list[tuple[Lane | None, dict[int, list[Tensor]], str]]:
        """(lane, its residuals by layer, what went wrong) of each id. Nothing of them is kept here any more."""
        asked = set(ids)
        live = {lane.ticket.id: lane for lane in self.lanes.values() if lane.ticket.id in asked}
        out: list[tuple[Lane | None, dict[int, list[Tensor]], str]] = []
        for key in ids:
            known = self.finished.pop(key, {})
            lane = known.get("lane") or live.get(key)
            if lane is None:
                out.append((None, {}, str(known.get("error", "this worker knows nothing of it"))))
                continue
            out.append((lane, lane.taken, ""))
            self._spend(lane)
        return out

    @staticmethod
    def _spend(lane: Lane) -> None:
        lane.taken, lane.steps, lane.spent = {}, [], True

    def _plain(
        self, found: dict[str, Any], plain: dict[int, list[list[float]]], reads: dict[int, dict[int, np.ndarray]]
    ) -> dict[str, Any]:
        if "lane" not in found:
            return found
        lane: Lane = found["lane"]
        layers = {}
        for number, (copy, row) in found["sums"].items():
            sums = Sums(plain[id(copy)][row], self.settings)
            edits = [sums.edit(piece.stage, piece.part, rows) for piece, rows in lane.edits_at(number)]
            layers[str(number)] = {"sums": sums.layer, "edits": edits}
        tensors: dict[str, Tensor] = {}
        for number, values in reads[id(lane)].items():
            tensors[f"read.{number}"] = torch.from_numpy(np.ascontiguousarray(values))
        for number, parts in lane.taken.items():
            value = parts[0] if lane.ticket.reduce != "none" else torch.cat(parts)
            if lane.ticket.reduce == "mean":
                value = value / lane.taken_count
            tensors[f"capture.{number}"] = value.cpu().contiguous()
        head = {
            "layers": layers,
            "first": lane.first or 0,
            "computed": lane.done,
            "prompt": lane.prompt_tokens,
            "steer": lane.ticket.steer,
            "only": lane.ticket.only,
            "pauses": lane.pauses,
        }
        return {"head": json.dumps(head), "arrays": save(tensors) if tensors else b""}


def _hook(module: Any, args: Any, output: Any) -> Any:
    return module.countersteer(output)
