"""CLAS: the strength as an affine function of the residual, fitted by next-token loss with the model frozen.

h' = h + (c . h + b) d with d = D v fixed; c and b minimise the loss of the *aligned* response after the *malicious*
prompt, over the response's tokens, with the write on every position. arXiv 2604.24693; optimiser, steps and penalty are
settings, since the paper's are not known here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from countersteer.core.errors import InputError, RefusedError


@dataclass(frozen=True, eq=False)
class Contextual:
    """Fitted weights c [d_model] and bias b at a layer, for a write d; `loss` before (SwFC of strength 1) and after."""

    layer: int
    weights: Tensor
    bias: float
    loss_before: float
    loss_after: float
    unsteered_loss: float


@dataclass(frozen=True)
class ClasSettings:
    """How c and b are fitted: examples used, Adam steps, learning rate, squared penalty on c."""

    examples: int = 16
    steps: int = 30
    rate: float = 0.05
    penalty: float = 1e-3


def fit_contextual(
    engine: Any, texts: Sequence[tuple[Sequence[int], Sequence[int]]], write: Tensor, *, layer: int,
    settings: ClasSettings,
) -> Contextual:  # fmt: skip
    """Fit c and b on (prompt ids, response ids). Raises RefusedError for an engine without gradients."""
    from countersteer.engines.embedded.engine import EmbeddedEngine
    from countersteer.engines.embedded.flight import Job

    if not isinstance(engine, EmbeddedEngine):
        raise RefusedError("fitting CLAS", "it needs gradients, which only the embedded engine has", "leave clas out")
    if not texts:
        raise InputError("CLAS needs prompts with responses to be fitted on")
    job: Job = Job(lambda: _fit(engine.model, texts, write, layer, settings))
    engine.loop.submit(job)

    async def result() -> Contextual:
        found: Contextual = await asyncio.wrap_future(job.future)
        return found

    from countersteer.defence.responses import wait

    done: Contextual = wait(result())
    return done


def _fit(model: Any, texts: Sequence[Any], write: Tensor, layer: int, settings: ClasSettings) -> Contextual:
    wide = torch.promote_types(model.dtype, torch.float32)
    d = write.to(model.device, wide)
    longest = max(len(p) + len(r) for p, r in texts)
    ids = torch.tensor([[*p, *r] + [r[-1]] * (longest - len(p) - len(r)) for p, r in texts], device=model.device)
    mask = torch.zeros(ids.shape, dtype=torch.bool, device=model.device)
    for i, (p, r) in enumerate(texts):
        mask[i, len(p) : len(p) + len(r)] = True
    scale = 1.0 / d.norm().clamp_min(1e-12)
    c = torch.zeros(len(d), dtype=wide, device=model.device, requires_grad=True)
    b = torch.ones((), dtype=wide, device=model.device, requires_grad=True)
    steered = True

    def hook(module: Any, args: Any, output: Any) -> Any:
        if not steered:
            return None
        h = output[0] if isinstance(output, tuple) else output
        strength = (h.to(wide) @ c) * scale + b
        changed = (h.to(wide) + strength[..., None] * d).to(h.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def loss() -> Tensor:
        logits = model.module(input_ids=ids, use_cache=False).logits[:, :-1]
        picked = logits.to(wide).log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        kept = mask[:, 1:]
        return -(picked * kept).sum() / kept.sum()

    handle = model.layers[layer].register_forward_hook(hook)
    try:
        with torch.no_grad():
            steered = False
            unsteered = float(loss())
            steered = True
        with torch.enable_grad():
            adam = torch.optim.Adam([c, b], lr=settings.rate)
            before = after = float(loss().detach())
            best = (after, c.detach().clone(), float(b.detach()))
            for _ in range(settings.steps):
                adam.zero_grad()
                value = loss()
                (value + settings.penalty * (c**2).sum()).backward()
                adam.step()
                after = float(loss().detach())
                if after < best[0]:
                    best = (after, c.detach().clone(), float(b.detach()))
    finally:
        handle.remove()
    return Contextual(layer, (best[1] * scale).double().cpu(), best[2], before, best[0], unsteered)
