"""From the sums that workers measured to receipts and readouts, in the form every engine gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from countersteer.core.errors import EngineError
from countersteer.core.request import LayerReceipt, Receipt
from countersteer.core.site import Site
from countersteer.edits.edit import Edit, Intervention
from countersteer.edits.receipts import no_op
from countersteer.edits.vectors import ReadRows


@dataclass(frozen=True)
class Measured:
    """One request's measurements over all pipeline stages. Positions `first` .. `computed` - 1 were computed for it
    (earlier ones came from the prefix cache); `layers` holds sums per layer, `arrays` readouts and captures."""

    layers: Mapping[int, Mapping[str, Any]]
    arrays: Mapping[str, Tensor]
    first: int
    computed: int


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
    return Measured(layers, arrays, max(h["first"] for h in heads), min(h["computed"] for h in heads))


def receipt_of(steer: Intervention | None, measured: Measured, *, prompt_tokens: int, family: str) -> Receipt:
    """The receipt of a request. Raises EngineError when an edited layer was measured by nobody."""
    if steer is None:
        return Receipt((), family)
    out = []
    for layer in steer.layers:
        entry = measured.layers.get(layer)
        if entry is None:
            raise EngineError(f"no worker measured layer {layer}: the request was not steered there")
        edits = [e for e in steer.edits if e.site.layer == layer]
        out.append(_layer(layer, edits, entry, measured, prompt_tokens))
    notes: tuple[str, ...] = ()
    if measured.first:
        notes = (f"positions 0..{measured.first - 1} came from the prefix cache and were not measured again",)
    return Receipt(tuple(out), family, notes)


def _layer(
    layer: int, edits: Sequence[Edit], entry: Mapping[str, Any], measured: Measured, prompt_tokens: int
) -> LayerReceipt:
    seen, changed, moved, largest, missed = entry["sums"]
    inside: set[range] = {_measured(e, measured, prompt_tokens) for e in edits}
    spread = len(set().union(*inside) - {0})
    before: list[float] = []
    after: list[float] = []
    known = True
    for edit, b, a in zip(edits, entry["before"], entry["after"], strict=True):
        if edit.read is None:
            continue
        count = len(set(_measured(edit, measured, prompt_tokens)) - {0})
        known = known and count > 0
        before += [v / max(count, 1) for v in b]
        after += [v / max(count, 1) for v in a]
    return LayerReceipt(
        site=str(Site(layer)),
        tokens_seen=round(seen),
        tokens_changed=round(changed),
        mean_relative=moved / spread if spread else None,
        max_relative=largest if spread else None,
        before=tuple(before) if known else (),
        after=tuple(after) if known else (),
        missed_target=missed if any(e.setter for e in edits) else None,
        conditional=all(e.conditional for e in edits),
    )


def _measured(edit: Edit, measured: Measured, prompt_tokens: int) -> range:
    """The positions of an edit's span that were computed for the request."""
    start, stop = edit.span.bounds(prompt_tokens)
    return range(max(start, measured.first), max(min(stop, measured.computed), max(start, measured.first)))


def problem_of(steer: Intervention, receipt: Receipt, measured: Measured, *, prompt_tokens: int) -> str | None:
    """Why an intervention was a no-op, or None. Edits whose positions all came from the prefix cache are not judged:
    their effect is in the cached blocks, which only the same intervention can share."""
    judged = tuple(e for e in steer.edits if not measured.first or _measured(e, measured, prompt_tokens))
    if not judged:
        return None
    return no_op(Intervention(judged, steer.gate), receipt, prompt_tokens=prompt_tokens, tokens=measured.computed)


def readouts_of(groups: Sequence[ReadRows], measured: Measured) -> Tensor:
    """Readouts [positions, n]: activations or projections, columns in the order of the groups."""
    columns = []
    for group in groups:
        x = measured.arrays.get(f"read.{group.site.layer}")
        if x is None:
            raise EngineError(f"no worker recorded the readouts of layer {group.site.layer}")
        columns.append(torch.where(x.double() > group.threshold, x, torch.zeros_like(x)))
    return torch.cat(columns, dim=1)
