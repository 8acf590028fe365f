"""What steering costs a vLLM worker between two steps: host time of its book-keeping, without vLLM.

step_us      microseconds of CPU time per decoding step (`fill` and `end`), requests steered or read, least of many
collect_us   microseconds per request to hand out receipts and readouts, all requests at once

The device waits for this time in every step, so it is what hundreds of different requests cost beyond the layer
operation itself. Run: `python bench/steps.py`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

import numpy as np
import torch
from torch import nn

import countersteer as cs
from countersteer.edits.vectors import read_rows
from countersteer.engines.vllm import steering
from countersteer.engines.vllm.settings import Settings
from countersteer.engines.vllm.store import Store
from countersteer.engines.vllm.ticket import Ticket

WIDTH = 64


def measure(requests: int, kind: str, steps: int) -> dict[str, float]:
    """One worker with one editable layer, `requests` decoding one token per step."""
    steering.layers_of = lambda model: {0: nn.Identity()}  # type: ignore[assignment]
    store, settings = Store(tempfile.mkdtemp()), Settings(rows=(64,), lanes=requests)
    facts: dict[str, Any] = {"n_layers": 1, "d_model": WIDTH, "dtype": torch.float32, "device": torch.device("cpu")}
    worker = steering.Steering(None, settings, store, facts={**facts, "tokens": requests})
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(26, WIDTH, generator=generator)
    if kind == "steered":
        more = {"steer": store.put(cs.add(cs.direction(vectors[0], layer=0), 0.1))}
    else:
        latents = [cs.edits.Latent(i, cs.Site(0), v, 0.0, v, threshold=0.1) for i, v in enumerate(vectors)]
        more = {"reads": store.put_reads(read_rows(latents))}
    ids = [str(i) for i in range(requests)]
    worker.begin([], [(i, Ticket(id=i, **more).to_args(), 1) for i in ids])
    one, taken = np.ones(requests, dtype=np.int64), []
    for step in range(steps):
        start = time.process_time()
        worker.fill(ids, one, step * one)
        worker.end()
        taken.append(time.process_time() - start)
    start = time.process_time()
    worker.collect(ids)
    return {"step_us": 1e6 * min(taken), "collect_us": 1e6 * (time.process_time() - start) / requests}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=150)
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = {f"{kind} {n}": measure(n, kind, given.steps) for n in (64, 512) for kind in ("steered", "read")}
    print(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
