"""Coverage of the intervals, and the pooled calibration against the ESR paper's bisection, by simulation.

    python bench/calibration.py coverage --draws 20000 --out coverage.json
    python bench/calibration.py simulate --repeats 6 --out calibration.json
    python bench/calibration.py table CURVES.json --repeats 20 --out curves.json

`table` takes measured dose-response curves, {"latent": [...], "strength": [...], "prompt": [...], "score": [...]}
with scores from 0 to 1, as the simulator. Every figure in docs/statistics.md and docs/calibration.md is from here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from countersteer.statistics import contrast, rate
from countersteer.statistics.calibration import BisectionCalibrator, PooledCalibrator
from countersteer.statistics.calibration.simulation import SimulatedWorld, TableWorld, World, run

CORRELATION = 0.15
RATES = (0.001, 0.005, 0.01, 0.04, 0.08)
SIZES = ("equal", "1 to 9", "one in five has 17, the others 2")
# Where half of the answers go bad, in log strength, against a prior centred at log 0.8 = -0.22.
SCENARIOS: dict[str, dict[str, Any]] = {
    "centred": {"middle": -0.4},
    "centre twice too high": {"middle": -1.1},
    "centre twice too low": {"middle": 0.3, "hi": 4.0},
    "strong prompt effects": {"middle": -0.4, "prompt_spread": 0.4},
    "5% of scores missing": {"middle": -0.4, "missing": 0.05},
    "20 latents": {"middle": -0.6, "count": 20},
    # Not looked at while the method was made.
    "graded scores, steep curves": {"middle": -0.3, "spread": 0.2, "width": 0.12, "graded": 0.5},
    "shallow curves": {"middle": -0.4, "width": 0.3, "prompt_spread": 0.3},
}
PRIOR_SDS = {"bisection": 1.0, "bisection, narrow prior": 0.5}


def cluster_sizes(latents: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Trials per latent, mean 5, for one of SIZES."""
    if kind == "equal":
        return np.full(latents, 5)
    return rng.integers(1, 10, latents) if kind == "1 to 9" else np.where(np.arange(latents) % 5 == 0, 17, 2)


def cover_rate(job: tuple[int, float, str, int, int]) -> dict[str, Any]:
    """Share of draws whose interval holds the true rate: headline (these prompts) and plain Wilson."""
    latents, share, kind, draws, seed = job
    rng = np.random.default_rng([seed, latents, round(share * 1000), SIZES.index(kind)])
    total = 1.0 / CORRELATION - 1.0
    hits = {"headline": 0, "wilson": 0, "too high": 0, "too low": 0, "no event": 0}
    for draw in range(draws):
        if draw % 100 == 0:  # other sizes every hundred draws: coverage of a lattice depends on the total
            sizes = cluster_sizes(latents, kind, rng)
            group = np.repeat(np.arange(latents), sizes)
            prompts = np.concatenate([rng.choice(38, size, replace=False) for size in sizes])
            at_zero = 1.0 + CORRELATION * (float(sizes @ sizes) / sizes.sum() - 1.0)
        risks = rng.beta(share * total, (1.0 - share) * total, latents)
        found = rate((rng.random(group.size) < risks[group]).astype(np.int64), group, prompts, deff_at_zero=at_zero)
        assert found.interval and found.wilson
        low, high = found.interval.as_list()
        hits["headline"] += low <= share <= high
        hits["wilson"] += found.wilson.low <= share <= found.wilson.high
        hits["too high"] += low > share
        hits["too low"] += high < share
        hits["no event"] += found.events == 0
    shares = {name: count / draws for name, count in hits.items()}
    return {"latents": latents, "rate": share, "sizes": kind, "draws": draws, **shares}


def cover_new_prompts(job: tuple[int, float, float, int, int]) -> dict[str, Any]:
    """Coverage of the rate over all possible prompts, from 38 of them whose effects multiply the risk."""
    latents, share, spread, draws, seed = job
    rng = np.random.default_rng([seed, latents, round(share * 1000), round(spread * 10)])
    total, group = 1.0 / CORRELATION - 1.0, np.repeat(np.arange(latents), 5)
    one_way = two_way = 0
    for _ in range(draws):
        prompts = np.argsort(rng.random((latents, 38)), axis=1)[:, :5].ravel()
        effects = np.exp(rng.normal(-(spread**2) / 2, spread, 38))
        risks = rng.beta(share * total, (1.0 - share) * total, latents)[group] * effects[prompts]
        found = rate((rng.random(group.size) < risks).astype(np.int64), group, prompts, deff_at_zero=1.6)
        assert found.interval and found.interval_new_prompts
        one_way += found.interval.low <= share <= found.interval.high
        two_way += found.interval_new_prompts.low <= share <= found.interval_new_prompts.high
    shares = {"headline": one_way / draws, "new prompts": two_way / draws}
    return {"latents": latents, "rate": share, "prompt_spread": spread, "draws": draws, **shares}


def cover_contrast(job: tuple[int, float, float, int, int]) -> dict[str, Any]:
    """Coverage of difference and ratio of an arm with base, paired on latents; and the share with p < 0.05."""
    latents, base, effect, draws, seed = job
    rng = np.random.default_rng([seed, latents, round(base * 1000), round(effect * 100)])
    total, group = 1.0 / CORRELATION - 1.0, np.repeat(np.arange(latents), 5)
    hits = {"difference": 0, "ratio": 0, "p below 0.05": 0, "ratio undefined": 0}
    for _ in range(draws):
        risks = rng.beta(base * total, (1.0 - base) * total, latents)[group]
        ours, theirs = rng.random(group.size) < risks * effect, rng.random(group.size) < risks
        found = contrast(ours.astype(np.int64), theirs.astype(np.int64), group, rng, binary=True, deff_at_zero=1.6)
        assert found.interval
        hits["difference"] += found.interval.low <= base * effect - base <= found.interval.high
        hits["p below 0.05"] += found.p is not None and found.p < 0.05
        limits = found.ratio_interval
        hits["ratio undefined"] += limits is None
        high = np.inf if limits is None or limits.high is None else limits.high
        hits["ratio"] += limits is None or limits.low <= effect <= high
    shares = {name: count / draws for name, count in hits.items()}
    return {"latents": latents, "base": base, "ratio of rates": effect, "draws": draws, **shares}


def calibrate(world: World, seed: int, options: dict[str, float]) -> list[dict[str, Any]]:
    """Calibrate every latent of `world` with each method; one row per latent that crosses or is called ok."""
    target = options.get("target", 0.3)
    truth = {latent: world.truth(latent, target) for latent in world.latents}
    common: dict[str, Any] = {"latents": world.latents, "prompts": world.prompts, "seed": seed, **options}
    started = time.process_time()
    pooled = run(PooledCalibrator(**common), world, np.random.default_rng([seed, 1]))
    found = {"pooled": {latent: estimate.strength for latent, estimate in pooled.items()}}
    seconds = time.process_time() - started
    for number, (name, ratio) in enumerate(PRIOR_SDS.items()):
        calibrator = BisectionCalibrator(**common, prior_sd=ratio * options.get("centre", 0.8))
        run(calibrator, world, np.random.default_rng([seed, 2 + number]))
        found[name] = {**calibrator.medians()}
    rows = []
    for latent in world.latents:
        row: dict[str, Any] = {"latent": latent, "seed": seed, "truth": truth[latent], "seconds": seconds}
        row |= {name: strengths[latent] for name, strengths in found.items()}
        row["low"], row["high"] = pooled[latent].low, pooled[latent].high
        rows.append(row)
    return rows


def summarise(rows: list[dict[str, Any]], cluster: str, seed: int = 0) -> dict[str, Any]:
    """RMSE of log strength over latents that cross and that both methods place; ratios with 95% intervals.

    Intervals: 4,000 bootstrap draws over `cluster` ("world", or "latent" where repeats share latents).
    """
    crossing = [row for row in rows if row["truth"] is not None]
    placed = [row for row in crossing if row["pooled"] is not None]
    errors = {name: np.log([row[name] / row["truth"] for row in placed]) for name in ("pooled", *PRIOR_SDS)}
    inside = np.array([row["low"] <= row["truth"] <= row["high"] for row in placed])
    keys = [(row["latent"],) if cluster == "latent" else (row["latent"], row["seed"]) for row in placed]
    place = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    group = np.array([place[key] for key in keys])
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(group.max() + 1, np.full(group.max() + 1, 1 / (group.max() + 1)), size=4000)[:, group]
    summary: dict[str, Any] = {
        "latents": len(placed),
        "rmse": {name: float(np.sqrt(np.mean(error**2))) for name, error in errors.items()},
        "median_error": {name: float(np.median(np.abs(error))) for name, error in errors.items()},
        "bias": {name: float(np.mean(error)) for name, error in errors.items()},
        "coverage_90": float(inside.mean()),
        "coverage_90_interval": np.quantile(weights @ inside / weights.sum(axis=1), [0.025, 0.975]).tolist(),
        "crossing_called_uncalibrated": len(crossing) - len(placed),
        "not_crossing": len(rows) - len(crossing),
        "not_crossing_called_uncalibrated": sum(r["truth"] is None and r["pooled"] is None for r in rows),
        "pooled_cpu_seconds": float(np.mean([row["seconds"] for row in rows])),
    }
    for name in PRIOR_SDS:
        drawn = np.sqrt((weights @ errors["pooled"] ** 2) / (weights @ errors[name] ** 2))
        ratio = summary["rmse"]["pooled"] / summary["rmse"][name]
        summary[f"ratio to {name}"] = {"value": ratio, "interval": np.quantile(drawn, [0.025, 0.975]).tolist()}
    return summary


def _simulate(job: tuple[str, int]) -> list[dict[str, Any]]:
    name, seed = job
    options = {"hi": SCENARIOS[name].get("hi", 3.0)}
    return calibrate(SimulatedWorld(seed=seed, **SCENARIOS[name]), seed, options)


def _table(job: tuple[str, int, dict[str, float]]) -> list[dict[str, Any]]:
    path, seed, options = job
    return calibrate(TableWorld(json.loads(Path(path).read_text())), seed, options)


def main() -> None:
    """Parse, spread over processes, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["coverage", "simulate", "table"])
    parser.add_argument("table", nargs="?")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, help="of simulate: also write one row per latent, as JSON")
    parser.add_argument("--workers", type=int, default=2)
    for name, default in (("lo", 0.0), ("hi", 3.0), ("centre", 0.8), ("target", 0.3)):
        parser.add_argument(f"--{name}", type=float, default=default)
    given = parser.parse_args()
    if given.what == "table" and not given.table:
        parser.error("table needs the JSON file of measured curves")
    seeds = [given.seed + repeat for repeat in range(given.repeats)]
    result: dict[str, Any]
    with ProcessPoolExecutor(given.workers) as pool:
        if given.what == "coverage":
            cells = [(m, p) for m in (500, 60) for p in RATES]
            few = max(given.draws // 10, 10)
            jobs = [(m, p, kind, given.draws, given.seed) for m, p in cells for kind in SIZES]
            crossed = [(m, p, spread, few, given.seed) for m, p in cells for spread in (0.3, 0.6)]
            arms = [(m, p, effect, few, given.seed) for m, p in cells for effect in (1.0, 0.5)]
            result = {
                "rates": list(pool.map(cover_rate, jobs)),
                "new_prompts": list(pool.map(cover_new_prompts, crossed)),
                "contrasts": list(pool.map(cover_contrast, arms)),
            }
        elif given.what == "simulate":
            runs = {name: list(pool.map(_simulate, [(name, seed) for seed in seeds])) for name in SCENARIOS}
            rows = {name: [row for repeat in repeats for row in repeat] for name, repeats in runs.items()}
            result = {name: summarise(part, "world") for name, part in rows.items()}
            everything = [{**row, "latent": f"{name}/{row['latent']}"} for name, part in rows.items() for row in part]
            result["all together"] = summarise(everything, "world")
            if given.rows:
                given.rows.write_text(json.dumps(rows) + "\n")
        else:
            options = {name: getattr(given, name) for name in ("lo", "hi", "centre", "target")}
            tables = pool.map(_table, [(given.table, seed, options) for seed in seeds])
            result = summarise([row for repeat in tables for row in repeat], "latent")
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    json.dump(result, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
