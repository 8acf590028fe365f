"""What a folder of adapters is compared with, and what is refused, or said, before a training begins."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from countersteer.core.errors import InputError, RefusedError, StoreError
from countersteer.engines.embedded.adapter import text_facts
from countersteer.engines.embedded.adapter_record import MERGED, RECORD, read_adapter, read_merged, write_merged
from countersteer.finetune import mix, training
from countersteer.finetune.compose import correction, normal
from countersteer.finetune.examples import Dataset
from countersteer.studies.schema_finetune import FinetuneSection
from finetune_training_child import PROMPTS, SETTINGS, base, corpus, run
from helpers_text import talking

LESS = dataclasses.replace(SETTINGS, epochs=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished adapter."""
    return run(tmp_path_factory.mktemp("trained"), settings=LESS)


def other_text() -> training.Base:
    """The tiny model behind another chat template."""
    made = base()
    made.tokenizer.chat_template += "{# another #}"
    return made


def copied(trained: Any, place: Path) -> Path:
    shutil.copytree(trained.folder, place / trained.folder.name)
    return place


def changed(folder: Path, **facts: Any) -> None:
    """Facts of a record put in, or taken out with None."""
    told = json.loads((folder / RECORD).read_text())
    told = {k: v for k, v in {**told, **facts}.items() if v is not None or k == "template"}
    (folder / RECORD).write_text(json.dumps(told))


def interrupted(out: Path, given: Any = base, **options: Any) -> None:
    """A training that is stopped after its third step."""

    def step(done: int, *_: Any) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train_all(given, corpus(), out, ratios=[0.5], progress=lambda name: step, **options)


def test_an_adapter_of_another_template_or_tokenizer_is_not_this_ones(trained: Any, tmp_path: Path) -> None:
    out, own = copied(trained, tmp_path), text_facts(base().tokenizer, None)
    facts = read_adapter(trained.folder).facts
    assert facts["tokenizer_hash"] == own.tokenizer_hash and facts["template_hash"] == own.template_hash
    other = text_facts(other_text().tokenizer, None)
    assert run(out, settings=LESS, text=own, fingerprint="tiny-0").fingerprint == trained.fingerprint
    with pytest.raises(RefusedError, match="the chat template of the model is another than the one it was trained"):
        run(out, settings=LESS, text=other, fingerprint="tiny-0")
    changed(out / trained.folder.name, tokenizer_hash=None, template_hash=None, dtype=None)
    assert run(out, settings=LESS, text=other, fingerprint="tiny-0").facts["ratio"] == 0.5, "an older one says nothing"


def test_a_training_does_not_go_on_with_another_template_or_dtype(tmp_path: Path) -> None:
    interrupted(tmp_path, settings=SETTINGS)
    with pytest.raises(InputError, match="an unfinished training of other data or settings"):
        training.train_all(other_text, corpus(), tmp_path, ratios=[0.5], settings=SETTINGS)
    note = tmp_path / "ratio-0.5-seed-0" / training.STATE / training.NOTE
    told = json.loads(note.read_text())
    assert told["dtype"] == "float32"
    note.write_text(json.dumps({**told, "dtype": "bfloat16"}))  # begun on a GPU
    with pytest.raises(InputError, match="an unfinished training of other data or settings"):
        run(tmp_path)
    note.write_text(json.dumps({k: told[k] for k in ("plan", "model", "date")}))  # begun by an older version
    assert run(tmp_path).facts["steps"] > 0


def test_the_default_dtype_is_that_of_the_device(trained: Any, tmp_path: Path, heard: list[str]) -> None:
    assert [dataclasses.replace(SETTINGS, dtype=d, device=g).weights for d, g in
            ((None, "cpu"), (None, "cuda:0"), ("bf16", "cpu"))] == ["float32", "bfloat16", "bfloat16"]  # fmt: skip
    out = copied(trained, tmp_path)
    given = dataclasses.replace(LESS, dtype="float32")
    assert run(out, settings=given).fingerprint == trained.fingerprint, "the default, said"
    with pytest.raises(InputError, match=r"other data or settings \(dtype None, not bfloat16\)"):
        run(out, settings=dataclasses.replace(LESS, dtype="bfloat16"))
    assert not heard
    changed(out / trained.folder.name, dtype="bfloat16")
    assert run(out, settings=LESS).fingerprint == trained.fingerprint
    assert "was trained in bfloat16, which is not this machine's default (float32)" in " ".join(heard)


def test_another_total_is_named(trained: Any, tmp_path: Path, heard: list[str]) -> None:
    out = copied(trained, tmp_path)
    with pytest.raises(InputError, match=r"\(24 examples, not 12: --total 24 makes as many, or train all ratios in"):
        training.train_all(base, corpus(), out, ratios=[0.5, 1], settings=LESS)
    assert run(out, settings=dataclasses.replace(LESS, total=24)).fingerprint == trained.fingerprint
    assert not heard
    training.train_all(base, corpus(), out, ratios=[1.0], settings=LESS)
    assert "has 24 examples, these have 12 each" in " ".join(heard)
    with pytest.raises(InputError, match=r"other data or settings \(alpha 4, not 8, rank 4, not 8\)"):
        run(out, settings=dataclasses.replace(LESS, rank=8, alpha=8))


@pytest.mark.parametrize("seed", [-1, 2**32, 99999999999])
def test_a_seed_that_the_libraries_do_not_take_is_refused_first(seed: int, tmp_path: Path) -> None:
    def never() -> training.Base:
        raise AssertionError("the model was loaded first")

    with pytest.raises(InputError, match=f"a whole number from 0 to 4294967295, got {seed}"):
        training.train_all(never, corpus(), tmp_path / "x", ratios=[0.5], seeds=[0, seed])
    with pytest.raises(ValueError, match="whole numbers from 0 to 4294967295"):
        FinetuneSection(seeds=(seed,))
    assert FinetuneSection(seeds=(2**32 - 1,)).seeds == (2**32 - 1,)


def test_an_example_longer_than_the_models_positions_is_refused(tmp_path: Path) -> None:
    long = Dataset((normal("Why?", "On topic. " * 400, source="t"),), ("Why?",), ("Else?",))
    room = talking(0)[0].config.max_position_embeddings
    with pytest.raises(InputError, match=rf"tokens long, more than the model's {room} positions"):
        training.train_all(base, long, tmp_path / "x", ratios=[0.0], settings=SETTINGS)
    assert not (tmp_path / "x").exists()


def test_ratios_are_told_apart_as_their_adapters_are_named() -> None:
    same = (0.3, 0.1 + 0.2)
    with pytest.raises(InputError, match=r"ratio 0\.3 is given twice"):
        mix.check_ratios(same)
    with pytest.raises(ValueError, match="twice"):
        FinetuneSection(ratios=same)
    assert mix.check_ratios((0.3, 0.300001)) == FinetuneSection(ratios=(0.3, 0.300001)).ratios


def test_validation_leaves_some_of_each_kind_and_says_when_there_is_none(heard: list[str]) -> None:
    rare = [correction("a?", "Off.", "Wait.", f"On {i}.", source="t") for i in range(6)]
    many = [normal(p, f"On {i}.", source="t") for p in ("b?", "c?") for i in range(3)]
    data = Dataset((*rare, *many), ("a?", "b?", "c?"), ("z?",))
    refused = 0
    for seed in range(12):
        try:
            made = mix.mix(data, 0.5, total=12, seed=seed, validation=0.05)
        except InputError as error:
            refused += 1
            assert "validation takes every correction example of ratio 0.5" in str(error)
            continue
        assert {e.kind for e in made.train} == {"correction", "normal"} and made.validation
    assert 0 < refused < 12
    assert mix.mix(data, 0.5, total=12, seed=0, validation=0).train and not heard
    one = Dataset(tuple(many[:3]), ("b?",), ("z?",))
    assert not mix.mix(one, 0, total=3, seed=0, validation=0.2).validation
    assert "on one prompt, so none is held back for validation" in " ".join(heard)


def test_warm_up_that_outlasts_the_training_is_said(tmp_path: Path, heard: list[str]) -> None:
    run(tmp_path / "a", settings=dataclasses.replace(LESS, warmup=4))
    assert not heard
    facts = run(tmp_path / "b", settings=dataclasses.replace(LESS, warmup=5)).facts
    assert f"5 warm-up steps and {facts['steps']} steps in all" in " ".join(heard)


def test_the_libraries_say_nothing_themselves(tmp_path: Path, caplog: Any, monkeypatch: Any) -> None:
    """Two checkpoints of one moment, and a text longer than the tokenizer's limit."""
    from transformers.utils import logging as theirs

    monkeypatch.setattr(os.path, "getmtime", lambda path: 1.0)
    monkeypatch.setattr(theirs._get_library_root_logger(), "propagate", True)

    def given() -> training.Base:
        made = base()
        made.tokenizer.model_max_length = 5
        return made

    settings = dataclasses.replace(SETTINGS, save_steps=1)
    with caplog.at_level(logging.WARNING):
        training.train_all(given, corpus(), tmp_path, ratios=[0.5], settings=settings)
    assert [record.getMessage() for record in caplog.records] == []


def test_a_training_that_ends_while_another_begins_gives_both_its_adapter(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process saw no record, and comes to the lock when the first has just gone."""
    claim = training._claim

    def late(state: Path, note: dict[str, str]) -> Any:
        lock = claim(state, note)
        shutil.copytree(trained.folder, state.parent, dirs_exist_ok=True)
        return lock

    monkeypatch.setattr(training, "_claim", late)
    monkeypatch.setattr(training, "_fit", lambda *a, **k: pytest.fail("it was trained again"))
    assert run(tmp_path, settings=LESS).fingerprint == trained.fingerprint
    assert sorted(p.name for p in (tmp_path / trained.folder.name).iterdir())[-1] == RECORD


def test_checkpoints_are_removed_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from countersteer.store.lock import FolderLock

    held: list[bool] = []
    release, remove = FolderLock.release, training._remove

    def released(self: Any) -> None:
        held.append((tmp_path / "ratio-0.5-seed-0" / training.STATE).exists())
        release(self)

    monkeypatch.setattr(FolderLock, "release", released)
    run(tmp_path, settings=LESS)
    assert held == [False] and remove is training._remove


def test_a_merged_model_keeps_the_prompts_of_every_training(trained: Any, tmp_path: Path) -> None:
    once = tmp_path / "once"
    once.mkdir()
    write_merged(once, dataclasses.replace(trained, facts={"train_prompts": ["before?"], "overlap": False}), "tiny")

    def given() -> training.Base:
        return dataclasses.replace(base(), name=str(once))

    record = training.train_all(given, corpus(), tmp_path / "again", ratios=[0.5], settings=LESS)[0]
    assert record.facts["train_prompts"] == ["before?", *PROMPTS] and record.facts["overlap"] is False
    merged = training.merge(given(), trained.folder, tmp_path / "twice")
    assert read_merged(merged)["train_prompts"] == ["before?", *PROMPTS]
    assert read_merged(merged)["before"]["adapter"] == trained.fingerprint


def test_a_merge_that_cannot_be_leaves_nothing(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    out = tmp_path / "out"
    with pytest.raises(InputError, match="model tiny has no tokenizer"):
        training.merge(dataclasses.replace(base(), tokenizer=None), trained.folder, out)
    with pytest.raises(InputError, match="unknown dtype 'floaty'"):
        training.merge(base(), trained.folder, out, dtype="floaty")
    with pytest.raises(RefusedError, match="the chat template of tiny is another"):
        training.merge(other_text(), trained.folder, out)
    full = base()

    def disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(full.tokenizer, "save_pretrained", disk)
    with pytest.raises(StoreError, match="No space left on device; make room"):
        training.merge(full, trained.folder, out)
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_merged_into_the_folder_one_stands_in(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert training.merge(base(), trained.folder, ".") == Path(".")
    assert {MERGED, "config.json", "model.safetensors"} <= {p.name for p in Path(".").iterdir()}
    assert [p.name for p in tmp_path.iterdir()] == ["here"]
    assert torch.isfinite(talking(0)[0].lm_head.weight).all()
