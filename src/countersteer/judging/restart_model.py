"""The fitted half of the restart detector: a logistic regression over named features, shipped as plain JSON.

Its weights come from `bench/fit_restarts.py` and the labelled texts in the repository; here they are only read and
added up, so that a grade needs no library and is the same everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import fsum
from types import MappingProxyType


@dataclass(frozen=True)
class RestartModel:
    """Weights by feature name; a sum at or above `threshold` is a restart."""

    weights: Mapping[str, float]
    threshold: float

    def logit(self, names: Iterable[str]) -> float:
        """Log odds that a restart begins at a piece with these features; far below zero if there are none."""
        found = list(names)
        if not found:
            return -20.0
        get = self.weights.get
        return fsum(get(name, 0.0) for name in found)  # exact, so the order of names does not matter


@cache
def shipped() -> RestartModel:
    """The model in the package."""
    data = json.loads(resources.files("countersteer.judging").joinpath("restart_model.json").read_text("utf-8"))
    return RestartModel(MappingProxyType(data["weights"]), float(data["threshold"]))
