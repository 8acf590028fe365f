"""How well the shipped offline judge splits responses: the table of docs/judging.md, as JSON.

    python bench/judge.py [--episodes FILE]

The three blind tests, unsteered answers of the organism, answers of a model that knows no restarts under latents that
nothing was fitted on, and, where given, real episodes of self-correction ({"prompt", "response", "attempts",
"boundary"} per line); responses split per second of CPU on those.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from steered_answers import steered

from countersteer import organism
from countersteer.judging.attempts import split_attempts
from countersteer.organism.generate import Ask, Generator

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
TESTS = ("restarts_test", "restarts_test_2", "restarts_test_3")


def measured(rows: list[tuple[str, str, list[int]]]) -> dict[str, Any]:
    """F1 of "more than one attempt", boundaries within 10 characters, and speed; rows: prompt, response, boundaries."""
    began = time.process_time()
    found = [[start for start, _, _ in split_attempts(text, prompt=prompt)[1:]] for prompt, text, _ in rows]
    seconds = time.process_time() - began
    truth = [boundaries for _, _, boundaries in rows]
    hits = sum(bool(f) and bool(t) for f, t in zip(found, truth, strict=True))
    split, real = sum(map(bool, found)), sum(map(bool, truth))
    near = [any(abs(at - b) <= 10 for at in f) for f, t in zip(found, truth, strict=True) for b in t]
    return {
        "responses": len(rows),
        "split": split,
        "f1": round(2 * hits / max(1, split + real), 4),
        "precision": round(hits / max(1, split), 4),
        "recall": round(hits / max(1, real), 4),
        "boundaries_near": round(sum(near) / max(1, len(near)), 4),
        "per_cpu_s": round(len(rows) / seconds, 1),
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def organism_answers() -> list[tuple[str, str, list[int]]]:
    """280 unsteered answers: plain, warm and dismissive; none restarts by intent."""
    generator = Generator(organism.path(), layer=3)
    plain = [Ask(row["prompt"]) for row in organism.prompts("howto") * 5]
    tone = organism.prompts("tone-report")
    styled = [Ask(row["prompt"], row[name]) for name in ("warm", "dismissive") for row in tone]
    texts = [*generator.sample(plain, seed=5), *generator.sample(styled, seed=6)]
    return [(ask.prompt, text, []) for ask, (text, _) in zip([*plain, *styled], texts, strict=True)]


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description="How well the shipped offline judge splits responses.")
    parser.add_argument("--episodes", type=Path, help="real self-correction episodes, JSONL")
    given = parser.parse_args()
    split_attempts("Warm up. Wait, that's wrong. Start again.")
    result = {
        **{
            name: measured([(r["prompt"], r["response"], r["boundaries"]) for r in _lines(DATA / f"{name}.jsonl")])
            for name in TESTS
        },
        "organism": measured(organism_answers()),
        "word_salad": measured([(p, text, []) for p, text in steered(480, prompts="held-out", odd=False, seed=31)]),
    }
    if given.episodes:
        rows = _lines(given.episodes)
        result["episodes"] = measured(
            [(r["prompt"], r["response"], [r["boundary"]] if r["attempts"] > 1 else []) for r in rows]
        )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
