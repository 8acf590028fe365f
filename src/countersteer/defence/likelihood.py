"""Mean log-probability of many answers under the unsteered model, in batches (a sweep scores thousands).

The coherence paper's cross-entropy of steered text under the unsteered model with the aligned system prompt, negated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import torch

from countersteer.core.errors import InputError, RefusedError
from countersteer.core.request import Request
from countersteer.defence.responses import wait

LOGITS = 1 << 24
"""Logits per pass: those of a large vocabulary are what fills memory."""
LEAST_TOKENS = 1024
"""Padded tokens that a pass may have whatever the vocabulary."""


def mean_log_probabilities(
    engine: Any, requests: Sequence[Request], texts: Sequence[str], *, limit: int
) -> list[float | None]:
    """Mean log-probability (natural logarithm) of the first `limit` tokens of each text as the answer to its request.

    Teacher-forced and unsteered; None for an empty text. Raises RefusedError for an engine other than the embedded one.
    """
    from countersteer.engines.embedded.engine import EmbeddedEngine
    from countersteer.engines.embedded.flight import Job

    if not isinstance(engine, EmbeddedEngine):
        raise RefusedError("the likelihood of answers", "only the embedded engine reads them", "judge by a model")
    pairs = []
    prompts: dict[Any, list[int]] = {}  # a sweep asks the same question of many points
    for request, text in zip(requests, texts, strict=True):
        if request.intervention is not None or request.prefix is not None:
            raise InputError("a likelihood is asked of a request without intervention and prefix: leave them out")
        key = (request.system, request.prompt) if request.prompt is not None else id(request)
        prompt = prompts.get(key)
        if prompt is None:
            prompt = prompts[key] = engine.encode(request)
        whole = engine.encode(request.with_(prefix=text)) if text.strip() else prompt
        shared = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
        pairs.append((whole[: shared + limit], shared))
    job: Job = Job(lambda: _all(engine.model, pairs))
    engine.loop.submit(job)

    async def result() -> list[float | None]:
        found: list[float | None] = await asyncio.wrap_future(job.future)
        return found

    done: list[float | None] = wait(result())
    return done


def _all(model: Any, pairs: Sequence[tuple[list[int], int]]) -> list[float | None]:
    out: list[float | None] = [None] * len(pairs)
    budget = max(LEAST_TOKENS, LOGITS // model.vocab)
    order = sorted((i for i, (ids, start) in enumerate(pairs) if len(ids) > start), key=lambda i: len(pairs[i][0]))
    group: list[int] = []
    for i in order:
        if group and len(pairs[i][0]) * (len(group) + 1) > budget:
            _some(model, pairs, group, out)
            group = []
        group.append(i)
    if group:
        _some(model, pairs, group, out)
    return out


def _some(model: Any, pairs: Sequence[tuple[list[int], int]], group: list[int], out: list[float | None]) -> None:
    """One padded pass; padding on the right is never seen by a causal decoder. Logits from the first answer on."""
    longest = max(len(pairs[i][0]) for i in group)
    rows = [pairs[i][0] + [pairs[i][0][-1]] * (longest - len(pairs[i][0])) for i in group]
    tokens = torch.tensor(rows, device=model.device)
    first = min(pairs[i][1] for i in group) - 1
    keep = {"logits_to_keep": longest - first} if model.keeps_logits else {}
    with torch.inference_mode():
        logits = model.module(input_ids=tokens, use_cache=False, **keep).logits
        skipped = longest - logits.shape[1]
        for row, i in enumerate(group):
            ids, start = pairs[i]
            chosen = logits[row, start - 1 - skipped : len(ids) - 1 - skipped].double()
            picked = chosen.gather(1, tokens[row, start : len(ids), None])[:, 0] - chosen.logsumexp(-1)
            out[i] = float(picked.mean())
