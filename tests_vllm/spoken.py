"""A small model with a tokenizer whose words are markers, LoRA adapters for it, and what plain passes make of both.

About half of its tokens decode to markers of fences and tool calls, so its own greedy text opens and closes stretches.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import worlds
from helpers_reference import Write, plain_hooks

OPENS = {"json_fence": 3, "tool_call": 5}
CLOSES = {"json_fence": (3, 4), "tool_call": (6,)}  # an opening fence inside a fence ends it, too
RANK, ALPHA = 4, 8


def word(token: int) -> str:
    """What a token id is in the text: the marker of its remainder by 8, made unique by its number."""
    forms = {3: "\n```json\n{}", 4: "\n```\nend{}", 5: "<tool_call>{}", 6: "</tool_call>{}"}
    return forms.get(token % 8, "w{}").format(token)


def save(folder: Path) -> Path:
    """A Llama with such a tokenizer; returns its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = worlds.save("llama", folder)
    if not (path / "tokenizer.json").exists():
        size = int(worlds.SHAPE["vocab_size"])
        inner = Tokenizer(models.WordLevel({word(i): i for i in range(size)}, unk_token=word(9)))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(path)
    return path


def save_adapter(folder: Path, seed: int, *, model: str) -> Path:
    """A LoRA folder in peft's form with weights drawn from a seed, large enough to change the text."""
    from countersteer.engines.embedded.adapter_record import write_record

    folder.mkdir()
    generator, tensors = torch.Generator().manual_seed(seed), {}
    width, inner = worlds.WIDTH, int(worlds.SHAPE["intermediate_size"])
    heads, keys = (int(worlds.SHAPE[k]) * int(worlds.SHAPE["head_dim"])
                   for k in ("num_attention_heads", "num_key_value_heads"))  # fmt: skip
    shapes = {"self_attn.q_proj": (heads, width), "self_attn.v_proj": (keys, width), "mlp.down_proj": (width, inner)}
    for layer in range(3):
        for name, (out, into) in shapes.items():
            at = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{at}.lora_A.weight"] = 0.25 * torch.randn(RANK, into, generator=generator)
            tensors[f"{at}.lora_B.weight"] = 0.25 * torch.randn(out, RANK, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none",
              "target_modules": ["q_proj", "v_proj", "down_proj"], "base_model_name_or_path": "",
              "lora_dropout": 0.0, "inference_mode": True}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    write_record(folder, model=model, facts={})
    return folder


def merged(path: Path, adapter: Path | None) -> Any:
    """The model in float64 with an adapter's product added to its weights."""
    worlds.load.cache_clear()
    model = worlds.load(path)
    if adapter is not None:
        tensors, weights = load_file(adapter / "adapter_model.safetensors"), dict(model.named_parameters())
        for name in [n for n in tensors if n.endswith("lora_A.weight")]:
            low, high = tensors[name].double(), tensors[name.replace("lora_A", "lora_B")].double()
            target = name.removeprefix("base_model.model.").replace("lora_A.", "")
            weights[target].data += ALPHA / RANK * high @ low
    return model


def stretches(tokens: Sequence[int], names: Sequence[str]) -> set[int]:
    """Response indices that lie inside an exempt stretch; the markers themselves do not."""
    inside, held = None, set()
    for i, token in enumerate(tokens):
        if inside is not None and token % 8 in CLOSES[inside]:
            inside = None
        elif inside is not None:
            held.add(i)
        else:
            inside = next((n for n in names if token % 8 == OPENS[n]), None)
    return held


def greedy(
    model: Any, prompt: Sequence[int], writes: Sequence[Write], names: Sequence[str], count: int
) -> tuple[list[int], list[float]]:
    """Greedy tokens and their margins over the second: plain hooks everywhere but inside exempt stretches, a full
    pass for each token."""
    out: list[int] = []
    margins: list[float] = []
    for _ in range(count):
        held = {len(prompt) + i for i in stretches(out, names)}
        keep = torch.tensor([float(p not in held) for p in range(len(prompt) + len(out))], dtype=torch.float64)
        masked = [replace(w, delta=lambda h, w=w, keep=keep: w.delta(h) * keep[:, None]) for w in writes]
        with plain_hooks(model, masked, len(prompt)), torch.inference_mode():
            scores = model(input_ids=torch.tensor([[*prompt, *out]]), use_cache=False).logits[0, -1].log_softmax(0)
        best = scores.topk(2)
        out.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
    return out, margins
