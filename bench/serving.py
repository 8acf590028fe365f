"""What steering costs a server: CPU time of its process at 32 concurrent streams, against the same streams unsteered.

Prints one JSON object. Server and clients are separate processes, the streams are server-sent events over HTTP, and
rounds are interleaved: each round runs every arm once, in turning order. A ratio is CPU time of an arm over that of the
unsteered arm in the same round; the median with its interval.

enforce_ratio, shadow_ratio   StTP at one layer, acting or only measured
receipt_us                    microseconds that receipts add per edited layer and token, in a batch of 32
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from timing import PAIRS, median_interval

import countersteer as cs
from countersteer import organism
from countersteer.edits.apply import piecewise
from countersteer.edits.bundle import Bundle
from countersteer.edits.table import RowTable

KEY = "bench-key-of-at-least-16-characters"
STREAMS, PROMPT, WIDTH, DEPTH = 32, 24, 512, 8
ARMS = {"unsteered": {"bundle": "none"}, "enforce": {"bundle": "target"}, "shadow": {}}
"""Arm -> what a request says. The policy's default is the bundle, in shadow."""


def save_model(folder: Path) -> None:
    """A random Llama of the size of bench/engine.py's, with the organism's tokenizer; it never ends by itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    vocab = json.loads((organism.path() / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(vocab_size=vocab, hidden_size=WIDTH, intermediate_size=1536, num_hidden_layers=DEPTH,
                         num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=1024,
                         bos_token_id=None, eos_token_id=None)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(organism.path() / name, folder / name)


def save_bundle(model: Path, path: Path, layers: int) -> None:
    """StTP at `layers` layers, at boundaries where about half of the tokens act."""
    with cs.load_engine(str(model), places=1) as engine:
        facts = engine.describe()
        steer = None
        for layer in range(2, 2 + layers):
            vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(layer))
            one = cs.to_target(cs.direction(vector, layer=layer), boundary=0.0, target=0.5)
            steer = one if steer is None else steer + one
    made_for = {name: facts[name] for name in ("model_fingerprint", "template_hash")}
    cs.save_bundle(Bundle("target", steer, "1", made_for), path)


async def one(web: httpx.AsyncClient, tokens: list[int], count: int, more: dict[str, Any]) -> int:
    """One streamed answer; how many pieces came."""
    body = {"model": "bench", "prompt": tokens, "max_tokens": count, "temperature": 0, "stream": True, **more}
    pieces = 0
    async with web.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            pieces += line.startswith("data: {")
    return pieces


async def measure(url: str, server: psutil.Process, *, rounds: int, tokens: int) -> dict[str, list[float]]:
    """CPU seconds of the server per arm and round."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(10, 2000, (STREAMS, PROMPT), generator=generator).tolist()
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    limits = httpx.Limits(max_connections=STREAMS)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=600, trust_env=False) as web:
        for turn in range(-1, rounds):
            order = list(ARMS)[turn % len(ARMS) :] + list(ARMS)[: turn % len(ARMS)]
            for arm in order:
                before = sum(server.cpu_times()[:2])
                await asyncio.gather(*(one(web, p, tokens, ARMS[arm]) for p in prompts))
                spent = sum(server.cpu_times()[:2]) - before
                if turn >= 0:  # the first round warms up
                    seconds[arm].append(spent)
    return seconds


def serve_and_measure(*, rounds: int, tokens: int, layers: int) -> dict[str, Any]:
    """Start a server on a fresh model, measure, stop it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_model(folder / "model")
        save_bundle(folder / "model", folder / "target.safetensors", layers)
        command = [sys.executable, "-m", "countersteer", "serve", str(folder / "model"), "--name", "bench", "--json"]
        command += ["--bundle", str(folder / "target.safetensors"), "--mode", "shadow", "--choose", "target"]
        command += [
            "--choose",
            "none",
            "--port",
            "0",
            "--audit",
            str(folder / "audit.jsonl"),
            "--per-minute",
            "1000000",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COUNTERSTEER_KEYS": f"bench:choose:{KEY}"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
            try:
                assert child.stdout is not None
                url = json.loads(child.stdout.readline())["url"]
                seconds = asyncio.run(measure(url, psutil.Process(child.pid), rounds=rounds, tokens=tokens))
            finally:
                child.terminate()
    out: dict[str, Any] = {"unsteered_cpu_s": statistics.median(seconds["unsteered"])}
    for arm in ("enforce", "shadow"):
        ratios = [a / b for a, b in zip(seconds[arm], seconds["unsteered"], strict=True)]
        out[f"{arm}_ratio"] = {
            "median": statistics.median(ratios),
            "interval": median_interval(ratios),
            "pairs": rounds,
        }
    return out


def receipt_us(rounds: int = 300) -> float:
    """Microseconds per edited layer and token: the row table against the bare formula, StTP in 32 slots."""
    table = RowTable(0, STREAMS, WIDTH, dtype=torch.float32, device=torch.device("cpu"))
    direction = cs.direction(torch.randn(WIDTH), layer=0)
    for slot in range(STREAMS):
        table.install(slot, cs.to_target(direction, boundary=0.0, target=0.5).edits, 4)
    h, slots, at = torch.randn(STREAMS, WIDTH), torch.arange(STREAMS), torch.full((STREAMS,), 9)
    (stage,) = table.stages.values()

    def bare() -> torch.Tensor:
        on = (at[:, None] >= stage.start[slots]) & (at[:, None] < stage.stop[slots])
        x = torch.addmm(stage.bias, h, stage.read.T)
        f = piecewise(x, stage.lo, stage.hi, stage.slope, stage.intercept)
        total = torch.where(on, f, torch.zeros_like(f)) @ stage.write
        return torch.where(total != 0, h + total, h)

    def spend(work: Any) -> float:
        start = time.process_time()
        for _ in range(rounds):
            work()
        return (time.process_time() - start) / rounds * 1e6

    assert torch.equal(bare(), table.apply(h, slots, at, decoding=True))
    return (
        statistics.median(spend(lambda: table.apply(h, slots, at, decoding=True)) - spend(bare) for _ in range(PAIRS))
        / STREAMS
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=PAIRS)
    parser.add_argument("--tokens", type=int, default=32, help="generated tokens of each stream")
    parser.add_argument("--layers", type=int, default=1, help="edited layers")
    given = parser.parse_args()
    torch.set_num_threads(1)
    result = serve_and_measure(rounds=given.rounds, tokens=given.tokens, layers=given.layers)
    result |= {"layers": given.layers, "streams": STREAMS, "receipt_us": receipt_us()}
    print(json.dumps({"serving": result}, indent=2))


if __name__ == "__main__":
    main()
