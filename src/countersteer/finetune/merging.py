"""Writing a model with an adapter merged into its weights, as an ordinary model folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from countersteer import organism
from countersteer.core.errors import CountersteerError, InputError
from countersteer.engines.embedded.adapter import text_facts
from countersteer.engines.embedded.adapter_record import (
    AdapterRecord,
    read_adapter,
    read_merged,
    require_model,
    write_merged,
)
from countersteer.engines.embedded.model import parse_dtype
from countersteer.finetune.examples import require_new
from countersteer.finetune.health import saving

if TYPE_CHECKING:
    from countersteer.finetune.training import Base

NEEDED = "fine-tuning needs trl and peft, which are not installed; pip install 'countersteer[finetune]'"


def check_merge(
    adapter: str | Path, out: str | Path, *, dtype: str | None = None
) -> tuple[AdapterRecord, Path]:  # fmt: skip
    """The adapter's record and the place of the merged model, before a model is loaded. Raises InputError."""
    record = read_adapter(adapter)
    if dtype is not None:
        parse_dtype(dtype)
    return record, require_new(os.path.abspath(out))


def earlier(name: str) -> dict[str, Any]:
    """What the model of this name says of adapters that were merged into it; {} for any other model."""
    return {} if name in organism.SHIPPED else dict(read_merged(name))


def merge(base: Base, adapter: str | Path, out: str | Path, *, dtype: str | None = None) -> Path:
    """Write the model with an adapter merged into its weights, as an ordinary model folder. Raises InputError, and
    StoreError where the disk takes no more.

    `dtype`: what the weights are stored in (default: what the base was loaded in). The folder says which adapter it
    holds and which prompts that, and any merged before it, was trained on: a study still refuses to measure it on them.
    """
    record, place = check_merge(adapter, out, dtype=dtype)
    if base.tokenizer is None:
        raise InputError(f"model {base.name} has no tokenizer, so a merged one could not be used; add its files first")
    text = text_facts(base.tokenizer, record.template)
    require_model(record, base.fingerprint, name=base.name, text=text)
    part = place.with_name(place.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with saving(part):
            _write(base, record, part, dtype)
            _put(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Path(out)


def _write(base: Base, record: AdapterRecord, part: Path, dtype: str | None) -> None:
    """Write the merged model. Raises InputError where peft is missing or cannot load the adapter."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise InputError(NEEDED) from error
    from countersteer.finetune.quiet import quiet

    with quiet():
        try:
            wrapped = PeftModel.from_pretrained(base.module, str(record.folder), autocast_adapter_dtype=False)
            merged: Any = wrapped.merge_and_unload()
        except CountersteerError:
            raise
        except Exception as error:  # peft and safetensors raise many kinds
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"cannot merge adapter {record.folder}: {reason}") from error
        if dtype is not None:
            merged = merged.to(parse_dtype(dtype))
        merged.save_pretrained(str(part), safe_serialization=True)
        base.tokenizer.save_pretrained(str(part))
    write_merged(part, record, base.name, before=earlier(base.name))


def _put(part: Path, place: Path) -> None:
    """Give a finished folder its name. One that is there already, and empty, stays the same folder (a shell may stand
    in it): the files move into it, the configuration last, without which it is no model."""
    if not place.exists():
        part.replace(place)
        return
    for file in sorted(part.iterdir(), key=lambda file: file.name == "config.json"):
        file.replace(place / file.name)
