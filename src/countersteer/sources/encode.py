"""The whole dictionary against residuals, a block of latents at a time.

The file is the outer cost: it is streamed once per batch of texts. No tensor [tokens, d_sae] is ever held by
`max_activations`: within a block of latents a small number of tokens is encoded and pooled at once. Since an
activation grows with x, x is pooled first and the threshold applied to the pooled value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from countersteer.core.errors import InputError

if TYPE_CHECKING:
    from countersteer.sources.sae import SAE, Rows

HELD_BYTES = 64 << 20  # residuals held for one pass over the file
TILE_BYTES = 16 << 20  # x of one block of latents for some tokens


def encode(sae: SAE, h: Tensor, *, chunk: int = 4096) -> Tensor:
    """Activations [tokens, d_sae] of residuals h [tokens, d_model]; see `SAE.encode`."""
    h = _residuals(sae, h, "the residuals")
    out = h.new_empty(h.shape[0], sae.d_sae)
    for start in range(0, sae.d_sae, chunk):
        rows = sae.encoder_block(start, min(start + chunk, sae.d_sae), wide=h.dtype == torch.float64)
        out[:, start : start + chunk] = _activate(_x(h, rows), rows)
    return out


def max_activations(
    sae: SAE,
    residuals: Iterable[Tensor],
    *,
    skip_first: bool,
    chunk: int,
    progress: Callable[[int], None] | None,
) -> NDArray[np.float32]:
    """Max-pooled activations [n_texts, d_sae]; see `SAE.max_activations`."""
    if chunk < 1:
        raise InputError(f"chunk must be a whole number >= 1, got {chunk!r}")
    pooled: list[NDArray[np.float32]] = []
    tile = torch.empty(0)  # one buffer for every x, or freed ones pile up between the larger allocations
    for batch in _batches(sae, residuals, skip_first):
        while len(pooled) <= batch.pieces[-1][0]:
            pooled.append(np.zeros(sae.d_sae, np.float32))
        h = torch.cat([piece for _, piece in batch.pieces])
        if tile.dtype != h.dtype or tile.device != h.device or not len(tile):
            tile = torch.empty(max(TILE_BYTES // h.element_size(), chunk), dtype=h.dtype, device=h.device)
        for start in range(0, sae.d_sae, chunk):
            stop = min(start + chunk, sae.d_sae)
            rows = sae.encoder_block(start, stop, wide=h.dtype == torch.float64)
            best = _pool(rows, h, [len(piece) for _, piece in batch.pieces], tile=tile)
            for (text, _), values in zip(batch.pieces, best, strict=True):
                np.maximum(pooled[text][start:stop], values, out=pooled[text][start:stop])
        if progress:
            progress(batch.complete)
    return np.stack(pooled) if pooled else np.zeros((0, sae.d_sae), np.float32)


@dataclass
class _Batch:
    """Pieces (text number, residuals [tokens, d_model]) that share one pass; `complete` texts end in or before it."""

    pieces: list[tuple[int, Tensor]] = field(default_factory=list)
    complete: int = 0
    tokens: int = 0


def _batches(sae: SAE, residuals: Iterable[Tensor], skip_first: bool) -> Iterator[_Batch]:
    """Texts gathered up to HELD_BYTES; a longer text goes on in the next batch, its maximum with it."""
    batch = _Batch()
    for text, given in enumerate(residuals):
        h = _residuals(sae, given, f"text {text}")[1 if skip_first else 0 :]
        if not len(h):
            what = "no position besides the first (BOS)" if skip_first else "no token"
            raise InputError(f"text {text} has {what}: leave it out")
        room = max(1, HELD_BYTES // (h.element_size() * sae.d_model))
        for at in range(0, len(h), room):
            piece = h[at : at + room]
            if batch.pieces and batch.tokens + len(piece) > room:
                yield batch
                batch = _Batch(complete=batch.complete)
            batch.pieces.append((text, piece))
            batch.tokens += len(piece)
        batch.complete = text + 1
    if batch.pieces:
        yield batch


def _pool(rows: Rows, h: Tensor, lengths: list[int], *, tile: Tensor) -> NDArray[np.float32]:
    """The largest activation of a block of latents in each stretch of h, [stretches, latents]; x goes to `tile`."""
    read, bias = _on(rows, h)
    best = torch.full((len(lengths), len(bias)), -torch.inf, dtype=h.dtype, device=h.device)
    ends = np.cumsum(lengths)
    step = len(tile) // len(bias)
    for start in range(0, len(h), step):
        part = h[start : start + step]
        x = torch.mm(part, read, out=tile[: len(part) * len(bias)].view(len(part), len(bias)))
        for which in range(int(np.searchsorted(ends, start, "right")), len(lengths)):
            first, stop = int(ends[which]) - lengths[which] - start, int(ends[which]) - start
            if first >= len(x):
                break
            best[which] = torch.maximum(best[which], x[max(first, 0) : stop].amax(0))
    return _activate(best + bias, rows).float().cpu().numpy()


def _on(rows: Rows, like: Tensor) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(rows.read).to(like), torch.from_numpy(rows.bias).to(like)


def _x(h: Tensor, rows: Rows) -> Tensor:
    read, bias = _on(rows, h)
    return h @ read + bias


def _activate(x: Tensor, rows: Rows) -> Tensor:
    return torch.where(x.double() > torch.from_numpy(rows.threshold).to(x.device), x, torch.zeros_like(x))


def _residuals(sae: SAE, h: Tensor, what: str) -> Tensor:
    """h [tokens, d_model] in float32 or its own dtype if wider. Raises InputError."""
    if not isinstance(h, Tensor) or h.ndim != 2:
        shape = list(h.shape) if isinstance(h, Tensor) else type(h).__name__
        raise InputError(f"{what}: residuals must be a tensor [tokens, d_model], got {shape}")
    if h.shape[1] != sae.d_model:
        raise InputError(f"{what}: residuals are {h.shape[1]} wide but SAE {sae.folder} is {sae.d_model} wide")
    h = h.detach()
    h = h.to(torch.promote_types(h.dtype, torch.float32))
    if not torch.isfinite(h).all():
        raise InputError(f"{what}: residuals hold NaN or infinite values")
    return h
