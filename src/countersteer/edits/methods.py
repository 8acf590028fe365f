"""The constructors: each steering method of the literature as an intervention of one edit.

`add` uses a vector as given. Setters (`remove`, `limit`, `to_target`, `to_mirror`) read and write v/|v|, and gates
read c/|c|; boundaries, targets and thresholds are in units of h.v/|v|. A latent may be used at another layer than
its SAE's with `layer=`. Every constructor refuses what would change nothing (zero strength, zero vector).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from countersteer.core.errors import InputError, NoOpError, RefusedError
from countersteer.core.site import Site
from countersteer.edits.edit import Edit, Intervention
from countersteer.edits.vectors import Direction, Latent, as_vector

_INF = math.inf
Source = Direction | Latent


def _number(value: Any, name: str, *, infinite: bool = False) -> float:
    """A number of Python, numpy, or a tensor of one element. Raises InputError."""
    scalar = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(scalar, bool) or not isinstance(scalar, numbers.Real):
        raise InputError(f"{name} must be a number, got {value!r}")
    if math.isnan(scalar) or (math.isinf(scalar) and not infinite):
        raise InputError(f"{name} must be a finite number, got {value!r}")
    return float(scalar)


def _strength(value: Any) -> float:
    number = _number(value, "strength")
    if number == 0:
        raise NoOpError("strength 0 changes nothing: leave the intervention out instead")
    return number


def _written(source: Source) -> Tensor:
    """The vector a source writes, as given. Raises NoOpError for a zero vector."""
    _site(source, None)
    vector = source.vector if isinstance(source, Direction) else source.write
    if not vector.abs().max() > 0:
        raise NoOpError("a zero vector changes nothing: check where the direction comes from")
    return vector


def _direction(source: Any) -> Direction:
    """A setter's direction: a latent has no projection to set, its decoder row has."""
    if isinstance(source, Latent):
        return Direction(source.write, source.site, origin=f"latent.{source.index}", label=source.label)
    if not isinstance(source, Direction):
        raise InputError(f"this method needs a direction, got {type(source).__name__}; see cs.direction")
    return source


def _site(source: Source, layer: int | None) -> Site:
    if not isinstance(source, Direction | Latent):
        raise InputError(f"steering needs a direction or a latent, got {type(source).__name__}; see cs.direction")
    return source.site if layer is None else Site(layer)


def _origin(source: Source, **more: Any) -> dict[str, Any]:
    data: dict[str, Any] = {k: v for k, v in more.items() if v is not None}
    if source.label is not None:
        data["label"] = source.label
    if isinstance(source, Latent):
        data |= {"latent": source.index, "sae": source.sae}
    return data


def _table(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _one(
    site: Site,
    method: str,
    *,
    read: Tensor | None,
    write: Tensor,
    slope: Sequence[float],
    intercept: Sequence[float],
    lo: float = -_INF,
    hi: float = _INF,
    bias: float = 0.0,
    **flags: Any,
) -> Intervention:
    """An intervention of one edit with one row."""
    edit = Edit(
        site,
        None if read is None else read[None],
        _table([[bias]])[0],
        write[None],
        _table([[lo]])[0],
        _table([[hi]])[0],
        _table([slope]),
        _table([intercept]),
        method,
        **flags,
    )
    return Intervention((edit,))


def add(source: Source, strength: float, *, layer: int | None = None) -> Intervention:
    """h' = h + strength * v, v as given (a latent's raw decoder row). ESR paper 1.3; CAA; ActAdd.

    Unconditional. Raises NoOpError for strength 0 or a zero vector.
    """
    s = _strength(strength)
    return _one(
        _site(source, layer),
        "add",
        read=None,
        write=_written(source),
        slope=(0, 0, 0),
        intercept=(s, s, s),
        origin=_origin(source, strength=s),
    )


def fixed(source: Source, strength: float, *, separation: float, layer: int | None = None) -> Intervention:
    """SwFC: h' = h + strength * separation * v/|v|, separation D = mu+ - mu-. Coherence paper 2.3. Unconditional."""
    s, gap = _strength(strength), _number(separation, "separation")
    if gap == 0:
        raise NoOpError("separation 0 changes nothing: the two classes do not differ along this direction")
    source = _direction(source)
    _written(source)
    total = s * gap
    return _one(
        _site(source, layer),
        "fixed",
        read=None,
        write=source.unit(),
        slope=(0, 0, 0),
        intercept=(total, total, total),
        origin=_origin(source, strength=s, separation=gap),
    )


def _latents(latents: Latent | Iterable[Latent]) -> list[Latent]:
    flat = list(latents) if isinstance(latents, Iterable) else [latents]
    if not flat:
        raise NoOpError("no latents were given: there is nothing to clamp")
    for latent in flat:
        if not isinstance(latent, Latent):
            raise RefusedError(
                f"clamping a {type(latent).__name__}",
                "only a latent has an activation that can be clamped",
                "cs.remove or cs.limit for directions",
            )
    keys = [(latent.sae, latent.index) for latent in flat]
    if len(set(keys)) < len(keys):
        twice = next(k for k in keys if keys.count(k) > 1)
        raise InputError(f"latent {twice[1]} is given twice: it would be clamped twice")
    if len({latent.site for latent in flat}) > 1:
        raise InputError("the latents belong to different sites: clamp each site's own, then join them with +")
    return flat


def clamp(latents: Latent | Iterable[Latent], value: float, *, layer: int | None = None) -> Intervention:
    """Each latent's activation set to `value`: h' = h + (value - f_j(h)) W_dec[j], the SAE's error kept. ESR 1.3.

    Conditional: with value 0 a latent that does not fire is left alone. The rows add up (the paper's rule); each reads
    h before any write at the layer. x <= max(threshold, 0) counts as not firing.
    """
    c, flat = _number(value, "clamp value"), _latents(latents)
    if c < 0:
        raise InputError(f"clamp value must be >= 0, an activation is never negative; got {c}")
    knots = [math.nextafter(max(latent.threshold, 0.0), _INF) for latent in flat]
    for latent in flat:
        _written(latent)
    wide = torch.float64 if any(t.dtype == torch.float64 for la in flat for t in (la.read, la.write)) else torch.float32
    edit = Edit(
        _site(flat[0], layer),
        torch.stack([latent.read.to(wide) for latent in flat]),
        _table([[latent.bias for latent in flat]])[0],
        torch.stack([latent.write.to(wide) for latent in flat]),
        _table([knots])[0],
        torch.full((len(flat),), _INF, dtype=torch.float64),
        _table([[0.0, -1.0, -1.0]] * len(flat)),
        _table([[c, c, c]] * len(flat)),
        "ablate" if c == 0 else "clamp",
        conditional=True,
        origin={"latents": [la.index for la in flat], "sae": flat[0].sae, "value": c},
    )
    return Intervention((edit,))


def ablate(latents: Latent | Iterable[Latent], *, layer: int | None = None) -> Intervention:
    """Each latent's activation set to 0: `clamp(latents, 0.0)`."""
    return clamp(latents, 0.0, layer=layer)


def remove(directions: Source | Iterable[Source], *, layer: int | None = None) -> Intervention:
    """Directional ablation: h' = h - Q Q^T h, Q an orthonormal basis of the directions' span. Unconditional setter."""
    flat = list(directions) if isinstance(directions, Iterable) else [directions]
    if not flat:
        raise NoOpError("no directions were given: there is nothing to remove")
    given = [_direction(d) for d in flat]
    for d in given:
        _written(d)
    if len({d.site for d in given}) > 1 and layer is None:
        raise InputError("the directions belong to different sites: give layer=, or remove each at its own site")
    units = torch.stack([d.unit() for d in given])
    _, singular, basis = torch.linalg.svd(units, full_matrices=False)
    if len(given) == 1:
        basis = units
    elif singular[-1] < 1e-6 * singular[0]:
        raise InputError("the directions to remove are linearly dependent: leave the redundant ones out")
    k = len(basis)
    edit = Edit(
        _site(given[0], layer),
        basis,
        torch.zeros(k, dtype=torch.float64),
        basis,
        torch.full((k,), -_INF, dtype=torch.float64),
        torch.full((k,), _INF, dtype=torch.float64),
        _table([[-1.0, -1.0, -1.0]] * k),
        _table([[0.0, 0.0, 0.0]] * k),
        "remove",
        setter=True,
        origin=_origin(given[0], directions=k),
    )
    return Intervention((edit,))


def limit(source: Source, *, low: float = -_INF, high: float = _INF, layer: int | None = None) -> Intervention:
    """Interval limit (activation capping): the projection h.v/|v| is brought into [low, high]. Conditional setter."""
    low, high = _number(low, "low", infinite=True), _number(high, "high", infinite=True)
    if low > high:
        raise InputError(f"limit needs low <= high, got low={low}, high={high}")
    if low == -_INF and high == _INF:
        raise NoOpError("limit without low or high changes nothing: give at least one")
    d = _direction(source)
    _written(d)
    first = (0.0, 0.0) if low == -_INF else (-1.0, low)
    last = (0.0, 0.0) if high == _INF else (-1.0, high)
    return _one(
        _site(d, layer),
        "limit",
        read=d.unit(),
        write=d.unit(),
        slope=(first[0], 0, last[0]),
        intercept=(first[1], 0, last[1]),
        lo=low,
        hi=high,
        conditional=True,
        setter=True,
        origin=_origin(d, low=None if low == -_INF else low, high=None if high == _INF else high),
    )


def to_target(source: Source, *, boundary: float, target: float, layer: int | None = None) -> Intervention:
    """StTP: if rho = h.v/|v| < boundary, rho is set to target. Coherence paper 2.3 (target mu+ + strength * sigma+)."""
    m, t, d = _number(boundary, "boundary"), _number(target, "target"), _direction(source)
    _written(d)
    return _one(
        _site(d, layer),
        "to_target",
        read=d.unit(),
        write=d.unit(),
        slope=(-1, 0, 0),
        intercept=(t, 0, 0),
        lo=m,
        conditional=True,
        setter=True,
        origin=_origin(d, boundary=m, target=t),
    )


def to_mirror(source: Source, *, boundary: float, strength: float = 1.0, layer: int | None = None) -> Intervention:
    """StMP: if rho < boundary, h + 2 * strength * (boundary - rho) v/|v|; 1 is the mirror image. Coherence 2.3."""
    m, s, d = _number(boundary, "boundary"), _strength(strength), _direction(source)
    _written(d)
    return _one(
        _site(d, layer),
        "to_mirror",
        read=d.unit(),
        write=d.unit(),
        slope=(-2 * s, 0, 0),
        intercept=(2 * s * m, 0, 0),
        lo=m,
        conditional=True,
        setter=True,
        origin=_origin(d, boundary=m, strength=s),
    )


def gated_add(
    source: Source, strength: float, *, gate: Any, threshold: float, layer: int | None = None
) -> Intervention:
    """Projection-gated add, per token: if h.c/|c| >= threshold, h + strength * v (v as given). Conditional.

    `gate` is a direction at the same site, or a raw vector. This is a token-level gate; a condition computed once over
    the prompt (CAST) is an intervention's `gate`.
    """
    s, at, v = _strength(strength), _number(threshold, "threshold"), _written(source)
    site = _site(source, layer)
    if isinstance(gate, Direction | Latent):
        condition = _direction(gate)
        if layer is None and condition.site != site:
            raise InputError(f"the gate is read at {site}, but its direction belongs to {condition.site}; give layer=")
    else:
        condition = Direction(as_vector(gate, what="the gate"), site)
    return _one(
        site,
        "gated_add",
        read=condition.unit(),
        write=v,
        slope=(0, 0, 0),
        intercept=(0, s, s),
        lo=at,
        conditional=True,
        origin=_origin(source, strength=s, threshold=at),
    )


def contextual_add(
    source: Source, *, weights: Any, bias: float = 0.0, strength: float = 1.0, layer: int | None = None
) -> Intervention:
    """CLAS (arXiv 2604.24693): h' = h + strength * (weights . h + bias) * v, v and weights as given. Unconditional."""
    s, v = _strength(strength), _written(source)
    read = as_vector(weights.vector if isinstance(weights, Direction) else weights, what="the weights")
    b = _number(bias, "bias")
    if not read.abs().max() > 0 and b == 0:
        raise NoOpError("zero weights and zero bias change nothing")
    return _one(
        _site(source, layer),
        "contextual_add",
        read=read,
        write=v,
        slope=(s, s, s),
        intercept=(0, 0, 0),
        bias=b,
        origin=_origin(source, strength=s, bias=b),
    )
