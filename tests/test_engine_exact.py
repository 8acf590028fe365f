"""The engine's tokens against plain hooks on full passes without a cache: float64, greedy, many architectures.

All requests of an architecture run mixed through few places, so places are refilled while dirty and every decoding
step holds different methods, spans and prompt lengths.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import countersteer as cs
from helpers_cases import METHODS, Maker
from helpers_models import ARCHITECTURES, WIDTH, decoder_layers, prompts, tiny
from helpers_reference import Write, in_span, plain_hooks, reference

SPANS = ("all", "prompt", "response", "generation", "from", "until")
GREEDY = cs.Sampling(temperature=0, max_tokens=7)


def spelled(span: str, prompt: int, seed: int) -> str:
    """A span's text; `from` and `until` get a position before, at and after the prompt's end in turn."""
    if span not in ("from", "until"):
        return span
    at = (1, prompt - 1, prompt, prompt + 2, prompt // 2)[seed % 5]
    return f"{span}({max(at, 1)})"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_method_and_span_equals_plain_hooks(name: str) -> None:
    model = tiny(name)
    texts = prompts(len(METHODS) * len(SPANS), seed=11)
    layers = len(decoder_layers(model))
    makers = [Maker(model, layer, texts[1]) for layer in range(layers)]
    requests, expected, edited = [], [], 0
    for i, (method, span) in enumerate((m, s) for m in METHODS for s in SPANS):
        steer, write = makers[i % layers].make(method, seed=i)
        where = spelled(span, len(texts[i]), i)
        requests.append(cs.Request(tokens=tuple(texts[i]), intervention=steer.span(where), sampling=GREEDY))
        expected.append(reference(model, texts[i], [replace(write, span=where)], sampling=GREEDY))
        edited += (
            expected[-1] != reference(model, texts[i], sampling=replace(GREEDY, max_tokens=7)) if i % 4 == 0 else 0
        )
    with cs.load_engine(model, places=5) as engine:
        assert engine.describe()["cache"] == "slots"
        got = engine.run(requests, errors="return")
        plain = engine.run([cs.Request(tokens=tuple(t), sampling=GREEDY) for t in texts[:12]])
    wrong = []
    for i, out in enumerate(got):
        if isinstance(out, cs.NoOpError):
            out = out.completion
        if isinstance(out, Exception) or list(out.tokens) != expected[i]:
            wrong.append((METHODS[i // len(SPANS)], str(requests[i].intervention.edits[0].span), out, expected[i]))
    assert not wrong, f"{len(wrong)} of {len(got)}: {wrong[:3]}"
    assert edited >= 5, "the edits change too few texts to prove anything"
    for text, out in zip(texts, plain, strict=False):
        assert list(out.tokens) == reference(model, text, sampling=GREEDY)
        assert out.receipt.layers == () and out.prompt_tokens == len(text) and out.finish == "length"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_unsteered_and_added_texts_equal_generate(name: str) -> None:
    """Against transformers' own generate with its own cache, so that a mask wrong in both passes above would show."""
    model = tiny(name, seed=3)
    texts = prompts(10, seed=5)
    maker = Maker(model, 1, texts[1])
    sampling = cs.Sampling(temperature=0, max_tokens=20)
    steer, write = maker.make("add", seed=1)
    expected = []
    for i, text in enumerate(texts):
        vector = write.delta(torch.zeros(1, WIDTH, dtype=torch.float64))[0] if i % 2 else torch.zeros(WIDTH)

        def hook(module: object, args: object, output: object, vector: torch.Tensor = vector) -> object:
            return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

        handle = decoder_layers(model)[1].register_forward_hook(hook)
        ids = torch.tensor([text])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
        handle.remove()
        expected.append(out[0, len(text) :].tolist())
    requests = [
        cs.Request(tokens=tuple(t), intervention=steer if i % 2 else None, sampling=sampling)
        for i, t in enumerate(texts)
    ]
    with cs.load_engine(model, places=3) as engine:
        assert [list(c.tokens) for c in engine.run(requests)] == expected


def logits_of(engine_model: object, text: list[int], writes: list[Write], prompt: int) -> torch.Tensor:
    with plain_hooks(engine_model, writes, prompt), torch.inference_mode():
        return engine_model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]  # type: ignore[operator]


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_borders_of_the_spans(name: str) -> None:
    """Which generated token is the first to feel each span, with an edit that moves every token it touches."""
    model = tiny(name, seed=7)
    maker = Maker(model, len(decoder_layers(model)) - 1, prompts(2, seed=1)[1])
    v = maker.vector(torch.Generator().manual_seed(0), 40.0 * maker.size)
    d = cs.direction(v, layer=maker.layer)
    steer = cs.add(d, 1.0)
    sampling = cs.Sampling(temperature=0, max_tokens=4)
    told = 0
    with cs.load_engine(model, places=4) as engine:
        for text in prompts(8, seed=2):
            prompt = len(text)

            def tokens(span: str | None, text: list[int] = text) -> tuple[int, ...]:
                given = None if span is None else steer.span(span)
                request = cs.Request(tokens=tuple(text), intervention=given, sampling=sampling)
                return tuple(engine.run([request])[0].tokens)

            clean = tokens(None)
            # the edit sits in the last layer: each token depends on the edit of its own position only
            here = [Write(maker.layer, lambda h: v.expand_as(h))]
            forced = int(logits_of(model, text, here, prompt).argmax())
            second = int(logits_of(model, [*text, clean[0]], here, prompt).argmax())
            if clean[0] == forced or clean[1] == second:
                continue
            told += 1
            assert tokens("response")[:2] == (clean[0], second)
            assert tokens("generation")[0] == forced
            assert tokens(f"from({prompt - 1})") == tokens("generation")
            assert tokens(f"from({prompt})") == tokens("response")
            assert tokens("prompt")[0] == forced
            assert tokens(f"until({prompt})") == tokens("prompt")
            assert tokens(f"until({prompt - 1})") == clean
            assert tokens("all") == tokens("generation")
            # the prompt's edit reaches no token after the first one
            rest = reference(model, [*text, forced], sampling=replace(sampling, max_tokens=3))
            assert list(tokens("prompt")[1:]) == rest
    assert told >= 4


def test_receipts_of_the_engine_count_what_plain_hooks_change() -> None:
    model = tiny("llama", seed=1)
    texts = prompts(24, seed=3, high=30)
    maker = Maker(model, 1, texts[1])
    methods = [METHODS[i % len(METHODS)] for i in range(24)]
    requests, counts = [], []
    for i, (text, method) in enumerate(zip(texts, methods, strict=True)):
        steer, write = maker.make(method, seed=50 + i)
        span = ("all", "generation", "prompt", "response")[i % 4]
        requests.append(cs.Request(tokens=tuple(text), intervention=steer.span(span), sampling=GREEDY))
        tokens = reference(model, text, [replace(write, span=span)], sampling=GREEDY)
        # the last token is never read back: one pass over all the others sees every position once
        with plain_hooks(model, [replace(write, span=span)], len(text)) as changed, torch.inference_mode():
            model(input_ids=torch.tensor([[*text, *tokens[:-1]]]), use_cache=False)
        seen = int(in_span(span, torch.arange(len(text) + len(tokens) - 1), len(text)).sum())
        counts.append((seen, int(changed[0].sum())))
    with cs.load_engine(model, places=4) as engine:
        for (seen, changed), out in zip(counts, engine.run(requests, errors="return"), strict=True):
            completion = out.completion if isinstance(out, cs.NoOpError) else out
            (layer,) = completion.receipt.layers
            assert (layer.site, layer.tokens_seen, layer.tokens_changed) == ("resid_post.1", seen, changed)


def test_several_layers_orders_and_spans_in_one_intervention() -> None:
    model = tiny("qwen3", seed=2)
    texts = prompts(30, seed=9, high=40)
    makers = [Maker(model, layer, texts[1]) for layer in range(3)]
    requests, expected = [], []
    for i, text in enumerate(texts):
        parts, writes = [], []
        for j in range(2 + i % 3):
            method = METHODS[(i * 5 + j * 3) % len(METHODS)]
            steer, write = makers[(i + j) % 3].make(method, seed=100 + 7 * i + j)
            span = spelled(SPANS[(i + 2 * j) % len(SPANS)], len(text), i + j)
            parts.append(steer.span(span).order(j % 2))
            writes.append(replace(write, span=span, order=j % 2))
        edits = tuple(e for p in parts for e in p.edits)
        try:
            steer = cs.Intervention(edits)
        except cs.RefusedError:
            continue
        requests.append(cs.Request(tokens=tuple(text), intervention=steer, sampling=GREEDY))
        expected.append(reference(model, text, writes, sampling=GREEDY))
    assert len(requests) > 20
    with cs.load_engine(model, places=4) as engine:
        outs = engine.run(requests, errors="return")
    got = [(o.completion if isinstance(o, cs.NoOpError) else o).tokens for o in outs]
    assert [list(t) for t in got] == expected
