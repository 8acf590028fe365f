"""How tokens are chosen and how they become text: sampling, stop strings, prefixes, templates, streams."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import countersteer as cs
from countersteer.core.errors import InputError, RefusedError
from countersteer.engines.embedded.sampling import uniform as engine_uniform
from helpers_cases import METHODS, Maker
from helpers_models import VOCAB, prompts, tiny
from helpers_reference import reference, uniform
from helpers_text import NO_SYSTEM, byte_tokenizer, talking


def sampling_of(i: int) -> cs.Sampling:
    """Different settings for every request, each filter on and off."""
    return cs.Sampling(
        temperature=(0.0, 0.6, 1.0, 1.7)[i % 4],
        top_k=(0, 5, 1, 40, 500)[i % 5],
        top_p=(1.0, 0.9, 0.5, 0.05)[(i // 2) % 4],
        repetition_penalty=(1.0, 1.1, 1.8, 0.7)[(i // 3) % 4],
        seed=(0, 1, 7, 2**40, -3)[i % 5] + i,
        max_tokens=6 + i % 9,
    )


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_sampled_texts_equal_transformers_processors_one_request_at_a_time(name: str) -> None:
    model = tiny(name, seed=1)
    texts = prompts(60, seed=41, high=30)
    maker = Maker(model, 1, texts[1])
    requests, expected = [], []
    for i, text in enumerate(texts):
        sampling, writes, steer = sampling_of(i), [], None
        if i % 3:
            steer, write = maker.make(METHODS[i % len(METHODS)], seed=i)
            span = ("all", "generation", "prompt")[i % 3]
            steer, writes = steer.span(span), [replace(write, span=span)]
        requests.append(cs.Request(tokens=tuple(text), intervention=steer, sampling=sampling))
        expected.append(reference(model, text, writes, sampling=sampling))
    with cs.load_engine(model, places=6) as engine:
        outs = engine.run(requests, errors="return")
    got = [list((o.completion if isinstance(o, cs.NoOpError) else o).tokens) for o in outs]
    wrong = [i for i in range(60) if got[i] != expected[i]]
    assert not wrong, [(requests[i].sampling, got[i], expected[i]) for i in wrong[:3]]


def test_top_p_keeps_the_tokens_that_transformers_keeps_in_flat_and_in_peaked_rows() -> None:
    from transformers import TopPLogitsWarper

    from countersteer.engines.embedded.sampling import choose

    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(40, 700, generator=generator, dtype=torch.float64)
    logits *= torch.linspace(0.01, 9, 40)[:, None].double()
    for top_p in (0.05, 0.5, 0.9, 0.999):
        kept = torch.isfinite(TopPLogitsWarper(top_p)(None, logits.clone()))
        assert kept.sum(1).max() > (300 if top_p > 0.4 else 32) and kept.sum(1).min() < 32
        allowed = logits.masked_fill(~kept, -torch.inf).softmax(1).cumsum(1)
        for seed in range(30):
            settings = [cs.Sampling(temperature=1.0, top_p=top_p, seed=seed + i) for i in range(40)]
            draws = torch.tensor([engine_uniform(s.seed, 2) for s in settings], dtype=torch.float64)
            expected = (allowed <= draws[:, None]).sum(1).tolist()
            assert choose(logits, settings, [2] * 40) == expected


def test_noise_depends_on_seed_and_position_only() -> None:
    assert [engine_uniform(s, p) for s, p in ((0, 0), (5, 3), (2**63 - 1, 9), (2**62, 1))] == [
        uniform(s, p) for s, p in ((0, 0), (5, 3), (2**63 - 1, 9), (2**62, 1))
    ]
    draws = np.array([engine_uniform(s, p) for s in range(60) for p in range(60)])
    assert draws.min() >= 0 and draws.max() < 1 and len(np.unique(draws)) == 3600
    # moments of the uniform distribution, five standard errors wide
    assert abs(draws.mean() - 0.5) < 5 * (1 / 12 / 3600) ** 0.5
    grid = draws.reshape(60, 60)
    for a, b in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / 3540**0.5
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert ((counts - 180) ** 2 / 180).sum() < 50  # chi-square with 19 degrees of freedom, p < 1e-4


def test_first_tokens_over_seeds_follow_the_models_distribution() -> None:
    model = tiny("llama", seed=1)
    text = prompts(1, seed=42)[0]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].double()
    wanted = (logits / 1.5).softmax(0).numpy()
    requests = [
        cs.Request(tokens=tuple(text), sampling=cs.Sampling(temperature=1.5, max_tokens=1, seed=s)) for s in range(4000)
    ]
    with cs.load_engine(model, places=200) as engine:
        counts = Counter(o.tokens[0] for o in engine.run(requests))
    got = np.array([counts[t] for t in range(VOCAB)])
    big = wanted * 4000 > 5
    chi = ((got[big] - 4000 * wanted[big]) ** 2 / (4000 * wanted[big])).sum()
    assert chi < big.sum() + 6 * (2 * big.sum()) ** 0.5


@pytest.mark.parametrize("end", [2, [2, 5, 11]])
def test_end_tokens_of_the_model_end_a_text(end: Any) -> None:
    model = tiny("llama", seed=1)
    texts = prompts(30, seed=43, high=20)
    settings = [cs.Sampling(temperature=1.5, max_tokens=30, seed=i) for i in range(30)]
    free = [reference(model, t, sampling=s) for t, s in zip(texts, settings, strict=True)]
    common = Counter(t for text in free for t in set(text)).most_common(3)
    ends = [common[0][0]] if end == 2 else [c[0] for c in common]
    model.generation_config.eos_token_id = ends[0] if end == 2 else ends
    requests = [cs.Request(tokens=tuple(t), sampling=s) for t, s in zip(texts, settings, strict=True)]
    stopped = 0
    with cs.load_engine(model, places=4) as engine:
        for text, out in zip(free, engine.run(requests), strict=True):
            cut = next((i + 1 for i, t in enumerate(text) if t in ends), None)
            assert list(out.tokens) == text[:cut] and out.finish == ("length" if cut is None else "stop")
            stopped += cut is not None
    assert stopped > 5


TEXTS = ("How do I iron a shirt?", "näïve café – 日本語 🙂", "the and in on er", "a")


def solo(model: Any, tokenizer: Any, text: str, sampling: cs.Sampling) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return reference(model, ids, sampling=sampling, ends=[2])


def test_templates_systems_messages_and_prefixes_make_the_prompt() -> None:
    model, tokenizer = talking()
    sampling = cs.Sampling(temperature=1.0, seed=3, max_tokens=12)
    ask = cs.Request(prompt=TEXTS[0], sampling=sampling)
    turns = (
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "é"},
    )
    cases = {
        f"<s><|user|>{TEXTS[0]}<|end|><|assistant|>": ask,
        f"<s><|system|>Be kind.<|end|><|user|>{TEXTS[0]}<|end|><|assistant|>": ask.with_(system="Be kind."),
        f"<s><|user|>{TEXTS[0]}<|end|><|assistant|>First, the": ask.with_(prefix="First, the"),
        TEXTS[0]: ask.with_(template=False),
        f"{TEXTS[0]} and on": ask.with_(template=False, prefix=" and on"),
        "<s><|user|>one<|end|><|assistant|>two<|end|><|user|>é<|end|><|assistant|>Yes": cs.Request(
            messages=turns, prefix="Yes", sampling=sampling
        ),
    }
    with cs.load_engine((model, tokenizer), places=3) as engine:
        outs = engine.run(list(cases.values()))
        for text, request, out in zip(cases, cases.values(), outs, strict=True):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert engine.encode(request) == ids and out.prompt_tokens == len(ids)
            expected = solo(model, tokenizer, text, sampling)
            assert list(out.tokens) == expected
            kept = expected[:-1] if expected[-1] == 2 else expected
            assert out.text == tokenizer.decode(kept, skip_special_tokens=True)


def test_a_prefix_counts_as_prompt_for_spans() -> None:
    model, tokenizer = talking(seed=1)
    text = f"<s><|user|>{TEXTS[0]}<|end|><|assistant|>First"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    maker = Maker(model, 1, ids)
    sampling = cs.Sampling(temperature=0, max_tokens=8)
    with cs.load_engine((model, tokenizer), places=3) as engine:
        for span in ("prompt", "response", "generation"):
            steer, write = maker.make("add", seed=1)
            request = cs.Request(prompt=TEXTS[0], prefix="First", intervention=steer.span(span), sampling=sampling)
            expected = reference(model, ids, [replace(write, span=span)], sampling=sampling, ends=[2])
            assert list(engine.run([request])[0].tokens) == expected


def test_templates_that_cannot_honour_a_request_are_refused() -> None:
    model, tokenizer = talking(template=NO_SYSTEM)
    with cs.load_engine((model, tokenizer), places=2) as engine:
        engine.run([cs.Request(prompt="hello", sampling=cs.Sampling(max_tokens=1))])
        with pytest.raises(RefusedError, match="drops it"):
            engine.run([cs.Request(prompt="hello", system="Be kind.")])
    with cs.load_engine((model, byte_tokenizer(template=None)), places=2) as engine:
        with pytest.raises(InputError, match="no chat template"):
            engine.run([cs.Request(prompt="hello")])
        assert engine.run([cs.Request(prompt="hello", template=False, sampling=cs.Sampling(max_tokens=2))])
    with cs.load_engine(model, places=2) as engine, pytest.raises(InputError, match="no tokenizer"):
        engine.run([cs.Request(prompt="hello")])


def test_stop_strings_cut_the_text_where_they_begin() -> None:
    """The first token after which the decoded text holds a stop string is the last one generated."""
    model, tokenizer = talking(seed=2)
    base = cs.Sampling(temperature=1.6, max_tokens=40)
    stopped = 0
    with cs.load_engine((model, tokenizer), places=5) as engine:
        requests, expected = [], []
        for i in range(40):
            sampling = replace(base, seed=i)
            full = solo(model, tokenizer, TEXTS[i % 4], sampling)
            text = tokenizer.decode(full, skip_special_tokens=True)
            whole = [s for s in (text[j : j + 1 + i % 4] for j in range(3, len(text) - 4)) if "\ufffd" not in s]
            stops = tuple(whole[5:7] or whole[:1]) if i % 5 else ("never to be seen", "\n\n\n\n")
            if not stops:
                continue
            cut, finish, kept = full, "length" if full[-1] != 2 else "stop", None
            for n in range(1, len(full) + 1):
                so_far = tokenizer.decode(full[:n], skip_special_tokens=True)
                found = [so_far.index(s) for s in stops if s in so_far]
                if found and full[n - 1] != 2:
                    cut, finish, kept = full[:n], "stop", so_far[: min(found)]
                    break
            stopped += kept is not None
            requests.append(cs.Request(prompt=TEXTS[i % 4], template=False, sampling=replace(sampling, stop=stops)))
            expected.append((cut, finish, text if kept is None else kept))
        for request, out, (tokens, finish, text) in zip(requests, engine.run(requests), expected, strict=True):
            assert (list(out.tokens), out.finish, out.text) == (tokens, finish, text), request.sampling.stop
    assert stopped > 10


def test_streamed_pieces_join_to_the_text_and_never_take_back() -> None:
    model, tokenizer = talking(seed=3)
    requests = [
        cs.Request(
            prompt=TEXTS[i % 4],
            template=False,
            sampling=cs.Sampling(
                temperature=1.5, seed=i, max_tokens=30, stop=() if i % 2 else ("\u00e9", "e", "th", "zzzz")
            ),
        )
        for i in range(24)
    ]

    async def all_of(engine: Any) -> list[list[Any]]:
        async def one(request: cs.Request) -> list[Any]:
            return [chunk async for chunk in engine.stream(request)]

        return await asyncio.gather(*(one(r) for r in requests))

    with cs.load_engine((model, tokenizer), places=5) as engine:
        whole = engine.run(requests)
        streams = asyncio.run(all_of(engine))
    many = 0
    for out, chunks in zip(whole, streams, strict=True):
        assert [c.completion is not None for c in chunks] == [False] * (len(chunks) - 1) + [True]
        assert "".join(c.text for c in chunks) == out.text == chunks[-1].completion.text
        assert [t for c in chunks for t in c.tokens] == list(out.tokens) == list(chunks[-1].completion.tokens)
        many += sum(bool(c.text) for c in chunks)
    assert many > 100


@pytest.mark.parametrize("after", [0, 1, 3])
def test_closing_a_stream_frees_its_place(after: int) -> None:
    """With one place only, the next request can run only once the place is free."""
    model, tokenizer = talking(seed=4)
    endless = cs.Request(prompt="x", template=False, sampling=cs.Sampling(temperature=0, max_tokens=200))
    short = cs.Request(prompt="y", template=False, sampling=cs.Sampling(temperature=0, max_tokens=3))
    model.generation_config.eos_token_id = tokenizer.eos_token_id = None

    async def go(engine: Any) -> list[int]:
        for _ in range(3):
            stream = engine.stream(endless)
            for _ in range(after + 1):
                await anext(stream)
            await stream.aclose()
        task = asyncio.create_task(engine.generate(endless))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return list((await asyncio.wait_for(engine.generate(short), 30)).tokens)

    with cs.load_engine((model, tokenizer), places=1) as engine:
        assert asyncio.run(go(engine)) == reference(
            model, tokenizer("y", add_special_tokens=False)["input_ids"], sampling=short.sampling
        )


def test_a_window_of_positions_is_kept() -> None:
    model = tiny("llama", max_position_embeddings=32)
    with cs.load_engine(model, places=2) as engine:
        fits = cs.Request(tokens=(5,) * 20, sampling=cs.Sampling(temperature=0, max_tokens=13))
        assert list(engine.run([fits])[0].tokens) == reference(model, [5] * 20, sampling=fits.sampling)
        with pytest.raises(RefusedError, match="32 positions"):
            engine.run([fits.with_(sampling=cs.Sampling(temperature=0, max_tokens=14))])


def test_a_vanishing_temperature_is_greedy() -> None:
    model = tiny("llama", seed=6)
    requests = [
        cs.Request(tokens=(5, 6, 7), sampling=cs.Sampling(temperature=t, max_tokens=8, seed=3)) for t in (0.0, 1e-320)
    ]
    with cs.load_engine(model, places=2) as engine:
        greedy, cold = engine.run(requests)
    assert greedy.tokens == cold.tokens
