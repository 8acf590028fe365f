"""What an adapter folder says of itself: peft's files, and a record of the model it belongs to and how it was made.

The adapter's fingerprint is the hash of its weights and of those settings that decide what they do; it is in the key of
every trial made with it. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from countersteer import organism
from countersteer.core.errors import InputError, RefusedError
from countersteer.core.fingerprint import canonical

RECORD = "countersteer.json"
MERGED = "countersteer-merged.json"
"""In the folder of a model that an adapter was merged into."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_DECIDES = ("peft_type", "r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "fan_in_fan_out", "bias",
            "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "layers_pattern")  # fmt: skip


@dataclass(frozen=True)
class AdapterRecord:
    """An adapter on disk: its fingerprint, the fingerprint of the model it was trained on, and facts (ratio, seed)."""

    folder: Path
    fingerprint: str
    model: str
    facts: Mapping[str, Any]

    def described(self) -> dict[str, Any]:
        """Plain data for a run: fingerprint, and what is worth knowing of how it was made."""
        kept = ("ratio", "seed", "examples", "corrections", "steps", "loss", "validation_loss", "data")
        return {"fingerprint": self.fingerprint, **{k: self.facts[k] for k in kept if self.facts.get(k) is not None}}


def adapter_fingerprint(folder: Path) -> str:
    """Hash of an adapter's weights and deciding settings. Raises InputError."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        digest = hashlib.blake2b(digest_size=16)
        kept = {name: config.get(name) for name in _DECIDES}
        if isinstance(kept["target_modules"], list):
            kept["target_modules"] = sorted(kept["target_modules"])
        digest.update(canonical(kept).encode())
        with open(folder / WEIGHTS, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except (OSError, ValueError, AttributeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{folder} is no adapter ({why}); it needs {CONFIG} and {WEIGHTS}") from error
    return digest.hexdigest()


def read_adapter(folder: str | os.PathLike[str]) -> AdapterRecord:
    """The record of an adapter: a folder, or a shipped one's name (`organism.ADAPTERS`).

    Raises InputError for none, RefusedError for one that names no model.
    """
    shipped = str(folder) in organism.ADAPTERS
    place = organism.adapter_path(str(folder)) if shipped else Path(folder).expanduser()
    print_ = adapter_fingerprint(place)
    try:
        record = json.loads((place / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("model_fingerprint"), str):
        raise RefusedError(
            f"adapter {place}",
            f"it has no {RECORD} that says which model it was trained on, so a wrong one could not be told",
            "merge it into its model with peft and give the merged folder as model",
        )
    if record.get("fingerprint") not in (None, print_):
        raise InputError(f"adapter {place} was changed after it was trained: its weights do not fit its {RECORD}")
    return AdapterRecord(place, print_, record["model_fingerprint"], record)


def write_record(folder: Path, *, model: str, facts: Mapping[str, Any]) -> AdapterRecord:
    """Write the record of a finished adapter: `model` is the fingerprint of the model it was trained on."""
    print_ = adapter_fingerprint(folder)
    data = {"fingerprint": print_, "model_fingerprint": model, **facts}
    part = folder / (RECORD + ".part")
    part.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(folder / RECORD)
    return AdapterRecord(folder, print_, model, data)


def write_merged(folder: Path, record: AdapterRecord, model: str) -> None:
    """Say in a merged model's folder which adapter of which model went into it."""
    data = {"model": model, "model_fingerprint": record.model, "adapter": record.fingerprint}
    data |= {k: record.facts[k] for k in ("ratio", "seed", "overlap", "train_prompts") if k in record.facts}
    (folder / MERGED).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_merged(folder: str | os.PathLike[str]) -> Mapping[str, Any]:
    """What a model's folder says of an adapter that was merged into it; empty for any other model."""
    try:
        data = json.loads((Path(folder).expanduser() / MERGED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def require_model(record: AdapterRecord, model: str, *, name: str) -> None:
    """Raise RefusedError unless the adapter was trained on the model with this fingerprint."""
    if record.model != model:
        raise RefusedError(
            f"adapter {record.folder}",
            f"it was trained on another model ({record.model[:12]}) than {name} ({model[:12]})",
            "an adapter of this model, or the model that the adapter was trained on",
        )
