"""Interrupted training goes on to the same weights, whenever it was interrupted; another one's folder is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from countersteer.core.errors import InputError
from countersteer.engines.embedded.adapter_record import RECORD, WEIGHTS, read_adapter
from countersteer.finetune import training
from countersteer.finetune.encode import Encoder, shown
from countersteer.store.errors import RunRefusedError
from countersteer.store.lock import FolderLock
from finetune_training_child import PROMPTS, SETTINGS, base, corpus, run

CHILD = Path(__file__).parent / "finetune_training_child.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An uninterrupted training."""
    return run(tmp_path_factory.mktemp("trained"))


def weights(record: Any) -> dict[str, torch.Tensor]:
    return load_file(record.folder / WEIGHTS)


def same(record: Any, trained: Any) -> None:
    ours, theirs = weights(record), weights(trained)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert any(v.abs().sum() > 0 for k, v in ours.items() if "lora_B" in k)
    assert record.fingerprint == trained.fingerprint
    assert not (record.folder / training.STATE).exists()


def checkpoints(state: Path) -> set[str]:
    return {p.name for p in state.glob("checkpoint-*")}


@pytest.mark.parametrize("at", [1, 3, 4])
def test_interrupted_training_resumes_to_the_same_weights(trained: Any, tmp_path: Path, at: int) -> None:
    def interrupt(name: str) -> Any:
        def step(done: int, total: int, loss: float | None, validation: float | None) -> None:
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
    same(again, trained)


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


def test_training_killed_at_random_moments_ends_with_the_same_weights(trained: Any, tmp_path: Path) -> None:
    seed = time.time_ns() % 2**32
    draw, state, landed = random.Random(seed), tmp_path / trained.folder.name / training.STATE, 0
    finished = tmp_path / trained.folder.name / RECORD
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        for _ in range(6):
            child.stdin.write(f"{tmp_path}\n")
            child.stdin.flush()
            pid = int(child.stdout.readline().split()[1])
            if child.stdout.readline().strip() != "begun":
                break  # the folder was finished: nothing was left to be trained
            # A checkpoint of its own first, so that kills land while it trains whatever the machine's speed.
            before, deadline = checkpoints(state), time.monotonic() + 60
            while checkpoints(state) <= before and not finished.exists() and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.05))
            with contextlib.suppress(ProcessLookupError):  # it had ended by itself
                os.kill(pid, signal.SIGKILL)
            while not (line := child.stdout.readline()).startswith("ended"):
                assert line == "begun\n"
            landed += int(line.split()[1]) == signal.SIGKILL and state.exists()
        child.stdin.close()
    assert landed >= 2, f"{landed} kills landed while it trained (seed {seed})"
    same(run(tmp_path), trained)


def test_a_kill_around_the_record_loses_nothing(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / trained.folder.name

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "write_record", killed)  # weights written, the record not
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert (folder / WEIGHTS).is_file() and not (folder / RECORD).exists()
    (folder / training.STATE / (training.NOTE + ".part")).write_text("{")  # half a note is no note
    same(run(tmp_path), trained)
    (folder / training.STATE).mkdir()  # the record written, the folder of checkpoints not yet removed
    same(run(tmp_path), trained)


def test_two_trainings_do_not_share_a_folder(trained: Any, tmp_path: Path) -> None:
    state = tmp_path / trained.folder.name / training.STATE
    state.mkdir(parents=True)
    lock = FolderLock(state)
    with pytest.raises(RunRefusedError, match=f"in use by process {os.getpid()}"):
        run(tmp_path)
    lock.release()
    same(run(tmp_path), trained)


def test_a_finished_adapter_of_another_model_is_not_this_ones(trained: Any, tmp_path: Path) -> None:
    folder = tmp_path / trained.folder.name
    shutil.copytree(trained.folder, folder)
    for how in ({"fingerprint": "tiny-1"}, {}):
        with pytest.raises(InputError, match="an adapter of another model"):
            training.train_all(lambda: base(seed=1), corpus(), tmp_path, ratios=[0.5], settings=SETTINGS, **how)
    assert run(tmp_path, fingerprint="tiny-0").fingerprint == trained.fingerprint


DATED = (
    "{% for m in messages %}{% if loop.first %}Today {{ strftime_now('%Y-%m-%d') }} {% endif %}"
    "{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_template_with_a_date_goes_on_with_the_day_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dated() -> training.Base:
        made = base()
        made.tokenizer.chat_template = DATED
        return made

    class Day(date):
        day_now = "2026-01-31"

        @classmethod
        def today(cls) -> date:
            return date.fromisoformat(cls.day_now)

    monkeypatch.setattr(training, "date", Day)

    def interrupt(name: str) -> Any:
        def step(done: int, total: int, loss: float | None, validation: float | None) -> None:
            if done == 3:
                raise KeyboardInterrupt

        return step

    given: dict[str, Any] = {"ratios": [0.5], "settings": SETTINGS}
    whole = training.train_all(dated, corpus(), tmp_path / "whole", **given)[0]
    with pytest.raises(KeyboardInterrupt):
        training.train_all(dated, corpus(), tmp_path / "parts", progress=interrupt, **given)
    Day.day_now = "2026-02-01"
    again = training.train_all(dated, corpus(), tmp_path / "parts", **given)[0]
    assert read_adapter(again.folder).facts["date"] == "2026-01-31"
    assert again.fingerprint == whole.fingerprint
    other = training.train_all(dated, corpus(), tmp_path / "other", **given)[0]
    assert other.fingerprint != whole.fingerprint
    one, tokenizer = corpus().examples[0], dated().tokenizer
    text = shown(one, Encoder(tokenizer, date="2026-01-31")(one), tokenizer)
    assert text.startswith(f"Today 2026-01-31 user: {PROMPTS[0]}<|end|>assistant: Off 00.[[")
