"""Training touches the trained tokens only, with the paper's settings; merged weights answer as the adapter does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from countersteer.core.errors import InputError, RefusedError
from countersteer.engines.embedded.adapter_record import WEIGHTS, read_adapter, read_merged
from countersteer.finetune import training
from countersteer.finetune.encode import IGNORED, Encoded, encode_all
from countersteer.finetune.examples import Example
from countersteer.finetune.mix import Mixture
from finetune_training_child import PROMPTS, SETTINGS, base, corpus, run
from helpers_text import talking


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An uninterrupted training."""
    return run(tmp_path_factory.mktemp("trained"))


def weights(record: Any) -> dict[str, torch.Tensor]:
    return load_file(record.folder / WEIGHTS)


def test_the_record_says_how_it_was_made(trained: Any) -> None:
    facts = read_adapter(trained.folder).facts
    assert facts["model"] == "tiny" and trained.model == "tiny-0" and facts["ratio"] == 0.5
    assert facts["examples"] + facts["validation_examples"] == 24 and 0 < facts["corrections"] < facts["examples"]
    assert facts["train_prompts"] == list(PROMPTS) and facts["validation_loss"] > 0
    assert sorted(p.name for p in trained.folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "countersteer.json"
    ]  # fmt: skip
    assert str(Path.home()) not in (trained.folder / "adapter_config.json").read_text()


def loss_and_gradients(encoded: Encoded, tmp_path: Path) -> tuple[float, dict[str, torch.Tensor]]:
    settings = dataclasses.replace(SETTINGS, dropout=0.0, batch=1, micro_batch=None)
    trainer = training.make_trainer(base(), [encoded], (), tmp_path, seed=0, settings=settings)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.01)  # at zero, A would have no gradient
    batch = trainer.data_collator([{**row, "example": 0} for row in trainer.train_dataset])
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    grads = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    assert grads and all("lora_" in name for name in grads)
    return loss.item(), grads


def test_the_loss_has_no_gradient_outside_the_trained_targets(tmp_path: Path) -> None:
    """The gradient at the last norm of each position, through trl's own loss: zero unless its next token is trained."""
    _, tokenizer = talking(0, dtype=torch.float32)
    answer = "Off topic. Wait, no. The end of it."
    inner = Example("Why?", answer, ((10, 20),), "correction", "t", end=False)
    encoded = encode_all([inner, corpus().examples[0]], tokenizer)
    settings = dataclasses.replace(SETTINGS, dropout=0.0, batch=2, micro_batch=None)
    trainer = training.make_trainer(base(), encoded, (), tmp_path, seed=0, settings=settings)
    kept = []

    def keep(module: Any, args: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    trainer.model.get_base_model().model.norm.register_forward_hook(keep)
    batch = trainer.data_collator(list(trainer.train_dataset))
    order = batch["example"].tolist()
    trainer.compute_loss(trainer.model, batch).backward()
    moved = (kept[0].grad.abs().sum(-1) > 0).tolist()
    for row, number in enumerate(order):
        labels = [*encoded[number].labels, *[IGNORED] * (len(moved[row]) - len(encoded[number].labels))]
        assert moved[row] == [label != IGNORED for label in [*labels[1:], IGNORED]], number


def test_masked_targets_have_no_influence(tmp_path: Path) -> None:
    _, tokenizer = talking(0, dtype=torch.float32)
    answer = "Off topic. Wait, no. The end of it."
    inner = Example("Why?", answer, ((10, 20),), "correction", "t", end=False)
    (encoded,) = encode_all([inner], tokenizer)
    first = next(i for i, label in enumerate(encoded.labels) if label != IGNORED)
    last = max(i for i, label in enumerate(encoded.labels) if label != IGNORED)
    assert last < len(encoded.ids) - 2
    loss, grads = loss_and_gradients(encoded, tmp_path)
    after = list(encoded.ids)
    after[last + 1 :] = [(t + 5) % 80 + 10 for t in after[last + 1 :]]  # targets after the span
    same, unchanged = loss_and_gradients(dataclasses.replace(encoded, ids=tuple(after)), tmp_path)
    assert same == loss and all(torch.equal(grads[n], unchanged[n]) for n in grads)
    labels = list(encoded.labels)
    labels[first] = (labels[first] + 5) % 80 + 10
    moved, _ = loss_and_gradients(dataclasses.replace(encoded, labels=tuple(labels)), tmp_path)
    assert moved != loss
    by_hand, _ = talking(0, dtype=torch.float32)
    adapted = {n: g for n, g in grads.items() if "lora_B" in n}
    assert adapted and all(g.abs().sum() > 0 for g in adapted.values())
    logits = by_hand(torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
    trained = [i for i, label in enumerate(encoded.labels) if label != IGNORED]
    plain = -sum(float(logits[i - 1, encoded.ids[i]]) for i in trained) / len(trained)
    assert abs(plain - loss) < 0.2 and plain != pytest.approx(loss, abs=1e-9)  # the adapter is not zero here


def test_merged_weights_answer_as_the_adapter_does(trained: Any, tmp_path: Path) -> None:
    module, tokenizer = talking(0, dtype=torch.float64)
    out = training.merge(training.Base(module, tokenizer, "tiny", "tiny-0"), trained.folder, tmp_path / "merged")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float64)
    adapted = PeftModel.from_pretrained(
        talking(0, dtype=torch.float64)[0], str(trained.folder), autocast_adapter_dtype=False
    ).eval()
    plain, _ = talking(0, dtype=torch.float64)
    ids = torch.tensor([encode_all([corpus().examples[0]], tokenizer)[0].ids])
    with torch.no_grad():
        wanted = adapted(ids).logits
        assert (merged(ids).logits - wanted).abs().max() < 1e-9 < 1e-3 < (plain(ids).logits - wanted).abs().max()
    facts = read_merged(out)
    assert facts["adapter"] == trained.fingerprint and facts["train_prompts"] == list(PROMPTS)
    half = training.merge(base(), trained.folder, tmp_path / "half", dtype="bfloat16")
    assert {v.dtype for v in load_file(half / "model.safetensors").values()} == {torch.bfloat16}
    with pytest.raises(InputError, match="exists already"):
        training.merge(base(), trained.folder, out)
    with pytest.raises(RefusedError, match="trained on another model"):
        training.merge(base(seed=1), trained.folder, tmp_path / "other")


def test_a_mixture_must_leave_something_to_train(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no example to train on"):
        training.train(base, Mixture(0.5, (), ()), tmp_path / "x", data=corpus(), settings=SETTINGS)
