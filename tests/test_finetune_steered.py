"""Training under steering: the forward of a plain hook, receipts, a no-op is an error, validation is steered alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import countersteer as cs
from countersteer.core.errors import InputError, NoOpError
from countersteer.engines.embedded.adapter_record import read_adapter
from countersteer.finetune import training
from countersteer.finetune.compose import correction, normal
from countersteer.finetune.encode import IGNORED, encode_all
from countersteer.finetune.steer import TrainingSteer
from finetune_training_child import SETTINGS, base, corpus, run
from helpers_text import talking

VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(1))
STEER = cs.add(cs.direction(VECTOR, layer=0), strength=3.0)


def corrections(example: Any) -> Any:
    """Steering of corrections only."""
    return STEER if example.kind == "correction" else None


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


def batch_of(steer: Any, tmp_path: Path, **changed: Any) -> tuple[Any, Any, Any]:
    """A trainer of one example under an intervention, its batch, and the encoded example."""
    (encoded,) = encode_all([corpus().examples[0]], base().tokenizer)
    settings = dataclasses.replace(SETTINGS, dropout=0.0, batch=1, micro_batch=None, **changed)
    given = base()
    trainer = training.make_trainer(given, [encoded], (), tmp_path, seed=0, settings=settings)
    trainer.steer = TrainingSteer(given.module, [steer])
    return trainer, trainer.data_collator(list(trainer.train_dataset)), encoded


@pytest.mark.parametrize("span", ["all", "prompt", "response", "generation", "from(3)"])
def test_receipts_are_those_of_a_forward_by_hand(span: str, tmp_path: Path) -> None:
    trainer, batch, encoded = batch_of(STEER.span(span), tmp_path)
    trainer.compute_loss(trainer.model, batch)
    (receipt,) = trainer.steer.receipts()
    size, prompt = len(encoded.ids), encoded.prompt_tokens
    places = {"all": range(size), "prompt": range(prompt), "response": range(prompt, size),
              "generation": range(prompt - 1, size), "from(3)": range(3, size)}[span]  # fmt: skip
    plain, seen = base().module, []
    plain.model.layers[0].register_forward_hook(lambda m, a, o: seen.append(o[0] if isinstance(o, tuple) else o))
    with torch.no_grad():
        plain(torch.tensor([encoded.ids]))
    norms = seen[0].reshape(size, -1).norm(dim=-1)
    ratios = [float(3 * VECTOR.norm() / norms[i]) for i in places if i > 0]
    assert receipt["tokens_seen"] == receipt["tokens_changed"] == len(places) and receipt["examples"] == 1
    assert receipt["mean_relative"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-4)
    assert receipt["max_relative"] == pytest.approx(max(ratios), rel=1e-4)


def test_a_steering_that_changes_nothing_is_an_error(tmp_path: Path) -> None:
    lost = cs.add(cs.direction(VECTOR, layer=0), strength=1e-12)  # rounded away in the model's dtype
    out = tmp_path / "lost"
    with pytest.raises(NoOpError, match=r"not steered: add at resid_post\.0 changed no token although"):
        run(out, steering=lambda example: lost if example.kind == "correction" else None)
    with pytest.raises(NoOpError, match="changed no token"):  # one edit does not hide behind another
        run(tmp_path / "both", steering=lambda example: STEER + lost)
    with pytest.raises(InputError, match=r"span from\(500\) holds none of its \d+ tokens; widen the span"):
        run(tmp_path / "late", steering=lambda example: STEER.span("from(500)"))
    rests = cs.limit(cs.direction(VECTOR, layer=0), low=-1e6, high=1e6)  # conditional: it may rest
    record = run(tmp_path / "rests", steering=lambda example: rests)
    (receipt,) = read_adapter(record.folder).facts["steering"]
    assert receipt["tokens_changed"] == 0 < receipt["tokens_seen"]


def test_a_steered_training_differs_and_its_receipts_survive_an_interruption(tmp_path: Path) -> None:
    def interrupt(name: str) -> Any:
        def step(done: int, total: int, loss: float | None, validation: float | None) -> None:
            if done == 5:
                raise KeyboardInterrupt

        return step

    plain, record = run(tmp_path / "plain"), run(tmp_path / "whole", steering=corrections)
    facts = read_adapter(record.folder).facts
    (receipt,) = facts["steering"]
    assert record.fingerprint != plain.fingerprint and "steering" not in read_adapter(plain.folder).facts
    assert facts["steered"] == facts["corrections"]
    assert receipt["examples"] == SETTINGS.epochs * facts["corrections"], "one of each correction and epoch"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", steering=corrections, progress=interrupt)
    again = run(tmp_path / "parts", steering=corrections)
    assert again.fingerprint == record.fingerprint
    assert read_adapter(again.folder).facts["steering"] == facts["steering"]
    far = cs.add(cs.direction(VECTOR, layer=7), strength=3.0)
    with pytest.raises(InputError, match="an edit is at layer 7, the model has 2"):
        run(tmp_path / "far", steering=lambda example: far)


def test_validation_is_measured_under_the_steering_of_its_own_examples(tmp_path: Path) -> None:
    pair = [normal("Why?", "On topic.", source="t"), normal("Why so?", "On.", source="t")]
    held = [correction("Who?", "Off.", "Wait.", "On.", source="t")]
    encoded = encode_all([*pair, *held], base().tokenizer)
    settings = dataclasses.replace(SETTINGS, dropout=0.0, batch=2, micro_batch=None)
    losses = {}
    for name, steers in {"own": [None, None, STEER], "none": [None] * 3, "others": [STEER, STEER, None]}.items():
        given = base()
        trainer = training.make_trainer(given, encoded[:2], encoded[2:], tmp_path, seed=0, settings=settings)
        trainer.steer = TrainingSteer(given.module, steers)
        losses[name] = trainer.evaluate()["eval_loss"]
        assert trainer.steer.receipts() == [], "validation is no training"
        trainer.steer.close()
    assert losses["none"] == losses["others"] != losses["own"]
    plain = base().module
    plain.model.layers[0].register_forward_hook(
        lambda m, a, o: (o[0] + 3 * VECTOR, *o[1:]) if isinstance(o, tuple) else o + 3 * VECTOR
    )
    with torch.no_grad():
        logits = plain(torch.tensor([encoded[2].ids])).logits[0].log_softmax(-1)
    trained = [i for i, label in enumerate(encoded[2].labels) if label != IGNORED]
    by_hand = -sum(float(logits[i - 1, encoded[2].ids[i]]) for i in trained) / len(trained)
    assert losses["own"] == pytest.approx(by_hand, rel=1e-5)


def test_both_losses_are_shown_while_it_trains(tmp_path: Path) -> None:
    told: list[tuple[int, int, float | None, float | None]] = []
    record = run(tmp_path, progress=lambda name: lambda *given: told.append(given))
    steps = read_adapter(record.folder).facts["steps"]
    assert [t[0] for t in told if t[0] < steps][:3] == [1, 2, 3] and {t[1] for t in told} == {steps}
    assert told[0][2:] == (None, None), "nothing is measured yet"
    assert told[2][2] is not None, "a short training shows its loss from the beginning"
    last = told[-1]
    assert last[2] is not None and last[3] == pytest.approx(read_adapter(record.folder).facts["validation_loss"], abs=1)
    assert len({t[3] for t in told} - {None}) == SETTINGS.epochs, "one validation loss per epoch"
