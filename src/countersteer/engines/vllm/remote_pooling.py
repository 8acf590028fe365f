"""Maxima of an SAE over texts by URL: taken by servers that were given that SAE, here from others' residuals."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load

from countersteer.core.errors import InputError
from countersteer.core.site import Site
from countersteer.engines.pooling import TEXTS, pooling_site
from countersteer.engines.vllm.fleet import Server, Unreachable

if TYPE_CHECKING:
    from countersteer.engines.vllm.remote import RemoteEngine
    from countersteer.sources.sae import SAE

PATH = "/v1/countersteer"


def has(server: Server, key: str) -> bool:
    """Whether a server was started with the SAE of a fingerprint."""
    return key in (server.facts.get("saes") or ())


def shared(servers: Sequence[Server]) -> list[str]:
    """Fingerprints of the SAEs that every server which has answered was started with."""
    known = [s for s in servers if s.facts]
    return [key for key in known[0].facts.get("saes") or () if all(has(s, key) for s in known)] if known else []


async def max_activations(
    engine: RemoteEngine, inputs: Sequence[Any], sae: SAE, *, layer: int | None = None, template: bool = False
) -> NDArray[np.float32]:
    """Maxima [texts, d_sae], position 0 left out; see the engine protocol. Batches go to all servers at once."""
    site = pooling_site(inputs, sae, layer=layer, d_model=engine.d_model)
    texts = [i if isinstance(i, str) else [int(t) for t in i] for i in inputs]
    room = asyncio.Semaphore(len(engine.fleet.servers))

    async def batch(start: int) -> NDArray[np.float32]:
        async with room:
            part = texts[start : start + TEXTS]
            found: NDArray[np.float32] = await engine.anywhere(
                lambda server: _on(engine, server, part, sae, site, template=template)
            )
            return found

    parts = await asyncio.gather(*map(batch, range(0, len(texts), TEXTS)))
    return np.concatenate([np.zeros((0, sae.d_sae), np.float32), *parts])


async def _on(
    engine: RemoteEngine, server: Server, texts: Sequence[Any], sae: SAE, site: Site, *, template: bool
) -> NDArray[np.float32]:
    if has(server, sae.fingerprint):
        body = {"inputs": texts, "sae": sae.fingerprint, "layer": site.layer, "template": template}
        try:
            response = await engine.send(server, "POST", f"{PATH}/pool", json=body)
        except InputError:  # refused, or the server was started again without the SAE
            server.seen = False
            await engine.look(server)
            if has(server, sae.fingerprint):
                raise
        else:
            maxima: NDArray[np.float32] = load(response.content)["maxima"].numpy()
            if maxima.shape != (len(texts), sae.d_sae):
                raise Unreachable(f"it answered maxima of shape {list(maxima.shape)}")
            return maxima
    residuals = await engine.passes(server, texts, capture=[str(site)], one=True, template=template)
    ordered = [residuals[f"input.{i}"] for i in range(len(texts))]
    return await asyncio.to_thread(sae.max_activations, ordered)
