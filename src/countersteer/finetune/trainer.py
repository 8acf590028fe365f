"""trl's SFTTrainer over token ids and labels made here: its settings, and a check of what it trains on."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from countersteer.core.errors import InputError
from countersteer.finetune.encode import IGNORED, Encoded
from countersteer.finetune.health import require_loss, saving
from countersteer.finetune.quiet import quiet
from countersteer.finetune.settings import TrainSettings

if TYPE_CHECKING:
    from countersteer.finetune.training import Base, Progress

log = logging.getLogger(__name__)
COLUMNS = ("input_ids", "labels", "example", "prompt_tokens")
"""What reaches the collator."""
STEERED = "steered.json"
"""In a checkpoint: what the steering did up to it."""


class _Collator:
    """trl's batches, plus which example each row is and how long its prompt is."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.inner(rows)
        batch["example"] = torch.tensor([row["example"] for row in rows])
        batch["prompt_tokens"] = torch.tensor([row["prompt_tokens"] for row in rows])
        return batch


class Trainer(SFTTrainer):
    """SFTTrainer that tells `steer` (if there is one) which rows come next, and writes no model card."""

    steer: Any = None

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss of trl, under the steering of each row where training is steered. Raises NoOpError."""
        examples, prompts = inputs.pop("example"), inputs.pop("prompt_tokens")
        if self.steer is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        lengths = inputs["attention_mask"].sum(1).tolist()
        self.steer.rows(examples.tolist(), prompts.tolist(), lengths)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.steer.check(count=model.training)
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """A step of trl. Raises DivergedError for a loss that is not a number."""
        loss = super().training_step(*args, **kwargs)
        require_loss(loss, f"the loss of step {self.state.global_step + 1}")
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """The losses of validation. Raises DivergedError for one that is not a number."""
        found = super().evaluate(*args, **kwargs)
        require_loss(found["eval_loss"], f"the validation loss after step {self.state.global_step}")
        return found

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """What the steering did so far belongs to a checkpoint; transformers writes its last file after it."""
        place = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with saving(place):
            if self.steer is not None:
                place.mkdir(parents=True, exist_ok=True)
                (place / STEERED).write_text(json.dumps(self.steer.totals), encoding="utf-8")
            super()._save_checkpoint(model, trial)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = list(COLUMNS)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No model card: the record beside the adapter says how it was made."""


class _Watch(TrainerCallback):
    """Passes steps and losses on."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.loss: float | None = None
        self.validation: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.loss = float(logs["loss"])
        if logs and "eval_loss" in logs:
            self.validation = float(logs["eval_loss"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for row in state.log_history:  # of the training that is gone on with
            self.on_log(args, state, control, row)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(int(state.global_step), int(state.max_steps), self.loss, self.validation)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.max_steps:
            self.progress(int(state.global_step), int(state.max_steps), self.loss, self.validation)


def build(
    base: Base, examples: Sequence[Encoded], held: Sequence[Encoded], state: Path, *, seed: int,
    settings: TrainSettings, progress: Progress | None,
) -> Trainer:  # fmt: skip
    """The trainer, with the paper's optimiser settings. Raises InputError if trl would train on other tokens."""
    with quiet():
        args = _arguments(base, len(examples), bool(held), state, seed=seed, settings=settings)
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    base.module.train()
    with quiet():
        trainer = Trainer(
            model=base.module,
            args=args,
            train_dataset=_rows(examples),
            eval_dataset=_rows(held, first=len(examples)) if held else None,
            processing_class=base.tokenizer,
            peft_config=lora,
            callbacks=[_Watch(progress)] if progress is not None else None,
        )
        for own in ("PrinterCallback", "ProgressCallback"):
            for callback in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == own]:
                trainer.remove_callback(callback)
    trainer.data_collator = _Collator(trainer.data_collator)
    both = [*examples, *held]
    _same(trainer, trainer.train_dataset, both, len(examples))
    if held:
        _same(trainer, trainer.eval_dataset, both, len(held))
    return trainer


def _arguments(
    base: Base, count: int, held: bool, state: Path, *, seed: int, settings: TrainSettings
) -> SFTConfig:  # fmt: skip
    """The settings as trl takes them, on one device: transformers would share a batch among all GPUs that it sees."""
    dtype = next(base.module.parameters()).dtype
    micro = settings.micro_batch or settings.batch
    steps = math.ceil(-(-count // settings.batch) * settings.epochs)
    if settings.warmup >= steps:
        log.warning(
            "%d warm-up steps and %d steps in all: the learning rate does not reach its peak; lower warmup",
            settings.warmup, steps,
        )  # fmt: skip
    args = SFTConfig(
        output_dir=str(state),
        seed=seed,
        data_seed=seed,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=settings.batch // micro,
        max_length=settings.max_length,
        bf16=dtype == torch.bfloat16,
        use_cpu=base.module.device.type == "cpu",
        gradient_checkpointing=settings.checkpointing,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        eval_strategy="epoch" if held else "no",
        prediction_loss_only=True,
        logging_nan_inf_filter=False,  # it replaces a loss that is not a number by the mean of those before
        logging_steps=max(1, min(10, steps // 10)),  # a short training shows losses as well
        report_to=[],
        disable_tqdm=True,
        packing=False,
        dataloader_pin_memory=False,
        dataset_num_proc=None,
    )
    if args.n_gpu > 1:
        args._n_gpu = 1
    return args


def _rows(examples: Sequence[Encoded], *, first: int = 0) -> Dataset:
    """Rows for trl; `example` counts on from `first`, so that those for validation have numbers of their own."""
    return Dataset.from_dict({
        "input_ids": [list(e.ids) for e in examples],
        "labels": [list(e.labels) for e in examples],
        "example": list(range(first, first + len(examples))),
        "prompt_tokens": [e.prompt_tokens for e in examples],
    })  # fmt: skip


def _same(trainer: Trainer, rows: Dataset, examples: Sequence[Encoded], count: int) -> None:
    """Compare what trl will train on, after its own preparation and padding, with what it was given."""
    if len(rows) != count:
        raise InputError(f"trl kept {len(rows)} of {count} examples; their lengths exceed max_length")
    for start in range(0, len(rows), 64):
        part = [rows[i] for i in range(start, min(start + 64, len(rows)))]
        batch = trainer.data_collator([{k: row[k] for k in COLUMNS} for row in part])
        for row, wanted in zip(range(len(part)), (examples[int(p["example"])] for p in part), strict=True):
            size = len(wanted.ids)
            ids, labels = batch["input_ids"][row].tolist(), batch["labels"][row].tolist()
            if ids[:size] != list(wanted.ids) or labels[:size] != list(wanted.labels) or set(labels[size:]) - {IGNORED}:
                raise InputError("trl would train on other tokens than those of the spans; is its version supported?")
