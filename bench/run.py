"""All numbers of bench/RESULTS.md in one JSON file: `python bench/run.py --out bench/out.json`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COMMAND = [sys.executable, "-m", "countersteer"]


def script(name: str) -> dict[str, Any]:
    """The JSON that one bench script prints."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, str(HERE / name)], capture_output=True, text=True, check=True, env=env)
    return json.loads(out.stdout)


def child_cpu(command: list[str]) -> float:
    """CPU seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def demo() -> dict[str, Any]:
    """Wall seconds and steered trials of a fresh `countersteer demo`."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        out = subprocess.run(
            [*COMMAND, "demo", "--out", f"{folder}/demo", "--json"], capture_output=True, text=True, check=True
        )
        seconds = time.monotonic() - start
    arms = json.loads(out.stdout)["arms"]
    steered = sum(arm["trials"] for name, arm in arms.items() if name != "unsteered")
    return {"demo_s": round(seconds, 1), "demo_trials": steered}


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    packages = {name: metadata.version(name) for name in ("countersteer", "torch", "transformers")}
    return {"date": date.today().isoformat(), "cpu": model, "cores": os.cpu_count(), "packages": packages}


def main() -> None:
    """Run everything and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=str(HERE / "out.json"))
    given = parser.parse_args()
    result: dict[str, Any] = {"machine": machine()}
    result["help_cpu_s"] = round(min(child_cpu([*COMMAND, "--help"]) for _ in range(5)), 3)
    for part in ("engine.py", "sae_rows.py", "detectors.py", "traces.py", "report.py", "serving.py"):
        result |= script(part)
    result |= demo()
    Path(given.out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
