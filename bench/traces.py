"""Speed of traces: 1,000 episodes read with 26 latents, against the bare forwards over the same texts.

Prints one JSON object. A run of 1,000 episodes is planted (two attempts, the second better; as many single-attempt
responses to match and to compare with), its texts in the words of the shipped organism, which reads them.
`forwards_per_text` counts the rows that passed through the model's last layer, per text that a trace needs: 1 is one
forward each. `share_of_bare` is the CPU time of the bare forwards over that of the whole trace.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LATENTS = 26


def plant(folder: Path, episodes: int) -> Any:
    """A run with as many episodes, matched single-attempt responses and good ones to compare with."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import report_runs as planted
    from countersteer import organism

    prompts = [row["prompt"] for row in organism.prompts("howto")]
    words = "First fold the towel and then press it with a warm iron until it is flat. "
    trials = [
        planted.T(i % 50, prompts[i % len(prompts)], (20.0, 80.0), text=words * (1 + i % 3)) for i in range(episodes)
    ]
    trials += [planted.T(i % 50, prompts[i % len(prompts)], (60.0,), text=words * 2) for i in range(2 * episodes)]
    return planted.plant(folder, planted.Planted({"base": trials}))


def main() -> None:
    """Trace and bare forwards once each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=1000)
    given = parser.parse_args()
    import torch

    import countersteer as cs
    from countersteer import organism
    from countersteer.core.site import Site
    from countersteer.studies.teacher import BATCH, forced
    from countersteer.studies.trace import trace

    torch.set_num_threads(1)
    sae = cs.load_sae("organism")
    layer = int(sae.site.layer)
    with tempfile.TemporaryDirectory() as folder, cs.load_engine("organism") as engine:
        assert organism.path().is_dir()
        run = plant(Path(folder) / "run", given.episodes)
        rows = 0

        def count(module: Any, args: Any, output: Any) -> None:
            nonlocal rows
            rows += (output[0] if isinstance(output, tuple) else output).shape[0]

        trials = list(run.trials("base"))
        texts = [forced(engine, t.plan.user, t.text or "") for t in trials]
        read = given.episodes * 3  # episodes, their matches, the baseline

        async def bare() -> None:
            for start in range(0, read, BATCH):
                await engine.forward(texts[start : start + BATCH], capture=Site(layer))

        asyncio.run(engine.forward(texts[:BATCH], capture=Site(layer)))
        began = time.process_time()
        asyncio.run(bare())
        plain = time.process_time() - began
        handle = engine.model.layers[-1].register_forward_hook(count)
        began = time.process_time()
        found = asyncio.run(trace(run, engine, sae, list(range(LATENTS)), layer=layer, most=given.episodes))
        whole = time.process_time() - began
        handle.remove()
        run.close()
    needed = found["episodes"] + found["matched"] + found["baseline"]
    print(json.dumps({
        "trace_episodes": found["episodes"], "trace_texts": needed, "trace_latents": LATENTS,
        "trace_forwards_per_text": rows / needed, "trace_s": whole, "trace_bare_forwards_s": plain,
        "trace_share_of_bare": plain / whole,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
