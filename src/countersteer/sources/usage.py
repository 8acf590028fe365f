"""How much every latent is used on given residuals: firing rate, mean activation, mean perturbation if ablated.

What a random control is matched on. Streamed: a block of latents at a time, no tensor [tokens, d_sae]. Position 0 (BOS)
is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from countersteer.core.errors import InputError
from countersteer.sources.encode import TILE_BYTES, _activate, _batches, _x

if TYPE_CHECKING:
    from torch import Tensor

    from countersteer.sources.sae import SAE


@dataclass(frozen=True)
class Usage:
    """Per latent, [d_sae] each, over `tokens` positions.

    `firing_rate`: share of positions at which it is active. `mean_activation`: over all positions. `perturbation`:
    mean of activation * |W_dec| / |h|, the |h' - h| / |h| that ablating the latent alone causes.
    """

    tokens: int
    firing_rate: NDArray[np.float64]
    mean_activation: NDArray[np.float64]
    perturbation: NDArray[np.float64]


def usage(sae: SAE, residuals: Iterable[Tensor], *, chunk: int = 2048) -> Usage:
    """Use of every latent on residuals [tokens, d_model] of several texts. Raises InputError, RefusedError (TopK)."""
    fires, sums, shares = (np.zeros(sae.d_sae) for _ in range(3))
    tokens = 0
    for batch in _batches(sae, residuals, True):
        h = torch.cat([piece for _, piece in batch.pieces])
        length = h.double().norm(dim=1).clamp_min(1e-30)
        tokens += len(h)
        step = max(TILE_BYTES // (h.element_size() * chunk), 1)
        for start in range(0, sae.d_sae, chunk):
            stop = min(start + chunk, sae.d_sae)
            rows = sae.encoder_block(start, stop, wide=h.dtype == torch.float64)
            for at in range(0, len(h), step):
                active = _activate(_x(h[at : at + step], rows), rows).double()
                fires[start:stop] += (active > 0).sum(0).cpu().numpy()
                sums[start:stop] += active.sum(0).cpu().numpy()
                shares[start:stop] += (active / length[at : at + step, None]).sum(0).cpu().numpy()
    if not tokens:
        raise InputError("there is no text to measure latents on")
    return Usage(tokens, fires / tokens, sums / tokens, shares / tokens * sae.decoder_norms())
