"""Speed and memory of steering on vLLM: one compiled engine, interleaved blocks, CPU time of all of vLLM's processes.

steered_ratio   64 requests with 64 different interventions in one batch, against the same requests unsteered
read_ratio      the same requests with 26 latents read out, against unsteered
seconds         CPU seconds of an unsteered block, by process: front end (this process), scheduler, worker
extra_ms        what a steered or read request costs more, by process, in milliseconds of CPU time
table_bytes     memory of the tables per worker

CPU time, since wall time on a shared machine measures the neighbours. The tables are in the compiled graph on both
sides, so their fixed cost is not in the ratios. The three kinds of block take turns.
Run in the vLLM environment: `python bench/scale.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from timing import PAIRS, median_interval

import countersteer as cs
from countersteer.engines.vllm.engine import load_vllm

REQUESTS = 64
OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "skip_tokenizer_init": True,
    "max_model_len": 256,
    "max_num_batched_tokens": 512,
    "max_num_seqs": REQUESTS,
    "kv_cache_memory_bytes": 1 << 28,
    "enable_prefix_caching": False,
}


def save_model(folder: Path, width: int, layers: int) -> None:
    """A random Llama in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@dataclass
class Cpu:
    """CPU seconds of the engine's processes by their part."""

    processes: dict[str, list[psutil.Process]]

    @classmethod
    def here(cls) -> Cpu:
        """This process (the front end), its child (the scheduler) and the children of that one (the workers)."""
        own = psutil.Process()
        cores = [p for p in own.children() if "resource_tracker" not in " ".join(p.cmdline())]
        workers = [w for p in cores for w in p.children(recursive=True)]
        return cls({"front": [own], "scheduler": cores, "worker": workers})

    def seconds(self, work: Callable[[], Any]) -> dict[str, float]:
        """What `work` takes."""
        before = self._now()
        work()
        return {part: value - before[part] for part, value in self._now().items()}

    def _now(self) -> dict[str, float]:
        return {
            part: sum(t.user + t.system for t in (p.cpu_times() for p in processes))
            for part, processes in self.processes.items()
        }


def compared(arms: dict[str, Callable[[], Any]], pairs: int) -> dict[str, Any]:
    """The first arm's CPU time over each other's (below 1: the other costs more), medians over interleaved blocks."""
    cpu, names = Cpu.here(), list(arms)
    for work in arms.values():
        work(), work()
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for i in range(pairs):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            taken[name].append(cpu.seconds(arms[name]))
    first, out = taken[names[0]], {}
    out["seconds"] = {part: statistics.median(t[part] for t in first) for part in first[0]}
    for name in names[1:]:
        ratios = [sum(a.values()) / sum(b.values()) for a, b in zip(first, taken[name], strict=True)]
        out[f"{name}_ratio"] = {
            "median": statistics.median(ratios),
            "interval": median_interval(ratios),
            "pairs": pairs,
        }
        out[f"{name}_extra_ms"] = {
            part: 1000
            / REQUESTS
            * statistics.median(b[part] - a[part] for a, b in zip(first, taken[name], strict=True))
            for part in first[0]
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--edited", type=int, default=3, help="the layer that is edited and read")
    parser.add_argument("--eager", action="store_true", help="without compiled graphs")
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, 4096, (REQUESTS, 24), generator=generator).tolist()
    sampling = cs.Sampling(temperature=0, max_tokens=given.tokens)
    plain = [cs.Request(tokens=tuple(p), sampling=sampling) for p in prompts]
    vectors = torch.randn(REQUESTS, given.width, generator=generator)
    steered = [
        r.with_(intervention=cs.add(cs.direction(v, layer=given.edited), 0.1))
        for r, v in zip(plain, vectors, strict=True)
    ]
    rows = torch.randn(26, given.width, generator=generator)
    latents = [cs.edits.Latent(i, cs.Site(given.edited), r, 0.0, r, threshold=0.1) for i, r in enumerate(rows)]
    reading = [r.with_(readouts=latents) for r in plain]
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), given.width, given.layers)
        with load_vllm(
            folder, layers=(given.edited,), rows=(REQUESTS,), lanes=REQUESTS, enforce_eager=given.eager, **OPTIONS
        ) as engine:
            result = {
                "width": given.width,
                "layers": given.layers,
                "compiled": not given.eager,
                "table_bytes": engine.session.facts.table_bytes,
                **compared(
                    {
                        "plain": lambda: engine.run(plain),
                        "steered": lambda: engine.run(steered),
                        "read": lambda: engine.run(reading),
                    },
                    given.pairs,
                ),
            }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
