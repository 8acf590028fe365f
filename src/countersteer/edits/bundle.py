"""Bundle files: an intervention as one safetensors file that round-trips exactly.

Tensors `edit.N.read|bias|write|lo|hi|slope|intercept` and, with a gate, `gate.direction`; the metadata entry
`countersteer` holds JSON: format version, name, model and template it was made for, and per edit its site, span,
method, flags and origin. The content fingerprint is stored and checked on reading. Nothing in the file can run code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from countersteer.core.errors import InputError, RefusedError
from countersteer.core.fingerprint import fingerprint
from countersteer.core.request import Receipt
from countersteer.core.site import Site
from countersteer.core.span import Span
from countersteer.edits.edit import Edit, Gate, Intervention

FORMAT = 1
MAX_BYTES = 4 << 30
_TENSORS = ("read", "bias", "write", "lo", "hi", "slope", "intercept")


@dataclass(frozen=True, eq=False)
class Bundle:
    """A named, deployable intervention; `meta` holds model, template hash and fit statistics as plain JSON data.

    Keys that others rely on: `model_fingerprint` (of the weights, `weights_of`), `template_hash`, `derived` (None, or
    how a bundle was accepted for other weights than it was made for) and `scorecard` (a summary, or None).
    """

    name: str
    intervention: Intervention
    version: str = "1"
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def derived(self) -> bool:
        """Whether it runs on other weights than it was fitted on."""
        return bool(self.meta.get("derived"))

    def mark(self, receipt: Receipt) -> Receipt:
        """The receipt, with a note if the bundle is a derived one."""
        if not self.derived:
            return receipt
        note = f"derived bundle {self.name}: fitted on other weights ({self.meta['derived'].get('from_model')})"
        return receipt if note in receipt.notes else replace(receipt, notes=(*receipt.notes, note))


def refuse_other_model(bundle: Bundle, *, model_fingerprint: str, template_hash: str | None) -> None:
    """Raise RefusedError unless a bundle was made for (or derived for) this model and chat template."""
    made_for = bundle.meta.get("model_fingerprint")
    if made_for is None:
        raise RefusedError(f"bundle {bundle.name!r}", "it does not say which model it was made for",
                           "make it with `countersteer defence sweep`")  # fmt: skip
    if made_for != model_fingerprint:
        raise RefusedError(f"bundle {bundle.name!r}", f"it was made for another model ({bundle.meta.get('model')})",
                           "`bundle verify --derived` for other weights of the same architecture")  # fmt: skip
    if bundle.meta.get("template_hash") != template_hash:
        raise RefusedError(f"bundle {bundle.name!r}", "it was made with another chat template",
                           "fit and sweep again with this template")  # fmt: skip


def weights_of(facts: Mapping[str, Any]) -> str:
    """The fingerprint of the weights that an engine runs on, by its `describe()`.

    With an adapter under every request they are other weights than the model's own.
    """
    model, adapter = str(facts["model_fingerprint"]), facts.get("adapter")
    return model if adapter is None else fingerprint([model, adapter])


def refuse_other_engine(bundle: Bundle, facts: Mapping[str, Any]) -> None:
    """Raise RefusedError unless a bundle was made for the weights and template of an engine, by its `describe()`."""
    refuse_other_model(bundle, model_fingerprint=weights_of(facts), template_hash=facts.get("template_hash"))


def bundle_bytes(bundle: Bundle | Intervention, *, name: str = "unnamed") -> bytes:
    """A bundle file's bytes. An intervention is wrapped under `name`. Raises InputError for `meta` that is not JSON."""
    if isinstance(bundle, Intervention):
        bundle = Bundle(name, bundle)
    tensors, edits = {}, []
    for i, edit in enumerate(bundle.intervention.edits):
        for part in _TENSORS:
            tensor = getattr(edit, part)
            if tensor is not None:
                tensors[f"edit.{i}.{part}"] = tensor.contiguous().clone()
        edits.append(
            {
                "site": str(edit.site),
                "span": str(edit.span),
                "method": edit.method,
                "conditional": edit.conditional,
                "setter": edit.setter,
                "order": edit.order,
                "origin": dict(edit.origin),
            }
        )
    gate = bundle.intervention.gate
    head: dict[str, Any] = {
        "format": FORMAT,
        "name": bundle.name,
        "version": bundle.version,
        "fingerprint": bundle.intervention.fingerprint,
        "edits": edits,
        "meta": dict(bundle.meta),
        "gate": None,
    }
    if gate is not None:
        tensors["gate.direction"] = gate.direction.contiguous().clone()
        head["gate"] = {
            "site": str(gate.site),
            "threshold": gate.threshold,
            "over": gate.over,
            "metric": gate.metric,
            "above": gate.above,
        }
    try:
        text = json.dumps(head, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"cannot write bundle {bundle.name}: {error}") from error
    return save(tensors, metadata={"countersteer": text})


def save_bundle(bundle: Bundle | Intervention, path: str | os.PathLike[str], *, name: str = "unnamed") -> Path:
    """Write a bundle (atomically). An intervention is wrapped under `name`. Raises InputError."""
    data, target = bundle_bytes(bundle, name=name), Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    except OSError as error:
        raise InputError(f"cannot write bundle {target}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle and check its content fingerprint. Raises InputError with what is wrong."""
    target = Path(path)
    try:
        if target.stat().st_size > MAX_BYTES:
            raise InputError(f"bundle {target} is larger than {MAX_BYTES >> 30} GiB")
        # Read, not mapped: a mapped file that is overwritten in place would take the process with it.
        data = target.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"bundle {target} does not exist") from error
    except OSError as error:
        raise InputError(f"{target} is not a readable bundle: {error}") from error
    return bundle_of(data, where=str(target))


def bundle_of(data: bytes, *, where: str = "the given bytes") -> Bundle:
    """The bundle of a file's bytes, its content fingerprint checked. Raises InputError with what is wrong."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        head = json.loads((header.get("__metadata__") or {})["countersteer"])
        tensors = load(data)
        if head["format"] != FORMAT:
            raise InputError(f"bundle {where} has format {head['format']}, this version reads {FORMAT}")
        edits = tuple(_edit(i, entry, tensors) for i, entry in enumerate(head["edits"]))
        gate = _gate(head["gate"], tensors)
        bundle = Bundle(str(head["name"]), Intervention(edits, gate), str(head["version"]), dict(head["meta"]))
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{where} is not a readable bundle: {error or type(error).__name__}") from error
    if bundle.intervention.fingerprint != head.get("fingerprint"):
        raise InputError(f"bundle {where} was altered: its content does not match its fingerprint")
    return bundle


def _edit(i: int, entry: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Edit:
    parts = {part: tensors.get(f"edit.{i}.{part}") for part in _TENSORS}
    missing = [p for p, t in parts.items() if t is None and p != "read"]
    if missing:
        raise ValueError(f"edit {i} lacks {', '.join(missing)}")
    return Edit(
        site=Site.parse(entry["site"]),
        span=Span.parse(entry["span"]),
        method=str(entry["method"]),
        conditional=bool(entry["conditional"]),
        setter=bool(entry["setter"]),
        order=int(entry["order"]),
        origin=dict(entry["origin"]),
        **parts,  # type: ignore[arg-type]  # only `read` may be None, checked above
    )


def _gate(entry: dict[str, Any] | None, tensors: dict[str, torch.Tensor]) -> Gate | None:
    if entry is None:
        return None
    rows = tensors["gate.direction"]
    site = Site.parse(entry["site"])
    return Gate(site, rows, entry["threshold"], entry["over"], entry["metric"], bool(entry["above"]))
