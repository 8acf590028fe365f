"""Candidates of a sweep: method x layer x strength x span, and the intervention each one is.

Strengths mean what the coherence paper's grids mean (arXiv 2604.08169): SwFC adds strength * D * v; StTP sets a
projection below m to mu+ + strength * sigma+; StMP mirrors it at m. The controls go through the same grid with the same
numbers: a *random* unit direction in place of v, or the *flipped* one (-v, the classes exchanged).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from countersteer.core.errors import InputError, RefusedError
from countersteer.core.fingerprint import rng
from countersteer.core.site import Site
from countersteer.defence.fit import Fit
from countersteer.defence.separation import Along
from countersteer.defence.settings import Settings
from countersteer.edits import methods
from countersteer.edits.edit import Gate, Intervention
from countersteer.edits.vectors import Direction

UNSTEERED = ("prompt",)
ONE_STRENGTH = ("remove", "prompt")


@dataclass(frozen=True, order=True)
class Candidate:
    """An operating point. `control`: "" for the fitted direction, else flipped or random-N."""

    method: str
    layer: int
    strength: float
    span: str
    control: str = ""

    @property
    def name(self) -> str:
        """For tables: "sttp layer 26 strength 36 all"."""
        if self.method in UNSTEERED:
            return self.method
        strength = "" if self.method in ONE_STRENGTH else f" strength {self.strength:g}"
        return f"{self.method} layer {self.layer}{strength} {self.span}"


def grid(fit: Fit, settings: Settings, *, control: str = "") -> dict[str, list[Candidate]]:
    """The candidates by method. Raises InputError for layers that the fit does not have, or CLAS that it lacks."""
    layers = settings.sweep.layers or fit.layers
    out: dict[str, list[Candidate]] = {}
    for method in settings.sweep.methods:
        if method in UNSTEERED:
            if not control:
                out[method] = [Candidate(method, 0, 1.0, "all")]
            continue
        here = layers
        if method == "clas":
            here = tuple(k for k in layers if f"clas.{k}" in fit.arrays)
            if not here:
                raise InputError("the fit has no CLAS strengths at the layers of the sweep; fit again with clas_layers")
        for layer in here:
            if layer not in fit.layers:
                raise InputError(f"the fit has no layer {layer}; it has {fit.layers[0]}..{fit.layers[-1]}")
        points = [
            Candidate(method, layer, float(strength), span, control)
            for layer in here
            for strength in (settings.grid(method) if method not in ONE_STRENGTH else (1.0,))
            for span in settings.sweep.spans
        ]
        out[method] = points
    return {method: points for method, points in out.items() if points}


def build(candidate: Candidate, fit: Fit, settings: Settings) -> Intervention | None:
    """The intervention of a candidate; None for the prompting baseline. Raises InputError."""
    if candidate.method in UNSTEERED:
        return None
    kind, layer, s = settings.sweep.direction, candidate.layer, candidate.strength
    v, at = _controlled(candidate, fit.direction(layer, kind), fit.along(layer, kind), settings.defence.seed)
    made = _MAKERS[candidate.method](v, at, s, fit, layer)
    spanned: Intervention = made.span(candidate.span)
    return spanned


def _controlled(candidate: Candidate, v: Direction, at: Along, seed: int) -> tuple[Direction, Along]:
    if not candidate.control:
        return v, at
    name = f"{v.label} ({candidate.control})"
    if candidate.control == "flipped":
        return Direction(-v.vector, v.site, v.model, f"-1 times {v.origin}", name), at.flipped()
    if not candidate.control.startswith("random-"):
        raise InputError(f"no control {candidate.control!r}; there are flipped and random-N")
    drawn = rng(seed, "control", candidate.control, candidate.layer).standard_normal(len(v.vector))
    return Direction(torch.from_numpy(drawn / np.linalg.norm(drawn)), v.site, v.model, "random", name), at


def _swfc(v: Direction, at: Along, s: float, fit: Fit, layer: int) -> Intervention:
    return methods.fixed(v, s, separation=at.separation)


def _sttp(v: Direction, at: Along, s: float, fit: Fit, layer: int) -> Intervention:
    return methods.to_target(v, boundary=at.boundary, target=at.aligned_mean + s * at.aligned_spread)


def _stmp(v: Direction, at: Along, s: float, fit: Fit, layer: int) -> Intervention:
    return methods.to_mirror(v, boundary=at.boundary, strength=s)


def _limit(v: Direction, at: Along, s: float, fit: Fit, layer: int) -> Intervention:
    """The projection is brought up to low = m + strength * (mu+ - m)."""
    return methods.limit(v, low=at.boundary + s * (at.aligned_mean - at.boundary))


def _remove(v: Direction, at: Along, s: float, fit: Fit, layer: int) -> Intervention:
    return methods.remove(v)


def _gated(v: Direction, at: Along, s: float, fit: Fit, layer: int) -> Intervention:
    """Per token: strength * D * v where the projection is at most m."""
    against = Direction(-v.vector, v.site)
    return methods.gated_add(_scaled(v, at.separation), s, gate=against, threshold=-at.boundary)


def _cast(v: Direction, at: Along, s: float, fit: Fit, layer: int) -> Intervention:
    """strength * D * v in requests whose prompt looks malicious: its mean's cosine with the condition, once."""
    condition, threshold = fit.condition(fit.condition_layer)
    gate = Gate(Site(fit.condition_layer), torch.from_numpy(condition.copy()), threshold, "mean", "cosine")
    return methods.fixed(v, s, separation=at.separation).gated(gate)


def _clas(v: Direction, at: Along, s: float, fit: Fit, layer: int) -> Intervention:
    key = f"clas.{layer}"
    if key not in fit.arrays:
        raise RefusedError(f"clas at layer {layer}", "the fit has no CLAS strengths there", "fit with clas_layers")
    bias = next(row["clas"]["bias"] for row in fit.facts["layers"] if row["layer"] == layer)
    weights = torch.from_numpy(fit.arrays[key].copy())
    return methods.contextual_add(_scaled(v, at.separation), weights=weights, bias=float(bias), strength=s)


def _scaled(v: Direction, size: float) -> Direction:
    return Direction(v.unit() * size, v.site, v.model, v.origin, v.label)


_MAKERS: dict[str, Any] = {
    "swfc": _swfc,
    "sttp": _sttp,
    "stmp": _stmp,
    "limit": _limit,
    "remove": _remove,
    "gated": _gated,
    "cast": _cast,
    "clas": _clas,
}
