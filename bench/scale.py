"""Speed and memory of steering on vLLM: one compiled engine, interleaved blocks, CPU time of vLLM's processes.

steered_ratio   64 requests with 64 different interventions in one batch, against the same requests unsteered
read_ratio      the same requests with 26 latents read out, against unsteered
table_bytes     memory of the tables per worker

CPU time is that of the engine's worker processes, since wall time on a shared machine measures the neighbours. The
tables are in the compiled graph on both sides, so their fixed cost is not in the ratios.
Run in the vLLM environment: `python bench/scale.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from timing import PAIRS, median_interval

import countersteer as cs
from countersteer.engines.vllm.engine import load_vllm

OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "skip_tokenizer_init": True,
    "max_model_len": 256,
    "max_num_batched_tokens": 512,
    "max_num_seqs": 64,
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


def children_cpu(processes: list[psutil.Process]) -> float:
    """CPU seconds that processes have used."""
    return sum(t.user + t.system for t in (p.cpu_times() for p in processes))


def paired(new: Callable[[], Any], reference: Callable[[], Any], pairs: int) -> dict[str, Any]:
    """Median of reference / new in workers' CPU time over interleaved pairs: below 1 means `new` costs more."""
    processes = [p for p in psutil.Process().children(recursive=True) if p.is_running()]
    new(), reference()
    ratios = []
    for i in range(pairs):
        seconds = {}
        for work in (new, reference) if i % 2 else (reference, new):
            start = children_cpu(processes)
            work()
            seconds[work] = children_cpu(processes) - start
        ratios.append(seconds[reference] / seconds[new])
    low, high = median_interval(ratios)
    return {"median": statistics.median(ratios), "interval": [low, high], "pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--edited", type=int, default=3, help="the layer that is edited and read")
    parser.add_argument("--eager", action="store_true", help="without compiled graphs")
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, 4096, (64, 24), generator=generator).tolist()
    sampling = cs.Sampling(temperature=0, max_tokens=given.tokens)
    plain = [cs.Request(tokens=tuple(p), sampling=sampling) for p in prompts]
    vectors = torch.randn(64, given.width, generator=generator)
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
            folder, layers=(given.edited,), rows=(64,), lanes=64, enforce_eager=given.eager, **OPTIONS
        ) as engine:
            result = {
                "width": given.width,
                "layers": given.layers,
                "compiled": not given.eager,
                "table_bytes": engine.session.facts.table_bytes,
                "steered_ratio": paired(lambda: engine.run(steered), lambda: engine.run(plain), given.pairs),
                "read_ratio": paired(lambda: engine.run(reading), lambda: engine.run(plain), given.pairs),
            }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
