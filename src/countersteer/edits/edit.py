"""Edit and Intervention: every steering method as data.

An edit is k rows at one site. With x = R h + b read from the residual h [d_model],

    h' = h + W^T f(x),   f_i(x) = slope_i[p] x + intercept_i[p],   p = 0 if x < lo_i, 1 if lo_i <= x < hi_i, 2 else.

Knots are kept in float64 and rounded *up* to the dtype of the arithmetic: for any float32 x, `x < lo` then means the
same as in exact arithmetic. All rows of a layer with the same `order` read the same h and their writes add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from countersteer.core.errors import InputError, RefusedError
from countersteer.core.fingerprint import fingerprint
from countersteer.core.site import Site
from countersteer.core.span import ALL, Span

OVERLAP = 0.05
"""Largest |cosine| at which summed setters are still taken to be independent."""


@dataclass(frozen=True, eq=False)
class Edit:
    """Rows of one edit at one site.

    read [k, d_model] or None (then x = bias), bias [k], write [k, d_model], lo and hi [k] (float64),
    slope and intercept [k, 3] (float64). `conditional` edits may rest (change nothing) and still be valid; `setter`
    edits aim at a projection, so two of them must not overlap. `origin` says where it came from; it decides nothing.
    """

    site: Site
    read: Tensor | None
    bias: Tensor
    write: Tensor
    lo: Tensor
    hi: Tensor
    slope: Tensor
    intercept: Tensor
    method: str
    span: Span = ALL
    conditional: bool = False
    setter: bool = False
    order: int = 0
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        k, d = self.write.shape
        shapes = {
            "bias": (self.bias, (k,)),
            "lo": (self.lo, (k,)),
            "hi": (self.hi, (k,)),
            "slope": (self.slope, (k, 3)),
            "intercept": (self.intercept, (k, 3)),
        }
        if self.read is not None:
            shapes["read"] = (self.read, (k, d))
        for name, (tensor, shape) in shapes.items():
            if tuple(tensor.shape) != shape:
                raise InputError(f"edit {self.method}: {name} has shape {list(tensor.shape)}, needs {list(shape)}")
        for name in ("read", "bias", "write", "slope", "intercept"):
            tensor = getattr(self, name)
            if tensor is not None and not torch.isfinite(tensor).all():
                raise InputError(f"edit {self.method}: {name} holds NaN or infinite values")
        if torch.isnan(self.lo).any() or torch.isnan(self.hi).any() or (self.lo > self.hi).any():
            raise InputError(f"edit {self.method}: the knots must be numbers with lo <= hi")

    def __repr__(self) -> str:
        return f"Edit({self.method} at {self.site}, span {self.span}, {self.rows} rows of {self.d_model})"

    @property
    def rows(self) -> int:
        """How many rows the edit has."""
        return self.write.shape[0]

    @property
    def d_model(self) -> int:
        """Width of the residual stream that the edit is made for."""
        return self.write.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides what the edit does (not of its name or origin)."""
        arrays = {n: getattr(self, n) for n in ("read", "bias", "write", "lo", "hi", "slope", "intercept")}
        content = {n: None if t is None else t.double().numpy() for n, t in arrays.items()}
        flags = [str(self.site), str(self.span), self.conditional, self.setter, self.order]
        return fingerprint({"edit": flags, "arrays": content})

    @cached_property
    def rows_fingerprint(self) -> str:
        """Hash of what the rows do wherever they act: as `fingerprint`, the span left out."""
        return self.on("all").fingerprint

    def on(self, span: str | Span) -> Edit:
        """The same edit limited to a span."""
        return replace(self, span=Span.parse(span))

    def at(self, layer: int) -> Edit:
        """The same edit at another layer."""
        return replace(self, site=Site(layer))


@dataclass(frozen=True, eq=False)
class Gate:
    """A request-level gate (CAST, arXiv 2409.05907): a condition computed once over the prompt, then held.

    The statistic of the residuals at `site` over the prompt (`over` "mean" leaves position 0 out; "last" is the last
    prompt token) against `direction`: `metric` "cosine" is the cosine of that residual with its projection on the
    span of the direction rows [k, d_model] (that is |projection| / |residual|; for one row with its sign), "dot" its
    projection on the first unit row. The intervention acts iff the statistic is >= threshold (or < with `above`
    False).
    """

    site: Site
    direction: Tensor
    threshold: float
    over: str = "mean"
    metric: str = "cosine"
    above: bool = True

    def __post_init__(self) -> None:
        try:
            rows = torch.as_tensor(self.direction).detach().cpu().double()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"a gate's direction must be numbers, got {type(self.direction).__name__}") from error
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or not torch.isfinite(rows).all() or (rows.norm(dim=1) == 0).any():
            raise InputError("a gate's direction must be finite non-zero rows [k, d_model]")
        if self.over not in ("mean", "last"):
            raise InputError(f"a gate is computed over 'mean' or 'last', got {self.over!r}")
        if self.metric not in ("cosine", "dot"):
            raise InputError(f"a gate's metric is 'cosine' or 'dot', got {self.metric!r}")
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, int | float):
            raise InputError(f"a gate's threshold must be a number, got {self.threshold!r}")
        if not math.isfinite(self.threshold):
            raise InputError("a gate's threshold must be finite")
        object.__setattr__(self, "direction", rows)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides the gate."""
        parts = [str(self.site), self.threshold, self.over, self.metric, self.above]
        return fingerprint({"gate": parts, "direction": self.direction.numpy()})

    def statistic(self, residuals: Tensor) -> float:
        """The condition's value for the prompt's residuals [tokens, d_model] at the gate's site."""
        h = residuals.double().cpu()
        point = h[-1] if self.over == "last" or len(h) == 1 else h[1:].mean(0)
        basis = torch.linalg.qr(self.direction.T).Q
        if self.metric == "dot":
            return float(point @ (self.direction[0] / self.direction[0].norm()))
        if len(self.direction) == 1:
            return float(torch.cosine_similarity(point, self.direction[0], dim=0))
        return float((basis.T @ point).norm() / point.norm().clamp_min(1e-300))

    def opens(self, residuals: Tensor) -> bool:
        """Whether the intervention acts on a request whose prompt has these residuals."""
        value = self.statistic(residuals)
        return value >= self.threshold if self.above else value < self.threshold


@dataclass(frozen=True, eq=False)
class Intervention:
    """A set of edits, each with its span, and an optional request-level gate. `a + b` joins two."""

    edits: tuple[Edit, ...]
    gate: Gate | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(self.edits))
        if not self.edits:
            raise InputError("an intervention needs at least one edit")
        widths = {e.d_model for e in self.edits}
        if len(widths) > 1:
            raise InputError(f"the edits of an intervention differ in width: {sorted(widths)}")
        _refuse_overlap(self.edits)

    @cached_property
    def fingerprint(self) -> str:
        """Content fingerprint: the edits (order of mention does not matter) and the gate."""
        gate = self.gate.fingerprint if self.gate else None
        return fingerprint({"edits": sorted(e.fingerprint for e in self.edits), "gate": gate})

    @property
    def layers(self) -> tuple[int, ...]:
        """The edited layers, ascending."""
        return tuple(sorted({e.site.layer for e in self.edits}))

    @property
    def conditional(self) -> bool:
        """Whether the whole intervention may rest."""
        return self.gate is not None or all(e.conditional for e in self.edits)

    def span(self, span: str | Span) -> Intervention:
        """The same intervention with every edit limited to `span`."""
        return replace(self, edits=tuple(e.on(span) for e in self.edits))

    def order(self, order: int) -> Intervention:
        """The same intervention applied at step `order` of its layers: lower orders write before it reads."""
        if isinstance(order, bool) or not isinstance(order, int) or order < 0:
            raise InputError(f"order must be a whole number >= 0, got {order!r}")
        return replace(self, edits=tuple(replace(e, order=order) for e in self.edits))

    def gated(self, gate: Gate) -> Intervention:
        """The same intervention behind a request-level gate."""
        return replace(self, gate=gate)

    def __add__(self, other: Intervention) -> Intervention:
        if not isinstance(other, Intervention):
            return NotImplemented
        if (self.gate and self.gate.fingerprint) != (other.gate and other.gate.fingerprint):
            raise RefusedError(
                "joining interventions with different gates",
                "a gate holds for a whole intervention",
                "join first, then put one gate on the result with .gated(gate)",
            )
        return Intervention(self.edits + other.edits, self.gate)


def _refuse_overlap(edits: tuple[Edit, ...]) -> None:
    """Setters of one layer and order whose directions overlap do not compose: refuse them by name."""
    setters = [e for e in edits if e.setter]
    for i, a in enumerate(setters):
        for b in setters[i + 1 :]:
            if a.site != b.site or a.order != b.order or a.span.disjoint(b.span):
                continue
            unit_a, unit_b = (torch.nn.functional.normalize(e.write.double(), dim=1) for e in (a, b))
            cosine = float((unit_a @ unit_b.T).abs().max())
            if cosine > OVERLAP:
                raise RefusedError(
                    f"{a.method} + {b.method} at {a.site}",
                    f"their directions overlap (|cos| = {cosine:.2f} > {OVERLAP}), so neither would reach its target",
                    "remove([d1, d2]) for removals, or give one of them a later step with .order(1)",
                )
