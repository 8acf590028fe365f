"""LoRA training with trl on exactly the trained tokens; interrupted, it goes on and ends with the same weights.

The data reaches trl as token ids and labels, and what trl makes of them is compared with them token by token before the
first step. An adapter folder appears whole or not at all: peft's two files and our record with the model's fingerprint.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint as digest
from countersteer.engines.embedded.adapter_record import (
    CONFIG,
    RECORD,
    WEIGHTS,
    AdapterRecord,
    read_adapter,
    require_model,
    write_merged,
    write_record,
)
from countersteer.engines.embedded.model import fingerprint_of, load_model, parse_device, parse_dtype
from countersteer.engines.embedded.text import tells_date
from countersteer.finetune.encode import Encoded, encode_all
from countersteer.finetune.examples import CORRECTION, Dataset, Example, require_new
from countersteer.finetune.mix import Mixture, check_ratios, mix, total_for
from countersteer.finetune.settings import TrainSettings
from countersteer.store.lock import FolderLock

__all__ = ["Base", "checkpoint", "fingerprint_of", "load_base", "make_trainer", "merge", "train", "train_all"]

log = logging.getLogger(__name__)
Progress = Callable[[int, int, float | None, float | None], None]
"""Called with steps done, steps in all, the latest loss, and the latest loss on the validation examples."""
STATE, NOTE = "training", "plan.json"
_NEEDED = "fine-tuning needs trl and peft, which are not installed; pip install 'countersteer[finetune]'"


@dataclass(frozen=True)
class Base:
    """A model to be trained: verified module and tokenizer, its name and its fingerprint."""

    module: Any
    tokenizer: Any
    name: str
    fingerprint: str


def load_base(name: str, settings: TrainSettings) -> Base:
    """The model of a name, a folder or "organism", as the engine loads it. Raises InputError."""
    dtype = settings.dtype or ("bfloat16" if parse_device(settings.device).type == "cuda" else "float32")
    model = load_model(name, dtype=dtype, device=settings.device)
    return Base(model.module, model.tokenizer, name, model.fingerprint)


def adapter_name(ratio: float, seed: int) -> str:
    """The folder name of an adapter among others."""
    return f"ratio-{ratio:g}-seed-{seed}"


def train_all(
    base: Callable[[], Base], data: Dataset, out: str | Path, *, ratios: Sequence[float], seeds: Sequence[int] = (0,),
    settings: TrainSettings | None = None, steering: Callable[[Example], Any] | None = None,
    progress: Callable[[str], Progress | None] | None = None, fingerprint: str | None = None,
) -> list[AdapterRecord]:  # fmt: skip
    """One adapter per ratio and seed, in `out`/ratio-R-seed-S; those that are there are kept. Raises InputError.

    `base` gives a fresh model each time. `steering`: the intervention that an example is trained under, or None.
    `fingerprint`: that of the model, which finished adapters are compared with; without it the model is loaded for it.
    """
    settings = settings or TrainSettings()
    total = settings.total or total_for(data, check_ratios(ratios))
    wanted = [
        (seed, adapter_name(ratio, seed), mix(data, ratio, total=total, seed=seed, validation=settings.validation))
        for seed in dict.fromkeys(seeds)
        for ratio in check_ratios(ratios)
    ]  # all mixtures first: one that cannot be made is refused before anything is trained
    done = []
    for seed, name, mixture in wanted:
        watch = None if progress is None else progress(name)
        done.append(
            train(base, mixture, Path(out) / name, data=data, seed=seed, settings=settings, steering=steering,
                  progress=watch, fingerprint=fingerprint)
        )  # fmt: skip
    return done


def train(
    base: Callable[[], Base], mixture: Mixture, out: Path, *, data: Dataset, seed: int = 0,
    settings: TrainSettings | None = None, steering: Callable[[Example], Any] | None = None,
    progress: Progress | None = None, fingerprint: str | None = None,
) -> AdapterRecord:  # fmt: skip
    """Train one adapter into `out`, or go on where it was interrupted; a finished one of the same plan is returned.

    Raises InputError for a folder of another plan, for data that cannot be encoded, and where trl is missing.
    """
    settings = settings or TrainSettings()
    if not mixture.train:
        raise InputError("there is no example to train on; give more data, or validation = 0")
    steered = [None if steering is None else steering(e) for e in (*mixture.train, *mixture.validation)]
    interventions = steered[: len(mixture.train)]
    plan = digest({
        "data": data.digest, "ratio": mixture.ratio, "seed": seed, "settings": settings.decisive,
        "train": [e.to_dict() for e in mixture.train], "validation": [e.to_dict() for e in mixture.validation],
        "steering": [None if s is None else s.fingerprint for s in interventions],
    })  # fmt: skip
    if (out / RECORD).is_file():
        record = read_adapter(out)
        if record.facts.get("plan") != plan:
            raise InputError(f"{out} holds an adapter of other data or settings; choose another folder")
        if record.model != (fingerprint or base().fingerprint):
            raise InputError(f"{out} holds an adapter of another model; choose another folder")
        shutil.rmtree(out / STATE, ignore_errors=True)  # killed after the record was written
        return record
    model = base()
    state, ours = out / STATE, {"plan": plan, "model": model.fingerprint}
    day = _day(state, ours)
    encode = functools.partial(encode_all, tokenizer=model.tokenizer, max_length=settings.max_length,
                               template=settings.template, date=day)  # fmt: skip
    examples, held = encode(mixture.train), encode(mixture.validation)  # refused before anything is written
    lock = _claim(state, {**ours, "date": day})
    try:
        result = _fit(model, examples, held, steered, state, seed=seed, settings=settings, progress=progress)
        _save(result.pop("model"), out, model.name)
        if tells_date(model.tokenizer):
            result["date"] = day
        record = _recorded(model, mixture, out, data, seed, settings, plan, examples, held, interventions, result)
    finally:
        lock.release()
    shutil.rmtree(state)
    return record


def _recorded(
    model: Base, mixture: Mixture, out: Path, data: Dataset, seed: int, settings: TrainSettings, plan: str,
    examples: Sequence[Encoded], held: Sequence[Encoded], interventions: Sequence[Any], result: dict[str, Any],
) -> AdapterRecord:  # fmt: skip
    """Write the record of a finished adapter, the last of its files."""
    facts = {
        "model": model.name, "ratio": mixture.ratio, "seed": seed, "examples": len(mixture.train),
        "corrections": sum(e.kind == CORRECTION for e in mixture.train), "validation_examples": len(held),
        "trained_tokens": sum(e.trained for e in examples), "data": data.digest, "plan": plan, **result,
        "settings": settings.decisive, "steered": sum(s is not None for s in interventions),
        "overlap": data.overlap, "train_prompts": list(data.train),
    }  # fmt: skip
    return write_record(out, model=model.fingerprint, facts=facts)


def _day(state: Path, ours: dict[str, str]) -> str:
    """The day that a training began, for templates that tell the date. Raises InputError for another training's."""
    try:
        kept = json.loads((state / NOTE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return date.today().isoformat()
    if {name: kept.get(name) for name in ours} != ours:
        raise InputError(f"{state.parent} holds an unfinished training of other data or settings; remove it")
    return str(kept["date"])


def _claim(state: Path, note: dict[str, str]) -> FolderLock:
    """Lock the folder of an unfinished training, and note whose it is. Raises InputError."""
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write the adapter to {state.parent}: {error.strerror}") from error
    lock = FolderLock(state)
    part = state / (NOTE + ".part")
    part.write_text(json.dumps(note), encoding="utf-8")
    part.replace(state / NOTE)
    return lock


def checkpoint(state: Path) -> Path | None:
    """The newest whole checkpoint; half-written ones (an interruption while saving) are removed."""
    found = sorted(state.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    for place in reversed(found):
        try:
            json.loads((place / "trainer_state.json").read_text(encoding="utf-8"))  # written last
            return place
        except (OSError, ValueError):
            shutil.rmtree(place)
    return None


def _fit(
    base: Base, examples: Sequence[Encoded], held: Sequence[Encoded], interventions: Sequence[Any], state: Path, *,
    seed: int, settings: TrainSettings, progress: Progress | None,
) -> dict[str, Any]:  # fmt: skip
    """Run trl's trainer; the trained peft model and what was measured."""
    from countersteer.finetune.steer import TrainingSteer

    trainer = make_trainer(base, examples, held, state, seed=seed, settings=settings, progress=progress)
    resume = checkpoint(state)
    if any(given is not None for given in interventions):
        trainer.steer = TrainingSteer(base.module, interventions)
        trainer.steer.require([(e.prompt_tokens, len(e.ids)) for e in (*examples, *held)])
        if resume is not None:
            trainer.steer.go_on(json.loads((resume / "steered.json").read_text(encoding="utf-8")))
    try:
        outcome = trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        validation = round(float(trainer.evaluate()["eval_loss"]), 4) if held else None
    finally:
        if trainer.steer is not None:
            trainer.steer.close()
    loss = float(outcome.training_loss)
    if not math.isfinite(loss):
        raise InputError("training diverged (the loss is not a number); lower the learning rate")
    losses = [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]
    found: dict[str, Any] = {
        "model": trainer.model, "steps": int(trainer.state.global_step),
        "loss": round(losses[-1][1], 4) if losses else round(loss, 4),
        "losses": [[int(step), round(float(value), 4)] for step, value in losses],
        "validation_loss": validation,
    }  # fmt: skip
    if trainer.steer is not None:
        found["steering"] = trainer.steer.receipts()
    return found


def make_trainer(
    base: Base, examples: Sequence[Encoded], held: Sequence[Encoded], state: Path, *, seed: int,
    settings: TrainSettings, progress: Progress | None = None,
) -> Any:  # fmt: skip
    """trl's trainer over encoded examples, its batches compared with them token by token. Raises InputError."""
    try:
        from countersteer.finetune.trainer import build
    except ImportError as error:
        raise InputError(_NEEDED) from error
    return build(base, examples, held, state, seed=seed, settings=settings, progress=progress)


def _save(model: Any, out: Path, name: str) -> None:
    """Write peft's two files, without the local path of the model."""
    part = out / (STATE + "-adapter")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(str(part), safe_serialization=True)
    config = json.loads((part / CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = name
    (out / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (part / WEIGHTS).replace(out / WEIGHTS)
    shutil.rmtree(part)


def merge(base: Base, adapter: str | Path, out: str | Path, *, dtype: str | None = None) -> Path:
    """Write the model with an adapter merged into its weights, as an ordinary model folder. Raises InputError.

    `dtype`: what the weights are stored in (default: what the base was loaded in). The folder says which adapter it
    holds and which prompts that was trained on, so that a study still refuses to measure it on them.
    """
    record = read_adapter(adapter)
    require_model(record, base.fingerprint, name=base.name)
    place = require_new(out)
    try:
        from peft import PeftModel

        from countersteer.finetune.trainer import quiet
    except ImportError as error:
        raise InputError(_NEEDED) from error
    part = place.with_name(place.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with quiet():
        wrapped = PeftModel.from_pretrained(base.module, str(record.folder), autocast_adapter_dtype=False)
        merged = wrapped.merge_and_unload()
        if dtype is not None:
            merged = merged.to(parse_dtype(dtype))
        merged.save_pretrained(str(part), safe_serialization=True)
        base.tokenizer.save_pretrained(str(part))
    write_merged(part, record, base.name)
    part.replace(place)
    return place
