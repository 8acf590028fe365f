"""Densely measured dose-response curves of the organism, for comparing calibration methods on them.

For each concrete latent: first-attempt scores (0 to 1) at every strength of a grid over the whole range, on every one
of a set of prompts, judged offline against frozen unsteered references; then `--near` more where the mean score
lies between 0.08 and 0.8, so that where a curve crosses is not a matter of single answers. Writes the JSON table that
`bench/calibration.py table` reads. Run: `python bench/organism_curves.py --out curves.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import countersteer as cs
from countersteer.core.fingerprint import named_seed, rng
from countersteer.judging.offline import OfflineJudge
from countersteer.judging.references import ReferenceSet
from countersteer.studies import measure
from countersteer.studies.prompts import load_prompts

NEAR = (0.08, 0.8)


def main() -> None:
    """Generate, judge and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--latents", type=int, default=48)
    parser.add_argument("--prompts", type=int, default=25)
    parser.add_argument("--strengths", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--near", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    engine, sae = cs.load_engine("organism", places=64), cs.load_sae("organism")
    prompts = load_prompts("howto")
    sampling = cs.Sampling(temperature=0.6, max_tokens=128)

    def seeded(*names: object) -> cs.Sampling:
        return cs.Sampling(temperature=0.6, max_tokens=128, seed=named_seed(given.seed, *names))

    plain = [cs.Request(prompt=p, sampling=seeded("reference", p, i)) for p in prompts for i in range(5)]
    texts: dict[str, list[str]] = {p: [] for p in prompts}
    for request, out in zip(plain, engine.run(plain), strict=True):
        texts[request.prompt].append(out.text)
    judge = OfflineJudge(ReferenceSet.of(texts))

    concrete = [i for i, value in sae.concreteness.items() if value >= 65]
    latents = sorted(rng(given.seed, "latents").permutation(concrete)[: given.latents].tolist())
    chosen = rng(given.seed, "prompts").permutation(prompts)[: given.prompts].tolist()
    layer = sae.site.layer
    norm = asyncio.run(measure.median_norm(engine, prompts, layer=layer))
    units = dict(zip(latents, measure.units(sae, latents, norm=norm), strict=True))
    rows = dict(zip(latents, sae.latents(latents), strict=True))
    grid = np.geomspace(0.15, 3.0, given.strengths).round(4).tolist()

    def measured(latent: int, doses: Sequence[float], repeats: range) -> list[tuple[float, str, float | None]]:
        cells = [(s, p, i) for s in doses for p in chosen for i in repeats]
        requests = [
            cs.Request(
                prompt=p,
                intervention=cs.add(rows[latent], strength=s * units[latent]),
                sampling=seeded("dose", latent, s, p, i),
            )
            for s, p, i in cells
        ]
        found = []
        for (s, p, _), out in zip(cells, engine.run(requests), strict=True):
            attempts = judge.grade(p, out.text).attempts
            score = attempts[0].score if attempts else None
            found.append((s, p, None if score is None else round(score / 100, 4)))
        return found

    table: dict[str, list[object]] = {name: [] for name in ("latent", "strength", "prompt", "score")}
    for latent in latents:
        found = measured(latent, grid, range(given.repeats))
        means = {s: np.mean([score for dose, _, score in found if dose == s and score is not None]) for s in grid}
        near = [s for s in grid if NEAR[0] < means[s] < NEAR[1]]
        found += measured(latent, near, range(given.repeats, given.repeats + given.near))
        for s, p, score in found:
            for name, value in (("latent", latent), ("strength", s), ("prompt", p), ("score", score)):
                table[name].append(value)
    engine.close()
    facts = {"sampling": {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens}, "judge": judge.key}
    given.out.write_text(json.dumps({**table, "about": facts}), encoding="utf-8")
    print(f"{len(table['score'])} scores of {len(latents)} latents written to {given.out}")


if __name__ == "__main__":
    main()
