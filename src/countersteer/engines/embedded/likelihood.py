"""How likely the unsteered model finds a given answer: mean log-probability of its tokens, teacher-forced.

The coherence paper's cross-entropy of steered text under the unsteered model (arXiv 2604.08169), negated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from countersteer.core.errors import InputError
from countersteer.core.request import Request
from countersteer.engines.embedded.engine import EmbeddedEngine
from countersteer.engines.embedded.flight import Job
from countersteer.engines.embedded.model import LoadedModel


@dataclass(frozen=True)
class Likelihood:
    """`mean`: mean log-probability (natural logarithm) of the answer's `tokens` tokens, None for an empty answer."""

    mean: float | None
    tokens: int


async def likelihoods(
    engine: EmbeddedEngine, requests: Sequence[Request], answers: Sequence[str], *, limit: int | None = None
) -> list[Likelihood]:
    """The likelihood of each answer to its request (its system prompt included), without any intervention.

    `limit`: only the first so many tokens of each answer (the paper's 50). Raises InputError for a request that has an
    intervention or prefix, or is too long for the model.
    """
    pairs = []
    for request, answer in zip(requests, answers, strict=True):
        if request.intervention is not None or request.prefix is not None:
            raise InputError("a likelihood is asked of a request without intervention and prefix: leave them out")
        prompt = engine.encode(request)
        whole = engine.encode(request.with_(prefix=answer)) if answer else prompt
        shared = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
        whole = whole if limit is None else whole[: shared + limit]
        longest = engine.model.max_positions
        if longest is not None and len(whole) > longest:
            raise InputError(f"a text of {len(whole)} tokens is longer than the model's {longest}; set a limit")
        pairs.append((whole, shared))
    job: Job = Job(lambda: [_one(engine.model, ids, start) for ids, start in pairs])
    engine.loop.submit(job)
    return list(await asyncio.wrap_future(job.future))


def _one(model: LoadedModel, ids: Sequence[int], start: int) -> Likelihood:
    """The likelihood of `ids[start:]` after `ids[:start]`."""
    if len(ids) <= start:
        return Likelihood(None, 0)
    tokens = torch.tensor([list(ids)], device=model.device)
    with torch.inference_mode():
        logits = model.module(input_ids=tokens, use_cache=False).logits[0, start - 1 : -1]
    picked = logits.double().log_softmax(-1).gather(1, tokens[0, start:, None])
    return Likelihood(float(picked.mean()), len(ids) - start)
