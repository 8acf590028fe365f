"""How far ablating latents moves the residual, measured as the engine's receipts measure it, on given residuals.

|h' - h| / |h| after rounding to the model's dtype, through the same row table that steers: never worked out from norms.
Used to match random latents to the ones that they stand in for, and to show the match that was achieved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from countersteer.core.errors import InputError
from countersteer.sources.usage import Usage

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 4096
"""Tokens per pass."""
PER_PLACE = 4
"""Candidates that are measured per place in the sets."""


def ablated(sae: Any, residuals: Sequence[Tensor], latents: Sequence[int], *, layer: int) -> float:
    """Mean |h' - h| / |h| of ablating `latents` together, over residuals [tokens, d_model]; position 0 left out."""
    import torch

    import countersteer as cs
    from countersteer.edits.table import RowTable

    h = torch.cat([one[1:] for one in residuals])
    if not len(h):
        raise InputError("there is no text to measure perturbations on")
    table = RowTable(layer, 1, h.shape[1], dtype=h.dtype, device=h.device)
    edits = cs.clamp(sae.latents(list(latents)), 0.0, layer=layer).edits
    total = 0.0
    for start in range(0, len(h), CHUNK):
        part = h[start : start + CHUNK]
        table.install(0, edits, 1)
        table.apply(part, torch.zeros(len(part), dtype=torch.long, device=h.device),
                    torch.arange(1, len(part) + 1, device=h.device))  # fmt: skip
        receipt = table.receipt(0, len(part) + 1)
        assert receipt is not None and receipt.mean_relative is not None
        total += receipt.mean_relative * len(part)
    return total / len(h)


def measured(
    used: Usage, sae: Any, residuals: Sequence[Tensor], targets: Sequence[int], *, layer: int, places: int,
    exclude: set[int],
) -> Usage:  # fmt: skip
    """`used` with measured perturbations, of the targets and of the candidates that are worth measuring.

    Candidates are those nearest to a target by activation * |W_dec| / |h|, several per place in the sets; all others
    count as never firing, so that only what was measured can be drawn.
    """
    alive = np.array([i for i in np.flatnonzero(used.firing_rate > 0) if int(i) not in exclude], dtype=np.int64)
    floor = float(used.perturbation[alive].min()) if alive.size else 1e-30
    level = np.log(np.maximum(used.perturbation, max(floor, 1e-30)))
    chosen: set[int] = set()
    each = max(PER_PLACE * places // max(len(targets), 1), 1)
    for target in targets:
        chosen |= {int(i) for i in alive[np.argsort(np.abs(level[alive] - level[target]), kind="stable")[:each]]}
    if len(chosen) < places and len(targets):  # targets alike share their neighbours
        gaps = np.abs(level[alive][:, None] - level[list(targets)][None, :]).min(1)
        chosen |= {int(i) for i in alive[np.argsort(gaps, kind="stable")[: PER_PLACE * places]]}
    values, rate = used.perturbation.copy(), np.zeros_like(used.firing_rate)
    for latent in sorted({*chosen, *(int(t) for t in targets)}):
        values[latent] = ablated(sae, residuals, [latent], layer=layer)
        rate[latent] = used.firing_rate[latent]
    return replace(used, perturbation=values, firing_rate=rate)
