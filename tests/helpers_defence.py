"""A small defence of the organism: a dozen scenarios, a grid of a few points, everything in seconds."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from countersteer.defence.settings import Settings, checked

SETTINGS: dict[str, Any] = {
    "defence": {"model": "organism", "places": 32},
    "sampling": {"max_tokens": 40},
    "judge": {"first_tokens": 40},
    "fit": {"folds": 3, "clas_examples": 4, "clas_steps": 4},
    "sweep": {"methods": ["swfc", "sttp", "stmp", "cast", "prompt"], "layers": [3], "spans": ["all"],
              "strengths": {"swfc": [4], "sttp": [30], "stmp": [2.5], "cast": [4]}, "floor": 0.5,
              "random": 1, "flipped": True},
    "scorecard": {"turns": 2, "conversations": 2, "cost_pairs": 2},
}  # fmt: skip


def data_file(folder: Path, *, counts: tuple[int, int, int] = (12, 8, 8)) -> Path:
    """The organism's trait with every fourth scenario of each split (one per topic), in a file."""
    text = (resources.files("countersteer.defence") / "data" / "organism.jsonl").read_text(encoding="utf-8")
    head, *rows = (json.loads(line) for line in text.splitlines())
    head["trait"]["user_attacks"] = head["trait"]["user_attacks"][-1:]  # asks for a fence
    head["trait"]["follow_ups"] = head["trait"]["follow_ups"][:2]
    kept = [head]
    for split, count in zip(("fit", "choose", "report"), counts, strict=True):
        of_split = [row for row in rows if row["split"] == split]
        kept += (of_split[::4] + of_split[1::4])[:count]
    path = folder / "warmth.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return path


def settings(folder: Path, **sections: dict[str, Any]) -> Settings:
    """Settings for that file; `sections` override."""
    merged = {name: {**SETTINGS.get(name, {}), **sections.get(name, {})} for name in {*SETTINGS, *sections}}
    merged["defence"]["trait"] = str(folder / "warmth.jsonl")
    return checked(merged, where="test")
