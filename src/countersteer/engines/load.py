"""`load_engine`: an engine by the name of its model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from countersteer.core.errors import InputError, RefusedError


def load_engine(
    model: Any, *, dtype: str | None = None, device: str | None = None, places: int = 32,
    adapter: str | os.PathLike[str] | None = None, adapters: Mapping[str, str | os.PathLike[str]] | None = None,
) -> Any:  # fmt: skip
    """The embedded engine for a folder, a Hugging Face id, "organism", or a transformers model already in memory.

    dtype: float32 (default), bfloat16, float16 or float64 (exactness). device: cpu or cuda. `places` is how many
    requests decode together. `adapter`: a LoRA folder under every request; `adapters`: folders by name, for requests
    that name one. Raises InputError or RefusedError, also for an adapter of another model.
    """
    from countersteer.engines.embedded.engine import EmbeddedEngine
    from countersteer.engines.embedded.model import load_model, verified

    if isinstance(model, str):
        if model.startswith("vllm:"):
            raise RefusedError("a vLLM engine", "it is not part of this version", "the embedded engine: drop 'vllm:'")
        loaded = load_model(model, dtype=dtype, device=device)
        return EmbeddedEngine(_with(loaded, adapter, adapters), places=places, adapters=adapters)
    if isinstance(model, tuple) and len(model) == 2:
        module, tokenizer = model
    else:
        module, tokenizer = model, None
    if not hasattr(module, "config") or not hasattr(module, "forward"):
        raise InputError(f"an engine is loaded from a name or a transformers model, got {type(model).__name__}")
    if dtype is not None or device is not None:
        raise InputError("a model in memory keeps its dtype and device: move it first, then load the engine")
    loaded = verified(module, tokenizer)
    return EmbeddedEngine(_with(loaded, adapter, adapters), places=places, adapters=adapters)


def _with(model: Any, adapter: Any, adapters: Any) -> Any:
    """The model, carrying an adapter if one is given."""
    if adapter is None:
        return model
    if adapters:
        raise InputError("give adapter (under every request) or adapters (by name), not both")
    from countersteer.engines.embedded.adapter import adapted

    return adapted(model, adapter)
