"""Engines of the tests and how they are asked."""

from __future__ import annotations

import asyncio
import socket
import uuid
from pathlib import Path
from typing import Any

from countersteer.engines.vllm.engine import VllmEngine, load_vllm
from countersteer.engines.vllm.ticket import Ticket

ROWS = (40, 8)
SMALL: dict[str, Any] = {
    "dtype": "float32",
    "skip_tokenizer_init": True,
    "max_model_len": 128,
    "max_num_batched_tokens": 64,
    "block_size": 32,
    "max_num_seqs": 32,
    "kv_cache_memory_bytes": 1 << 27,
    "rows": ROWS,
    "parts": 3,
}
"""A small engine; 64 batched tokens cut the longer prompts into chunks, and so few rows that requests must wait."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start(path: Path | str, **options: Any) -> VllmEngine:
    """A small engine on a model."""
    return load_vllm(str(path), **{**SMALL, **options})


def with_logprobs(engine: VllmEngine, requests: list[Any]) -> list[tuple[list[int], list[float]]]:
    """Tokens and their log-probabilities, all requests at once."""
    from vllm.sampling_params import RequestOutputKind

    session = engine.session

    async def one(request: Any) -> tuple[list[int], list[float]]:
        prompt, _ = session.check(request)
        steer = request.intervention
        ticket = None if steer is None else Ticket(steer=session.store.put(steer), id=uuid.uuid4().hex)
        params = session._params(request, ticket, fresh=False, logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY)
        tokens: list[int] = []
        values: list[float] = []
        async for out in session._outputs(prompt, params):
            tokens += out.token_ids
            values += [row[t].logprob for row, t in zip(out.logprobs, out.token_ids, strict=True)]
        return tokens, values

    async def every() -> list[tuple[list[int], list[float]]]:
        return list(await asyncio.gather(*map(one, requests)))

    return engine.bridge.start(every()).result()
