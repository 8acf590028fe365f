"""Steering with one part taken out: each must be noticed."""

from __future__ import annotations

from typing import Any

from countersteer.engines.vllm.scheduler import SteerScheduler
from countersteer.engines.vllm.steering import Steering
from countersteer.engines.vllm.worker import SteerWorker


class NoCacheKey(SteerScheduler):
    """Interventions are no part of the prefix cache's keys."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steer_undo()


class StaleIndex(SteerWorker):
    """The token-to-lane index is written once and then left alone."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        steering: Steering = self.steering
        fill, times = steering.fill, [0]

        def once(*given: Any) -> None:
            if steering.lanes:
                times[0] += 1
            if times[0] <= 1:
                fill(*given)

        steering.fill = once  # type: ignore[method-assign]


class VanillaGraph(SteerWorker):
    """The graph is made without the layer operation."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        for layer in self.steering.layers.values():
            layer._forward_hooks.clear()
