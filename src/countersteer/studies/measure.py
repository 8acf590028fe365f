"""What a study reads off the model before it steers: which latents the prompts activate, and the unit of strength.

The unit of a latent is median |h| at the steering layer / |W_dec[k]|: the strength whose write is as long as a typical
residual. With it one range of strengths fits every model and every latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from countersteer.core.errors import InputError
from countersteer.core.site import Site
from countersteer.engines.base import Engine

_BATCH = 64


async def median_norm(engine: Engine, prompts: Sequence[str], *, layer: int) -> float:
    """Median |h| over the prompts' tokens at `layer`; the first position is left out. Raises InputError if it is 0."""
    norms: list[NDArray[np.float64]] = []
    for start in range(0, len(prompts), _BATCH):
        for h in await engine.forward(list(prompts[start : start + _BATCH]), capture=Site(layer), template=True):
            norms.append(np.asarray(h.double().norm(dim=-1).cpu().numpy())[1:])
    value = float(np.median(np.concatenate(norms))) if norms else 0.0
    if not np.isfinite(value) or value <= 0:
        raise InputError(f"the residuals at layer {layer} have median norm {value}: check the model and the layer")
    return value


def units(sae: Any, latents: Sequence[int], *, norm: float | None) -> list[float]:
    """Strength of one relative unit per latent; all 1 when `norm` is None (strengths in the latents' own units)."""
    if norm is None:
        return [1.0] * len(latents)
    lengths = sae.decoder_norms()[list(latents)]
    zero = [latent for latent, length in zip(latents, lengths, strict=True) if not length > 0]
    if zero:
        raise InputError(f"latent {zero[0]} has a decoder row of zeros, which steers nothing; leave it out")
    return [norm / float(length) for length in lengths]
