"""Bundles of a defence: made from a sweep's choice, shown, compared, checked on a model, derived for other weights.

A bundle's metadata holds what it was made for (model fingerprint, template, tokenizer), the fit's numbers, the sweep's
choice with its controls, the digests of the scenarios already seen, and some *witness* responses: with those its
separation can be measured again on other weights of the same architecture, without asking them to behave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from countersteer.core.errors import InputError, RefusedError
from countersteer.core.fingerprint import fingerprint
from countersteer.core.request import Request
from countersteer.defence.candidates import Candidate, build
from countersteer.defence.fit import WITNESSES, Fit
from countersteer.defence.responses import wait
from countersteer.defence.separation import along, auc
from countersteer.defence.settings import Settings
from countersteer.defence.sweep import Swept
from countersteer.edits.bundle import Bundle, refuse_other_engine, weights_of
from countersteer.edits.vectors import Direction

LEAST_AUC = 0.9
"""Least separation of the witness responses on other weights from which a bundle may be derived for them."""
WITNESS_CHARACTERS = 600


def identity(engine: Any) -> dict[str, Any]:
    """What a bundle is bound to: model, fingerprint, template, architecture, tokenizer, sizes."""
    facts = engine.describe()
    vocabulary = None if engine.tokenizer is None else fingerprint(sorted(engine.tokenizer.get_vocab().items()))
    adapter = facts.get("adapter")
    return {
        "model": facts.get("model") if adapter is None else f"{facts.get('model')} with adapter {adapter[:12]}",
        "model_fingerprint": weights_of(facts),
        "template_hash": facts.get("template_hash"),
        "architecture": facts.get("architecture"),
        "tokenizer": vocabulary,
        "d_model": engine.d_model,
        "layers": engine.n_layers,
    }


def make_bundle(
    engine: Any, fit: Fit, swept: Swept, settings: Settings, candidate: Candidate, *, name: str | None = None
) -> Bundle:
    """The bundle of an operating point of a sweep. Raises InputError for one that steers nothing."""
    intervention = build(candidate, fit, settings)
    if intervention is None:
        raise InputError(f"{candidate.name} steers nothing: a bundle holds edits; choose a steering method")
    arm = swept.facts["arms"][candidate.control or "fitted"]
    row = next(r for r in arm["methods"][candidate.method]["points"] if r["name"] == candidate.name)
    controls = {
        a: None if found["method"] is None else found["methods"][found["method"]]["chosen"]
        for a, found in swept.facts["arms"].items() if a != "fitted"
    }  # fmt: skip
    numbers = next(r for r in fit.facts["layers"] if r["layer"] == candidate.layer)
    kind = settings.sweep.direction
    meta = {
        **identity(engine),
        "trait": fit.facts["trait"],
        "method": candidate.method,
        "layer": candidate.layer,
        "strength": candidate.strength,
        "span": candidate.span,
        "control": candidate.control,
        "direction": kind,
        "fit": {**numbers["along"][kind], "held_out": numbers["held_out"], "tokens": numbers["tokens"],
                "cosine_with_logistic": numbers["cosine_with_logistic"]},
        "sweep": {"trait": row["trait"], "coherence": row["coherence"], "floor": swept.facts["floor"],
                  "baselines": swept.facts["baselines"], "points": arm["points"], "cost": arm["cost"],
                  "judge": swept.facts["judge"], "controls": controls},
        "seen": {"fit": fit.facts["scenarios"]["digests"], "choose": swept.facts["scenarios"]["digests"]},
        "witness": witnesses(fit),
        "settings": settings.model_dump(mode="json"),
        "scorecard": None,
        "derived": None,
    }  # fmt: skip
    title = name or f"{fit.facts['trait']['name']}-{candidate.method}"
    return Bundle(title if not candidate.control else f"{title}-{candidate.control}", intervention, "1", meta)


def witnesses(fit: Fit) -> list[dict[str, Any]]:
    """Responses of both kinds in pairs, cut short: what separation is measured on again."""
    rows = [r for r in fit.responses if r["status"] == "ok" and r["text"].strip()]
    both = {r["scenario"] for r in rows if r["aligned"]} & {r["scenario"] for r in rows if not r["aligned"]}
    kept = sorted(both)[:WITNESSES]
    return [
        {"system": r["system"], "user": r["user"], "text": r["text"][:WITNESS_CHARACTERS], "aligned": r["aligned"]}
        for r in rows if r["scenario"] in kept
    ]  # fmt: skip


def show(bundle: Bundle) -> dict[str, Any]:
    """A bundle as plain JSON data: edits, gate and metadata, witnesses counted instead of printed."""
    meta = dict(bundle.meta)
    meta["witness"] = len(meta.get("witness") or [])
    if isinstance(meta.get("seen"), dict):
        meta["seen"] = {name: len(digests) for name, digests in meta["seen"].items()}
    gate = bundle.intervention.gate
    return {
        "name": bundle.name,
        "version": bundle.version,
        "fingerprint": bundle.intervention.fingerprint,
        "edits": [
            {"site": str(e.site), "span": str(e.span), "method": e.method, "rows": e.rows, "d_model": e.d_model,
             "conditional": e.conditional, "origin": dict(e.origin)}
            for e in bundle.intervention.edits
        ],
        "gate": None if gate is None else {"site": str(gate.site), "threshold": gate.threshold, "over": gate.over,
                                           "metric": gate.metric},
        "meta": meta,
    }  # fmt: skip


def diff(one: Bundle, other: Bundle) -> list[dict[str, Any]]:
    """What differs between two bundles: {"what", "one", "other"}; empty if they are the same."""
    flat = [_flat({**show(b), "meta": {**b.meta}}, "") for b in (one, other)]
    rows = [
        {"what": key, "one": flat[0].get(key), "other": flat[1].get(key)}
        for key in sorted({*flat[0], *flat[1]}) if flat[0].get(key) != flat[1].get(key)
    ]  # fmt: skip
    for i, (a, b) in enumerate(zip(one.intervention.edits, other.intervention.edits, strict=False)):
        if a.write.shape == b.write.shape and a.rows == 1 and not torch.equal(a.write.double(), b.write.double()):
            cosine = float(torch.cosine_similarity(a.write.double(), b.write.double(), dim=1)[0])
            rows.append({"what": f"edits.{i}.write: cosine", "one": 1.0, "other": cosine})
    return rows


def _flat(value: Any, name: str) -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}" if name else key).items()}
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return {k: v for i, inner in enumerate(value) for k, v in _flat(inner, f"{name}.{i}").items()}
    return {name: value}


def verify(bundle: Bundle, engine: Any) -> dict[str, Any]:
    """Check that a bundle is for the engine's model, and measure its separation there.

    Raises RefusedError for another model, template or tokenizer.
    """
    refuse_other_engine(bundle, engine.describe())
    return {"model": identity(engine)["model"], "fingerprint": bundle.intervention.fingerprint,
            "separation": separation(bundle, engine), "derived": bundle.meta.get("derived")}  # fmt: skip


def separation(bundle: Bundle, engine: Any) -> dict[str, Any] | None:
    """The witness responses along the bundle's direction, read by the engine's unsteered model; None without any.

    AUC of aligned against malicious responses, and the classes' means, SDs and D.
    """
    rows = bundle.meta.get("witness") or []
    edit = bundle.intervention.edits[0]
    if not rows:
        return None
    direction = Direction(edit.read[0] if edit.read is not None and edit.setter else edit.write[0], edit.site)
    found: dict[bool, list[float]] = {True: [], False: []}

    async def means() -> None:
        for row in rows:
            request = Request(prompt=row["user"], system=row["system"])
            start = len(engine.encode(request))
            ids = engine.encode(request.with_(prefix=row["text"]))
            values = (await engine.forward([ids], readouts=[direction]))[0]
            if len(ids) > start:
                found[bool(row["aligned"])].append(float(values[start:, 0].double().mean()))

    wait(means())
    if not found[True] or not found[False]:
        return None
    p, n = np.array(found[True]), np.array(found[False])
    return {"auc": auc(p, n), "witnesses": len(rows), **along(np.ones(1), p[:, None], n[:, None]).to_dict()}


def derive(bundle: Bundle, engine: Any, *, least: float = LEAST_AUC) -> Bundle:
    """The same bundle for other weights of the same architecture and tokenizer, its separation measured there.

    The result is marked (`meta["derived"]`), and so is every receipt of it. Raises RefusedError for another
    architecture, tokenizer or template, without witnesses, or where the direction no longer separates them.
    """
    own = identity(engine)
    if own["model_fingerprint"] == bundle.meta.get("model_fingerprint"):
        raise InputError(f"bundle {bundle.name!r} was made for this very model: use it as it is")
    for what in ("architecture", "tokenizer", "d_model", "layers", "template_hash"):
        if bundle.meta.get(what) != own[what]:
            raise RefusedError(f"deriving bundle {bundle.name!r} for {own['model']}", f"{what} differs",
                               "fit and sweep on this model")  # fmt: skip
    measured = separation(bundle, engine)
    if measured is None:
        raise RefusedError(f"deriving bundle {bundle.name!r}", "it carries no witness responses to measure on",
                           "make it with `defence sweep`, or fit on this model")  # fmt: skip
    if measured["auc"] < least:
        raise RefusedError(
            f"deriving bundle {bundle.name!r} for {own['model']}",
            f"its direction tells aligned from malicious responses there with AUC {measured['auc']:.2f} < {least:g}",
            "fit and sweep on this model",
        )
    derived = {
        "from_model": bundle.meta.get("model"), "from_fingerprint": bundle.meta.get("model_fingerprint"),
        "separation": measured, "fitted": {k: bundle.meta["fit"].get(k) for k in ("aligned_mean", "malicious_mean")},
    }  # fmt: skip
    meta = {**bundle.meta, **own, "derived": derived, "scorecard": None}
    return replace(bundle, name=f"{bundle.name}-derived", meta=meta)
