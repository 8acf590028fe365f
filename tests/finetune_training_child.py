"""Trains the small corpus of the fine-tuning tests in processes that are there to be killed.

For every folder on standard input a process is forked, which imports nothing any more; it says "begun" before its first
step. `trained` is the same training in the caller's process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from countersteer.finetune import training
from countersteer.finetune.compose import correction, normal
from countersteer.finetune.examples import Dataset, Example
from countersteer.finetune.settings import TrainSettings
from helpers_text import talking

PROMPTS = tuple(f"Why {i}?" for i in range(4))
SETTINGS = TrainSettings(
    rank=4, alpha=4, dropout=0.1, learning_rate=1e-2, warmup=1, epochs=3, batch=4, micro_batch=2, save_steps=2
)


def base(seed: int = 0) -> training.Base:
    """The tiny model."""
    module, tokenizer = talking(seed, dtype=torch.float32)
    return training.Base(module, tokenizer, "tiny", f"tiny-{seed}")


def corpus() -> Dataset:
    """Twelve corrections and twelve normal examples."""
    made: list[Example] = []
    for i, prompt in enumerate(PROMPTS):
        for j in range(3):
            made.append(correction(prompt, f"Off {i}{j}.", "Wait.", f"On {j}.", source="t"))
            made.append(normal(prompt, f"On topic {i} {j}.", source="t"))
    return Dataset(tuple(made), PROMPTS, ("Else?",))


def run(out: Path, **options: Any) -> Any:
    """One adapter."""
    given = {"settings": SETTINGS, **options}
    return training.train_all(base, corpus(), out, ratios=[0.5], **given)[0]


def main() -> None:
    """Fork a training for every line."""
    import countersteer.finetune.trainer  # noqa: F401  # the slow import, once

    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run(Path(line.strip()), progress=lambda name: lambda done, *_: print("begun", flush=True))
            os._exit(0)
        print("pid", child, flush=True)
        _, status = os.waitpid(child, 0)
        print("ended", status, flush=True)


if __name__ == "__main__":
    main()
