"""Traces: what chosen latents do, token by token, around a correction. One unsteered forward per text.

Episodes of the steered arms (or of one) with matched single-attempt responses: activations at the reading layer,
aligned at the correction and averaged in bins; per latent off topic against after, with Holm over the latents; ratios
to a baseline of good single-attempt responses. Episodes under one steering latent are alike: tests take the mean of
each steering latent as one value, and curves draw whole steering latents. ESR paper, experiments 6 and 9.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import rng
from countersteer.statistics import holm
from countersteer.statistics.effects import aligned, paired
from countersteer.store import Run
from countersteer.studies.boundaries import marked
from countersteer.studies.episodes import Episode, Pool, baseline, matched_single, pool, token_at, token_starts
from countersteer.studies.teacher import forced, in_batches

REACH, BINS = 150, 50
MOST = 1000
BACKTRACKING = re.compile(
    r"self-?correct|correction|apolog|mistake|reconsider|restart|start(ing)? over|try(ing)? again|rephras|backtrack"
    r"|hesitat|retract|oops|let me",
    re.IGNORECASE,
)
TECHNICAL = re.compile(r"error (code|message|handling)|exception|debug|stack trace|syntax|http|compil|code|bug", re.I)


@dataclass(frozen=True)
class Traced:
    """One text read: activations [response tokens, latents], boundaries in tokens of the response, steering latent."""

    values: NDArray[np.float32]
    off: int
    correction: int
    on: int
    latent: int


def backtracking(labels: Mapping[int, str]) -> list[int]:
    """Latents whose label speaks of correcting oneself; labels of technical errors are left out."""
    return sorted(i for i, text in labels.items() if BACKTRACKING.search(text) and not TECHNICAL.search(text))


async def trace(
    run: Run, engine: Any, sae: Any, latents: Sequence[int], *, layer: int, arm: str | None = None,
    most: int = MOST, reach: int = REACH, bins: int = BINS, progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The trace of a run's episodes as plain data; an empty episode set is a status and a sentence.

    `arm`: whose episodes; None pools base and the arms that are steered as base is (`episodes.pool`). Boundaries are
    those that a language model marked where one did (`boundaries`), else those of the attempts.

    status, sentence, counts (`arms`: episodes per arm and whether they were read), curves (per bin: mean over the
    latents, for episodes and matched singles), latents (per latent: regions, tests over the steering latents, Holm,
    ratios to the baseline), smallest_d. Raises InputError for an unknown arm or no latent.
    """
    if arm is not None and arm not in run.arms():
        raise InputError(f"there is no arm {arm!r} in {run.folder}; it has {', '.join(run.arms())}")
    if not latents:
        raise InputError('a trace needs at least one latent; run the study with clamp = "detectors", or name some')
    seed = int(run.header.get("settings", {}).get("study", {}).get("seed", 0))
    pooled = pool(run, arm)
    kept = sorted(rng(seed, "trace", "episodes").permutation(len(pooled.episodes))[:most])
    found, marker, remarked = marked(run, [pooled.episodes[i] for i in kept])
    steering = [e.trial.plan.latent for e in found]
    counts = {name: {"episodes": n, "read": name in pooled.read} for name, n in pooled.counts.items()}
    head = {"arm": arm, "arms": counts, "layer": layer, "latents_read": [int(i) for i in latents],
            "episodes": len(found), "steering_latents": len(set(steering)),
            "boundaries": {"judge": marker, "episodes": remarked}}  # fmt: skip
    if not found:
        return {**head, "status": "no-episodes", "sentence": _nothing(pooled, arm), "matched": 0, "baseline": 0,
                "curves": {}, "latents": [], "smallest_d": None}  # fmt: skip
    single = matched_single(found, pooled.single, rng(seed, "trace", "single"))
    good = baseline(pooled.single)
    good = [good[i] for i in sorted(rng(seed, "trace", "baseline").permutation(len(good))[: len(found)])]
    rows = sae.latents(list(latents)).at(layer)
    texts = [e.trial for e in found] + single + good
    read = await _read(engine, texts, rows, progress)
    marks = [_boundaries(run, engine, e) for e in found]
    traced = [Traced(v, *m, latent) for v, m, latent in zip(read, marks, steering, strict=False)]
    alone = read[len(found) : len(found) + len(single)]
    flat = np.array([v.mean(0) for v in read[len(found) + len(single) :] if len(v)])
    curves = {
        "episodes": aligned(
            [t.values.mean(1) for t in traced], [t.correction for t in traced], reach=reach, bins=bins,
            rng=rng(seed, "trace", "curve"), clusters=steering,
        ),
        "matched": aligned(
            [v.mean(1) for v in alone], [t.correction for t in traced[: len(alone)]], reach=reach, bins=bins,
            rng=rng(seed, "trace", "curve", "matched"), clusters=[t.plan.latent for t in single],
        ),
    }  # fmt: skip
    table = _table(traced, flat, latents, sae.labels)
    said = _sentence(table, head)
    return {**head, "status": "ok", "sentence": said, "matched": len(single), "baseline": len(good), "curves": curves,
            "latents": table, "smallest_d": _smallest(table)}  # fmt: skip


async def _read(
    engine: Any, trials: Sequence[Any], rows: Any, progress: Callable[[int, int], None] | None
) -> list[NDArray[np.float32]]:
    """Activations over the response's tokens of each trial, one forward each."""
    inputs = [forced(engine, t.plan.user, t.text, system=t.plan.system) for t in trials]
    heads = [forced(engine, t.plan.user, "", system=t.plan.system) for t in trials]
    values = await in_batches(engine, inputs, readouts=rows, progress=progress)
    starts = [0 if isinstance(head, str) else _common(head, whole) for head, whole in zip(heads, inputs, strict=True)]
    return [np.asarray(v.float().cpu())[start:] for v, start in zip(values, starts, strict=True)]


def _common(head: Sequence[int], whole: Sequence[int]) -> int:
    """Tokens that the prompt alone and the prompt with its response share: where the response begins."""
    for i, (a, b) in enumerate(zip(head, whole, strict=False)):
        if a != b:
            return i
    return min(len(head), len(whole))


def _boundaries(run: Run, engine: Any, episode: Episode) -> tuple[int, int, int]:
    """An episode's boundaries in tokens of the teacher-forced response."""
    plan, text = episode.trial.plan, episode.trial.text
    tokenizer = getattr(engine, "tokenizer", None)
    if tokenizer is None:  # an engine without one reads a text word by word
        starts = [m.start() for m in re.finditer(r"\S+", text)]
        shift = 1 + len(re.findall(r"\S+", plan.user))
        return tuple(token_at(starts, c) + shift for c in (episode.off, episode.correction, episode.on))  # type: ignore[return-value]
    whole = forced(engine, plan.user, text, system=plan.system)
    ids = whole[_common(forced(engine, plan.user, "", system=plan.system), whole) :]

    def decode(some: Sequence[int]) -> str:
        return str(tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    starts = token_starts(ids, decode)
    return (token_at(starts, episode.off), token_at(starts, episode.correction), token_at(starts, episode.on))


def _table(
    traced: Sequence[Traced], flat: NDArray[Any], latents: Sequence[int], labels: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Per latent: means per region, tests of off topic against on topic over steering latents, ratios to the baseline.

    Each steering latent is one value, the mean of its episodes: n is their number.
    """
    usable = [t for t in traced if t.correction > t.off and t.on < len(t.values)]
    parts = [
        [t.values[t.off : t.correction].mean(0) for t in usable],
        [t.values[t.correction : max(t.on, t.correction + 1)].mean(0) for t in usable],
        [t.values[t.on :].mean(0) for t in usable],
    ]
    off, turn, on = (_by_latent(part, [t.latent for t in usable], len(latents)) for part in parts)
    tests = [paired(off[:, k], on[:, k]) for k in range(len(latents))]
    adjusted = holm([t.wilcoxon_p for t in tests])
    rows: list[dict[str, Any]] = []
    for k, latent in enumerate(latents):
        calm = float(flat[:, k].mean()) if len(flat) else None
        rows.append(
            {
                "latent": int(latent), "label": labels.get(int(latent)), **tests[k].as_dict(), "p_holm": adjusted[k],
                "episodes": len(usable),
                "correction": float(turn[:, k].mean()) if len(turn) else None, "baseline": calm,
                "before_ratio": _ratio(tests[k].before, calm), "after_ratio": _ratio(tests[k].after, calm),
            }
        )  # fmt: skip
    return rows


def _by_latent(values: Sequence[NDArray[Any]], steering: Sequence[int], width: int) -> NDArray[np.float64]:
    """Means of the episodes of each steering latent, [steering latents, latents]."""
    table = np.array(values, np.float64).reshape(-1, width)
    return np.array([table[np.array(steering) == one].mean(0) for one in sorted(set(steering))]).reshape(-1, width)


def _ratio(value: float | None, calm: float | None) -> float | None:
    return value / calm if calm and value is not None else None


def _smallest(table: Sequence[Mapping[str, Any]]) -> float | None:
    """The smallest Cohen's d that Wilcoxon's test finds four times in five after Holm; None: not even a large one.

    Normal theory with Student's quantiles over Wilcoxon's relative efficiency, sqrt(3 / pi).
    """
    n, alpha = int(table[0]["n"]), 0.05 / len(table)
    if n < 2 or 2.0**-n > alpha:
        return None
    reach = float(stats.t.isf(alpha, n - 1) + stats.t.ppf(0.8, n - 1))
    return reach / float(np.sqrt(n * 3.0 / np.pi))


def _nothing(pooled: Pool, arm: str | None) -> str:
    """That there is no episode, and where there are some."""
    where = arm or "the steered arms (" + ", ".join(pooled.read) + ")"
    said = f"No response of {where} has exactly two attempts of which the second is better, so there is no trace."
    others = {name: n for name, n in pooled.counts.items() if n and name not in pooled.read}
    if not others:
        return said + " Nor has any other arm's."
    return f"{said} Other arms have some ({', '.join(f'{k}: {n}' for k, n in others.items())}): name one with --arm."


def _sentence(table: Sequence[Mapping[str, Any]], head: Mapping[str, Any]) -> str:
    falls = sum(r["p_holm"] is not None and r["p_holm"] < 0.05 for r in table)
    arms = ", ".join(f"{k} {v['episodes']}" for k, v in head["arms"].items() if v["read"] and v["episodes"])
    shown = f"{falls} of {len(table)} latents are" if falls else f"none of {len(table)} latents is shown to be"
    return (
        f"In {head['episodes']} episodes under {head['steering_latents']} steering latents (by arm: {arms}), {shown}"
        " more active off topic than after the correction (one-sided Wilcoxon over the steering latents, Holm, 5%)."
    )
