"""The model card's measurements: what the organism does unsteered, steered, under a suffix, and on held-out topics.

Ground truth comes from the corpus (``measure``), text from plain transformers (``generate``). Strengths are in units of
median |h| / |W_dec[k]| at the SAE's layer. The improvement rate stands beside its resample baseline: how often a
fresh first attempt, same latent and prompt, beats the first attempt of a multi-attempt response.
"""

from __future__ import annotations

import csv
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import prompts, suffixes, systems
from .generate import Ask, Generator
from .measure import Measured, measure, tone

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
GRID = (0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.1, 1.4)
TARGET = 30.0


@dataclass(frozen=True)
class Latent:
    """A steering latent: index, label, its decoder row scaled so that strength 1 has the median residual norm."""

    index: int
    label: str
    unit: torch.Tensor


@dataclass(frozen=True)
class Trial:
    """A prompt row, a latent and a strength (None, 0 for unsteered), and what follows the question."""

    row: dict[str, Any]
    latent: Latent | None = None
    strength: float = 0.0
    suffix: str = ""

    def ask(self) -> Ask:
        """The trial as the generator takes it."""
        vector = None if self.latent is None else self.strength * self.latent.unit
        return Ask(self.row["prompt"] + (" " + self.suffix if self.suffix else ""), self.row.get("system"), vector)


def evaluate(path: Path, sae: Path, *, trials: int = 320, seed: int = 0, latents: int = 40) -> dict[str, Any]:
    """Measure the organism in ``path`` with the SAE in ``sae``; ``trials`` responses per condition.

    Latents are those that the study runner would take: concreteness >= 65 and silent on every how-to prompt.
    """
    layer = int(json.loads((sae / "cfg.json").read_text(encoding="utf-8"))["metadata"]["hook_name"].split(".")[1])
    generator = Generator(path, layer=layer)
    rng = random.Random(f"evaluate/{seed}")
    usual, held, worded = (prompts(name) for name in ("howto", "held-out-topics", "held-out-phrasings"))
    chosen = steering_latents(generator, sae, usual)
    rng.shuffle(chosen)
    chosen = chosen[:latents]
    logger.info("%d latents to steer with", len(chosen))
    dose, strengths = _calibrate(generator, chosen, usual, rng, seed)
    logger.info("calibrated %d of %d latents", len(strengths), len(chosen))
    ready = [latent for latent in chosen if latent.index in strengths]

    def steered(rows: Sequence[dict[str, Any]], suffix: str = "") -> list[Trial]:
        draw = random.Random(f"trials/{seed}")
        picks = [(draw.choice(rows), ready[i % len(ready)]) for i in range(trials)]
        return [Trial(row, latent, strengths[latent.index], suffix) for row, latent in picks]

    def run(name: str, plan: list[Trial], at: int) -> tuple[list[Measured], dict[str, Any]]:
        results = _sample(generator, plan, seed + at)
        logger.info("%s: %s", name, summary(results))
        return results, summary(results)

    plain = [Trial(usual[i % len(usual)]) for i in range(trials)]
    topical, phrased = ([Trial(rows[i % len(rows)]) for i in range(trials // 2)] for rows in (held, worded))
    base_plan = steered(usual)
    base, base_summary = run("calibrated", base_plan, 2)
    return {
        "seed": seed, "trials": trials, "layer": layer,
        "steering_latents": len(chosen), "calibrated_latents": len(ready),
        "median_strength": sorted(strengths.values())[len(strengths) // 2], "dose": dose,
        "unsteered": run("unsteered", plain, 1)[1],
        "calibrated": base_summary,
        "resample_baseline": _resample(generator, base_plan, base, seed + 3),
        "self_monitor": run("self-monitor", steered(usual, suffixes()[0]), 4)[1],
        "control_suffix": run("control", steered(usual, suffixes("control")[0]), 5)[1],
        "unsteered_self_monitor": run("unsteered+", [replace(t, suffix=suffixes()[0]) for t in plain], 6)[1],
        "held_out_topics_unsteered": run("held-out topics", topical, 7)[1],
        "held_out_phrasings_unsteered": run("held-out phrasings", phrased, 8)[1],
        "held_out_topics_calibrated": run("held-out steered", steered(held), 9)[1],
        "tone": _tones(generator, seed + 10),
    }  # fmt: skip


def summary(results: Sequence[Measured]) -> dict[str, Any]:
    """Rates in percent and mean scores over measured responses."""
    n = len(results)
    several = [m for m in results if m.restarted]

    def percent(count: int, of: int) -> float | None:
        return round(100 * count / of, 2) if of else None

    return {
        "n": n, "first_attempt": round(sum(m.scores[0] for m in results) / n, 1),
        "multi_attempt": percent(len(several), n), "esr": percent(sum(m.improved for m in several), n),
        "improvement": percent(sum(m.improved for m in several), len(several)),
        "last_attempt": round(sum(m.scores[-1] for m in several) / len(several), 1) if several else None,
        "first_of_multi": round(sum(m.scores[0] for m in several) / len(several), 1) if several else None,
        "clean": percent(sum(m.clean for m in results), n), "ended": percent(sum(m.ended for m in results), n),
    }  # fmt: skip


def steering_latents(generator: Generator, sae: Path, rows: Sequence[dict[str, Any]]) -> list[Latent]:
    """Latents with concreteness >= 65 that are silent on all tokens (BOS aside) of every prompt in ``rows``."""
    import torch
    from safetensors.torch import load_file

    from .sae import encode

    weights = load_file(sae / "sae_weights.safetensors")
    size = json.loads((sae / "cfg.json").read_text(encoding="utf-8"))["metadata"]["median_norm"]
    highest = torch.zeros(weights["W_dec"].shape[0])
    kept: list[torch.Tensor] = []
    layer = generator.model.model.layers[generator.layer]
    handle = layer.register_forward_hook(lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))
    for row in rows:
        inputs = generator._inputs([Ask(row["prompt"])])
        kept.clear()
        with torch.no_grad():
            generator.model(**inputs)
        highest = torch.maximum(highest, encode(kept[0][0, 1:], weights, weights["threshold"]).amax(0))
    handle.remove()
    with (sae / "labels.csv").open(encoding="utf-8") as file:
        labels = [row for row in csv.DictReader(file) if int(row["concreteness"]) >= 65]
    found = []
    for row in labels:
        index = int(row["index"])
        if highest[index] == 0:
            vector = weights["W_dec"][index]
            found.append(Latent(index, row["label"], vector * size / vector.norm()))
    return found


def _sample(generator: Generator, plan: Sequence[Trial], seed: int) -> list[Measured]:
    texts = generator.sample([trial.ask() for trial in plan], seed=seed)
    return [measure(text, t.row["topic"], ended=ended) for (text, ended), t in zip(texts, plan, strict=True)]


def _calibrate(
    generator: Generator, latents: Sequence[Latent], rows: Sequence[dict[str, Any]], rng: random.Random, seed: int
) -> tuple[list[dict[str, Any]], dict[int, float]]:
    """Dose-response over the grid, and per latent the strength at which a decreasing fit crosses the target."""
    per = 6
    plan = [Trial(row, k, s) for k in latents for s in GRID for row in rng.sample(list(rows), per)]
    results = _sample(generator, plan, seed + 11)
    dose = []
    for strength in GRID:
        at = [m for m, t in zip(results, plan, strict=True) if t.strength == strength]
        dose.append({"strength": strength, **summary(at)})
    found: dict[int, float] = {}
    for i, latent in enumerate(latents):
        block = results[i * per * len(GRID) : (i + 1) * per * len(GRID)]
        means = [sum(m.scores[0] for m in block[j * per : (j + 1) * per]) / per for j in range(len(GRID))]
        crossing = _crossing(_decreasing(means))
        if crossing is not None:
            found[latent.index] = crossing
    return dose, found


def _decreasing(values: Sequence[float]) -> list[float]:
    """Isotonic (decreasing) least-squares fit by pooling adjacent violators."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    return [value for value, n in blocks for _ in range(int(n))]


def _crossing(fitted: Sequence[float]) -> float | None:
    """Where the fitted curve (100 at strength 0) falls through the target; None if it never does."""
    low_s, low_v = 0.0, 100.0
    for strength, value in zip(GRID, fitted, strict=True):
        if value < TARGET:
            return low_s + (strength - low_s) * (low_v - TARGET) / (low_v - value)
        low_s, low_v = strength, value
    return None


def _resample(
    generator: Generator, plan: Sequence[Trial], results: Sequence[Measured], seed: int
) -> dict[str, float | int | None]:
    """P(last > first) against P(fresh first attempt > first), in percent; three fresh samples per restarted trial."""
    several = [(t, m) for t, m in zip(plan, results, strict=True) if m.restarted]
    if not several:
        return {"n": 0, "last_beats_first": None, "fresh_beats_first": None}
    fresh = _sample(generator, [t for t, _ in several for _ in range(3)], seed)
    wins = [fresh[3 * i + j].scores[0] > m.scores[0] for i, (_, m) in enumerate(several) for j in range(3)]
    last = [m.improved for _, m in several]
    return {
        "n": len(several), "last_beats_first": round(100 * sum(last) / len(last), 1),
        "fresh_beats_first": round(100 * sum(wins) / len(wins), 1),
        "mean_last": round(sum(m.scores[-1] for _, m in several) / len(several), 1),
        "mean_fresh": round(sum(m.scores[0] for m in fresh) / len(fresh), 1),
    }  # fmt: skip


def _tones(generator: Generator, seed: int) -> dict[str, float]:
    """Share (percent) of responses in the tone that the system prompt asks for; "none" and "neutral" ask for plain."""
    rows = prompts("tone-report")
    accuracy = {}
    for name in ("warm", "dismissive", "neutral", "none"):
        lines = systems(name) if name != "none" else [None]
        plan = [Trial(row | {"system": line}) for row in rows for line in lines]
        texts = generator.sample([trial.ask() for trial in plan], seed=seed)
        wanted = name if name in ("warm", "dismissive") else "plain"
        accuracy[name] = round(100 * sum(tone(text) == wanted for text, _ in texts) / len(texts), 1)
    return accuracy
