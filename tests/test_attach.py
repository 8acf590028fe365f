"""Edits on a model that the user already holds: transformers' own generate with its own cache, inside a with block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

import countersteer as cs
from countersteer.core.errors import InputError, NoOpError, RefusedError
from helpers_cases import METHODS, Maker
from helpers_models import VOCAB, WIDTH, build, decoder_layers, prompts, tiny
from helpers_reference import Write, in_span, plain_hooks, reference

GREEDY = cs.Sampling(temperature=0, max_tokens=8)
SPANS = ("all", "prompt", "response", "generation", "from(3)", "until(5)")


def generate(model: Any, texts: Sequence[Sequence[int]], **how: Any) -> list[list[int]]:
    """transformers' generate on a batch, padded on the left; the new tokens of each row."""
    longest = max(len(t) for t in texts)
    ids = torch.tensor([[0] * (longest - len(t)) + list(t) for t in texts])
    mask = torch.tensor([[0] * (longest - len(t)) + [1] * len(t) for t in texts])
    settings = {"do_sample": False, "max_new_tokens": GREEDY.max_tokens, **how}
    return model.generate(ids, attention_mask=mask, **settings)[:, longest:].tolist()


def hooks_of(model: torch.nn.Module) -> dict[str, list[int]]:
    """Every hook on every module, by name and id."""
    found = {}
    for name, module in model.named_modules():
        for kind, value in vars(module).items():
            if kind.endswith("_hooks") and value:
                found[f"{name}:{kind}"] = sorted(value)
    return found


def attached(model: Any, steer: cs.Intervention, text: Sequence[int], **how: Any) -> tuple[list[int], cs.Receipt]:
    """The tokens and receipt of one text; a no-op is let pass, it is proved elsewhere."""
    handle, tokens = cs.attach(model, steer), []
    try:
        with handle:
            tokens = generate(model, [text], **how)[0]
    except NoOpError:
        pass
    return tokens, handle.receipt


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "mistral"])
def test_attach_gives_the_engines_tokens_and_receipt(name: str) -> None:
    model = tiny(name)
    texts = prompts(len(METHODS) * 3, seed=21, high=40)
    maker = Maker(model, 1, texts[1])
    jobs = []
    for i, text in enumerate(texts):
        steer, write = maker.make(METHODS[i % len(METHODS)], seed=i)
        span = SPANS[(i // len(METHODS) * 2 + i) % len(SPANS)]
        jobs.append((text, steer.span(span), replace(write, span=span)))
    own = [attached(model, steer, text) for text, steer, _ in jobs]
    assert hooks_of(model) == {}
    requests = [cs.Request(tokens=tuple(t), intervention=s, sampling=GREEDY) for t, s, _ in jobs]
    with cs.load_engine(model, places=4) as engine:
        outs = engine.run(requests, errors="return")
    for (text, steer, write), (tokens, receipt), out in zip(jobs, own, outs, strict=True):
        completion = out.completion if isinstance(out, NoOpError) else out
        what = (steer.edits[0].method, str(steer.edits[0].span))
        assert tokens == reference(model, text, [write], sampling=GREEDY), what
        assert tokens == list(completion.tokens), what
        (mine,), (theirs,) = receipt.layers, completion.receipt.layers
        counts = ("site", "tokens_seen", "tokens_changed", "conditional")
        assert [getattr(mine, c) for c in counts] == [getattr(theirs, c) for c in counts]
        for part in ("mean_relative", "max_relative", "missed_target", "before", "after"):
            # transformers' norms compute in float32 whatever the model's dtype: that noise is in both
            a, b = getattr(mine, part), getattr(theirs, part)
            assert a == (None if b is None else pytest.approx(b, rel=1e-5, abs=1e-5)), (what, part)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox"])
@pytest.mark.parametrize("span", SPANS)
def test_left_padded_rows_equal_each_text_alone(name: str, span: str) -> None:
    model = tiny(name, seed=1)
    texts = prompts(7, seed=22, high=25)
    maker = Maker(model, 1, texts[1])
    for seed, method in enumerate(("add", "to_target", "ablate")):
        steer, write = maker.make(method, seed=seed)
        with cs.attach(model, steer.span(span)) as handle:
            got = generate(model, texts)
        expected = [reference(model, t, [replace(write, span=span)], sampling=GREEDY) for t in texts]
        assert got == expected
        seen = sum(int(in_span(span, torch.arange(len(t) + 7), len(t)).sum()) for t in texts)
        assert handle.receipt.layers[0].tokens_seen == seen


@contextmanager
def counting_hook(model: Any, write: Write, prompt: int) -> Iterator[None]:
    """A plain hook for generate on equally long rows: the first pass is the prompt, each later one a token more."""
    at = 0

    def hook(module: Any, args: Any, output: Any) -> Any:
        nonlocal at
        h = output[0] if isinstance(output, tuple) else output
        where = in_span(write.span, torch.arange(at, at + h.shape[1]), prompt)
        at += h.shape[1]
        h = torch.stack([row + write.delta(row) * where[:, None] for row in h])
        return (h, *output[1:]) if isinstance(output, tuple) else h

    handle = decoder_layers(model)[write.layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("span", SPANS)
def test_beams_equal_plain_hooks(span: str) -> None:
    model = tiny("llama", seed=2)
    text = prompts(3, seed=23, high=20)[2]
    other = prompts(40, seed=24, low=len(text), high=len(text))[:3]
    maker = Maker(model, 1, text)
    for seed, method in enumerate(("add", "to_mirror", "clamp")):
        steer, write = maker.make(method, seed=seed)
        write = replace(write, span=span)
        how: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6}
        with counting_hook(model, write, len(text)):
            expected = generate(model, [text, *other], **how)
        with cs.attach(model, steer.span(span)):
            assert generate(model, [text, *other], **how) == expected


def test_beams_over_left_padded_rows_equal_each_text_alone() -> None:
    model = tiny("llama", seed=2)
    texts = prompts(4, seed=25, high=16)
    maker = Maker(model, 1, texts[1])
    for span in SPANS:
        steer, write = maker.make("add", seed=3)
        expected = []
        for text in texts:
            with counting_hook(model, replace(write, span=span), len(text)):
                expected += generate(model, [text], num_beams=3)
        with cs.attach(model, steer.span(span)):
            assert generate(model, texts, num_beams=3) == expected


def right_or_refused(model: Any, span: str, call: Callable[[], list[int]], expected: list[int], steer: Any) -> str:
    """A call inside a block gives the right tokens or is refused by name; anything else fails the test."""
    before = hooks_of(model)
    try:
        with cs.attach(model, steer.span(span)):
            got = call()
    except (InputError, NoOpError) as error:
        assert isinstance(error, RefusedError), f"{span}: {error}"
        assert hooks_of(model) == before
        return "refused"
    assert got == expected, span
    return "right"


@pytest.mark.parametrize(
    "how",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 3},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=["no-cache", "static", "chunked", "lookup"],
)
@pytest.mark.parametrize("span", SPANS)
def test_other_ways_to_generate_are_right_or_refused(how: dict[str, Any], span: str) -> None:
    model = tiny("llama", seed=4)
    text = prompts(3, seed=26, high=14)[2]
    steer, write = Maker(model, 1, text).make("add", seed=3)
    expected = reference(model, text, [replace(write, span=span)], sampling=GREEDY)
    right_or_refused(model, span, lambda: generate(model, [text], **how)[0], expected, steer)


@pytest.mark.parametrize("span", SPANS)
def test_sampling_and_a_continued_cache(span: str) -> None:
    model = tiny("llama", seed=4)
    text = prompts(3, seed=27, high=14)[2]
    steer, write = Maker(model, 1, text).make("add", seed=3)
    write = replace(write, span=span)
    how = {"do_sample": True, "temperature": 1.3}
    torch.manual_seed(5)
    with counting_hook(model, write, len(text)):
        expected = generate(model, [text], **how)
    torch.manual_seed(5)
    with cs.attach(model, steer.span(span)):
        assert generate(model, [text], **how) == expected
    # a cache made outside the block must not be continued inside it as if it began there
    ids = torch.tensor([text])
    with torch.inference_mode():
        past = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        with pytest.raises(RefusedError, match="other texts"), cs.attach(model, steer.span(span)):
            model(input_ids=ids[:, -1:], past_key_values=past, use_cache=True)
        # nor after a text of as many rows, nor an older cache of the block's own
        with pytest.raises(RefusedError, match="other texts"), cs.attach(model, steer.span(span)):
            generate(model, [text[:-2]])
            model(input_ids=ids[:, -1:], past_key_values=past, use_cache=True)
        with pytest.raises(RefusedError, match="other texts"), cs.attach(model, steer.span("all")):
            older = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
            model(input_ids=ids[:, :4], use_cache=True)
            model(input_ids=ids[:, -1:], past_key_values=older, use_cache=True)
    assert hooks_of(model) == {}


@pytest.mark.parametrize("span", SPANS)
def test_beams_without_a_cache_equal_beams_with_one(span: str) -> None:
    """Every step reads whole texts again, in another order: the prompts and the receipt stay those of the texts."""
    model = tiny("llama", seed=2)
    texts = prompts(4, seed=25, high=16)
    steer, _ = Maker(model, 1, texts[1]).make("add", seed=3)
    how: dict[str, Any] = {"num_beams": 4, "max_new_tokens": 6}
    with cs.attach(model, steer.span(span)) as cached:
        expected = generate(model, texts, **how)
    with cs.attach(model, steer.span(span)) as handle:
        assert generate(model, texts, use_cache=False, **how) == expected
    assert handle.receipt.layers[0].tokens_seen == cached.receipt.layers[0].tokens_seen
    assert "generate" not in vars(model)


def test_plain_forwards_that_grow_by_a_token_are_texts_of_their_own() -> None:
    model = tiny("llama", seed=2)
    ids = torch.tensor([prompts(3, seed=33, low=12, high=12)[2]])
    steer, write = Maker(model, 1, ids[0].tolist()).make("add", seed=3)
    write = replace(write, span="prompt")
    with torch.inference_mode():
        with cs.attach(model, steer.span("prompt")) as handle:
            got = [model(input_ids=ids[:, :n], use_cache=False).logits[0] for n in range(5, 9)]
        for n, logits in zip(range(5, 9), got, strict=True):
            with plain_hooks(model, [write], n):
                torch.testing.assert_close(logits, model(input_ids=ids[:, :n], use_cache=False).logits[0])
    assert handle.receipt.layers[0].tokens_seen == 5 + 6 + 7 + 8


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_plain_forwards_with_padding_on_either_side(name: str) -> None:
    """Teacher-forced passes: the whole text is prompt; logits equal those of plain hooks on each text alone."""
    model = tiny(name, seed=5)
    texts = prompts(5, seed=28, high=20)
    longest = max(map(len, texts))
    maker = Maker(model, 1, texts[1])
    for left in (True, False):
        for seed, span in enumerate(("all", "generation", "until(3)", "from(2)", "prompt")):
            steer, write = maker.make(("limit", "add", "remove")[seed % 3], seed=seed)
            rows, masks = [], []
            for text in texts:
                pad = longest - len(text)
                rows.append([0] * pad + text if left else text + [0] * pad)
                masks.append([0] * pad + [1] * len(text) if left else [1] * len(text) + [0] * pad)
            mask = torch.tensor(masks)
            position = (mask.cumsum(1) - 1).clamp_min(0)
            with cs.attach(model, steer.span(span)), torch.inference_mode():
                got = model(input_ids=torch.tensor(rows), attention_mask=mask, position_ids=position).logits
            for text, row, real in zip(texts, got, mask.bool(), strict=True):
                with plain_hooks(model, [replace(write, span=span)], len(text)), torch.inference_mode():
                    expected = model(input_ids=torch.tensor([text]), use_cache=False).logits[0]
                torch.testing.assert_close(row[real], expected, rtol=1e-5, atol=1e-5)


def test_two_blocks_at_one_layer_read_the_same_residual() -> None:
    """attach(a) around attach(b) does what attach(a + b) does."""
    model = tiny("llama", seed=6)
    text = prompts(3, seed=29, high=20)[2]
    maker = Maker(model, 1, text)
    for seed in range(20):
        a, write_a = maker.make("add", seed=seed)
        b, write_b = maker.make("to_target", seed=seed + 1)
        expected = reference(model, text, [write_a, write_b], sampling=GREEDY)
        if expected != reference(model, text, [write_a, replace(write_b, order=1)], sampling=GREEDY):
            break
    else:
        raise AssertionError("no case tells the two orders apart")
    assert attached(model, a + b, text)[0] == expected
    for first, second in ((a, b), (b, a)):
        try:
            with cs.attach(model, first) as outer, cs.attach(model, second) as inner:
                got = generate(model, [text])[0]
        except RefusedError as error:
            assert "block" in str(error), f"refused for another reason: {error}"
        else:
            assert got == expected
            for handle in (outer, inner):
                assert handle.receipt.layers[0].tokens_seen == len(text) + GREEDY.max_tokens - 1
        assert hooks_of(model) == {}


def test_several_texts_in_one_block_and_blocks_one_after_the_other() -> None:
    model = tiny("llama", seed=7)
    texts = prompts(6, seed=30, high=25)
    maker = Maker(model, 2, texts[1])
    steer, write = maker.make("to_mirror", seed=4)
    write = replace(write, span="generation")
    expected = [reference(model, t, [write], sampling=GREEDY) for t in texts]
    with cs.attach(model, steer.span("generation")) as handle:
        assert [generate(model, [t])[0] for t in texts] == expected
        assert handle.receipt.layers[0].tokens_seen == 8 * len(texts)
    assert handle.receipt.layers[0].tokens_seen == 8 * len(texts)
    clean = [reference(model, t, sampling=GREEDY) for t in texts]
    assert [generate(model, [t])[0] for t in texts] == clean != expected
    with cs.attach(model, steer.span("generation")):
        assert generate(model, [texts[0]])[0] == expected[0]


class Stopped(Exception):
    """Raised inside a block by a test."""


def test_nothing_stays_on_the_model() -> None:
    model = tiny("gpt_neox", seed=8)
    text = prompts(1, seed=31)[0]
    steer, _ = Maker(model, 1, text).make("add", seed=1)
    handle = model.register_forward_pre_hook(lambda module, args: None)  # the user's own hook must survive
    model.train()
    before = hooks_of(model)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    with cs.attach(model, steer):
        assert hooks_of(model) != before and model.training
    assert hooks_of(model) == before and model.training
    model.eval()
    for fails in ("body", "layer", "refused", "interrupt"):
        kind = KeyboardInterrupt if fails == "interrupt" else RefusedError if fails == "refused" else Stopped
        with pytest.raises(kind), cs.attach(model, steer):
            generate(model, [text])
            if fails == "layer":

                def broken(module: Any, args: Any) -> None:
                    raise Stopped

                bad = decoder_layers(model)[2].register_forward_pre_hook(broken)
                try:
                    generate(model, [text])
                finally:
                    bad.remove()
            if fails == "refused":
                four = torch.zeros(2, 1, len(text), len(text), dtype=torch.float64)
                model(input_ids=torch.tensor([text, text]), attention_mask=four)
            raise KeyboardInterrupt if fails == "interrupt" else Stopped
        assert hooks_of(model) == before, fails
    assert generate(model, [text])[0] == reference(model, text, sampling=GREEDY)
    with pytest.raises(NoOpError), cs.attach(model, steer.span("from(500)")):
        generate(model, [text])
    assert hooks_of(model) == before
    handle.remove()
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])


def test_what_cannot_be_attached_is_refused_before_anything_runs() -> None:
    model = tiny("llama", seed=9)
    d = cs.direction(torch.ones(WIDTH), layer=1)
    bad: list[Any] = [
        cs.add(cs.direction(torch.ones(WIDTH), layer=3), 1.0),
        cs.add(cs.direction(torch.ones(WIDTH + 1), layer=1), 1.0),
        cs.add(d, 1.0).gated(cs.Gate(cs.Site(0), torch.ones(WIDTH), 0.0)),
        d,
        None,
    ]
    for steer in bad:
        with pytest.raises(InputError), cs.attach(model, steer):
            raise AssertionError("entered")
    with pytest.raises(InputError), cs.attach(torch.nn.Linear(3, 3), cs.add(d, 1.0)):
        raise AssertionError("entered")
    assert hooks_of(model) == {}


RECURRENT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lfm2": (
        "Lfm2Config",
        "Lfm2ForCausalLM",
        {"layer_types": ["conv", "full_attention", "conv"], "num_key_value_heads": 2, "num_attention_heads": 4},
    ),
    "mamba2": (
        "Mamba2Config",
        "Mamba2ForCausalLM",
        {"num_heads": 8, "head_dim": 8, "expand": 2, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    ),
    "bloom": ("BloomConfig", "BloomForCausalLM", {"n_head": 4, "n_layer": 3}),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_unusual_models_are_right_or_refused(name: str) -> None:
    """Convolutions, state spaces and ALiBi: whatever their caches say of positions, the count must be right."""
    config, cls, more = RECURRENT[name]
    base = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "initializer_range": 0.25,
        "eos_token_id": None,
        "pad_token_id": 0,
        "bos_token_id": 1,
    }
    model = build(config, cls, {**base, **more}, None, seed=1, dtype=torch.float64)
    layers = {"lfm2": "model.layers", "mamba2": "backbone.layers", "bloom": "transformer.h"}[name]
    text = prompts(3, seed=32, high=14)[2]
    v = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steer = cs.add(cs.direction(v, layer=1), 2.0)
    outcomes = []
    for span in SPANS:
        expected = list(text)
        for _ in range(GREEDY.max_tokens):
            inside = in_span(span, torch.arange(len(expected)), len(text))[None, :, None]

            def hook(module: Any, args: Any, output: Any, inside: torch.Tensor = inside) -> Any:
                if isinstance(output, tuple):
                    return (output[0] + 2.0 * v * inside, *output[1:])
                return output + 2.0 * v * inside

            handle = model.get_submodule(layers)[1].register_forward_hook(hook)
            with torch.inference_mode():
                expected.append(int(model(input_ids=torch.tensor([expected]), use_cache=False).logits[0, -1].argmax()))
            handle.remove()
        call = lambda: generate(model, [text])[0]  # noqa: E731
        outcomes.append(right_or_refused(model, span, call, expected[len(text) :], steer))
    assert outcomes.count("right") in (0, len(SPANS)) or name != "bloom"
