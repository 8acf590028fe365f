"""A no-op is an error, resting is a result: which interventions may change nothing, and how that is told."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import countersteer as cs
from countersteer.core.errors import InputError, NoOpError, RefusedError
from helpers_cases import Maker
from helpers_models import WIDTH, prompts, tiny
from helpers_reference import Write, reference, residuals

GREEDY = cs.Sampling(temperature=0, max_tokens=6)
V = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
D1 = cs.direction(V, layer=1)


def silent_latent(threshold: float = 1e6) -> cs.edits.Latent:
    return cs.edits.Latent(3, cs.Site(1), V, 0.0, V.flip(0), threshold)


RESTING: dict[str, Callable[[], cs.Intervention]] = {
    "ablate": lambda: cs.ablate(silent_latent()),
    "clamp-to-zero-of-several": lambda: cs.clamp([silent_latent(), replace(silent_latent(), index=4)], 0.0),
    "to_target": lambda: cs.to_target(D1, boundary=-1e6, target=5.0),
    "to_mirror": lambda: cs.to_mirror(D1, boundary=-1e6),
    "limit": lambda: cs.limit(D1, low=-1e6, high=1e6),
    "gated_add": lambda: cs.gated_add(D1, 3.0, gate=V.flip(0), threshold=1e6),
}


@pytest.mark.parametrize("name", RESTING)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["f64", "bf16"])
def test_conditional_edits_may_rest(name: str, dtype: torch.dtype) -> None:
    """A valid completion with 0 tokens changed; the text is the unsteered one, bit for bit the same arithmetic."""
    model = tiny("llama", dtype=dtype)
    texts = prompts(5, seed=51, high=20)
    steer = RESTING[name]()
    assert steer.conditional
    with cs.load_engine(model, places=3) as engine:
        clean = engine.run([cs.Request(tokens=tuple(t), sampling=GREEDY) for t in texts])
        for span in ("all", "generation"):
            for text, free in zip(texts, clean, strict=True):
                given = cs.Request(tokens=tuple(text), intervention=steer.span(span), sampling=GREEDY)
                (out,) = engine.run([given])
                (layer,) = out.receipt.layers
                seen = len(text) + 5 if span == "all" else 6
                assert (layer.tokens_seen, layer.tokens_changed, layer.max_relative) == (seen, 0, 0.0)
                assert not out.receipt.acted and layer.conditional
                if dtype == torch.float64:
                    assert out.tokens == free.tokens
    with cs.attach(model, steer) as handle:
        model.generate(torch.tensor([texts[0]]), do_sample=False, max_new_tokens=3)
    assert not handle.receipt.acted and handle.receipt.layers[0].tokens_seen == len(texts[0]) + 2


UNCONDITIONAL: dict[str, Callable[[float], cs.Intervention]] = {
    "add": lambda s: cs.add(D1, s),
    "add-latent": lambda s: cs.add(silent_latent(), s),
    "fixed": lambda s: cs.fixed(D1, s, separation=1.0),
    "contextual_add": lambda s: cs.contextual_add(D1, weights=V.flip(0) * s, bias=s),
}


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_an_unconditional_write_lost_in_rounding_is_an_error(name: str) -> None:
    text = tuple(prompts(1, seed=52)[0])
    for dtype, strength, lost in (
        (torch.bfloat16, 1e-9, True),
        (torch.bfloat16, 1.0, False),
        (torch.float32, 1e-14, True),
        (torch.float64, 1e-9, False),
        (torch.float64, 1e-25, True),
    ):
        model = tiny("llama", dtype=dtype)
        steer = UNCONDITIONAL[name](strength)
        assert not steer.conditional
        request = cs.Request(tokens=text, intervention=steer, sampling=GREEDY)
        with cs.load_engine(model, places=2) as engine:
            if not lost:
                assert engine.run([request])[0].receipt.acted
                continue
            with pytest.raises(NoOpError, match="changed no token") as caught:
                engine.run([request])
            done = caught.value.completion
            assert done.receipt.layers[0].tokens_seen == len(text) + 5 and not done.receipt.acted
            assert done.tokens == engine.run([request.with_(intervention=None)])[0].tokens
        with pytest.raises(NoOpError), cs.attach(model, steer):
            model.generate(torch.tensor([list(text)]), do_sample=False, max_new_tokens=3)


@pytest.mark.parametrize(
    "steer",
    [cs.add(D1, 4.0), cs.remove(D1), cs.ablate(silent_latent(-5.0)), cs.to_target(D1, boundary=0.0, target=4.0)],
    ids=["add", "remove", "ablate", "to_target"],
)
def test_a_span_that_is_never_reached_is_an_error_with_the_completion(steer: cs.Intervention) -> None:
    model = tiny("llama")
    text = prompts(1, seed=53)[0]
    free = reference(model, text, sampling=GREEDY)
    one = replace(GREEDY, max_tokens=1)
    never = [(f"from({len(text) + 5})", GREEDY), ("from(500)", GREEDY), ("response", one)]
    with cs.load_engine(model, places=2) as engine:
        for span, sampling in never:
            request = cs.Request(tokens=tuple(text), intervention=steer.span(span), sampling=sampling)
            with pytest.raises(NoOpError, match="span") as caught:
                engine.run([request])
            assert list(caught.value.completion.tokens) == free[: sampling.max_tokens]
        # one position earlier the last token read is in the span, and no further token is decided by it
        steer = steer.span(f"from({len(text) + 4})")
        try:
            (out,) = engine.run([cs.Request(tokens=tuple(text), intervention=steer, sampling=GREEDY)])
            assert out.receipt.layers[0].tokens_seen == 1
        except NoOpError as error:
            raise AssertionError("its one position counts") from error


def test_part_of_an_intervention_that_is_never_reached_is_an_error() -> None:
    model = tiny("llama")
    text = tuple(prompts(1, seed=54)[0])
    steer = cs.add(D1, 3.0) + cs.ablate(silent_latent()).span("from(400)")
    with cs.load_engine(model, places=2) as engine, pytest.raises(NoOpError, match="ablate"):
        engine.run([cs.Request(tokens=text, intervention=steer, sampling=GREEDY)])
    lost = cs.add(D1, 3.0) + cs.add(cs.direction(V, layer=2), 1e-30)
    with cs.load_engine(model, places=2) as engine, pytest.raises(NoOpError, match=r"resid_post\.2"):
        engine.run([cs.Request(tokens=text, intervention=lost, sampling=GREEDY)])


def test_one_no_op_keeps_the_other_results() -> None:
    model = tiny("llama", seed=1)
    texts = prompts(12, seed=55, high=20)
    steer, write = Maker(model, 1, texts[1]).make("add", seed=1)
    never = cs.add(D1, 1.0).span("from(300)")
    requests = [
        cs.Request(tokens=tuple(t), intervention=(steer, never, None)[i % 3], sampling=GREEDY)
        for i, t in enumerate(texts)
    ]
    bad = cs.Request(tokens=(5, 6), intervention=cs.add(cs.direction(V, layer=77), 1.0), sampling=GREEDY)
    with cs.load_engine(model, places=3) as engine:
        outs = engine.run([*requests, bad], errors="return")
        assert isinstance(outs.pop(), InputError)
        for i, (text, out) in enumerate(zip(texts, outs, strict=True)):
            if i % 3 == 1:
                assert isinstance(out, NoOpError)
                out = out.completion
            assert list(out.tokens) == reference(model, text, [write] if i % 3 == 0 else [], sampling=GREEDY)
        with pytest.raises(NoOpError):
            engine.run(requests)
        assert engine.run([requests[0]])[0].tokens == outs[0].tokens

        async def both() -> tuple[Any, Any]:
            async def drain() -> list[Any]:
                return [chunk async for chunk in engine.stream(requests[1])]

            return await asyncio.gather(engine.generate(requests[1]), drain(), return_exceptions=True)

        for error in asyncio.run(both()):
            assert isinstance(error, NoOpError) and error.completion.tokens == outs[1].completion.tokens


GATES: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor, torch.Tensor], float]]] = {
    "cosine-mean": ({}, lambda h, c: float(h[1:].mean(0) @ c[0] / h[1:].mean(0).norm() / c[0].norm())),
    "cosine-last": ({"over": "last"}, lambda h, c: float(h[-1] @ c[0] / h[-1].norm() / c[0].norm())),
    "dot-mean": ({"metric": "dot"}, lambda h, c: float(h[1:].mean(0) @ c[0] / c[0].norm())),
    "dot-last": ({"metric": "dot", "over": "last"}, lambda h, c: float(h[-1] @ c[0] / c[0].norm())),
    "subspace": (
        {"rows": 3},
        lambda h, c: float((c.T @ torch.linalg.inv(c @ c.T) @ c @ h[1:].mean(0)).norm() / h[1:].mean(0).norm()),
    ),
    "below": ({"above": False}, lambda h, c: -float(h[1:].mean(0) @ c[0] / h[1:].mean(0).norm() / c[0].norm())),
}


@pytest.mark.parametrize("name", GATES)
def test_request_gates_open_or_close_for_the_whole_request(name: str) -> None:
    """The condition is computed here from the clean prompt's residuals; steering layer and gate layer differ."""
    model = tiny("llama", seed=2)
    texts = prompts(16, seed=56, high=30)
    how, statistic = dict(GATES[name][0]), GATES[name][1]
    rows = torch.randn(how.pop("rows", 1), WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values = [statistic(residuals(model, t, 0), rows) for t in texts]
    middle = sorted(values)[7:9]
    threshold = sum(middle) / 2
    gate = cs.Gate(cs.Site(0), rows, -threshold if how.get("above") is False else threshold, **how)
    steer, write = Maker(model, 1, texts[1]).make("add", seed=1)
    requests = [cs.Request(tokens=tuple(t), intervention=steer.gated(gate), sampling=GREEDY) for t in texts]
    with cs.load_engine(model, places=4) as engine:
        outs = engine.run(requests)
    opened = 0
    for text, value, out in zip(texts, values, outs, strict=True):
        is_open = value > threshold
        opened += is_open
        assert list(out.tokens) == reference(model, text, [write] if is_open else [], sampling=GREEDY)
        assert out.receipt.acted == is_open
        assert out.receipt.notes == (f"gate {'open' if is_open else 'closed'}",)
    assert opened == 8


def test_a_gated_intervention_is_conditional_and_still_measured_when_open() -> None:
    model = tiny("llama", seed=2)
    text = tuple(prompts(1, seed=57)[0])
    always = cs.Gate(cs.Site(0), V, -2.0)
    steer = cs.add(D1, 1e-30).gated(always)
    assert steer.conditional
    with cs.load_engine(model, places=2) as engine:
        with pytest.raises(NoOpError):
            engine.run([cs.Request(tokens=text, intervention=steer, sampling=GREEDY)])
        shut = cs.add(D1, 3.0).span("from(300)").gated(cs.Gate(cs.Site(0), V, 2.0))
        (out,) = engine.run([cs.Request(tokens=text, intervention=shut, sampling=GREEDY)])
        assert not out.receipt.acted
    with pytest.raises(RefusedError, match="gates"):
        _ = cs.add(D1, 1.0).gated(always) + cs.add(D1, 1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: cs.Gate(cs.Site(0), torch.zeros(4), 0.5),
        lambda: cs.Gate(cs.Site(0), torch.tensor([1.0, math.nan]), 0.5),
        lambda: cs.Gate(cs.Site(0), V, math.nan),
        lambda: cs.Gate(cs.Site(0), V, 0.5, over="max"),
        lambda: cs.Gate(cs.Site(0), V, 0.5, metric="euclid"),
    ],
)
def test_unusable_gates_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        make()


def test_the_references_writes_add_up() -> None:
    """The reference that the tests above lean on, against a closed form."""
    model = tiny("llama", seed=3)
    text = prompts(1, seed=58)[0]
    once, twice = Write(0, lambda h: V.expand_as(h)), Write(0, lambda h: 2 * V.expand_as(h))
    doubled = reference(model, text, [once, once], sampling=GREEDY)
    assert doubled == reference(model, text, [twice], sampling=GREEDY) != reference(model, text, sampling=GREEDY)
