"""LoRA adapters on vLLM: the folders that the embedded engine takes, as vLLM's own LoRA requests.

vLLM keeps every adapter of the engine beside the weights and runs requests with different ones in one batch, steered
and not. An adapter of another model is refused, as everywhere.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from countersteer.core.errors import InputError, RefusedError
from countersteer.engines.embedded.adapter_record import CONFIG, AdapterRecord, TextFacts, read_adapter, require_model

log = logging.getLogger(__name__)
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM can make room for."""
EVERY = "every request"
"""The name of an adapter that is under every request."""


@dataclass(frozen=True)
class Adapter:
    """An adapter that is loaded: its record and vLLM's form of it."""

    record: AdapterRecord
    lora: Any


def read_adapters(folders: Mapping[str, str | os.PathLike[str]]) -> dict[str, AdapterRecord]:
    """The records of adapter folders, or shipped adapters, by name. Raises InputError for one that is none."""
    records = {name: read_adapter(folder) for name, folder in folders.items()}
    return {name: replace(record, folder=record.folder.resolve()) for name, record in records.items()}


def lora_options(records: Mapping[str, AdapterRecord]) -> dict[str, Any]:
    """vLLM's options that make room for these adapters, all of them in one batch. Raises InputError, RefusedError.

    On a CPU with a place to spare: in a mixed batch vLLM 0.32's CPU kernels give whatever lies in the last place to
    requests without an adapter (they index the places with -1). An empty place adds nothing.
    """
    if not records:
        return {}
    import torch

    spare = 0 if torch.cuda.is_available() else 1
    needed = max(map(_rank, records.values()))
    room = [rank for rank in RANKS if rank >= needed]
    if not room:
        raise RefusedError(f"an adapter of rank {needed}", f"vLLM has room for {RANKS[-1]}", "merging it")
    return {"enable_lora": True, "max_loras": len(records) + spare, "max_lora_rank": room[0]}


def _rank(record: AdapterRecord) -> int:
    """The largest rank of an adapter's matrices. Raises InputError or RefusedError for what vLLM does not run."""
    config = json.loads((record.folder / CONFIG).read_text(encoding="utf-8"))
    for key, what in (("use_dora", "DoRA"), ("modules_to_save", "whole modules of its own")):
        if config.get(key):
            raise RefusedError(f"adapter {record.folder} on vLLM", f"it has {what}", "merging it into the weights")
    if config.get("bias") not in (None, "none"):
        raise RefusedError(f"adapter {record.folder} on vLLM", "it has biases", "merging it into the weights")
    try:
        return max(int(config["r"]), *(int(r) for r in (config.get("rank_pattern") or {}).values()), 1)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"adapter {record.folder}: its {CONFIG} names no rank") from error


async def load_adapters(
    llm: Any, records: Mapping[str, AdapterRecord], *, model: str, name: str, text: TextFacts | None = None
) -> dict[str, Adapter]:  # fmt: skip
    """Load adapters into a running vLLM. Raises RefusedError for another model's, InputError if vLLM cannot load one.

    `model`: the fingerprint of the model, `name` its name; `text`: its tokenizer and chat template.
    """
    from vllm.lora.request import LoRARequest

    out: dict[str, Adapter] = {}
    for number, (key, record) in enumerate(records.items(), start=1):
        require_model(record, model, name=name, text=text)
        lora = LoRARequest(key, number, str(record.folder))
        try:
            await llm.add_lora(lora)
        except Exception as error:  # vLLM raises many kinds, across processes
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"vLLM cannot load adapter {record.folder}: {reason}") from error
        out[key] = Adapter(record, lora)
    return out


def served_adapters(
    loras: Mapping[str, Any], *, model: str, name: str, text: TextFacts | None = None
) -> dict[str, Adapter]:  # fmt: skip
    """The adapters of a server that say what they are; others answer ordinary requests only.

    `loras`: vLLM's LoRA requests by name. Raises RefusedError for one that was trained on another model, or with
    another tokenizer or chat template than `text`.
    """
    out: dict[str, Adapter] = {}
    for key, lora in loras.items():
        try:
            record = read_adapter(lora.lora_path)
        except (InputError, RefusedError) as error:
            log.warning("adapter %s is served to ordinary requests only: %s", key, error)
            continue
        require_model(record, model, name=name, text=text)
        out[key] = Adapter(record, lora)
    return out
