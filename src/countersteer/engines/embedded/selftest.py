"""Choosing the cache for a model, and the proof that decoding through it is right.

The slot cache is tried first; a model that it cannot hold is stepped alone. Either way a self-test decodes a few
tokens through dirty, re-used places and compares every logit with full passes without any cache. A model that fails
both is refused: such failures are silent otherwise.
"""

from __future__ import annotations

import inspect
import logging

import torch
from torch import Tensor

from countersteer.core.errors import RefusedError
from countersteer.engines.embedded.batch import AloneBatch, Batch, SlotBatch
from countersteer.engines.embedded.cache import SlotCache
from countersteer.engines.embedded.hooks import SteeringHooks
from countersteer.engines.embedded.layers import text_config
from countersteer.engines.embedded.model import LoadedModel

log = logging.getLogger(__name__)
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}
_STEPS = 4


def build_batch(model: LoadedModel, places: int) -> tuple[SteeringHooks, Batch]:
    """Hooks and a batch that has passed its self-test. Raises RefusedError."""
    hooks = SteeringHooks(model.layers, places, model.d_model, model.dtype)
    why = _unfit(model)
    if why is None:
        try:
            why = _difference(model, SlotBatch(model, hooks, 3))
        except Exception as error:  # whatever a model raises on a cache it does not know
            log.debug("the slot cache failed", exc_info=True)
            why = f"its forward refuses a slot cache ({type(error).__name__})"
        if why is None:
            return hooks, SlotBatch(model, hooks, places)
    alone = AloneBatch(model, hooks, why)
    try:
        failed = _difference(model, alone)
    except Exception as error:
        log.debug("stepping alone failed", exc_info=True)
        failed = f"its forward fails on its own cache ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    if failed:
        raise RefusedError(
            f"generating with {type(model.module).__name__}",
            f"slot cache: {why}; alone: {failed}",
            "a decoder-only transformers model with a key-value cache",
        )
    log.warning("%s is stepped one request at a time: %s", model.name, why)
    return hooks, AloneBatch(model, hooks, why)


def _unfit(model: LoadedModel) -> str | None:
    parameters = inspect.signature(model.module.forward).parameters
    missing = [name for name in ("position_ids", "past_key_values") if name not in parameters]
    if missing:
        return f"its forward takes no {', '.join(missing)}"
    return SlotCache.supports(text_config(model.module))


def _full(model: LoadedModel, ids: list[int]) -> Tensor:
    """Logits [vocab] after the last token of a text, computed without any cache."""
    with torch.inference_mode():
        out = model.module(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    return out.logits[0, -1]


def _difference(model: LoadedModel, batch: Batch) -> str | None:
    """Why decoding through `batch` is wrong, or None. Three places are used, and two of them used again."""
    generator = torch.Generator().manual_seed(0)
    low = min(3, model.vocab - 1)

    def text(length: int) -> list[int]:
        return torch.randint(low, model.vocab, (length,), generator=generator).tolist()

    tolerance = _TOLERANCE.get(model.dtype, 5e-2)
    off = [-1, -1, -1]
    texts = [text(11), text(4), text(7)]
    for places, lengths in (([0, 1, 2], None), ([2, 0], (5, 17))):
        for place, length in zip(places, lengths or (), strict=False):
            texts[place] = text(length)
        logits = batch.prefill([texts[p] for p in places], places, off[: len(places)])
        rows = {p: logits[i] for i, p in enumerate(places)}
        for _ in range(_STEPS):
            for place, row in rows.items():
                expected = _full(model, texts[place])
                gap = (row.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-9)
                if not gap < tolerance:
                    return f"logits through the cache differ from a full pass by {float(gap):.1e} (relative)"
            step = text(3)
            for place in range(3):
                texts[place].append(step[place])
            logits = batch.decode(step, [len(t) - 1 for t in texts], off)
            rows = {p: logits[p] for p in range(3)}
    return None
