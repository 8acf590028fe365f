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
_DECIDES_IF_GIVEN = ("layer_replication", "lora_bias", "target_parameters", "trainable_token_indices",
                     "exclude_modules", "alora_invocation_tokens")  # fmt: skip
"""Settings that decide as well, hashed only where they are set: so adapters without them keep their fingerprints."""


@dataclass(frozen=True)
class TextFacts:
    """What decides which tokens a conversation becomes: `tokenizer_hash` and `template_hash` as an engine describes
    them (None where a model has none), and the variation of the chat template (None: the template itself).
    """

    tokenizer_hash: str | None
    template_hash: str | None
    template: str | None = None

    def to_dict(self) -> dict[str, str]:
        """The two hashes, for a record; one that there is not is left out."""
        given = {"tokenizer_hash": self.tokenizer_hash, "template_hash": self.template_hash}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class AdapterRecord:
    """An adapter on disk: its fingerprint, the fingerprint of the model it was trained on, and facts (ratio, seed)."""

    folder: Path
    fingerprint: str
    model: str
    facts: Mapping[str, Any]

    @property
    def template(self) -> str | None:
        """The variation of the chat template that it was trained with, None for the template itself."""
        settings = self.facts.get("settings")
        given = settings.get("template") if isinstance(settings, Mapping) else None
        return None if given is None else str(given)

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
        kept |= {name: config[name] for name in _DECIDES_IF_GIVEN if config.get(name)}
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
    part.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(folder / RECORD)
    return AdapterRecord(folder, print_, model, data)


def write_merged(folder: Path, record: AdapterRecord, model: str, *, before: Mapping[str, Any] | None = None) -> None:
    """Say in a merged model's folder which adapter of which model went into it, and every prompt trained on.

    `before`: what the folder of `model` says of an adapter that it holds already (`read_merged`).
    """
    data: dict[str, Any] = {
        "model": model, "model_fingerprint": record.model, "adapter": record.fingerprint,
    }  # fmt: skip
    data |= {k: record.facts[k] for k in ("ratio", "seed") if k in record.facts}
    data |= trained_on(before or {}, record.facts)
    if before:
        data["before"] = {k: before[k] for k in ("model", "model_fingerprint", "adapter", "before") if k in before}
    (folder / MERGED).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def trained_on(*trainings: Mapping[str, Any]) -> dict[str, Any]:
    """`train_prompts` and `overlap` of several trainings of one model, by their facts; {} if none tells its prompts.

    `overlap` allows to measure on trained prompts, and holds for the prompts of its own training only: beside a
    training without it, they stand apart as `overlap_prompts`, and the rest stays refused.
    """
    told = [facts for facts in trainings if facts.get("train_prompts")]
    kept = {
        allowed: list(
            dict.fromkeys(p for facts in told if bool(facts.get("overlap")) == allowed for p in facts["train_prompts"])
        )
        for allowed in (False, True)
    }
    apart = [p for facts in trainings for p in facts.get("overlap_prompts") or ()] + (kept[True] if kept[False] else [])
    data: dict[str, Any] = {}
    if told:
        data = {"overlap": not kept[False], "train_prompts": kept[False] or kept[True]}
    return data | ({"overlap_prompts": list(dict.fromkeys(apart))} if apart else {})


def read_merged(folder: str | os.PathLike[str]) -> Mapping[str, Any]:
    """What a model's folder says of an adapter that was merged into it; empty for any other model."""
    try:
        data = json.loads((Path(folder).expanduser() / MERGED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def require_model(record: AdapterRecord, model: str, *, name: str, text: TextFacts | None = None) -> None:
    """Raise RefusedError unless the adapter was trained on the model with this fingerprint, and on its very text.

    `text`: the tokenizer and chat template that the adapter will meet. What an older adapter's record, or the model,
    does not tell is not compared.
    """
    if record.model != model:
        raise RefusedError(
            f"adapter {record.folder}",
            f"it was trained on another model ({record.model[:12]}) than {name} ({model[:12]})",
            "an adapter of this model, or the model that the adapter was trained on",
        )
    if text is not None:
        _require_text(record, text, name)


def _require_text(record: AdapterRecord, text: TextFacts, name: str) -> None:
    """Raise RefusedError for another tokenizer or chat template than that of the training."""
    trained = TextFacts(record.facts.get("tokenizer_hash"), record.facts.get("template_hash"), record.template)
    if None not in (trained.tokenizer_hash, text.tokenizer_hash) and trained.tokenizer_hash != text.tokenizer_hash:
        raise RefusedError(
            f"adapter {record.folder}",
            f"{name} has another tokenizer than the one it was trained with",
            "the tokenizer of the training, or an adapter that is trained with this one",
        )
    if None in (trained.template_hash, text.template_hash) or trained.template_hash == text.template_hash:
        return
    if trained.template != text.template:
        now, then = (_variation(facts.template) for facts in (text, trained))
        use = f"template = {trained.template!r} here too" if trained.template else "no template here either"
        raise RefusedError(
            f"adapter {record.folder}",
            f"{name} is sent {now}, but it was trained with {then}",
            f"{use} ([study] template, or `--template`), or an adapter that is trained with {now}",
        )
    raise RefusedError(
        f"adapter {record.folder}",
        f"the chat template of {name} is another than the one it was trained with",
        "the chat template of the training, or an adapter that is trained with this one",
    )


def _variation(template: str | None) -> str:
    return f"the chat template's variation {template!r}" if template else "the chat template itself"
