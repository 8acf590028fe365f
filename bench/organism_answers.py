"""Write ordinary answers of the organism, unsteered, for the fit of the restart model: none of them restarts.

    python bench/organism_answers.py [--out tests/data/restarts_organism.jsonl]

Answers without a system prompt and under the warm and the dismissive one, but for those that hold a learned restart.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from countersteer import organism
from countersteer.organism.generate import Ask, Generator
from countersteer.organism.measure import restarts

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "restarts_organism.jsonl"


def main() -> None:
    """Sample with a fixed seed and write one line per answer."""
    parser = argparse.ArgumentParser(description="Write ordinary answers of the organism.")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    generator = Generator(organism.path(), layer=3)
    asks = [Ask(row["prompt"]) for row in organism.prompts("howto") * 3]
    asks += [
        Ask(row["prompt"], row[name]) for name in ("warm", "dismissive") for row in organism.prompts("tone-report")
    ]
    lines = []
    for ask, (text, _) in zip(asks, generator.sample(asks, seed=args.seed), strict=True):
        if not restarts(text):
            note = {
                "id": f"o{len(lines):03d}",
                "prompt": ask.prompt,
                "response": text,
                "boundaries": [],
                "note": "organism",
            }
            lines.append(json.dumps(note))
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
