"""What an engine reads: readouts of a steered generation, teacher-forced passes, and float32 against float64."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import countersteer as cs
from countersteer.engines.scripted import Shape
from helpers_cases import METHODS, Maker
from helpers_models import ARCHITECTURES, decoder_layers, prompts, tiny
from helpers_reference import Write, in_span, plain_hooks, reference

GREEDY = cs.Sampling(temperature=0, max_tokens=6)


def layer_outputs(model: Any, text: list[int], writes: list[Write], prompt: int) -> list[torch.Tensor]:
    """Residuals [tokens, d_model] at every layer's output in one steered full pass, after the writes."""
    kept: list[torch.Tensor] = []
    with plain_hooks(model, writes, prompt):  # registered first, so the hooks below see what it hands on
        handles = [
            layer.register_forward_hook(
                lambda m, a, out: kept.append((out[0] if isinstance(out, tuple) else out)[0].clone())
            )
            for layer in decoder_layers(model)
        ]
        with torch.inference_mode():
            model(input_ids=torch.tensor([text]), use_cache=False)
        for handle in handles:
            handle.remove()
    return kept


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_readouts_of_steered_generations(name: str) -> None:
    """Columns in the order asked for, over sites; activations thresholded; one row per position that was read."""
    model = tiny(name, seed=1)
    texts = prompts(10, seed=81, high=20)
    maker = Maker(model, 1, texts[1])
    g = torch.Generator().manual_seed(4)
    latents = [maker.latent(g, i) for i in range(3)]
    lone = cs.direction(maker.vector(g, 7.0), layer=2)
    away = latents[2].at(0)
    requests, writes = [], []
    for i, text in enumerate(texts):
        steer, write = maker.make(METHODS[i], seed=i)
        asked = ([latents[0], lone, latents[1], away], latents[0], lone)[i % 3]
        writes.append([write] if i % 4 else [])
        given = steer if i % 4 else None
        requests.append(cs.Request(tokens=tuple(text), intervention=given, readouts=asked, sampling=GREEDY))
    with cs.load_engine(model, places=3) as engine:
        outs = engine.run(requests)
    fired = 0
    for i, (text, out) in enumerate(zip(texts, outs, strict=True)):
        h = layer_outputs(model, [*text, *out.tokens[:-1]], writes[i], len(text))

        def activation(latent: cs.edits.Latent, h: torch.Tensor) -> torch.Tensor:
            x = h @ latent.read + latent.bias
            return torch.where(x > latent.threshold, x, torch.zeros_like(x))

        u = lone.vector / lone.vector.norm()
        # sites in order of first mention: layer 1 (both of its latents), then 2, then 0
        every = [activation(latents[0], h[1]), activation(latents[1], h[1]), h[2] @ u, activation(away, h[0])]
        wanted = torch.stack((every, [every[0]], [every[2]])[i % 3], dim=1).numpy()
        assert np.asarray(out.readouts).shape == (len(text) + 5, wanted.shape[1])
        np.testing.assert_allclose(np.asarray(out.readouts), wanted, rtol=1e-5, atol=1e-5)
        fired += int((wanted[:, 0] != 0).any())
    assert fired >= 5


def test_teacher_forced_passes_and_their_reductions() -> None:
    model = tiny("mistral", seed=2)
    texts = prompts(12, seed=82, high=50)
    maker = Maker(model, 1, texts[1])
    latent, d = (
        maker.latent(torch.Generator().manual_seed(5), 0),
        cs.direction(maker.vector(torch.Generator()), layer=2),
    )

    async def go(engine: Any, **how: Any) -> list[Any]:
        return await engine.forward(texts, **how)

    with cs.load_engine(model, places=2) as engine:
        plain = asyncio.run(go(engine, readouts=[latent, d]))
        top = asyncio.run(go(engine, readouts=[latent, d], reduce="max"))
        mean = asyncio.run(go(engine, readouts=[latent, d], reduce="mean", span="from(2)"))
        part = asyncio.run(go(engine, readouts=[latent, d], span="until(3)"))
        both = asyncio.run(go(engine, capture=[cs.Site(2), cs.Site(0)]))
        one = asyncio.run(go(engine, capture=cs.Site(1)))
    for i, text in enumerate(texts):
        h = layer_outputs(model, text, [], len(text))
        x = h[1] @ latent.read + latent.bias
        reads = torch.stack([torch.where(x > latent.threshold, x, 0.0), h[2] @ d.vector / d.vector.norm()], dim=1)
        close = lambda a, b: np.testing.assert_allclose(np.asarray(a), b.numpy(), rtol=1e-5, atol=1e-5)  # noqa: E731
        close(plain[i], reads)
        close(top[i], reads[1:].amax(0))  # position 0 is kept apart
        close(mean[i], reads[2:].mean(0))
        close(part[i], reads[:3])
        close(both[i][0], h[2])
        close(both[i][1], h[0])
        close(one[i], h[1])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float32_agrees_up_to_near_ties(name: str) -> None:
    """Against float32 full passes: equal up to the first token whose two best logits lie closer than 1e-4."""
    model = tiny(name, seed=6, dtype=torch.float32)
    texts = prompts(40, seed=83, high=40)
    maker = Maker(tiny(name, seed=6), 1, texts[1])
    sampling = replace(GREEDY, max_tokens=10)
    requests, writes = [], []
    for i, text in enumerate(texts):
        steer, write = maker.make(METHODS[i % 4], seed=i)

        def narrow(h: torch.Tensor, write: Write = write) -> torch.Tensor:
            return write.delta(h.double()).float()

        writes.append(Write(write.layer, narrow, "generation"))
        requests.append(cs.Request(tokens=tuple(text), intervention=steer.span("generation"), sampling=sampling))
    with cs.load_engine(model, places=6) as engine:
        outs = engine.run(requests)
    compared = ties = 0
    for text, write, out in zip(texts, writes, outs, strict=True):
        expected = reference(model, text, [write], sampling=sampling)
        for n, (a, b) in enumerate(zip(out.tokens, expected, strict=True)):
            with plain_hooks(model, [write], len(text)), torch.inference_mode():
                logits = model(input_ids=torch.tensor([[*text, *expected[:n]]]), use_cache=False).logits[0, -1]
            best = logits.topk(2).values
            compared += 1
            if float(best[0] - best[1]) < 1e-4:
                ties += 1
                break
            assert a == b, (n, best.tolist())
    assert compared > 350 and ties <= 0.01 * compared, (compared, ties)


def test_positions_of_the_first_token_are_kept_out_of_means() -> None:
    """Position 0 has a huge norm in real models: receipts leave it out of every mean and maximum."""
    model = tiny("llama", seed=7)
    text = prompts(2, seed=84, high=20)[1]
    maker = Maker(model, 1, text)
    steer, write = maker.make("remove", seed=3)
    sampling = replace(GREEDY, max_tokens=1)
    with cs.load_engine(model, places=1) as engine:
        (out,) = engine.run([cs.Request(tokens=tuple(text), intervention=steer, sampling=sampling)])
        alone = engine.run([cs.Request(tokens=tuple(text), intervention=steer.span("until(1)"), sampling=sampling)])[0]
    h = layer_outputs(model, text, [], len(text))[1]
    moved = write.delta(h)
    relative = (moved.norm(dim=1) / h.norm(dim=1))[1:]
    (layer,) = out.receipt.layers
    assert layer.mean_relative == pytest.approx(float(relative.mean()), rel=1e-5)
    assert layer.max_relative == pytest.approx(float(relative.max()), rel=1e-5)
    assert layer.tokens_seen == len(text) == int(in_span("all", torch.arange(len(text)), 3).sum())
    (first,) = alone.receipt.layers
    assert (first.tokens_seen, first.tokens_changed) == (1, 1)
    assert first.mean_relative is None and first.max_relative is None and first.before == ()


def test_maxima_of_a_whole_sae_are_those_of_its_latents_read_one_by_one() -> None:
    """At the SAE's own layer and another, with the chat template and without; the scripted engine keeps the form."""
    sae, texts = cs.load_sae("organism"), [f"{word} the shirt." for word in ("Iron", "Fold", "Wash and dry")] * 12
    latents = sae.latents(range(sae.d_sae))
    with cs.load_engine("organism") as engine:
        for layer, template in ((None, True), (1, False)):
            got = asyncio.run(engine.max_activations(texts, sae, layer=layer, template=template))
            rows = latents if layer is None else latents.at(layer)
            want = asyncio.run(engine.forward(texts, readouts=rows, reduce="max", template=template))
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, torch.stack(want).numpy(), rtol=1e-4, atol=1e-4)
            assert (got > 0).any() and (got == 0).any()
        assert asyncio.run(engine.max_activations([], sae)).shape == (0, sae.d_sae)
        with pytest.raises(cs.InputError, match="layers 0"):
            asyncio.run(engine.max_activations(texts, sae, layer=99))
        with pytest.raises(cs.InputError, match="list of texts"):
            asyncio.run(engine.max_activations("one text", sae))
    scripted = cs.ScriptedEngine({}, shape=Shape(4, sae.d_model))
    assert asyncio.run(scripted.max_activations(texts, sae)).shape == (len(texts), sae.d_sae)
    with pytest.raises(cs.InputError, match="7 wide"):
        asyncio.run(cs.ScriptedEngine({}, shape=Shape(4, 7)).max_activations(texts, sae))
