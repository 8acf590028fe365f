"""A training that diverges, or that the disk does not take, ends with one line and leaves no adapter."""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from countersteer.core.errors import InputError, StoreError
from countersteer.finetune import training
from countersteer.finetune.health import DivergedError
from finetune_training_child import SETTINGS, base, corpus, run


def test_a_diverged_training_is_an_error_at_once_and_the_folder_can_be_used_again(tmp_path: Path) -> None:
    wild = dataclasses.replace(SETTINGS, learning_rate=1e30, warmup=0, epochs=50, save_steps=1)
    seen: list[int] = []
    with pytest.raises(DivergedError, match=r"training diverged \(the loss of step \d+ is not a number\); lower the"):
        run(tmp_path, settings=wild, progress=lambda name: lambda done, *_: seen.append(done))
    assert len(seen) < 10, "it went on with numbers that are none"
    assert list(tmp_path.iterdir()) == [], "a diverged training left something that another learning rate stumbles on"
    assert run(tmp_path).facts["loss"] > 0


@pytest.mark.parametrize(
    ("at", "validation", "said"),
    [
        (1, 0.05, "the loss of step 2 is not a number"),
        (-1, 0.05, "the validation loss after step .* is not a number"),
        (-1, 0.0, "the weights .*lora_B.* hold numbers that are none"),
    ],
)
def test_weights_that_are_no_numbers_are_never_saved(at: int, validation: float, said: str, tmp_path: Path) -> None:
    kept: list[Any] = []

    def given() -> training.Base:
        kept.append(base())
        return kept[-1]

    def spoil(name: str) -> Any:
        def step(done: int, total: int, loss: float | None, validation: float | None) -> None:
            if done == (at if at > 0 else total):
                next(p for n, p in kept[-1].module.named_parameters() if "lora_B" in n).data.fill_(math.nan)

        return step

    settings = dataclasses.replace(SETTINGS, validation=validation)
    with pytest.raises(InputError, match=rf"training diverged \({said}\)"):
        training.train_all(given, corpus(), tmp_path, ratios=[0.5], settings=settings, progress=spoil)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["a checkpoint", "the adapter"])
def test_a_disk_that_takes_no_more_is_one_line_and_the_training_goes_on_later(where: str, tmp_path: Path) -> None:
    pid = os.fork()
    if not pid:  # a process of its own: a limit cannot be raised again
        code = 9
        try:
            torch.set_num_threads(1)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            settings = SETTINGS if where == "a checkpoint" else dataclasses.replace(SETTINGS, save_steps=999)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            try:
                run(tmp_path, settings=settings)
            except StoreError as error:
                text = str(error)
                code = 0 if "cannot write to" in text and "\n" not in text and "the same command" in text else 8
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert run(tmp_path).facts["steps"] > 0
