"""Write answers of `organism-plain` under strong steering, for the fit of the restart model: word salad, no restarts.

    python bench/steered_answers.py [--out tests/data/restarts_steered.jsonl]

That model has never seen a restart, so none of its answers holds one. Odd latents but those of
preset:finetune-organism, the questions that its adapters are trained on, strengths up to far above the calibrated ones.
Even latents and held-out questions are for measuring (`bench/judge.py`).
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import countersteer as cs
from countersteer import organism
from countersteer.sources.sae import load_sae

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "restarts_steered.jsonl"
STRENGTHS = (20.0, 30.0, 40.0, 50.0, 70.0)
MEASURED = (
    5, 81, 97, 101, 168, 200, 218, 241, 308, 364, 371, 376, 382, 396, 400, 444, 533, 600, 631, 637, 681, 693, 728, 747,
)  # fmt: skip
"""The latents that preset:finetune-organism picks."""


def steered(count: int, *, prompts: str, odd: bool, seed: int) -> list[tuple[str, str]]:
    """Prompts with answers, each under another random latent; sampled at temperature 1."""
    sae, rng = load_sae("organism-plain"), random.Random(seed)
    latents = [k for k in range(sae.d_sae) if k % 2 == odd and k not in MEASURED]
    asked = [row["prompt"] for row in organism.prompts(prompts)]
    requests = [
        cs.Request(
            prompt=rng.choice(asked),
            intervention=cs.add(sae.direction(rng.choice(latents)), rng.choice(STRENGTHS)),
            sampling=cs.Sampling(temperature=1.0, max_tokens=96, seed=number),
        )
        for number in range(count)
    ]
    with cs.load_engine("organism-plain", places=128) as engine:
        answers = engine.run(requests, errors="return")
    return [
        (str(request.prompt), answer.text)
        for request, answer in zip(requests, answers, strict=True)
        if not isinstance(answer, Exception) and answer.text.strip()
    ]


def main() -> None:
    """Sample with a fixed seed and write one line per answer."""
    parser = argparse.ArgumentParser(description="Write steered answers of organism-plain.")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--count", type=int, default=800)
    given = parser.parse_args()
    rows = [
        {"id": f"s{k:03d}", "prompt": prompt, "response": text, "boundaries": [], "note": "organism-plain, steered"}
        for k, (prompt, text) in enumerate(steered(given.count, prompts="howto", odd=True, seed=23))
    ]
    given.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} answers in {given.out}")


if __name__ == "__main__":
    main()
