"""LoRA training with trl on exactly the trained tokens; interrupted, it goes on and ends with the same weights.

The data reaches trl as token ids and labels, and what trl makes of them is compared with them token by token before the
first step. An adapter folder appears whole or not at all: peft's two files and our record with the model's fingerprint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from countersteer import organism
from countersteer.core.errors import InputError
from countersteer.engines.embedded.adapter import text_facts
from countersteer.engines.embedded.adapter_record import (
    CONFIG,
    RECORD,
    WEIGHTS,
    AdapterRecord,
    TextFacts,
    read_adapter,
    require_model,
    trained_on,
    write_record,
)
from countersteer.engines.embedded.layers import text_config
from countersteer.engines.embedded.model import fingerprint_of, load_model, parse_device
from countersteer.engines.embedded.text import load_tokenizer, tells_date
from countersteer.finetune.encode import Encoded, encode_all
from countersteer.finetune.examples import CORRECTION, Dataset, Example
from countersteer.finetune.health import DivergedError, require_weights, saving
from countersteer.finetune.merging import NEEDED, earlier, merge
from countersteer.finetune.mix import Mixture, check_ratios, mix, total_for
from countersteer.finetune.plan import Plan, require_room, tell_totals
from countersteer.finetune.quiet import quiet
from countersteer.finetune.settings import TrainSettings, check_seeds
from countersteer.store.lock import FolderLock

__all__ = ["Base", "checkpoint", "fingerprint_of", "load_base", "make_trainer", "merge", "text_of", "train",
           "train_all"]  # fmt: skip

log = logging.getLogger(__name__)
Progress = Callable[[int, int, float | None, float | None], None]
"""Called with steps done, steps in all, the latest loss, and the latest loss on the validation examples."""
STATE, DONE, NOTE = "training", "training-done", "plan.json"


@dataclass(frozen=True)
class Base:
    """A model to be trained: verified module and tokenizer, its name and its fingerprint."""

    module: Any
    tokenizer: Any
    name: str
    fingerprint: str


def load_base(name: str, settings: TrainSettings) -> Base:
    """The model of a name, a folder or "organism", as the engine loads it. Raises InputError."""
    parse_device(settings.device)
    model = load_model(name, dtype=settings.weights, device=settings.device)
    return Base(model.module, model.tokenizer, name, model.fingerprint)


def text_of(name: str, template: str | None = None) -> TextFacts:
    """The tokenizer and chat template of a model's name, which finished adapters are compared with."""
    source = str(organism.path(name)) if name in organism.SHIPPED else str(Path(name).expanduser())
    return text_facts(load_tokenizer(source), template)


def adapter_name(ratio: float, seed: int) -> str:
    """The folder name of an adapter among others."""
    return f"ratio-{ratio:g}-seed-{seed}"


def train_all(
    base: Callable[[], Base], data: Dataset, out: str | Path, *, ratios: Sequence[float], seeds: Sequence[int] = (0,),
    settings: TrainSettings | None = None, steering: Callable[[Example], Any] | None = None,
    progress: Callable[[str], Progress | None] | None = None, fingerprint: str | None = None,
    text: TextFacts | None = None,
) -> list[AdapterRecord]:  # fmt: skip
    """One adapter per ratio and seed, in `out`/ratio-R-seed-S; those that are there are kept. Raises InputError.

    `base` gives a fresh model each time. `steering`: the intervention that an example is trained under, or None.
    `fingerprint`, `text`: of the model (`fingerprint_of`, `text_of`), which finished adapters are compared with.
    Without the first the model is loaded for it; without the second, tokenizer and template are not compared.
    """
    settings = settings or TrainSettings()
    check_seeds(seeds)
    total = settings.total or total_for(data, check_ratios(ratios))
    wanted = [
        (seed, adapter_name(ratio, seed), mix(data, ratio, total=total, seed=seed, validation=settings.validation))
        for seed in dict.fromkeys(seeds)
        for ratio in check_ratios(ratios)
    ]  # all mixtures first: one that cannot be made is refused before anything is trained
    if settings.total is None:
        tell_totals(Path(out), {name for _, name, _ in wanted}, total, data)
    done = []
    for seed, name, mixture in wanted:
        watch = None if progress is None else progress(name)
        done.append(
            train(base, mixture, Path(out) / name, data=data, seed=seed, settings=settings, steering=steering,
                  progress=watch, fingerprint=fingerprint, text=text)
        )  # fmt: skip
    return done


def train(
    base: Callable[[], Base], mixture: Mixture, out: Path, *, data: Dataset, seed: int = 0,
    settings: TrainSettings | None = None, steering: Callable[[Example], Any] | None = None,
    progress: Progress | None = None, fingerprint: str | None = None, text: TextFacts | None = None,
) -> AdapterRecord:  # fmt: skip
    """Train one adapter into `out`, or go on where it was interrupted; a finished one of the same plan is returned.

    Raises InputError for a folder of another plan, for data that cannot be encoded, for a training that diverges, and
    where trl is missing; StoreError where the disk takes no more.
    """
    settings = settings or TrainSettings()
    check_seeds([seed])
    if not mixture.train:
        raise InputError("there is no example to train on; give more data, or validation = 0")
    steered = [None if steering is None else steering(e) for e in (*mixture.train, *mixture.validation)]
    interventions = steered[: len(mixture.train)]
    plan = Plan(mixture, data, seed, settings, interventions)
    if (out / RECORD).is_file():
        return _finished(out, plan, fingerprint or (lambda: base().fingerprint), text)
    model = base()
    text = text_facts(model.tokenizer, settings.template)
    state = out / STATE
    ours = {"plan": plan.digest, "model": model.fingerprint, "dtype": settings.weights, **text.to_dict()}
    day = _day(state, ours, plan)
    examples, held = _encoded(model, mixture, settings, day)  # refused before anything is written
    lock = _claim(state, {**ours, "date": day})
    try:
        if (out / RECORD).is_file():  # another process has just finished it
            return _finished(out, plan, model.fingerprint, text)
        result = _fit(model, examples, held, steered, state, seed=seed, settings=settings, progress=progress)
        with saving(out):
            _save(result.pop("model"), out, model.name)
            if tells_date(model.tokenizer):
                result["date"] = day
            record = _recorded(model, out, plan, text, examples, held, result)
        _remove(state)
    except DivergedError:
        _remove(state)  # the same plan would diverge again, and another one could not use it
        with contextlib.suppress(OSError):
            out.rmdir()
        raise
    finally:
        lock.release()
    return record


def _finished(out: Path, plan: Plan, model: str | Callable[[], str], text: TextFacts | None) -> AdapterRecord:
    """The record of a finished adapter. Raises InputError unless it is of this plan, model, tokenizer and template."""
    record = read_adapter(out)
    if not plan.is_that_of(record.facts):
        why = plan.differs(record.facts)
        raise InputError(
            f"{out} holds an adapter of other data or settings{f' ({why})' if why else ''}; choose another folder"
        )
    wanted = model if isinstance(model, str) else model()
    if record.model != wanted:
        raise InputError(f"{out} holds an adapter of another model; choose another folder")
    require_model(record, wanted, name="the model", text=text)
    if record.facts.get("dtype") not in (None, plan.settings.weights):
        log.warning(
            "%s was trained in %s, which is not this machine's default (%s)",
            out, record.facts["dtype"], plan.settings.weights,
        )  # fmt: skip
    for left in (STATE, DONE):  # killed after the record was written
        shutil.rmtree(out / left, ignore_errors=True)
    return record


def _remove(state: Path) -> None:
    """Remove a folder of checkpoints while it is locked: it loses its name first, so that nobody can lock it again."""
    done = state.with_name(DONE)
    shutil.rmtree(done, ignore_errors=True)
    with contextlib.suppress(OSError):
        state.rename(done)
    for place in (done, state):
        shutil.rmtree(place, ignore_errors=True)


def _encoded(
    model: Base, mixture: Mixture, settings: TrainSettings, day: str
) -> tuple[list[Encoded], list[Encoded]]:  # fmt: skip
    """The examples of training and validation as tokens. Raises InputError for one that the model has no room for."""
    with quiet():
        examples, held = (
            encode_all(part, tokenizer=model.tokenizer, max_length=settings.max_length, template=settings.template,
                       date=day)
            for part in (mixture.train, mixture.validation)
        )  # fmt: skip
    require_room(
        [*examples, *held], [*mixture.train, *mixture.validation],
        getattr(text_config(model.module), "max_position_embeddings", None),
    )  # fmt: skip
    return examples, held


def _recorded(
    model: Base, out: Path, plan: Plan, text: TextFacts, examples: Sequence[Encoded], held: Sequence[Encoded],
    result: dict[str, Any],
) -> AdapterRecord:  # fmt: skip
    """Write the record of a finished adapter, the last of its files."""
    mixture, data = plan.mixture, plan.data
    prompts = trained_on(earlier(model.name), {"overlap": data.overlap, "train_prompts": list(data.train)})
    facts = {
        "model": model.name, "ratio": mixture.ratio, "seed": plan.seed, "examples": len(mixture.train),
        "corrections": sum(e.kind == CORRECTION for e in mixture.train), "validation_examples": len(held),
        "trained_tokens": sum(e.trained for e in examples), "data": data.digest, "plan": plan.digest, **result,
        "settings": plan.settings.decisive, "dtype": plan.settings.weights,
        "steered": sum(s is not None for s in plan.interventions), **text.to_dict(), **prompts,
    }  # fmt: skip
    return write_record(out, model=model.fingerprint, facts=facts)


def _day(state: Path, ours: dict[str, str], plan: Plan) -> str:
    """The day that a training began, for templates that tell the date. Raises InputError for another training's."""
    try:
        kept = json.loads((state / NOTE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return date.today().isoformat()
    if not plan.is_that_of(kept) or any(
        kept.get(name, value) != value for name, value in ours.items() if name != "plan"
    ):
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
    try:
        with saving(state):
            part.write_text(json.dumps(note), encoding="utf-8")
            part.replace(state / NOTE)
    except BaseException:
        lock.release()
        raise
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
        with quiet():
            outcome = trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        require_weights(trainer.model)
        validation = round(float(trainer.evaluate()["eval_loss"]), 4) if held else None
    finally:
        if trainer.steer is not None:
            trainer.steer.close()
    loss = float(outcome.training_loss)
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
        raise InputError(NEEDED) from error
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
