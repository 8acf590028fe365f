"""The engine protocol: what a study, a judge or a server may ask of any engine.

`stream` is the primitive; `generate` folds it; `run` is the synchronous form for scripts and notebooks. An engine
batches whatever is in flight, whatever the interventions. `forward` is teacher-forced.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from countersteer.core.request import Chunk, Completion, Request


@runtime_checkable
class Engine(Protocol):
    """Anything that turns requests into completions with receipts."""

    @property
    def model_fingerprint(self) -> str:
        """Hash of the configuration and weights: part of every trial key."""
        ...

    @property
    def family(self) -> str:
        """Engine family with its major version, e.g. "embedded-1": part of every trial key."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain facts for a run's header: model, dtype, device, layers, d_model, template hash, versions."""
        ...

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The completion in pieces; closing the iterator frees its place in the batch."""
        ...

    async def generate(self, request: Request) -> Completion:
        """The whole completion. Raises NoOpError when a requested intervention changed nothing."""
        ...

    def run(self, requests: Sequence[Request], *, errors: str = "raise") -> list[Any]:
        """Completions in order. `errors="return"` puts the exception in the place of a failed completion."""
        ...

    async def forward(
        self,
        inputs: Sequence[str] | Sequence[Sequence[int]],
        *,
        readouts: Any = None,
        capture: Any = None,
        reduce: str = "none",
        span: str = "all",
        template: bool = False,
    ) -> list[Any]:
        """Teacher-forced pass over each input; per input an array [tokens, n] (or [n] when reduced)."""
        ...

    async def max_activations(
        self, inputs: Sequence[Any], sae: Any, *, layer: int | None = None, template: bool = False
    ) -> NDArray[np.float32]:
        """Largest activation of every latent of `sae` (a `sources.SAE`) on each text, float32 [texts, d_sae].

        Read at `layer`, or at the SAE's own site; position 0 is left out. Raises InputError, RefusedError (TopK SAEs).
        """
        ...

    def close(self) -> None:
        """Stop working and free the model."""
        ...
