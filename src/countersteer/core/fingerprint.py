"""Content fingerprints and named seeds.

A fingerprint is the hash of everything that decides a value, in a canonical form: the same content gives the
same fingerprint on every machine and in every process. A named seed is drawn from a root seed by name, so that
adding one draw never moves another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any

import numpy as np


def _plain(value: Any) -> Any:
    """The canonical JSON form of a value; refuses what has none."""
    kind = type(value)
    if kind is str or kind is int or kind is bool:  # by far the most values: the rest is slower to tell apart
        return value
    if kind is dict:
        return {str(k): _plain(v) for k, v in value.items()}
    if kind is list or kind is tuple:
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            return {"float": repr(value)}
        return value
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value)
        hashed = hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest()
        return {"array": [str(data.dtype), list(data.shape), hashed]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    raise TypeError(f"no canonical form for {type(value).__name__}")


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def canonical(value: Any) -> str:
    """Canonical JSON text of plain data, dataclasses and numpy arrays: sorted keys, no spaces."""
    return _ENCODER.encode(_plain(value))


def fingerprint(value: Any) -> str:
    """Hash (32 hexadecimal digits) of the canonical form of `value`."""
    return digest(canonical(value))


def digest(text: str) -> str:
    """Hash (32 hexadecimal digits) of a canonical text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def named_seed(seed: int, *names: Any) -> int:
    """A seed in [0, 2**63) that depends on the root seed and the names only."""
    drawn = hashlib.blake2b(canonical([seed, *names]).encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "little") >> 1


def rng(seed: int, *names: Any) -> np.random.Generator:
    """The random generator of a named draw."""
    return np.random.default_rng(named_seed(seed, *names))
