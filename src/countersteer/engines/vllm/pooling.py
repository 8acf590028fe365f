"""The largest activation of every latent of an SAE on each text, taken in the worker that holds the residuals.

A batch of texts is computed, the worker of the layer keeps their residuals and streams the SAE over all of them at
once. What travels is one number per text and latent.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from countersteer.core.errors import EngineError, InputError
from countersteer.engines.pooling import TEXTS, pooling_site
from countersteer.engines.vllm.steering import Steering
from countersteer.engines.vllm.ticket import Ticket
from countersteer.engines.vllm.wire import error_from_json, error_to_json
from countersteer.sources import encode

if TYPE_CHECKING:
    from countersteer.engines.vllm.session import Session
    from countersteer.sources.sae import SAE

log = logging.getLogger(__name__)


def pool(steering: Steering, ids: Sequence[str], key: str | None, layer: int) -> dict[str, Any]:
    """A worker's part: {"maxima": bytes} of the SAE `key` over the texts of ticket `ids`, whose residuals are let go.

    `{}` from workers that do not pool that layer, and where `key` is None; {"error": ...} for what went wrong.
    """
    found = steering.spend(ids)
    unit = steering.units.get(layer)
    if key is None or not steering.pools or unit is None or not unit.capture:
        return {}

    def texts() -> Iterator[Tensor]:
        for lane, taken, reason in found:
            if lane is None:
                raise EngineError(f"a text was not computed: {reason}")
            h = torch.cat(taken.pop(layer, [torch.empty(0, steering.d_model)]))
            if len(h) != lane.prompt_tokens:
                raise EngineError(f"{len(h)} of the {lane.prompt_tokens} positions of a text were computed")
            yield h

    try:
        with torch.inference_mode():
            maxima = steering.store.sae(key).max_activations(texts())
        return {"maxima": save({"maxima": torch.from_numpy(maxima)})}
    except Exception as error:  # a worker that raises takes the whole engine down
        log.warning("an SAE was not pooled: %s", error)
        return {"error": error_to_json(error)}


async def max_activations(
    session: Session, inputs: Sequence[Any], sae: SAE, *, layer: int | None = None, template: bool = False
) -> NDArray[np.float32]:
    """Maxima [texts, d_sae] over texts or token ids, position 0 left out; see the engine protocol.

    Texts share a pass over the SAE's file as far as the pass holds them, 32 at most. Raises InputError, RefusedError,
    EngineError.
    """
    site = pooling_site(inputs, sae, layer=layer, d_model=session.facts.d_model)
    session.check_capture(site, "an SAE")
    texts = [session.text_ids(item, template) for item in inputs]
    short = next((i for i, ids in enumerate(texts) if len(ids) < 2), None)
    if short is not None:
        raise InputError(f"text {short} has no position besides the first (BOS): leave it out")
    key, parts = session.store.put_sae(sae), [np.zeros((0, sae.d_sae), np.float32)]
    for batch in _batches(texts, room=encode.HELD_BYTES // (4 * sae.d_model)):
        async with session.pooling:
            parts.append(await _batch(session, batch, key, site.layer))
    return np.concatenate(parts)


def _batches(texts: Sequence[list[int]], *, room: int) -> Iterator[list[list[int]]]:
    """Texts in order, as many together as one pass over the SAE's file takes: `room` positions, or one longer text."""
    batch: list[list[int]] = []
    for ids in texts:
        if batch and (len(batch) == TEXTS or sum(map(len, batch)) + len(ids) > room):
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch


async def _batch(session: Session, texts: Sequence[list[int]], key: str, layer: int) -> NDArray[np.float32]:
    """One pass over each text, then one over the SAE."""
    tickets = [Ticket(capture=(layer,), pooled=True, id=uuid.uuid4().hex) for _ in texts]
    ids, lora = [ticket.id for ticket in tickets], session.own_lora
    running = [
        asyncio.ensure_future(session.compute(text, ticket, lora)) for text, ticket in zip(texts, tickets, strict=True)
    ]
    try:
        await asyncio.gather(*running)
    except BaseException:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        with suppress(Exception):  # what failed first is what to tell
            await session.llm.collective_rpc("countersteer_pool", args=(ids, None, layer))
        raise
    try:
        answers = await session.llm.collective_rpc("countersteer_pool", args=(ids, key, layer))
    except Exception as error:
        raise EngineError(f"vLLM failed: {' '.join(str(error).split())[:300] or type(error).__name__}") from error
    return maxima_of(answers)


def maxima_of(answers: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
    """The maxima in the workers' answers. Raises what went wrong in a worker, or EngineError."""
    for answer in answers:
        if "error" in answer:
            raise error_from_json(answer["error"])
    for answer in answers:
        if "maxima" in answer:
            found: NDArray[np.float32] = load(bytes(answer["maxima"]))["maxima"].numpy()
            return found
    raise EngineError("no worker holds the residuals of that layer")
