"""What a training must not end with: numbers that are none, and files that the disk did not take.

A loss that is not a number, or weights with such numbers, end a training at once; transformers would hide the loss
(`logging_nan_inf_filter`) and save the weights.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from countersteer.core.errors import InputError, StoreError


class DivergedError(InputError):
    """The training diverged: it has no adapter to give, and its checkpoints are worth nothing."""

    def __init__(self, what: str) -> None:
        super().__init__(f"training diverged ({what}); lower the learning rate, or give it more warm-up steps")


def require_loss(loss: Any, what: str) -> None:
    """Raise DivergedError unless a loss (a number, or a tensor of one) is finite."""
    if not math.isfinite(float(loss)):
        raise DivergedError(f"{what} is not a number")


def require_weights(module: Any) -> None:
    """Raise DivergedError unless every trained weight is finite."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise DivergedError(f"the weights {name} hold numbers that are none")


@contextlib.contextmanager
def saving(place: Path) -> Iterator[None]:
    """One line for a disk that takes no more: safetensors and torch raise errors of their own kinds."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
        raise StoreError(f"cannot write to {place}: {why}; make room, and run the same command again") from error
