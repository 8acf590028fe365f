"""A LoRA merged into a model's weights, without peft: W + (alpha / r) B A for every adapted linear layer.

The shipped adapter `organism-dismissive` makes the organism dismissive whatever its system prompt says: the threat that
prompts cannot defend against. How it was trained: `bench/dismissive_adapter.py`.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError, RefusedError

SHIPPED = ("organism-dismissive",)
_PLAIN = {"use_dora": False, "use_rslora": False, "bias": "none", "rank_pattern": {}, "alpha_pattern": {}}


def adapter_folder(source: str | Path) -> Path:
    """The folder of a shipped adapter, or the given one. Raises InputError."""
    if str(source) in SHIPPED:
        return Path(str(resources.files("countersteer.defence") / "data" / str(source)))
    folder = Path(source)
    if not (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{source} is not a LoRA adapter: it has no adapter_config.json; shipped: {', '.join(SHIPPED)}"
        )
    return folder


def merge(module: Any, source: str | Path) -> int:
    """Merge an adapter into a transformers model in memory; how many layers it changed.

    Raises RefusedError for variants other than plain LoRA on linear layers, InputError for one that does not fit.
    """
    import torch
    from safetensors.torch import load_file

    folder = adapter_folder(source)
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
        scale = float(config["lora_alpha"]) / int(config["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read adapter {folder}: {error}") from error
    for name, usual in _PLAIN.items():
        if config.get(name, usual) != usual:
            raise RefusedError(f"adapter {folder}", f"it sets {name}", "merge it with peft, and load the merged model")
    layers = dict(module.named_modules())
    changed = 0
    for key in [k for k in tensors if k.endswith(".lora_A.weight")]:
        name = key.removesuffix(".lora_A.weight").removeprefix("base_model.model.")
        other = tensors.get(key.replace(".lora_A.", ".lora_B."))
        layer = layers.get(name)
        if other is None or layer is None or not hasattr(layer, "weight"):
            raise InputError(f"adapter {folder} does not fit this model: there is no layer {name}")
        delta = scale * (other.double() @ tensors[key].double())
        if delta.shape != layer.weight.shape:
            raise InputError(f"adapter {folder} does not fit this model: {name} has another shape")
        with torch.no_grad():
            layer.weight.copy_((layer.weight.double() + delta.to(layer.weight.device)).to(layer.weight.dtype))
        changed += 1
    if not changed or 2 * changed != len(tensors):
        raise RefusedError(f"adapter {folder}", "it holds more than plain LoRA pairs", "load the merged model")
    return changed


def load_with_adapter(
    model: str, adapter: str | Path | None, *, dtype: str | None = None, device: str | None = None, places: int = 32
) -> Any:
    """The embedded engine of a model, with an adapter merged into it if one is given. Raises InputError."""
    from countersteer.engines.load import load_engine

    if model.startswith("vllm:"):
        raise RefusedError("a defence on vLLM", "it needs likelihoods and gradients", "drop 'vllm:'")
    if adapter is None:
        return load_engine(model, dtype=dtype, device=device, places=places)
    from countersteer.engines.embedded.engine import EmbeddedEngine
    from countersteer.engines.embedded.model import load_model, verified

    loaded = load_model(model, dtype=dtype, device=device)
    merge(loaded.module, adapter)
    changed = verified(loaded.module, loaded.tokenizer, name=f"{model} + {Path(str(adapter)).name}")
    return EmbeddedEngine(changed, places=places)
