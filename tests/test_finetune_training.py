"""Training touches the trained tokens only, resumes to the same weights, and can happen under steering."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import countersteer as cs
from countersteer.core.errors import InputError, RefusedError
from countersteer.engines.embedded.adapter_record import WEIGHTS, read_adapter
from countersteer.finetune import training
from countersteer.finetune.compose import correction, normal
from countersteer.finetune.encode import IGNORED, Encoded, encode_all
from countersteer.finetune.examples import Dataset, Example
from countersteer.finetune.mix import Mixture
from countersteer.finetune.settings import TrainSettings
from countersteer.finetune.steer import TrainingSteer
from helpers_text import talking

PROMPTS = tuple(f"Why {i}?" for i in range(4))
SETTINGS = TrainSettings(
    rank=4, alpha=4, dropout=0.1, learning_rate=1e-2, warmup=1, epochs=3, batch=4, micro_batch=2, save_steps=2
)


def base(seed: int = 0) -> training.Base:
    module, tokenizer = talking(seed, dtype=torch.float32)
    return training.Base(module, tokenizer, "tiny", f"tiny-{seed}")


def corpus() -> Dataset:
    made: list[Example] = []
    for i, prompt in enumerate(PROMPTS):
        for j in range(3):
            made.append(correction(prompt, f"Off {i}{j}.", "Wait.", f"On {j}.", source="t"))
            made.append(normal(prompt, f"On topic {i} {j}.", source="t"))
    return Dataset(tuple(made), PROMPTS, ("Else?",))


def run(out: Path, **options: Any) -> Any:
    data = corpus()
    return training.train_all(base, data, out, ratios=[0.5], settings=SETTINGS, **options)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An uninterrupted training."""
    return run(tmp_path_factory.mktemp("trained"))


def weights(record: Any) -> dict[str, torch.Tensor]:
    return load_file(record.folder / WEIGHTS)


@pytest.mark.parametrize("at", [1, 3, 4])
def test_interrupted_training_resumes_to_the_same_weights(trained: Any, tmp_path: Path, at: int) -> None:
    def interrupt(name: str) -> Any:
        def step(done: int, total: int, loss: float | None) -> None:
            if done == at:
                raise KeyboardInterrupt

        return step

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=interrupt)
    state = tmp_path / trained.folder.name / training.STATE
    half = state / "checkpoint-99"  # killed while a later checkpoint was being written
    half.mkdir()
    (half / "trainer_state.json").write_text('{"glob')
    assert [p.name for p in [training.checkpoint(state)] if p] == ([] if at < 3 else ["checkpoint-2"])
    assert not half.exists()
    again = run(tmp_path)
    assert not state.exists() and again.fingerprint == trained.fingerprint
    ours, theirs = weights(again), weights(trained)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert any(v.abs().sum() > 0 for k, v in ours.items() if "lora_B" in k)


def test_finished_training_is_kept_and_another_plan_is_refused(trained: Any, tmp_path: Path) -> None:
    folder = tmp_path / "copy" / trained.folder.name
    shutil.copytree(trained.folder, folder)
    assert run(folder.parent).fingerprint == trained.fingerprint
    other = dataclasses.replace(SETTINGS, epochs=2)
    with pytest.raises(InputError, match="an adapter of other data or settings"):
        training.train_all(base, corpus(), folder.parent, ratios=[0.5], settings=other)
    state = tmp_path / "begun" / trained.folder.name / training.STATE
    state.mkdir(parents=True)
    (state / "plan.json").write_text('{"plan": "x", "model": "y"}')
    with pytest.raises(InputError, match="an unfinished training of other data"):
        run(tmp_path / "begun")


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


def test_training_under_steering_is_the_forward_of_a_plain_hook(tmp_path: Path) -> None:
    module, tokenizer = talking(0, dtype=torch.float32)
    settings = dataclasses.replace(SETTINGS, dropout=0.0, batch=2, micro_batch=None)
    pair = [correction("Why?", "Off.", "Wait.", "On.", source="t"), normal("Why so?", "On topic.", source="t")]
    encoded = encode_all(pair, tokenizer)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    steer = cs.add(cs.direction(vector, layer=0), strength=3.0).span("generation")
    trainer = training.make_trainer(training.Base(module, tokenizer, "tiny", "x"), encoded, (), tmp_path, seed=0,
                                    settings=settings)  # fmt: skip
    trainer.steer = TrainingSteer(module, [steer, None])
    batch = trainer.data_collator(list(trainer.train_dataset))
    order = batch["example"].tolist()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for n, p in trainer.model.named_parameters() if "lora_B" in n)
    trainer.steer.close()

    plain, _ = talking(0, dtype=torch.float32)
    row, total, count = order.index(0), 0.0, 0

    def hook(_m: Any, _a: Any, output: Any) -> Any:
        h = (output[0] if isinstance(output, tuple) else output).clone()
        start = encoded[0].prompt_tokens - 1
        h[row, start : len(encoded[0].ids)] += 3.0 * vector
        return (h, *output[1:]) if isinstance(output, tuple) else h

    plain.model.layers[0].register_forward_hook(hook)
    with torch.no_grad():
        logits = plain(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    for i, number in enumerate(order):
        for at, label in enumerate(encoded[number].labels):
            if label != IGNORED:
                total, count = total - float(logits[i, at - 1, label]), count + 1
    assert float(loss) == pytest.approx(total / count, rel=1e-5)


def test_checkpointing_changes_no_gradient_steered_or_not(tmp_path: Path) -> None:
    _, tokenizer = talking(0, dtype=torch.float32)
    (encoded,) = encode_all([corpus().examples[0]], tokenizer)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    for steer in (None, cs.add(cs.direction(vector, layer=0), strength=3.0)):
        found = []
        for checkpointing in (False, True):
            settings = dataclasses.replace(
                SETTINGS, dropout=0.0, batch=1, micro_batch=None, checkpointing=checkpointing
            )
            given = base()
            trainer = training.make_trainer(given, [encoded], (), tmp_path, seed=0, settings=settings)
            assert given.module.is_gradient_checkpointing is False
            if checkpointing:
                given.module.gradient_checkpointing_enable()
                assert given.module.is_gradient_checkpointing
            trainer.steer = TrainingSteer(given.module, [steer])
            loss = trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))
            loss.backward()
            trainer.steer.close()
            found.append({n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None})
        assert found[0].keys() == found[1].keys() and any(g.abs().sum() > 0 for g in found[0].values())
        assert all(torch.allclose(found[0][n], found[1][n], atol=1e-7) for n in found[0])


def test_a_steered_training_differs_and_says_how_much_was_steered(trained: Any, tmp_path: Path) -> None:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    steer = cs.add(cs.direction(vector, layer=0), strength=3.0)
    record = run(tmp_path, steering=lambda example: steer if example.kind == "correction" else None)
    facts = read_adapter(record.folder).facts
    assert facts["steered"] == facts["corrections"] and facts["steered_tokens"] > 0
    assert record.fingerprint != trained.fingerprint
    far = cs.add(cs.direction(vector, layer=7), strength=3.0)
    with pytest.raises(InputError, match="an edit is at layer 7, the model has 2"):
        run(tmp_path / "far", steering=lambda example: far)


def test_merged_weights_answer_as_the_adapter_does(trained: Any, tmp_path: Path) -> None:
    module, tokenizer = talking(0, dtype=torch.float32)
    out = training.merge(training.Base(module, tokenizer, "tiny", "tiny-0"), trained.folder, tmp_path / "merged")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(talking(0, dtype=torch.float32)[0], str(trained.folder)).eval()
    ids = torch.tensor([encode_all([corpus().examples[0]], tokenizer)[0].ids])
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-4)
    with pytest.raises(InputError, match="exists already"):
        training.merge(base(), trained.folder, out)
    with pytest.raises(RefusedError, match="trained on another model"):
        training.merge(base(seed=1), trained.folder, tmp_path / "other")


def test_a_mixture_must_leave_something_to_train(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no example to train on"):
        training.train(base, Mixture(0.5, (), ()), tmp_path / "x", data=corpus(), settings=SETTINGS)
