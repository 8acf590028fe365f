"""An SAE's conventions folded into plain rows: x = h @ read + bias, a latent active iff x > threshold.

The conventions are SAELens's (6.54): b_dec taken from the input or not, an input factor that is not yet in the weights,
and the gated architecture's two paths, which share one pre-activation and so reduce to one threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from countersteer.core.errors import InputError
from countersteer.sources.sae_config import SAEConfig
from countersteer.sources.tensorfile import Array, TensorFile


@dataclass(frozen=True)
class Rows:
    """The encoder side of n latents: read [d_model, n]; bias and threshold (at least 0) float64 [n]."""

    read: Array
    bias: NDArray[np.float64]
    threshold: NDArray[np.float64]


def fold_encoder(file: TensorFile, config: SAEConfig, which: Sequence[int] | slice, *, columns: Array) -> Rows:
    """The rows of the latents `which`, whose columns of W_enc are `columns` [d_model, n].

    Biases in float64; read rows in the columns' dtype. Raises InputError for non-finite weights.
    """
    require_finite(columns, file, "W_enc")

    def vector(name: str) -> NDArray[np.float64]:
        values = file.vector(name).astype(np.float64)[which]
        require_finite(values, file, name)
        return values

    # an input factor multiplies W_enc and divides b_dec, so their product stays as it is in the file
    shift = np.zeros(columns.shape[1])
    if config.subtract_b_dec:
        b_dec = file.vector("b_dec").astype(np.float64)
        require_finite(b_dec, file, "b_dec")
        shift = -_matvec(columns, b_dec)
    factor: Any = config.norm_factor
    if config.architecture == "gated":
        # z = h W_enc + shift; active iff z + b_gate > 0; magnitude e^r z + b_mag, itself through a ReLU
        growth, magnitude = np.exp(vector("r_mag")), vector("b_mag")
        require_finite(growth, file, "exp(r_mag)")
        bias, threshold = growth * shift + magnitude, magnitude - growth * vector("b_gate")
        factor = factor * growth
    else:
        bias = vector("b_enc") + shift
        threshold = vector("threshold") if config.architecture == "jumprelu" else np.zeros_like(bias)
    return Rows(scaled(columns, factor), bias, np.maximum(threshold, 0.0))


def scaled(values: Array, factor: Any) -> Array:
    """values * factor, rounded once to the values' dtype; the values themselves if the factor is 1."""
    if np.all(factor == 1.0):
        return values
    return (values.astype(np.float64) * factor).astype(values.dtype)


def require_finite(values: Array, file: TensorFile, name: str) -> None:
    """Raises InputError if a tensor's values are not all finite."""
    if not np.isfinite(values).all():
        raise InputError(f"{file.path}: {name} holds NaN or infinite values; download or write it again")


def _matvec(columns: Array, vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """columns^T vector in float64, widened a few rows at a time."""
    out = np.zeros(columns.shape[1])
    for start in range(0, len(vector), 256):
        out += vector[start : start + 256] @ columns[start : start + 256].astype(np.float64)
    return out
