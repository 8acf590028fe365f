"""Readouts, captures, gates and pooled SAEs of two tensor-parallel workers against residuals taken by plain hooks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import countersteer as cs
import worlds
from countersteer.sources import encode
from helpers_models import decoder_layers, prompts
from helpers_reference import plain_hooks, residuals
from runs import start

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def test_forward_readouts_and_gates_equal_plain_hooks(folder: Path, monkeypatch: Any) -> None:
    path = worlds.save("llama", folder)
    model = worlds.load(path)
    texts = [*prompts(6, seed=31, low=4, high=60), list(range(3, 88)) + [3] * 20]
    h = {layer: [residuals(model, t, layer) for t in texts] for layer in range(3)}
    g = torch.Generator().manual_seed(5)
    v = torch.randn(worlds.WIDTH, generator=g, dtype=torch.float64)
    w = torch.randn(worlds.WIDTH, generator=g, dtype=torch.float64)
    size = float(h[1][0].norm(dim=1).median())
    direction = cs.direction(v, layer=2)
    latent = cs.edits.Latent(7, cs.Site(0), w / w.norm(), 0.3, w, threshold=0.05 * size)
    read = latent.read.double()

    def readouts(x0: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
        x = x0 @ read + 0.3
        activation = torch.where(x > latent.threshold, x, torch.zeros_like(x))
        return torch.stack([x2 @ (v / v.norm()), activation], 1)

    own = worlds.save_sae(folder / "sae", layer=2, seed=1)
    wide = worlds.save_sae(folder / "wide", layer=2, seed=1, width=8)
    many = [*texts, *prompts(60, seed=32, low=2, high=40)]
    with cs.load_engine(str(path), dtype="float32") as embedded:
        theirs = asyncio.run(embedded.max_activations(many, cs.load_sae(own)))

    with start(path, enforce_eager=True, tensor_parallel_size=2, capture_layers=(0, 2)) as engine:

        def forward(**options: Any) -> list[Any]:
            return asyncio.run(engine.forward(texts, **options))

        for layer in (0, 2):
            for mine, expected in zip(forward(capture=cs.Site(layer)), h[layer], strict=True):
                torch.testing.assert_close(mine.double(), expected, **CLOSE)
            for how in ("max", "mean"):
                for mine, expected in zip(forward(capture=cs.Site(layer), reduce=how), h[layer], strict=True):
                    value = expected[1:].amax(0) if how == "max" else expected[1:].mean(0)
                    torch.testing.assert_close(mine.double(), value, **CLOSE)
        spanned = forward(capture=cs.Site(0), reduce="mean", span="from(2)")
        for mine, expected in zip(spanned, h[0], strict=True):
            torch.testing.assert_close(mine.double(), expected[2:].mean(0), **CLOSE)
        for one, two in forward(capture=[cs.Site(2), cs.Site(0)], reduce="max", span="until(3)"):
            assert one.shape == two.shape == (worlds.WIDTH,)
        for i, mine in enumerate(forward(readouts=[direction, latent])):
            torch.testing.assert_close(mine.double(), readouts(h[0][i], h[2][i]), **CLOSE)
        for i, mine in enumerate(forward(readouts=[direction, latent], reduce="max")):
            torch.testing.assert_close(mine.double(), readouts(h[0][i], h[2][i])[1:].amax(0), **CLOSE)
        with pytest.raises(cs.RefusedError, match="capture"):
            forward(capture=cs.Site(1))

        # the maxima of a whole SAE: taken in the workers, in several passes, some texts in chunks
        def pooled(given: Path = own, **options: Any) -> Any:
            return asyncio.run(engine.max_activations(many, cs.load_sae(given), **options))

        for positions in (10**6, 150):
            monkeypatch.setattr(encode, "HELD_BYTES", 4 * worlds.WIDTH * positions)
            mine = pooled()
            np.testing.assert_allclose(mine, theirs, **CLOSE)
        hooks_say = worlds.maxima(own, [residuals(model, t, 2) for t in many]).numpy()
        np.testing.assert_allclose(mine, hooks_say, **CLOSE)
        assert (mine > 0).any() and (mine == 0).any()
        at_0 = worlds.maxima(own, [residuals(model, t, 0) for t in many]).numpy()
        np.testing.assert_allclose(pooled(layer=0), at_0, **CLOSE)
        assert not np.allclose(at_0, hooks_say, atol=0.1)
        with pytest.raises(cs.InputError, match="8 wide"):
            pooled(wide)
        with pytest.raises(cs.RefusedError, match="capture"):
            pooled(layer=1)
        hidden = own.with_name("hidden")
        kept_sae = cs.load_sae(own)
        own.rename(hidden)  # the workers do not find it: an error, and they go on
        with pytest.raises(cs.InputError, match="no SAE folder"):
            asyncio.run(engine.max_activations(many[:3], kept_sae))
        hidden.rename(own)
        np.testing.assert_allclose(pooled(), theirs, **CLOSE)

        # readouts of a steered response are read after the edit of their layer
        case = next(c for c in worlds.shared(worlds.cases(model)) if c.name == "shared 0 mixed")
        done = engine.run([case.request.with_(readouts=[direction, latent])])[0]
        assert list(done.tokens) == worlds.expected(model, case).tokens
        text, kept = [*case.tokens, *done.tokens[:-1]], {}
        layers = decoder_layers(model)
        with plain_hooks(model, case.writes, len(case.tokens)), torch.inference_mode():
            hooks = [
                layers[n].register_forward_hook(lambda m, a, out, n=n: kept.__setitem__(n, _first(out)))  # type: ignore[misc]
                for n in (0, 2)
            ]
            model(input_ids=torch.tensor([text]), use_cache=False)
            for hook in hooks:
                hook.remove()
        np.testing.assert_allclose(done.readouts, readouts(kept[0], kept[2]).numpy(), rtol=1e-4, atol=1e-4)

        # a request-level gate: its statistic over the prompt decides, and is at hand exactly
        steer, prompt = case.request.intervention, case.tokens
        point = residuals(model, prompt, 2)[1:].mean(0)
        at = float(torch.cosine_similarity(point, v, dim=0))
        outs = []
        for threshold in (at - 1e-3, at + 1e-3):
            gate = cs.Gate(cs.Site(2), v, threshold)
            outs.append(engine.run([case.request.with_(intervention=steer.gated(gate))])[0])
        assert list(outs[0].tokens) == worlds.expected(model, case).tokens and "gate open" in outs[0].receipt.notes
        plain = next(c for c in worlds.shared(worlds.cases(model)) if c.name == "shared 0 none")
        assert list(outs[1].tokens) == worlds.expected(model, plain).tokens
        assert outs[1].receipt.notes == ("gate closed",) and not outs[1].receipt.layers


def _first(output: Any) -> torch.Tensor:
    return (output[0] if isinstance(output, tuple) else output)[0].clone()
