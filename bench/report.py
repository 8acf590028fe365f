"""Speed and memory of the report of a large run: 100,000 trials in 10 arms, planted, then `countersteer report --json`.

Prints one JSON object: user CPU seconds, wall seconds and peak bytes of the whole command, page included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ARMS = 10


def plant(folder: Path, trials: int) -> None:
    """A run of 500 latents and 38 prompts, 8% multi-attempt."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import report_runs as planted

    draw = np.random.default_rng(0)
    arms: dict[str, list[Any]] = {}
    for arm in range(ARMS):
        rows = []
        for i in range(trials // ARMS):
            scores = (20.0, 60.0) if draw.random() < 0.08 else (30.0,)
            rows.append(planted.T(i % 500, f"p{i % 38}", scores, text=f"Fold the towel {i}. "))
        arms["base" if arm == 0 else f"arm{arm}"] = rows
    planted.plant(folder, planted.Planted(arms)).close()


def main() -> None:
    """Plant a run and report it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plant(Path(folder) / "run", given.trials)
        command = [sys.executable, "-m", "countersteer", "report", str(Path(folder) / "run"), "--json"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        began = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wall = time.monotonic() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {"report_trials": given.trials, "report_cpu_s": after.ru_utime - before, "report_s": wall,
             "report_peak_bytes": after.ru_maxrss * 1024}  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
