"""Admission at a server's front door: a request that names what is unknown or can never fit gets a 400.

vLLM calls `validate_params` of its `logits_processors` for every request, whichever endpoint it came by. The processor
itself never touches a logit.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from typing import Any

from vllm.v1.sample.logits_processor import LogitsProcessor

from countersteer.core.errors import CountersteerError
from countersteer.engines.vllm.plan import Planner
from countersteer.engines.vllm.settings import SHAPE, Settings
from countersteer.engines.vllm.store import ENV, Store
from countersteer.engines.vllm.ticket import Ticket

SETTINGS = "COUNTERSTEER_SETTINGS"
"""Environment variable with the settings as JSON."""


@lru_cache(maxsize=4)
def _store(folder: str) -> Store:
    return Store(folder)


@lru_cache(maxsize=4)
def _planner(settings: Settings, layers: int, width: int) -> Planner:
    return Planner(settings, n_layers=layers, d_model=width)


def admit(extra_args: Any, settings: Settings | None = None) -> None:
    """Raises ValueError with one line when a request cannot be honoured."""
    try:
        ticket = Ticket.of(extra_args)
        if ticket is None:
            return
        store = _store(os.environ.get(ENV, "")) if os.environ.get(ENV) else Store.here()
        steer = store.get(ticket.steer) if ticket.steer else None
        if steer is not None and steer.gate is not None and not ticket.id:
            raise ValueError("a gated intervention needs POST /v1/countersteer/generate, which evaluates its gate")
        reads = store.reads(ticket.reads) if ticket.reads else ()
        shape = os.environ.get(SHAPE)
        if settings is not None and shape:
            layers, width, tokenizer = (int(v) for v in shape.split(","))
            if ticket.exempt and not tokenizer:
                raise ValueError("exempt stretches are found in the text, and this model has no tokenizer")
            _planner(settings, layers, width).pieces(steer, reads)
    except CountersteerError as error:
        raise ValueError(str(error)) from error


class Admission(LogitsProcessor):
    """Checks tickets; leaves logits alone."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        pass

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError for a ticket that cannot be honoured."""
        if sampling_params.extra_args:
            settings = os.environ.get(SETTINGS)
            admit(sampling_params.extra_args, Settings.from_dict(json.loads(settings)) if settings else None)

    def apply(self, logits: Any) -> Any:
        """The logits, untouched."""
        return logits

    def is_argmax_invariant(self) -> bool:
        """True: greedy requests need not call it."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Nothing to keep."""
