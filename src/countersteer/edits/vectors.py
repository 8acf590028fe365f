"""What an edit reads and writes: directions and SAE latents, as plain data.

A `Direction` is a vector at a site. A `Latent` is one row of a sparse autoencoder with its conventions already
resolved: x = read . h + bias, its activation is x where x > max(threshold, 0) and 0 elsewhere. Where they come from
(files, fits) is a matter of the layer above.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint
from countersteer.core.site import Site


def as_vector(values: Any, *, what: str) -> Tensor:
    """A finite 1-D CPU tensor in float64 (if given so) or float32. Raises InputError."""
    try:
        tensor = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} must be a vector of numbers [d_model], got {type(values).__name__}") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise InputError(f"{what} must hold real numbers, got {tensor.dtype}")
    if tensor.ndim != 1 or tensor.numel() == 0:
        raise InputError(f"{what} must be a vector [d_model], got shape {list(tensor.shape)}")
    tensor = tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32).contiguous().clone()
    if not torch.isfinite(tensor).all():
        raise InputError(f"{what} holds NaN or infinite values")
    return tensor


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector [d_model] at a site; `model` is the fingerprint of the model it was made for, if known."""

    vector: Tensor
    site: Site
    model: str | None = None
    origin: str = "given"
    label: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", as_vector(self.vector, what="a direction"))

    def at(self, layer: int) -> Direction:
        """The same vector at another layer."""
        return replace(self, site=Site(layer))

    def unit(self) -> Tensor:
        """v/|v|, in float64. Raises InputError for a zero vector."""
        vector = self.vector.double()
        norm = vector.norm()
        if not norm > 0:
            raise InputError("the direction is a zero vector: it has no v/|v|; give a vector with a length")
        return vector / norm


@dataclass(frozen=True, eq=False)
class Latent:
    """One SAE latent: x = read . h + bias; activation x if x > max(threshold, 0) else 0; `write` its decoder row."""

    index: int
    site: Site
    read: Tensor
    bias: float
    write: Tensor
    threshold: float = 0.0
    sae: str = ""
    label: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "read", as_vector(self.read, what=f"encoder row of latent {self.index}"))
        object.__setattr__(self, "write", as_vector(self.write, what=f"decoder row of latent {self.index}"))
        if self.read.shape != self.write.shape:
            raise InputError(f"latent {self.index}: encoder and decoder rows differ in width")
        if not (math.isfinite(self.bias) and math.isfinite(self.threshold)):
            raise InputError(f"latent {self.index}: bias or threshold is not finite")

    def at(self, layer: int) -> Latent:
        """The same rows used at another layer than the SAE's own."""
        return replace(self, site=Site(layer))


class Latents(tuple[Latent, ...]):
    """Several latents of one SAE, in the order asked for."""

    __slots__ = ()

    def at(self, layer: int) -> Latents:
        """The same latents used at another layer."""
        return Latents(latent.at(layer) for latent in self)


@dataclass(frozen=True, eq=False)
class ReadRows:
    """Rows that are read without writing: x = read h + bias [k], then the activation where a threshold is set.

    `threshold` is -inf for directions (their readout is the projection x itself).
    """

    site: Site
    read: Tensor
    bias: Tensor
    threshold: Tensor
    names: tuple[str, ...] = field(default=())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the rows and their biases: what is read, whatever is made of it."""
        return fingerprint({"read": self.read.double().numpy(), "bias": self.bias.double().numpy()})

    def values(self, h: Tensor) -> Tensor:
        """Readouts [tokens, k] of residuals h [tokens, d_model], in float32 or h's dtype if wider."""
        wide = torch.promote_types(h.dtype, torch.float32)
        x = h.to(wide) @ self.read.to(h.device, wide).T + self.bias.to(h.device, wide)
        gate = self.threshold.to(h.device)
        return torch.where(x.double() > gate, x, torch.zeros_like(x))


def read_rows(items: Direction | Latent | Iterable[Direction | Latent]) -> list[ReadRows]:
    """Readouts grouped by site, sites in order of first mention.

    A direction's readout is h . v / |v| (its projection), a latent's is its activation. Raises InputError.
    """
    flat: Sequence[Direction | Latent] = [items] if isinstance(items, Direction | Latent) else list(items)
    if not flat:
        raise InputError("no readouts were given")
    groups: dict[Site, list[Direction | Latent]] = {}
    for item in flat:
        if not isinstance(item, Direction | Latent):
            raise InputError(f"a readout is a latent or a direction, got {type(item).__name__}")
        groups.setdefault(item.site, []).append(item)
    out = []
    for site, group in groups.items():
        read, bias, gate, names = [], [], [], []
        for item in group:
            if isinstance(item, Latent):
                read.append(item.read.double())
                bias.append(item.bias)
                gate.append(max(item.threshold, 0.0))
                names.append(f"latent.{item.index}@{item.site}")
            else:
                read.append(item.unit())
                bias.append(0.0)
                gate.append(-math.inf)
                names.append(f"direction@{item.site}")
        if len({r.shape for r in read}) > 1:
            raise InputError(f"readouts at {site} differ in width")
        out.append(
            ReadRows(
                site,
                torch.stack(read),
                torch.tensor(bias, dtype=torch.float64),
                torch.tensor(gate, dtype=torch.float64),
                tuple(names),
            )
        )
    return out


def direction(vector: Any, *, layer: int, label: str | None = None, model: str | None = None) -> Direction:
    """A raw vector at `resid_post.layer`. Raises InputError for non-finite or empty vectors."""
    return Direction(vector, Site(layer), model=model, label=label)
