"""`load_engine`: an engine by the name of its model, or by the addresses of servers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date as day
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError, nearest

VLLM = "vllm:"
PLACES = 32
KEY = "VLLM_API_KEY"
"""The environment variable that holds the servers' key when `api_key` is not given; vLLM's servers read it too."""


def load_engine(
    model: Any = None, *, dtype: str | None = None, device: str | None = None, places: int | None = None,
    adapter: str | os.PathLike[str] | None = None, adapters: Mapping[str, str | os.PathLike[str]] | None = None,
    template: str | None = None, date: str | None = None, urls: Sequence[str] | None = None,
    api_key: str | None = None, **vllm: Any,
) -> Any:  # fmt: skip
    """The embedded engine for a folder, a Hugging Face id, "organism", or a transformers model already in memory;
    vLLM in this process for "vllm:MODEL"; steered vLLM servers for `urls`.

    dtype: float32 (the embedded engine's default), bfloat16, float16 or float64 (exactness). device: cpu or cuda.
    `places` is how many requests decode together (32). `adapter`: a LoRA folder under every request; `adapters`:
    folders by name, for requests that name one (servers must have been started with them). `template`: a variation of
    the chat template (`text.TEMPLATES`). `date` (ISO): the day that a chat template with a date in it takes for today,
    so that prompts stay the same tokens.

    "vllm:MODEL" also takes `layers`, `rows`, `parts`, `readouts`, `capture_layers` and `lanes` (see
    `engines.vllm.engine.load_vllm`) and vLLM's own options, such as `tensor_parallel_size=8`. With `urls`, `model` may
    be left out, else the servers must serve it; `api_key` is theirs ($VLLM_API_KEY unless given).
    Raises InputError or RefusedError, also for an adapter of another model; EngineError if vLLM does not start.
    """
    _check_template(template)
    _check_date(date)
    if urls is not None:
        given = {"dtype": dtype, "device": device, "places": places, "adapter": adapter, "template": template}
        given = {**given, "date": date, **vllm}
        _refuse(given, "with urls", "the servers were started with their own: leave it out")
        return _remote(model, urls, api_key, adapters)
    if api_key is not None:
        raise InputError("api_key is for servers: give it together with urls")
    if model is None:
        raise InputError("load_engine needs a model, or urls=['http://host:8000', ...]")
    if isinstance(model, str) and model.startswith(VLLM):
        _refuse({"device": device}, "with vLLM", "vLLM takes the machine's own: leave it out")
        _refuse({"date": date}, "with vLLM", "its prompts tell today's date: leave it out")
        if places is not None:
            vllm["max_num_seqs"] = places
        if dtype is not None:
            vllm["dtype"] = dtype
        if template is not None:
            vllm["template"] = template
        return _vllm(model.removeprefix(VLLM), {**vllm, "adapter": adapter, "adapters": adapters})
    _refuse(vllm, "of the embedded engine", "vLLM's options go with a model 'vllm:MODEL'")
    made: dict[str, Any] = {"template": template, "date": date}
    return _embedded(model, dtype, device, PLACES if places is None else places, adapter, adapters, made)


def _refuse(given: Mapping[str, Any], where: str, instead: str) -> None:
    """Raise InputError for options that this kind of engine does not take."""
    names = [name for name, value in given.items() if value is not None and value != {}]
    if names:
        raise InputError(f"{', '.join(names)} is no option {where}; {instead}")


def _check_template(name: str | None) -> None:
    """Raises InputError for a variation of the chat template that does not exist."""
    if name is not None:
        from countersteer.engines.embedded.text import TEMPLATES

        if name not in TEMPLATES:
            raise InputError(f"no template {name!r}{nearest(name, TEMPLATES)}; known: {', '.join(TEMPLATES)}")


def _check_date(date: str | None) -> None:
    """Raises InputError for what is no day."""
    if date is not None:
        try:
            day.fromisoformat(date)
        except (TypeError, ValueError):
            raise InputError(f"date {date!r} is no day; give it as YYYY-MM-DD") from None


def _embedded(
    model: Any, dtype: str | None, device: str | None, places: int, adapter: Any, adapters: Any,
    made: Mapping[str, Any],
) -> Any:  # fmt: skip
    from countersteer.engines.embedded.engine import EmbeddedEngine
    from countersteer.engines.embedded.model import load_model, verified
    from countersteer.engines.embedded.text import check_variation

    if isinstance(model, str):
        loaded = replace(load_model(model, dtype=dtype, device=device), **made)
        check_variation(loaded.tokenizer, loaded.template)
        return EmbeddedEngine(_with(loaded, adapter, adapters), places=places, adapters=adapters)
    if isinstance(model, tuple) and len(model) == 2:
        module, tokenizer = model
    else:
        module, tokenizer = model, None
    if not hasattr(module, "config") or not hasattr(module, "forward"):
        raise InputError(f"an engine is loaded from a name or a transformers model, got {type(model).__name__}")
    if dtype is not None or device is not None:
        raise InputError("a model in memory keeps its dtype and device: move it first, then load the engine")
    check_variation(tokenizer, made["template"])
    loaded = replace(verified(module, tokenizer), **made)
    return EmbeddedEngine(_with(loaded, adapter, adapters), places=places, adapters=adapters)


def _with(model: Any, adapter: Any, adapters: Any) -> Any:
    """The model, carrying an adapter if one is given."""
    if adapter is None:
        return model
    if adapters:
        raise InputError("give adapter (under every request) or adapters (by name), not both")
    from countersteer.engines.embedded.adapter import adapted

    return adapted(model, adapter)


def _vllm(model: str, options: dict[str, Any]) -> Any:
    if not model:
        raise InputError("'vllm:' needs a model after it, such as 'vllm:meta-llama/Llama-3.1-8B-Instruct'")
    from countersteer.engines.vllm.engine import load_vllm

    return load_vllm(model, **options)


def _remote(
    model: Any, urls: Sequence[str], api_key: str | None, adapters: Mapping[str, str | os.PathLike[str]] | None
) -> Any:
    from countersteer.engines.vllm.remote import load_remote

    if model is not None and not isinstance(model, str):
        raise InputError("with urls the model is on the servers: leave it out, or name it")
    engine = load_remote(urls, api_key=api_key or os.environ.get(KEY), adapters=adapters)
    try:
        if model is not None:
            _same_model(model.removeprefix(VLLM), engine)
    except BaseException:
        engine.close()
        raise
    return engine


def _same_model(model: str, engine: Any) -> None:
    """Raise InputError unless the servers serve `model`: by its weights where they are here, else by its name."""
    from countersteer import organism

    folder = Path(model)
    if model in organism.SHIPPED:
        folder = Path(organism.path(model))
    served = str(engine.describe().get("model"))
    if folder.is_dir():
        from countersteer.engines.embedded.fingerprint import folder_fingerprint

        if folder_fingerprint(folder) == engine.model_fingerprint:
            return
        raise InputError(f"the servers serve {served!r}, whose weights are not those of {model}")
    if served != model:
        raise InputError(f"the servers serve {served!r}, not {model!r}: name the model as they do")
