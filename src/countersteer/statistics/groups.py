"""Labels to integer codes, and sums per cluster: what every clustered estimate here starts from.

A *cluster* is the set of trials that share a latent. Labels may be anything hashable (latent numbers, prompt
texts); which label gets which code does not matter to any result.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from countersteer.core.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def codes(labels: Sequence[Hashable], *, expected: int, what: str) -> Ints:
    """Integer code of each label, [n]; raises InputError if there are not `expected` labels."""
    if len(labels) != expected:
        raise InputError(f"{len(labels)} {what} for {expected} values: give exactly one per value")
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu":
        return np.unique(labels, return_inverse=True)[1].astype(np.int64)
    seen: dict[Hashable, int] = {}
    return np.fromiter((seen.setdefault(label, len(seen)) for label in labels), dtype=np.int64, count=expected)


def numbers(values: Sequence[float | int | bool | None]) -> Floats:
    """Values as float64 [n], None as NaN ("not in the denominator"); raises InputError for NaN or infinity."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biu":
        return values.astype(np.float64)
    array = np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)
    given = np.fromiter((value is not None for value in values), dtype=bool, count=len(values))
    if not np.all(np.isfinite(array[given])):
        raise InputError("a value is NaN or infinite: pass None for a value that is missing")
    return array


def require_binary(values: Floats) -> None:
    """Raise InputError unless every value is 0 or 1."""
    if not np.all((values == 0) | (values == 1)):
        raise InputError("an event is neither 0 nor 1: use statistics.mean for scores")


def sums(values: Floats, group: Ints, *, count: int) -> Floats:
    """Sum of `values` [n] per group code, [count]."""
    return np.bincount(group, weights=values, minlength=count).astype(np.float64)


def recode(group: Ints) -> tuple[Ints, int]:
    """Codes without gaps after some values were dropped, and how many groups are left."""
    unique, inverse = np.unique(group, return_inverse=True)
    return inverse.astype(np.int64), int(unique.size)
