"""Small random-weight decoders of many architectures, made in memory, for proofs of exactness.

Weights are drawn wide enough that greedy texts differ from prompt to prompt and that an edit changes them. Layer lists
are named here by hand, so that a test's own hooks do not depend on how the package finds them.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import nn

VOCAB = 89
WIDTH = 32

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "use_cache": True,
}
_HEAD = {"head_dim": 8}
_NO_KV = {k: v for k, v in _BASE.items() if k != "num_key_value_heads"}
_WINDOW = {"sliding_window": 8}

ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _BASE, "sdpa"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_BASE, **_HEAD}, "sdpa"),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {
            **_BASE,
            **_HEAD,
            **_WINDOW,
            "num_hidden_layers": 4,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 8.0,
        },
        "eager",
    ),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            **_BASE,
            **_HEAD,
            **_WINDOW,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "sdpa",
    ),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_BASE, **_HEAD, **_WINDOW}, "sdpa"),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _NO_KV, "sdpa"),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _BASE, "sdpa"),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", _BASE, "sdpa"),
}
"""name -> (configuration class, model class, settings, attention implementation)"""


def build(config: str, model: str, settings: dict[str, Any], attention: str | None, *, seed: int, dtype: Any) -> Any:
    """A model with weights drawn from `seed`, in eval mode, that generates without an end token."""
    torch.manual_seed(seed)
    made = getattr(hf, config)(**settings)
    if attention is not None:
        made._attn_implementation = attention
    module = getattr(hf, model)(made).to(dtype).eval()
    module.generation_config.eos_token_id = settings.get("eos_token_id")
    module.generation_config.pad_token_id = 0
    if "initializer_range" not in made.to_dict():
        raise AssertionError(f"{config} has no initializer_range: its weights would be too small to matter")
    return module


def tiny(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **more: Any) -> Any:
    """A model of one of `ARCHITECTURES`; `more` overrides settings."""
    config, model, settings, attention = ARCHITECTURES[name]
    return build(config, model, {**settings, **more}, attention, seed=seed, dtype=dtype)


def decoder_layers(module: Any) -> nn.ModuleList:
    """The decoder layers, by the dotted path that the architecture has."""
    if hasattr(module, "gpt_neox"):
        return module.gpt_neox.layers
    return module.model.layers


def prompts(count: int, *, seed: int, low: int = 4, high: int = 60) -> list[list[int]]:
    """Ragged prompts of random token ids, the shortest `low` and the longest `high` tokens long."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high + 1, (count,), generator=generator).tolist()
    lengths[:2] = [low, high][: len(lengths[:2])]
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]
