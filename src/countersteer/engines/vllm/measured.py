"""From the sums that workers measured to receipts and readouts, in the form every engine gives them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from countersteer.core.errors import EngineError
from countersteer.core.request import EditReceipt, LayerReceipt, Receipt
from countersteer.core.site import Site
from countersteer.core.span import END
from countersteer.edits.edit import Edit, Intervention
from countersteer.edits.receipts import no_op
from countersteer.edits.vectors import ReadRows
from countersteer.engines.vllm.plan import edits_at

OVERFLOW = "the activations overflowed to infinity or NaN, so there is no next token: lower the strength"


@dataclass(frozen=True)
class Measured:
    """One request's measurements over all pipeline stages. Positions `first` .. `computed` - 1 were computed for it
    (earlier ones came from the prefix cache); `layers` holds sums per layer and edit, `arrays` readouts and captures,
    `pauses` the positions [from, to) at which its edits rested."""

    layers: Mapping[int, Mapping[str, Any]]
    arrays: Mapping[str, Tensor]
    first: int
    computed: int
    steer: str | None = None
    prompt_tokens: int = 0
    only: bool = False
    pauses: tuple[tuple[int, int, str], ...] = ()

    def stretches(self, edit: Edit, prompt_tokens: int) -> list[tuple[int, int]]:
        """The positions [from, to) at which an edit acted, or could have, and was measured."""
        start, stop = edit.span.bounds(prompt_tokens)
        out = [(max(start, self.first), min(stop, self.computed))]
        for low, high, _ in self.pauses:
            out = [part for a, b in out for part in ((a, min(b, low)), (max(a, high), b))]
        return [(a, b) for a, b in out if a < b]


def _spread(stretches: Iterable[tuple[int, int]]) -> int:
    """How many positions the stretches hold together, position 0 left out."""
    count, reached = 0, 1
    for start, stop in sorted(stretches):
        count += max(stop - max(start, reached), 0)
        reached = max(reached, stop)
    return count


def merge(answers: Sequence[Mapping[str, Any]]) -> Measured:
    """One request's measurements from every worker's answer. Raises EngineError if it was not steered everywhere."""
    layers: dict[int, Any] = {}
    arrays: dict[str, Tensor] = {}
    heads = []
    for answer in answers:
        if not answer:
            raise EngineError("a worker knows nothing of the request: it was not steered, or collected too late")
        if "error" in answer:
            raise EngineError(f"the request was not steered: {answer['error']}")
        head = json.loads(answer["head"])
        heads.append(head)
        layers.update({int(k): v for k, v in head["layers"].items()})
        if answer["arrays"]:
            arrays.update(load(bytes(answer["arrays"])))
    first = heads[0]
    return Measured(
        layers,
        arrays,
        max(h["first"] for h in heads),
        min(h["computed"] for h in heads),
        first["steer"],
        first["prompt"],
        first["only"],
        tuple((a, b, name) for a, b, name in first["pauses"]),
    )


def receipt_of(steer: Intervention | None, measured: Measured, *, prompt_tokens: int, family: str) -> Receipt:
    """The receipt of a request. Raises EngineError when an edited layer was measured by nobody, or overflowed."""
    if steer is None:
        return Receipt((), family)
    out = []
    for layer in steer.layers:
        entry = measured.layers.get(layer)
        if entry is None:
            raise EngineError(f"no worker measured layer {layer}: the request was not steered there")
        out.append(_layer(steer, layer, entry, measured, prompt_tokens))
    notes: tuple[str, ...] = ()
    if measured.first:
        notes = (f"positions 0..{measured.first - 1} came from the prefix cache and were not measured again",)
    return Receipt(tuple(out), family, notes)


def _layer(
    steer: Intervention, layer: int, entry: Mapping[str, Any], measured: Measured, prompt_tokens: int
) -> LayerReceipt:
    """One layer's receipt, its edits in the order in which the intervention mentions them."""
    numbers = edits_at(steer, layer)
    found = dict(zip(numbers, entry["edits"], strict=True))
    edits = {i: steer.edits[i] for i in sorted(numbers)}
    seen, changed, moved, largest, missed = entry["sums"]
    if not all(map(math.isfinite, entry["sums"])):
        raise EngineError(OVERFLOW)
    held = {i: measured.stretches(e, prompt_tokens) for i, e in edits.items()}
    spread = _spread(part for parts in held.values() for part in parts)
    inside = {i: _spread(parts) for i, parts in held.items()}
    means = {
        name: {i: [v / max(inside[i], 1) for v in found[i][name]] for i, e in edits.items() if e.read is not None}
        for name in ("before", "after")
    }
    known = all(inside[i] for i in means["before"])
    own = [_edit(edit, found[i]["own"], inside[i], means["before"].get(i, [])) for i, edit in edits.items()]
    if len(edits) == 1:  # the layer's sums are its own
        (edit,) = edits.values()
        own = [_edit(edit, [seen, changed, moved], spread, means["before"].get(numbers[0], []))]
    return LayerReceipt(
        site=str(Site(layer)),
        tokens_seen=round(seen),
        tokens_changed=round(changed),
        mean_relative=moved / spread if spread else None,
        max_relative=largest if spread else None,
        before=tuple(v for values in means["before"].values() for v in values) if known else (),
        after=tuple(v for values in means["after"].values() for v in values) if known else (),
        missed_target=missed if any(e.setter for e in edits.values()) else None,
        conditional=all(e.conditional for e in edits.values()),
        edits=tuple(own),
    )


def _edit(edit: Edit, own: Sequence[float], spread: int, before: Sequence[float]) -> EditReceipt:
    """What one edit did by itself; means are over `spread` positions."""
    seen, changed, moved = own
    mean = moved / spread if spread else None
    return EditReceipt(
        edit.method, round(seen), round(changed), mean, tuple(before) if spread else (), edit.conditional
    )


def problem_of(steer: Intervention, receipt: Receipt, measured: Measured, *, prompt_tokens: int) -> str | None:
    """Why an intervention was a no-op, or None. Edits whose positions all came from the prefix cache are not judged:
    their effect is in the cached blocks, which only the same intervention can share."""
    cached = [bool(measured.first) and not measured.stretches(e, prompt_tokens) for e in steer.edits]
    judged = tuple(e for e, skip in zip(steer.edits, cached, strict=True) if not skip)
    if not judged:
        return None
    layers = []
    for layer in receipt.layers:  # receipts list a layer's edits in their order
        here = [skip for e, skip in zip(steer.edits, cached, strict=True) if str(e.site) == layer.site]
        kept = tuple(e for e, skip in zip(layer.edits, here, strict=True) if not skip)
        layers.append(replace(layer, edits=kept))
    judged_receipt = replace(receipt, layers=tuple(layers))
    return no_op(
        Intervention(judged, steer.gate), judged_receipt, prompt_tokens=prompt_tokens, tokens=measured.computed
    )


def notes_of(measured: Measured) -> list[str]:
    """What a receipt says of how a request was run."""
    notes = ["measured only: nothing was changed"] if measured.only else []
    for start, stop, name in measured.pauses:
        notes.append(f"{name} exempt from position {start}")
        notes += [f"exempt to position {stop}"] if stop < END else []
    return notes


def readouts_of(groups: Sequence[ReadRows], measured: Measured) -> Tensor:
    """Readouts [positions, n]: activations or projections, columns in the order of the groups."""
    columns = []
    for group in groups:
        x = measured.arrays.get(f"read.{group.site.layer}")
        if x is None:
            raise EngineError(f"no worker recorded the readouts of layer {group.site.layer}")
        columns.append(torch.where(x.double() > group.threshold, x, torch.zeros_like(x)))
    return torch.cat(columns, dim=1)
