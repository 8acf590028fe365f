"""Loading a transformers decoder and proving that it can be steered.

`load_model` accepts a folder, a Hugging Face id, or "organism" (the small shipped model, loaded like any other).
Remote code is never run and only safetensors weights are read.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from countersteer import organism
from countersteer.core.errors import CountersteerError, InputError
from countersteer.core.fingerprint import fingerprint
from countersteer.engines.embedded.fingerprint import folder_fingerprint, module_fingerprint, tokenizer_fingerprint
from countersteer.engines.embedded.layers import find_layers, text_config, verify_layers
from countersteer.engines.embedded.text import load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64, "float16": torch.float16}
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp64": "float64", "fp16": "float16"}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A verified decoder: the module, its layers, its tokenizer (None for models without one) and its identity."""

    name: str
    module: Any
    layers: nn.ModuleList
    tokenizer: Any
    fingerprint: str
    dtype: torch.dtype
    device: torch.device
    d_model: int
    vocab: int
    max_positions: int | None
    adapter: str | None = None
    """Fingerprint of the adapter that it carries."""
    template: str | None = None
    """Name of a variation of the chat template (see text.TEMPLATES), None for the model's own."""
    date: str | None = None
    """The day (ISO) that a chat template takes for today, None for today itself."""
    training: tuple[nn.Module, ...] = ()
    """Modules of a user's own model that were in training mode; an engine puts them back when it closes."""

    @property
    def dtype_name(self) -> str:
        """Text form of the dtype, e.g. "float32"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def template_hash(self) -> str | None:
        """Hash of the chat template, None if there is none."""
        template = getattr(self.tokenizer, "chat_template", None)
        if not template:
            return None
        return fingerprint([template, self.template] if self.template else template)

    @cached_property
    def keeps_logits(self) -> bool:
        """Whether the model can be asked for the logits of some positions only."""
        return "logits_to_keep" in inspect.signature(self.module.forward).parameters

    @cached_property
    def tokenizer_hash(self) -> str | None:
        """Hash of all that decides which token ids a text becomes, None without a tokenizer."""
        return None if self.tokenizer is None else tokenizer_fingerprint(self.tokenizer)

    @property
    def end_tokens(self) -> frozenset[int]:
        """Ids that end a response: the generation configuration's, and the tokenizer's."""
        ids: set[int] = set()
        for source in (getattr(self.module, "generation_config", None), self.tokenizer):
            value = getattr(source, "eos_token_id", None)
            ids |= set(value) if isinstance(value, list | tuple) else set() if value is None else {int(value)}
        return frozenset(ids)


def parse_dtype(name: str | None) -> torch.dtype:
    """The torch dtype a name stands for; None is float32. Raises InputError."""
    key = _SHORT.get(name or "float32", name or "float32")
    if key not in DTYPES:
        raise InputError(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}")
    return DTYPES[key]


def parse_device(name: str | None) -> torch.device:
    """The device a name stands for; None is the GPU if there is one. Raises InputError."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}: use cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda was asked for, but no GPU is available: use cpu")
    return device


def attention_for(config: Any) -> str:
    """Eager attention where logits are soft-capped (the fused kernels leave the cap out), sdpa elsewhere."""
    return "eager" if getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None) else "sdpa"


def _source(name: str) -> str:
    """What transformers loads by a name: a folder or a Hugging Face id. Raises InputError."""
    if name in organism.SHIPPED:
        return str(organism.path(name))
    if name.startswith((".", "/", "~")) or Path(name).is_dir():
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            raise InputError(f"model folder {name} does not exist or has no config.json")
        return str(folder)
    return name


def _folder(source: str) -> Path:
    """The folder of a model that is on this machine."""
    from transformers.utils import cached_file

    return Path(source) if Path(source).is_dir() else Path(str(cached_file(source, "config.json"))).parent


def fingerprint_of(name: str) -> str | None:
    """A model's fingerprint without loading it; None where its files are not on this machine yet. Raises InputError."""
    source = _source(name)
    try:
        return folder_fingerprint(_folder(source))
    except Exception:  # the hub raises many kinds; loading will say what is wrong
        return None


def load_model(name: str, *, dtype: str | None = None, device: str | None = None) -> LoadedModel:
    """Load and verify a model by folder, Hugging Face id or "organism". Raises InputError or RefusedError."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging as hf_logging

    wanted, place, source = parse_dtype(dtype), parse_device(device), _source(name)
    bar = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=wanted,
            attn_implementation=attention_for(config),
            use_safetensors=True,
            output_loading_info=True,
        )
        module, info = loaded
        for kind in ("missing_keys", "mismatched_keys"):  # transformers would leave them random, with a warning
            if bad := sorted(str(key) for key in info.get(kind) or ()):
                raise InputError(f"model {name!r}: {len(bad)} {kind.replace('_keys', '')} weights, {bad[0]} for one")
        tokenizer = load_tokenizer(source)
        print_ = folder_fingerprint(_folder(source))
    except CountersteerError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"cannot load model {name!r}: {reason or type(error).__name__}") from error
    finally:
        if bar:
            hf_logging.enable_progress_bar()
    module.eval().requires_grad_(False)
    return verified(module.to(place), tokenizer, name=name, print_=print_)


def verified(module: Any, tokenizer: Any, *, name: str = "in-memory", print_: str | None = None) -> LoadedModel:
    """Wrap a model that is already in memory, after verifying its layers. Raises RefusedError or InputError.

    The model is put into evaluation mode; its parameters stay as trainable as they are.
    """
    training = tuple(part for part in module.modules() if part.training)
    module.eval()
    for key, value in module.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"model {name!r}: weight {key} holds NaN or infinite values")
    config = text_config(module)
    layers, width = find_layers(module), int(config.hidden_size)
    verify_layers(module, layers, width)
    first = next(module.parameters())
    return LoadedModel(
        name=name,
        module=module,
        layers=layers,
        tokenizer=tokenizer,
        fingerprint=print_ or module_fingerprint(module),
        dtype=first.dtype,
        device=first.device,
        d_model=width,
        vocab=int(config.vocab_size),
        max_positions=getattr(config, "max_position_embeddings", None),
        training=training,
    )
