"""The numbers of a defence of the organism, and of successive halving on synthetic frontiers.

    python bench/defence.py --out bench/defence.json [--demo runs/defence]

`--demo`: the folder of a finished `countersteer defence demo`; without it the demo is run first, timed. The halving is
that of `tests/test_defence_halving.py`, over more worlds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))


def halving(worlds: int) -> dict[str, Any]:
    """How often the full grid's choice is found within its 95% interval, the trait lost on average, and the cost."""
    import test_defence_halving as synthetic
    from countersteer.defence import halving as search

    rng, close, lost, costs = np.random.default_rng(0), 0, [], []
    for _ in range(worlds):
        items = int(rng.choice([24, 32, 40, 100]))
        scores = synthetic.world(rng, layers=int(rng.integers(4, 10)), strengths=7, items=items)
        found, whole = (
            f(len(scores), items, synthetic.evaluator(scores, [0]), search.Rule(synthetic.FLOOR))
            for f in (search.search, search.full)
        )
        costs.append(found.cost)
        if whole.chosen is None or found.chosen is None:
            close += whole.chosen is found.chosen
            continue
        mine, best = scores[found.chosen, :, 0], scores[whole.chosen, :, 0]
        lost.append(float(best.mean() - mine.mean()))
        close += bool(mine.mean() >= best.mean() - 1.96 * best.std(ddof=1) / np.sqrt(items))
    return {"worlds": worlds, "within_interval": close / worlds, "trait_lost": float(np.mean(lost)),
            "largest_cost": max(costs), "mean_cost": float(np.mean(costs))}  # fmt: skip


def defence(folder: Path) -> dict[str, Any]:
    """The rows of the results table from a demo's folder."""
    card = json.loads((folder / "card" / "scorecard.json").read_text())
    tuned = json.loads((folder / "card-fine-tune" / "scorecard.json").read_text())
    swept = json.loads((folder / "warm.sweep" / "sweep.json").read_text())
    kept = ("trait", "coherence", "recovered", "cross_entropy")
    rows = {**card["attack"], **card["points"]}
    return {
        "point": {k: card["bundle"][k] for k in ("method", "layer", "strength", "span")},
        "floor": card["floor"],
        "rows": {name: {k: row[k] for k in kept if k in row} for name, row in rows.items()},
        "points": {name: [row["layer"], row["strength"], row["span"]] for name, row in card["points"].items()},
        "sweep": {arm: {m: one["chosen"] and {"name": one["chosen"]["name"], "trait": one["chosen"]["trait"],
                                              "coherence": one["chosen"]["coherence"]}
                        for m, one in found["methods"].items()} for arm, found in swept["arms"].items()},
        "sweep_cost": {arm: found["cost"] for arm, found in swept["arms"].items()},
        "benign": {name: {"acted": row["acting"]["acted"]["value"], "tokens": row["acting"]["tokens_changed"],
                          "relative": row["acting"]["mean_relative"], "trait": row["trait_change"],
                          "coherence": row["coherence_change"]} for name, row in card["benign"].items()},
        "user_attacks": {name: {k: v["trait"] for k, v in row.items() if k != "acting"}
                         for name, row in card["user_attacks"].items()},
        "resistance": card["resistance"],
        "conversations": {
            m: [[t[k]["value"] for k in ("trait", "coherence", "reuse")] for t in found.get("by_turn", ())]
            for m, found in card["conversations"]["modes"].items()
        },
        "cost": card["cost"],
        "fine_tune": {
            "separation": tuned["bundle"]["derived"]["separation"],
            **{name: {k: {x: row[k][x] for x in ("trait", "coherence")} for k in ("undefended", "defended")}
               for name, row in tuned["benign"].items()},
            **{name: {k: row[k] for k in ("trait", "coherence")} for name, row in tuned["attack"].items()},
        },
    }  # fmt: skip


def main() -> None:
    """Measure and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "defence.json")
    parser.add_argument("--demo", type=Path)
    parser.add_argument("--worlds", type=int, default=2000)
    given = parser.parse_args()
    result: dict[str, Any] = {"halving": halving(given.worlds)}
    with tempfile.TemporaryDirectory() as place:
        folder = given.demo
        if folder is None:
            from countersteer.defence.demo import run_demo

            folder = Path(place) / "demo"
            wall, cpu = time.monotonic(), time.process_time()
            run_demo(folder)
            result["demo"] = {"wall_s": time.monotonic() - wall, "cpu_s": time.process_time() - cpu}
        result |= defence(folder)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
