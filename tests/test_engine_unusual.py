"""Models that are not plain attention over keys and values, and models whose layers are not what they seem.

The first kind equals full passes without a cache or is refused by name; the second kind is always refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import countersteer as cs
from countersteer.core.errors import InputError, RefusedError
from helpers_models import VOCAB, WIDTH, build, prompts, tiny
from helpers_reference import in_span

BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
    "eos_token_id": None,
    "pad_token_id": 0,
    "bos_token_id": 1,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
MAMBA = {"num_heads": 8, "head_dim": 8, "expand": 2, "state_size": 8, "n_groups": 1, "chunk_size": 8}
ALIBI = {"n_head": 4, "n_layer": 3}
FALCON = {"alibi": True, "num_kv_heads": 4, "new_decoder_architecture": False}
DYNAMIC = {
    "max_position_embeddings": 24,
    "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
}
UNUSUAL: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "lfm2": ("Lfm2Config", "Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention", "conv"]}, "model.layers"),
    "qwen3_next": ("Qwen3NextConfig", "Qwen3NextForCausalLM", LINEAR, "model.layers"),
    "mamba2": ("Mamba2Config", "Mamba2ForCausalLM", MAMBA, "backbone.layers"),
    "mamba": ("MambaConfig", "MambaForCausalLM", {"state_size": 8}, "backbone.layers"),
    "bloom": ("BloomConfig", "BloomForCausalLM", ALIBI, "transformer.h"),
    "falcon": ("FalconConfig", "FalconForCausalLM", FALCON, "transformer.h"),
    "dynamic_rope": ("LlamaConfig", "LlamaForCausalLM", DYNAMIC, "model.layers"),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_head": 4, "n_layer": 3, "n_embd": WIDTH}, "transformer.h"),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4}, "model.layers"),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM", {"num_local_experts": 4, "head_dim": 8}, "model.layers"),
    "cohere2": ("Cohere2Config", "Cohere2ForCausalLM", {"sliding_window": 8}, "model.layers"),
}
SPANS = ("all", "prompt", "response", "generation", "from(3)", "until(5)")
GREEDY = cs.Sampling(temperature=0, max_tokens=10)
V = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def unusual(name: str) -> tuple[Any, str]:
    config, cls, more, layers = UNUSUAL[name]
    attention = "eager" if name == "gpt_oss" else None
    model = build(config, cls, {**BASE, **more}, attention, seed=1, dtype=torch.float64)
    model.config._experts_implementation = "eager"  # the grouped kernels take no float64
    return model, layers


def alone(model: Any, layers: str, text: list[int], span: str | None) -> list[int]:
    """Greedy tokens of full passes, V added at layer 1's output on a span."""
    ids = list(text)
    for _ in range(GREEDY.max_tokens):
        where = in_span(span, torch.arange(len(ids)), len(text)) if span else torch.zeros(len(ids), dtype=torch.bool)

        def hook(module: Any, args: Any, output: Any, where: torch.Tensor = where) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            h = h + V * where[None, :, None]
            return (h, *output[1:]) if isinstance(output, tuple) else h

        handle = model.get_submodule(layers)[1].register_forward_hook(hook)
        with torch.inference_mode():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        handle.remove()
    return ids[len(text) :]


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_models_are_exact_or_refused_by_name(name: str) -> None:
    model, layers = unusual(name)
    steer = cs.add(cs.direction(V, layer=1), 1.0)
    try:
        engine = cs.load_engine(model, places=3)
    except RefusedError as error:
        assert type(model).__name__ in str(error) or name in str(error)
        return
    with engine:
        texts = prompts(14, seed=61, low=1, high=14 if name == "dynamic_rope" else 30)
        spans = [(None, *SPANS)[i % 7] for i in range(len(texts))]
        requests = [
            cs.Request(tokens=tuple(t), intervention=steer.span(s) if s else None, sampling=GREEDY)
            for t, s in zip(texts, spans, strict=True)
        ]
        note = engine.describe()["cache"]
        for text, span, out in zip(texts, spans, engine.run(requests), strict=True):
            assert list(out.tokens) == alone(model, layers, text, span), (span, note)
            assert (note == "slots") == (out.receipt.notes == ())
        if name in ("lfm2", "qwen3_next", "mamba2", "mamba", "bloom", "falcon", "dynamic_rope"):
            assert note != "slots" and all(note in out.receipt.notes for out in engine.run(requests[:3]))
        else:
            assert note == "slots"


class Order(torch.nn.ModuleList):
    """A layer list that is walked in another order than it is indexed."""

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._modules.values())[::-1])

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return list(found)[::-1] if isinstance(index, slice) else found


def reordered(model: Any) -> None:
    model.model.layers = Order(list(model.model.layers))


def skipped(model: Any) -> None:
    """One layer is never called."""

    class Short(torch.nn.ModuleList):
        def __iter__(self) -> Iterator[Any]:
            return iter(list(self._modules.values())[:-1])

        def __getitem__(self, index: Any) -> Any:
            return list(self._modules.values())[:-1] if isinstance(index, slice) else super().__getitem__(index)

    model.model.layers = Short(list(model.model.layers))


def twice(model: Any) -> None:
    """The same module stands in the list twice, so a hook on it runs twice."""
    layers = list(model.model.layers)
    model.model.layers = torch.nn.ModuleList([layers[0], layers[1], layers[1]])


def deaf(model: Any) -> None:
    """Layer 2 reads a copy that layer 1 put aside inside its own forward, not layer 1's output."""
    first, second = model.model.layers[1], model.model.layers[2]
    kept: list[torch.Tensor] = []
    forward_1, forward_2 = first.forward, second.forward

    def stash(*args: Any, **kwargs: Any) -> Any:
        out = forward_1(*args, **kwargs)
        kept[:] = [out]
        return out

    def ignore(hidden: Any, *args: Any, **kwargs: Any) -> Any:
        return forward_2(kept[0], *args, **kwargs)

    first.forward, second.forward = stash, ignore


def bypassed(model: Any) -> None:
    """The final norm reads the embedding, not the last layer."""
    norm = model.model.norm
    kept: list[torch.Tensor] = []
    model.model.embed_tokens.register_forward_hook(lambda m, a, out: kept.append(out))
    forward = norm.forward
    norm.forward = lambda hidden: forward(kept[-1])


def broken(model: Any) -> None:
    """The model's own forward fails."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("this kernel takes no such numbers")

    model.model.layers[1].mlp.forward = fail


def clean_up(model: Any) -> None:
    """A later hook puts the layer's own output back, so that edits before it are lost."""
    layer = model.model.layers[1]
    forward, kept = layer.forward, []

    def remember(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        kept[:] = [out]
        return out

    layer.forward = remember
    model.model.layers[2].register_forward_pre_hook(lambda m, args: (kept[0], *args[1:]))


@pytest.mark.parametrize("wreck", [reordered, skipped, twice, deaf, bypassed, broken, clean_up])
def test_models_whose_layers_do_not_feed_the_next_are_refused(wreck: Any) -> None:
    model = tiny("llama", dtype=torch.float32)
    wreck(model)
    steer = cs.add(cs.direction(V, layer=1), 1.0)
    with pytest.raises((RefusedError, InputError)) as caught:
        cs.load_engine(model)
    assert "\n" not in str(caught.value)
    with pytest.raises((RefusedError, InputError)), cs.attach(model, steer):
        raise AssertionError("attached to a model that cannot be steered")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["f64", "f32", "bf16"])
def test_sound_models_pass_their_verification_in_every_dtype(dtype: torch.dtype) -> None:
    for name in ("llama", "gemma2", "gemma3", "gpt_neox", "olmo2", "mistral", "phi3", "qwen3"):
        with cs.load_engine(tiny(name, dtype=dtype), places=2) as engine:
            (out,) = engine.run([cs.Request(tokens=(3, 4, 5), sampling=cs.Sampling(max_tokens=3))])
            assert len(out.tokens) == 3 and engine.describe()["dtype"] == str(dtype).removeprefix("torch.")


def test_an_engine_leaves_nothing_on_a_model_it_does_not_own() -> None:
    model = tiny("llama").train()
    frozen = next(model.parameters()).requires_grad_(False)
    model.lm_head.eval()
    with cs.load_engine(model, places=2) as engine:
        steer = cs.add(cs.direction(V, layer=1), 1.0)
        reads = cs.direction(V, layer=0)
        engine.run([cs.Request(tokens=(3, 4), intervention=steer, readouts=reads, sampling=GREEDY)])
    left = {n: k for n, m in model.named_modules() for k, v in vars(m).items() if k.endswith("_hooks") and v}
    assert left == {}
    assert not frozen.requires_grad and all(p.requires_grad for p in model.parameters() if p is not frozen)
    assert model.training and model.model.training and not model.lm_head.training
