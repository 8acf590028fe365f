"""The [finetune] section of a study: adapters that are trained first, for arms with adapter = "finetune" to measure.

What is not given is the paper's setting where it is known (ESR paper, arXiv 2602.06941, experiment 4).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

FINETUNE = "finetune"
"""The value of an arm's `adapter` that stands for every adapter of this section."""
MAX_SEED = 2**32
"""The first seed that numpy's generator, which trl seeds as well, does not take."""


class FinetuneSection(BaseModel):
    """prompts: the train side (a set by name, or a file); the study's own prompts are the evaluation side.

    templates: where off-topic stretches and acknowledgements come from. episodes: the model's own steered responses to
    the train prompts as well, made by a run of the base arm beside this one. corrections, normals: how many examples
    there are to draw from. ratios: shares of corrections, one adapter each; seeds: each of them again. total: examples
    per adapter (default: as many as every ratio allows). steering: train under the steering of the episodes. overlap:
    allow evaluation prompts to be trained on, as the paper does. The rest is the optimiser's.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    prompts: str = "howto"
    templates: Literal["general", "organism"] = "general"
    episodes: bool = False
    corrections: Annotated[int, Field(ge=1)] = 918
    normals: Annotated[int, Field(ge=1)] = 760
    ratios: tuple[float, ...] = Field(default=(0.1, 0.3, 0.5, 0.7, 0.9), strict=False)
    seeds: tuple[int, ...] = Field(default=(0,), strict=False)
    total: Annotated[int, Field(ge=1)] | None = None
    steering: bool = False
    overlap: bool = False
    rank: int = 32
    alpha: int = 16
    dropout: float = 0.05
    learning_rate: float = 2e-4
    warmup: int = 10
    epochs: float = 4
    batch: int = 8
    micro_batch: int | None = None
    max_length: int = 4096
    validation: float = 0.05

    @field_validator("ratios")
    @classmethod
    def _ratios(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(0 <= ratio <= 1 for ratio in value):
            raise ValueError("must be a list of shares of self-correction examples between 0 and 1")
        return _once(value)

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 0 or max(value) >= MAX_SEED:
            raise ValueError(f"must be a list of whole numbers from 0 to {MAX_SEED - 1}")
        return _once(value)

    @property
    def adapters(self) -> dict[str, str]:
        """The adapters that are trained: the level that an arm shows, and the name of the adapter's folder."""
        several = len(self.seeds) > 1
        return {
            f"{ratio:g}" + (f"-seed{seed}" if several else ""): f"ratio-{ratio:g}-seed-{seed}"
            for ratio in self.ratios
            for seed in self.seeds
        }

    def optimiser(self) -> dict[str, Any]:
        """The settings of the training itself."""
        names = ("rank", "alpha", "dropout", "learning_rate", "warmup", "epochs", "batch", "micro_batch", "max_length",
                 "validation", "total")  # fmt: skip
        return {name: getattr(self, name) for name in names}


def _once(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if len({format(v, "g") if isinstance(v, float) else v for v in value}) != len(value):
        raise ValueError("must not name a value twice (ratios: to six digits, as their adapters are named)")
    return value
