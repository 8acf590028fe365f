"""Speed of the embedded engine against transformers' own `generate`, in CPU time on one thread.

uniform_ratio   32 requests with 32 different vectors, against unsteered `generate` on the whole batch
ragged_ratio    steered requests of very different lengths, against that ideal full batch, per generated token
clamp_ratio     26 of 16,384 latents clamped in every request, against no clamp, both in the engine
split_ratio     an add and that clamp in every request, each measured by itself, against the add alone
receipt_us      microseconds that receipts add per edited layer and step at 32 requests
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch
from timing import paired_ratio

import countersteer as cs
from countersteer.core.site import Site
from countersteer.edits.table import RowTable
from countersteer.edits.vectors import Latent, Latents

WIDTH, BATCH, PROMPT, NEW = 512, 32, 50, 68


def model() -> Any:
    """A random 34M-parameter Llama in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=WIDTH,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
    )
    made = LlamaForCausalLM(config).eval()
    made.generation_config.pad_token_id = 0
    return made


def requests(lengths: list[tuple[int, int]], steer: list[Any]) -> list[cs.Request]:
    """Greedy requests of (prompt, new) token lengths with the given interventions in turn."""
    generator = torch.Generator().manual_seed(1)
    out = []
    for i, (prompt, new) in enumerate(lengths):
        ids = tuple(torch.randint(0, 8192, (prompt,), generator=generator).tolist())
        sampling = cs.Sampling(temperature=0, max_tokens=new)
        out.append(cs.Request(tokens=ids, intervention=steer[i % len(steer)], sampling=sampling))
    return out


def receipt_us(rounds: int = 400) -> float:
    """Microseconds per step that measuring adds to one edited layer (32 different vectors, 32 tokens)."""
    table = RowTable(0, BATCH, WIDTH, dtype=torch.float32, device=torch.device("cpu"))
    for slot in range(BATCH):
        table.install(slot, cs.add(cs.direction(torch.randn(WIDTH), layer=0), strength=1.0).edits, 4)
    h, slots, at = torch.randn(BATCH, WIDTH), torch.arange(BATCH), torch.full((BATCH,), 9)

    def spend() -> float:
        start = time.process_time()
        for _ in range(rounds):
            table.apply(h, slots, at)
        return (time.process_time() - start) / rounds * 1e6

    measured, record = [], table._record
    for _ in range(15):
        table._record = record  # type: ignore[method-assign]
        with_receipts = spend()
        table._record = lambda *a: None  # type: ignore[method-assign]
        measured.append(with_receipts - spend())
    return sorted(measured)[len(measured) // 2]


def main() -> dict[str, Any]:
    """All four measurements as one dict."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hf = model()
    engine = cs.load_engine(hf, places=BATCH)
    vectors = [cs.add(cs.direction(torch.randn(WIDTH), layer=4), strength=0.5) for _ in range(BATCH)]

    uniform = requests([(PROMPT, NEW)] * BATCH, vectors)
    batch = torch.tensor([r.tokens for r in uniform])

    def generate() -> None:
        with torch.inference_mode():
            hf.generate(batch, attention_mask=torch.ones_like(batch), max_new_tokens=NEW, do_sample=False)

    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(4, 97, (4 * BATCH,), generator=generator).tolist()
    outputs = torch.randint(8, 129, (4 * BATCH,), generator=generator).tolist()
    ragged = requests(list(zip(prompts, outputs, strict=True)), vectors)

    rows = torch.randn(26, WIDTH), torch.randn(26, WIDTH) / WIDTH**0.5
    latents = Latents(
        Latent(i * 600, Site(4), rows[0][i] / WIDTH**0.5, 0.0, rows[1][i], threshold=0.1, sae="bench")
        for i in range(26)
    )
    clamped = requests([(PROMPT, NEW)] * BATCH, [cs.clamp(latents, 0.0)])
    plain = requests([(PROMPT, NEW)] * BATCH, [None])
    both = requests([(PROMPT, NEW)] * BATCH, [vector + cs.clamp(latents, 0.0) for vector in vectors])

    result = {
        "uniform_ratio": paired_ratio(lambda: engine.run(uniform), generate),
        "ragged_ratio": paired_ratio(lambda: engine.run(ragged), generate, work=sum(outputs) / (BATCH * NEW)),
        "clamp_ratio": paired_ratio(lambda: engine.run(clamped), lambda: engine.run(plain)),
        "split_ratio": paired_ratio(lambda: engine.run(both), lambda: engine.run(uniform)),
        "receipt_us": receipt_us(),
    }
    engine.close()
    return result


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
