"""Settings of a training run: the paper's, where it gives them (ESR paper, arXiv 2602.06941, experiment 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from countersteer.core.errors import InputError
from countersteer.engines.embedded.text import TEMPLATES
from countersteer.studies.schema_finetune import MAX_SEED


@dataclass(frozen=True)
class TrainSettings:
    """LoRA on every linear layer but the output's, AdamW with a cosine schedule.

    `batch` is the effective batch, made of steps of `micro_batch` (default: all at once). `validation` is the share of
    examples held back, whole prompts at a time. `save_steps`: a checkpoint every so many steps. `dtype`: None is
    bfloat16 on a GPU (the paper's) and float32 on a CPU. `checkpointing` trades time for memory. `template`: the
    variation of the chat template that the study will send (`[study] template`).
    """

    rank: int = 32
    alpha: int = 16
    dropout: float = 0.05
    learning_rate: float = 2e-4
    warmup: int = 10
    epochs: float = 4.0
    batch: int = 8
    micro_batch: int | None = None
    max_length: int = 4096
    validation: float = 0.05
    total: int | None = None
    save_steps: int = 200
    dtype: str | None = None
    device: str | None = None
    checkpointing: bool = False
    template: str | None = None

    def __post_init__(self) -> None:
        def refuse(name: str, need: str) -> InputError:
            return InputError(f"training {name} must be {need}, got {getattr(self, name)!r}")

        for name in ("rank", "alpha", "batch", "max_length", "save_steps"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise refuse(name, "a whole number >= 1")
        for name in ("learning_rate", "epochs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise refuse(name, "a number above 0")
        for name in ("dropout", "validation"):
            if not 0 <= getattr(self, name) < 1:
                raise refuse(name, "in [0, 1)")
        if type(self.warmup) is not int or self.warmup < 0:
            raise refuse("warmup", "a whole number >= 0")
        if self.total is not None and self.total < 1:
            raise refuse("total", "a whole number >= 1")
        if self.template not in (None, *TEMPLATES):
            raise refuse("template", f"one of {', '.join(TEMPLATES)}")
        micro = self.micro_batch
        if micro is not None and (micro < 1 or self.batch % micro):
            raise refuse("micro_batch", f"a divisor of the batch ({self.batch})")

    @property
    def weights(self) -> str:
        """The dtype of the weights: what was given, else the default of the device, or of the machine."""
        from countersteer.engines.embedded.model import parse_dtype

        if self.dtype is not None:
            return str(parse_dtype(self.dtype)).removeprefix("torch.")
        import torch

        gpu = torch.cuda.is_available() if self.device is None else self.device.startswith("cuda")
        return "bfloat16" if gpu else "float32"

    @property
    def decisive(self) -> dict[str, Any]:
        """What decides the weights (where checkpoints lie does not)."""
        given = {k: v for k, v in asdict(self).items() if k not in ("save_steps", "device")}
        return given if self.template is not None else {k: v for k, v in given.items() if k != "template"}


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise InputError for a seed that the libraries do not take."""
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < MAX_SEED:
            raise InputError(f"a seed of a training must be a whole number from 0 to {MAX_SEED - 1}, got {seed!r}")
