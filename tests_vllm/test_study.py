"""One study on the embedded engine and over two vLLM servers, one of which is killed in the middle."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

import countersteer as cs
from countersteer.store import Run
from countersteer.store.export import records
from countersteer.studies import runner, spec
from countersteer.studies.progress import Silent
from runs import free_port

KEY = "a-test-key"
STUDY = """
[study]
model = "organism"
sae = "organism"
[engine]
{engine}
[latents]
count = 6
concreteness = 0
[trials]
prompts = "{prompts}"
per_latent = 3
resample = 0
[sampling]
temperature = 0.0
max_tokens = 40
[judge]
references = 1
[detectors]
count = 4
[arms.base]
strength = 6.0
[arms.unsteered]
strength = 0
[arms.weaker]
strength = 3.0
span = "generation"
[arms.detectors-ablated]
strength = 6.0
clamp = "detectors"
"""
OPTIONS = "--enforce-eager --max-num-seqs 16 --block-size 32 --kv-cache-memory-bytes 134217728"


@contextmanager
def servers(count: int, logs: Path) -> Iterator[list[tuple[str, Any]]]:
    """Running servers of the organism as the command line starts them: their addresses and processes."""
    environment = {**os.environ, "VLLM_API_KEY": KEY}
    started = []
    try:
        for number in range(count):
            port = free_port()
            command = [
                sys.executable,
                "-m",
                "countersteer",
                "serve",
                "organism",
                "--engine",
                "vllm",
                "--dtype",
                "float32",
            ]
            command += ["--dtype", "float32", "--port", str(port), "--sae", "organism", "--", *OPTIONS.split()]
            log = (logs / f"server{number}.log").open("w")
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            started.append((f"http://127.0.0.1:{port}", process))
        for number, (url, process) in enumerate(started):
            while True:
                assert process.poll() is None, (logs / f"server{number}.log").read_text()[-3000:]
                try:
                    if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                        break
                except httpx.HTTPError:
                    time.sleep(0.5)
        yield started
    finally:
        for _, process in started:
            if process.poll() is None:
                process.terminate()
        for _, process in started:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


class Killer(Silent):
    """Kills a server once some trials are done, and remembers how many tokens it had made by then."""

    def __init__(self, url: str, process: Any) -> None:
        self.url, self.process, self.graded, self.tokens = url, process, 0, 0.0

    def trial(self, arm: str, scores: Sequence[float]) -> None:
        self.graded += 1
        if self.graded == 12:
            text = httpx.get(f"{self.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=60).text
            self.tokens = sum(map(float, re.findall(r"^vllm:generation_tokens_total\{.*\} (\S+)$", text, re.M)))
            os.killpg(self.process.pid, signal.SIGKILL)


def plan_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What is tried, whatever the engine."""
    return row["arm"], row["latent"], row["prompt"], row["strength"], row["seed"]


def rows(run: Run) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {plan_of(row): row for row in records(run)}


def test_a_study_over_two_servers_equals_the_embedded_engines_though_one_is_killed(
    tmp_path: Path, monkeypatch: Any
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"How do I {what}?\n" for what in ("iron a shirt", "bake bread", "plant tulips",
                                                                 "wash a dog", "paint a wall")))  # fmt: skip
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    own = spec.parse(STUDY.format(engine='dtype = "float32"', prompts=prompts))
    with runner.run_study(own, tmp_path / "embedded") as run:
        want, detectors = rows(run), run.fact("detectors")
    with servers(2, tmp_path) as started:
        urls = [url for url, _ in started]
        far = spec.parse(STUDY.format(engine=f'kind = "vllm"\nurls = {urls}', prompts=prompts))
        killer = Killer(*started[0])
        with runner.run_study(far, tmp_path / "vllm", observer=killer) as run:
            got, again, facts = rows(run), run.fact("detectors"), run.header["engine"]
        assert killer.process.wait(timeout=60) == -signal.SIGKILL
    assert killer.tokens > 0, "the server that was killed had got no work"
    assert set(got) == set(want) and len(want) >= 4 * 6 * 3
    assert facts["saes"] == [cs.load_sae("organism").fingerprint]  # the maxima were taken there
    assert again["selected"] == detectors["selected"]
    assert {row["status"] for row in got.values()} <= {row["status"] for row in want.values()}
    different = [key for key, row in want.items() if got[key]["text"] != row["text"]]
    print(
        f"{len(want)} trials, {len(different)} texts differ, {killer.tokens:.0f} tokens by the server that was killed"
    )
    assert len(different) <= len(want) // 100, [(want[k]["text"], got[k]["text"]) for k in different[:2]]
    assert len({row["text"] for row in want.values()}) > 20, "the arms change too little to prove anything"
    for key, row in want.items():
        if key not in different:
            assert got[key]["status"] == row["status"] and got[key]["grade"] == row["grade"]
