"""The largest activation of every latent of an SAE on each text: what all engines check, and the plain way to do it.

The plain way takes the residuals to where the SAE is read. vLLM's workers pool where the residuals are instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from countersteer.core.errors import InputError
from countersteer.core.site import Site

if TYPE_CHECKING:
    from countersteer.sources.sae import SAE

TEXTS = 32
"""Texts whose residuals are held together, at most."""


def pooling_site(inputs: Any, sae: SAE, *, layer: int | None, d_model: int) -> Site:
    """Where an SAE reads: its own site, or the output of `layer`. Raises InputError, RefusedError for a TopK SAE."""
    if isinstance(inputs, str):
        raise InputError("max_activations takes a list of texts: max_activations([text], sae)")
    if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int) or layer < 0):
        raise InputError(f"a layer is a whole number from 0, got {layer!r}")
    sae.require_activations()
    sae.require_width(d_model)
    return sae.site if layer is None else Site(layer)


async def pooled(
    forward: Callable[..., Awaitable[list[Any]]], inputs: Sequence[Any], sae: SAE, site: Site, *, template: bool
) -> NDArray[np.float32]:
    """Maxima [texts, d_sae], position 0 left out, from residuals that an engine's `forward` hands out."""
    parts = [np.zeros((0, sae.d_sae), np.float32)]
    for start in range(0, len(inputs), TEXTS):
        residuals = await forward(inputs[start : start + TEXTS], capture=site, template=template)
        parts.append(sae.max_activations(residuals))
    return np.concatenate(parts)
