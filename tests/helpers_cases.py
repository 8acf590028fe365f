"""Every constructor as an intervention and, side by side, as a plain write with its formula in tensor operations.

Boundaries and thresholds are taken from the model's own residuals, so that about half of the tokens lie on each side,
and lie off the median, so that no token of the sample sits on a knot by construction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import countersteer as cs
from helpers_reference import Write, residuals

METHODS = (
    "add",
    "add_latent",
    "fixed",
    "clamp",
    "ablate",
    "remove",
    "remove_several",
    "limit",
    "to_target",
    "to_mirror",
    "gated_add",
    "contextual_add",
)


class Maker:
    """Draws cases for one layer of one model; the scale of the residuals there is measured once."""

    def __init__(self, model: Any, layer: int, sample: list[int]) -> None:
        self.layer = layer
        self.h = residuals(model, sample, layer)
        self.size = float(self.h.norm(dim=1).median())
        self.width = self.h.shape[1]

    def vector(self, g: torch.Generator, norm: float = 1.0) -> Tensor:
        v = torch.randn(self.width, generator=g, dtype=torch.float64)
        return v / v.norm() * norm

    def middle(self, direction: Tensor) -> float:
        """A number a little above the median projection on a direction."""
        x = self.h @ direction
        return float(x.median() + 0.0137 * x.std())

    def latent(self, g: torch.Generator, index: int) -> cs.edits.Latent:
        """A JumpReLU latent whose threshold is near the median of what it reads, so about half of the tokens fire."""
        read, write = self.vector(g), self.vector(g, 0.7)
        threshold = max(self.middle(read), 0.05 * self.size)
        return cs.edits.Latent(index, cs.Site(self.layer), read, -0.01, write, threshold)

    def make(self, method: str, seed: int) -> tuple[cs.Intervention, Write]:
        """The intervention of a method and the same as a plain write, over all positions."""
        g = torch.Generator().manual_seed(seed)
        v, c = self.vector(g, 30.0 if seed % 2 else 0.1), self.vector(g, 3.0)
        u, gate = v / v.norm(), c / c.norm()
        d, s = cs.direction(v, layer=self.layer), 0.8 * self.size / float(v.norm())
        middle = self.middle(u)
        spread = float((self.h @ u).std()) + 1e-3
        if method == "add":
            return cs.add(d, s), Write(self.layer, lambda h: (s * v).expand_as(h))
        if method == "add_latent":
            latent, b = self.latent(g, 5), 0.9 * self.size
            row = latent.write
            return cs.add(latent, b), Write(self.layer, lambda h: (b * row).expand_as(h))
        if method == "fixed":
            steer = cs.fixed(d, 0.5, separation=1.4 * self.size)
            return steer, Write(self.layer, lambda h: (0.5 * 1.4 * self.size * u).expand_as(h))
        if method in ("clamp", "ablate"):
            latents = [self.latent(g, i) for i in range(4)]
            value = 0.6 * self.size if method == "clamp" else 0.0

            def to_value(h: Tensor) -> Tensor:
                total = torch.zeros_like(h)
                for latent in latents:
                    x = h @ latent.read + latent.bias
                    f = torch.where(x > latent.threshold, x, torch.zeros_like(x))
                    total += (value - f)[:, None] * latent.write
                return total

            return (cs.clamp(latents, value) if value else cs.ablate(latents)), Write(self.layer, to_value)
        if method == "remove":
            return cs.remove(d), Write(self.layer, lambda h: -(h @ u)[:, None] * u)
        if method == "remove_several":
            several = torch.stack([v, c, self.vector(g, 2.0), v + 0.5 * self.vector(g)])
            projector = several.T @ torch.linalg.inv(several @ several.T) @ several
            steer = cs.remove([cs.direction(row, layer=self.layer) for row in several])
            return steer, Write(self.layer, lambda h: -(h @ projector))
        if method == "limit":
            low, high = middle - 0.3 * spread, middle + 0.3 * spread
            return (
                cs.limit(d, low=low, high=high),
                Write(self.layer, lambda h: ((h @ u).clamp(low, high) - h @ u)[:, None] * u),
            )
        if method == "to_target":
            target = middle + 0.7 * self.size
            return (
                cs.to_target(d, boundary=middle, target=target),
                Write(self.layer, lambda h: torch.where(h @ u < middle, target - h @ u, 0.0)[:, None] * u),
            )
        if method == "to_mirror":
            return (
                cs.to_mirror(d, boundary=middle + spread, strength=1.5),
                Write(
                    self.layer,
                    lambda h: torch.where(h @ u < middle + spread, 3.0 * (middle + spread - h @ u), 0.0)[:, None] * u,
                ),
            )
        if method == "gated_add":
            at = self.middle(gate)
            return (
                cs.gated_add(d, s, gate=cs.direction(c, layer=self.layer), threshold=at),
                Write(self.layer, lambda h: torch.where(h @ gate >= at, s, 0.0)[:, None] * v),
            )
        assert method == "contextual_add", method
        weights = c * (s / self.size)
        return (
            cs.contextual_add(d, weights=weights, bias=0.2 * s, strength=1.1),
            Write(self.layer, lambda h: 1.1 * (h @ weights + 0.2 * s)[:, None] * v),
        )
