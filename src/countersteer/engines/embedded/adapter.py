"""LoRA adapters in the embedded engine: a second set of layers over the same weights, one per adapter, through peft.

The base model's tensors are shared, so an adapter costs its own matrices and the caches of its batch. An adapter of
another model is refused. The adapter stays unmerged: a forward is the one that it was trained with.
"""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint
from countersteer.engines.embedded.adapter_record import CONFIG, AdapterRecord, TextFacts, read_adapter, require_model
from countersteer.engines.embedded.fingerprint import tokenizer_fingerprint
from countersteer.engines.embedded.model import LoadedModel, verified


def shared_copy(module: nn.Module, *, biases: bool = True) -> Any:
    """A copy of a module's structure whose parameters and buffers are the very tensors of the original; no hooks.

    biases: whether the biases are the original's too; False gives them copies, for an adapter that brings its own.
    """
    parameters = (p for n, p in module.named_parameters() if biases or not n.endswith("bias"))
    memo: dict[int, Any] = {id(t): t for t in (*parameters, *module.buffers())}
    made = copy.deepcopy(module, memo)
    for part in made.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs",
                      "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called"):  # fmt: skip
            getattr(part, hooks).clear()
        for name in [n for n in part.__dict__ if n.startswith("_countersteer")]:
            del part.__dict__[name]
    return made


def text_facts(tokenizer: Any, template: str | None) -> TextFacts:
    """What decides which tokens a conversation becomes, as an engine with this tokenizer describes it."""
    chat = getattr(tokenizer, "chat_template", None)
    return TextFacts(
        None if tokenizer is None else tokenizer_fingerprint(tokenizer),
        fingerprint([chat, template] if template else chat) if chat else None,
        template,
    )


def _text(model: LoadedModel) -> TextFacts:
    return TextFacts(model.tokenizer_hash, model.template_hash, model.template)


def adapted(model: LoadedModel, folder: str | os.PathLike[str]) -> LoadedModel:
    """`model` with an adapter on it, verified like any model. Raises InputError or RefusedError."""
    record = read_adapter(folder)
    require_model(record, model.fingerprint, name=model.name, text=_text(model))
    if model.adapter is not None:
        raise InputError(f"model {model.name} carries an adapter already; give one")
    try:
        from peft import PeftModel
    except ImportError:
        raise InputError("adapters need peft, which is not installed; pip install 'countersteer[finetune]'") from None
    try:
        copied = shared_copy(model.module, biases=not _has_biases(record))
        wrapped: Any = PeftModel.from_pretrained(
            copied, str(record.folder), is_trainable=False, autocast_adapter_dtype=False
        )
    except Exception as error:  # peft and safetensors raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot load adapter {record.folder}: {reason or type(error).__name__}") from error
    module = wrapped.get_base_model()
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(model.device, model.dtype)
    made = verified(module, model.tokenizer, name=model.name, print_=model.fingerprint)
    return replace(made, adapter=record.fingerprint, template=model.template, date=model.date)


def _has_biases(record: AdapterRecord) -> bool:
    """Whether an adapter brings the model's biases with it: peft writes them over those of the model."""
    config = json.loads((record.folder / CONFIG).read_text(encoding="utf-8"))
    return config.get("bias") not in (None, "none")


class Adapters:
    """The adapters that requests may name, each with an engine of its own that is made on first use."""

    def __init__(self, model: LoadedModel, folders: Mapping[str, str | os.PathLike[str]],
                 make: Callable[[LoadedModel], Any]) -> None:  # fmt: skip
        """Every adapter is read and checked against the model at once. Raises InputError or RefusedError."""
        self.records: dict[str, AdapterRecord] = {}
        for name, folder in folders.items():
            record = read_adapter(folder)
            require_model(record, model.fingerprint, name=model.name, text=_text(model))
            self.records[name] = record
        self._model, self._make = model, make
        self._engines: dict[str, Any] = {}
        self._lock = threading.Lock()

    def engine(self, name: str) -> Any:
        """The engine of an adapter. Raises InputError for one that was not loaded."""
        if name not in self.records:
            known = ", ".join(self.records) or "none"
            raise InputError(f"adapter {name!r} is not loaded (loaded: {known}); give it to load_engine(adapters=...)")
        with self._lock:  # two threads that use it first make one engine
            if name not in self._engines:
                self._engines[name] = self._make(adapted(self._model, self.records[name].folder))
            return self._engines[name]

    def described(self) -> dict[str, Any]:
        """Plain facts by name."""
        return {name: record.described() for name, record in self.records.items()}

    def close(self) -> None:
        """Close every engine that was made."""
        with self._lock:
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()
