"""Worlds with a known answer, to measure a calibrator against: simulated latents, or a table of measured ones.

The simulated world is deliberately not the model that `pooled` fits: bimodal scores whose levels differ by latent,
curves of which two thirds are not logistic in log strength, effects of prompts that differ between latents, and
a share of latents that never cross or turn round. A table gives a real model's curves, measured densely.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import optimize, special

from countersteer.core.errors import InputError
from countersteer.statistics.calibration.base import Calibrator, Estimate, Id
from countersteer.statistics.groups import Floats

_SHAPES: tuple[Callable[[Floats], Floats], ...] = (
    lambda z: np.asarray(special.expit(-z)),
    lambda z: np.asarray(np.exp(-np.exp(np.minimum(0.8 * z - 0.37, 50.0)))),
    lambda z: np.asarray(-np.expm1(-np.exp(np.minimum(-0.8 * z - 0.37, 50.0)))),
)


class World(Protocol):
    """Latents that can be steered: a score for a query, and the strength at which the mean score is right."""

    latents: Sequence[Id]
    prompts: Sequence[Id]

    def score(self, latent: Id, prompt: Id, strength: float, rng: np.random.Generator) -> float | None:
        """One first-attempt score, 0 to 1, or None for a missing one."""

    def truth(self, latent: Id, target: float) -> float | None:
        """The lowest strength in range at which the mean score over all prompts falls to `target`, if any."""


@dataclass(frozen=True)
class SimulatedWorld:
    """`count` latents and 38 prompts. `odd`: share that is flat high, flat low, or turns round.

    `middle` and `spread`: mean and SD of log strength at which half the answers go bad; `width`: median width of
    the curves; `graded`: 0 if every answer is good or bad, towards 1 the more lie between; `missing`: share
    of scores that are lost. Everything is drawn from `seed`.
    """

    count: int = 200
    prompt_count: int = 38
    odd: float = 0.1
    middle: float = -0.2
    spread: float = 0.45
    prompt_spread: float = 0.2
    width: float = 0.2
    graded: float = 0.0
    missing: float = 0.0
    hi: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        k = self.count
        heavy = rng.standard_t(6, k) * np.sqrt(4 / 6)
        draws = {
            "theta": self.middle + self.spread * heavy,
            "width": np.exp(rng.normal(np.log(self.width), 0.4, k)),
            "low": np.clip(rng.normal(0.19, 0.04, k), 0.05, 0.27),
            "high": np.clip(rng.normal(0.85, 0.05, k), 0.6, 0.95),
            "kind": rng.permutation((np.arange(k) < round(self.odd * k)) * (1 + np.arange(k) % 3)),
            "shape": rng.integers(0, 3, k),
            "prompt": rng.normal(0.0, self.prompt_spread, self.prompt_count),
            "wobble": rng.normal(0.0, 0.08, (k, self.prompt_count)),
        }
        object.__setattr__(self, "_draws", draws)

    @property
    def latents(self) -> list[Id]:
        """0 .. count - 1."""
        return list(range(self.count))

    @property
    def prompts(self) -> list[Id]:
        """0 .. prompt_count - 1."""
        return list(range(self.prompt_count))

    def good_share(self, latent: int, strength: float | Floats) -> Floats:
        """Probability of a good answer on each prompt, [prompts]; [n, prompts] for `strength` [n]."""
        d: dict[str, Floats] = self.__dict__["_draws"]
        kind = int(d["kind"][latent])
        middle = d["theta"][latent] + d["prompt"] + d["wobble"][latent]
        log_strength = np.log(np.maximum(strength, 1e-9))[..., None]
        z = (log_strength - middle) / d["width"][latent]
        # One third logistic, one third falls slowly and ends fast, one third falls fast and ends slowly.
        falling = _SHAPES[int(d["shape"][latent])](z)
        if kind == 1:
            falling = np.full_like(falling, 0.9)
        elif kind == 2:
            falling = np.full_like(falling, 0.03)
        elif kind == 3:
            back = d["theta"][latent] + 0.9
            falling = falling + (1.0 - falling) * special.expit((log_strength - back) / 0.15) * 0.7
        return 0.01 + 0.97 * falling

    def score(self, latent: Id, prompt: Id, strength: float, rng: np.random.Generator) -> float | None:
        """A score near the latent's high level with the good share's probability, else near its low level.

        Graded answers lie between the two, with the same mean: Beta-distributed with (1 - graded) of the variance.
        """
        d: dict[str, Floats] = self.__dict__["_draws"]
        if rng.random() < self.missing:
            return None
        share, low, high = self.good_share(int(latent), strength)[int(prompt)], d["low"], d["high"]
        worth = self.graded / (1.0 - self.graded)
        quality = rng.beta(share * worth, (1.0 - share) * worth) if worth else float(rng.random() < share)
        level = low[int(latent)] + (high[int(latent)] - low[int(latent)]) * quality
        return float(np.clip(rng.beta(level * 20.0, (1.0 - level) * 20.0), 0.0, 1.0))

    def mean_score(self, latent: Id, strength: float | Floats) -> Floats:
        """Expected score over all prompts, at every `strength`."""
        d: dict[str, Floats] = self.__dict__["_draws"]
        share = self.good_share(int(latent), strength).mean(axis=-1)
        return np.asarray(d["low"][int(latent)] + (d["high"][int(latent)] - d["low"][int(latent)]) * share)

    def truth(self, latent: Id, target: float) -> float | None:
        """First crossing of `target` between 0.01 and `hi`, to 1e-6; None if there is none."""
        grid = np.geomspace(0.01, self.hi, 400)
        below = self.mean_score(latent, grid) < target
        if below[0] or not below.any():
            return None
        first = int(np.argmax(below))
        crossing = optimize.brentq(
            lambda x: float(self.mean_score(latent, float(x))) - target, grid[first - 1], grid[first], xtol=1e-6
        )
        return float(crossing)


class TableWorld:
    """Dose-response curves measured densely: every score of a (latent, strength, prompt) may be drawn again.

    Between measured strengths one of the two neighbours is drawn, nearer ones more often; below the lowest and
    above the highest the end is used. Truth is where the isotonic (falling) fit of the mean score over prompts
    crosses the target, interpolated in log strength.
    """

    def __init__(self, table: Mapping[str, Sequence[float | int | str | None]]) -> None:
        """`table`: columns latent, strength, prompt, score (0 to 1, None if missing) of equal length."""
        missing = [name for name in ("latent", "strength", "prompt", "score") if name not in table]
        if missing:
            raise InputError(f"the table has no column {missing[0]!r}: it needs latent, strength, prompt, score")
        if len({len(table[name]) for name in ("latent", "strength", "prompt", "score")}) != 1:
            raise InputError("the table's columns differ in length: give one row per score")
        cells: dict[tuple[Id, float, Id], list[float | None]] = {}
        rows = zip(table["latent"], table["strength"], table["prompt"], table["score"], strict=True)
        for latent, strength, prompt, score in rows:
            key = (_id(latent), float(strength or 0.0), _id(prompt))
            cells.setdefault(key, []).append(None if score is None else float(score))
        self._cells = cells
        self.latents = sorted({key[0] for key in cells}, key=str)
        self.prompts = sorted({key[2] for key in cells}, key=str)
        self._strengths = {
            latent: np.array(sorted({key[1] for key in cells if key[0] == latent and key[1] > 0}))
            for latent in self.latents
        }

    def score(self, latent: Id, prompt: Id, strength: float, rng: np.random.Generator) -> float | None:
        """A measured score of this prompt at one of the two measured strengths around `strength`."""
        dose = self._strengths[latent]
        place = float(np.interp(np.log(max(strength, 1e-9)), np.log(dose), np.arange(dose.size)))
        index = min(int(place) + int(rng.random() < place - int(place)), dose.size - 1)
        scores = self._cells.get((latent, float(dose[index]), prompt))
        return None if not scores else scores[int(rng.integers(len(scores)))]

    def truth(self, latent: Id, target: float) -> float | None:
        """Crossing of the isotonic mean curve, or None."""
        dose = self._strengths[latent]
        means, weights = [], []
        for strength in dose:
            cells = (self._cells.get((latent, float(strength), prompt), []) for prompt in self.prompts)
            per_prompt = [[s for s in scores if s is not None] for scores in cells]
            known = [float(np.mean(scores)) for scores in per_prompt if scores]
            means.append(float(np.mean(known)) if known else np.nan)
            weights.append(len(known))
        curve, kept = np.array(means), np.isfinite(means)
        fitted = optimize.isotonic_regression(curve[kept], weights=np.array(weights)[kept], increasing=False).x
        logs = np.log(dose[kept])
        if fitted.size < 2 or fitted[0] < target or fitted[-1] >= target:
            return None
        first = int(np.argmax(fitted < target))
        step = (fitted[first - 1] - target) / (fitted[first - 1] - fitted[first])
        return float(np.exp(logs[first - 1] + step * (logs[first] - logs[first - 1])))


def run(calibrator: Calibrator, world: World, rng: np.random.Generator) -> dict[Id, Estimate]:
    """Answer every query of `calibrator` from `world`; its estimates."""
    while queries := calibrator.ask():
        for query in queries:
            calibrator.tell(query.index, world.score(query.latent, query.prompt, query.strength, rng))
    return calibrator.result()


def _id(value: float | int | str | None) -> Id:
    return value if isinstance(value, str) else int(value or 0)
