"""Traces: what chosen latents do, token by token, around a correction. One unsteered forward per text.

Episodes of the base arm (or another) with matched single-attempt responses: activations at the reading layer, aligned
at the correction and averaged in bins; per latent off topic against after, with Holm over the latents; ratios to a
baseline of good single-attempt responses. ESR paper, experiments 6 and 9.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import rng
from countersteer.statistics import holm
from countersteer.statistics.effects import aligned, paired
from countersteer.store import Run
from countersteer.studies.boundaries import marked
from countersteer.studies.episodes import Episode, baseline, episodes, matched_single, token_at, token_starts
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
    """One text read: activations [response tokens, latents], and boundaries in tokens of the response."""

    values: NDArray[np.float32]
    off: int
    correction: int
    on: int


def backtracking(labels: Mapping[int, str]) -> list[int]:
    """Latents whose label speaks of correcting oneself; labels of technical errors are left out."""
    return sorted(i for i, text in labels.items() if BACKTRACKING.search(text) and not TECHNICAL.search(text))


async def trace(
    run: Run, engine: Any, sae: Any, latents: Sequence[int], *, layer: int, arm: str | None = None,
    most: int = MOST, reach: int = REACH, bins: int = BINS,
) -> dict[str, Any]:  # fmt: skip
    """The trace of an arm's episodes as plain data; an empty episode set is a status and a sentence.

    Boundaries are those that a language model marked where one did (`boundaries`), else those of the attempts.

    status, sentence, counts, curves (per bin: mean over the latents, for episodes and matched singles), latents (per
    latent: regions, tests, Holm, ratios to the baseline). Raises InputError for an unknown arm or no latent.
    """
    name = arm or run.base_arm
    if name not in run.arms():
        raise InputError(f"there is no arm {name!r} in {run.folder}; it has {', '.join(run.arms())}")
    if not latents:
        raise InputError('a trace needs at least one latent; run the study with clamp = "detectors", or name some')
    seed = int(run.header.get("settings", {}).get("study", {}).get("seed", 0))
    trials = list(run.trials(name))
    found, marker, remarked = marked(run, episodes(trials)[:most])
    head = {"arm": name, "layer": layer, "latents_read": [int(i) for i in latents], "episodes": len(found),
            "boundaries": {"judge": marker, "episodes": remarked}}  # fmt: skip
    if not found:
        said = f"No response of {name} has exactly two attempts of which the second is better, so there is no trace."
        return {**head, "status": "no-episodes", "sentence": said, "matched": 0, "baseline": 0, "curves": {},
                "latents": []}  # fmt: skip
    single = matched_single(found, trials, rng(seed, "trace", "single"))
    good = baseline(trials)
    good = [good[i] for i in sorted(rng(seed, "trace", "baseline").permutation(len(good))[: len(found)])]
    rows = sae.latents(list(latents)).at(layer)
    texts = [e.trial for e in found] + single + good
    read = await _read(engine, texts, rows)
    marks = [_boundaries(run, engine, e) for e in found]
    traced = [Traced(v, *m) for v, m in zip(read, marks, strict=False)]
    alone = read[len(found) : len(found) + len(single)]
    flat = np.array([v.mean(0) for v in read[len(found) + len(single) :] if len(v)])
    curves = {
        "episodes": aligned(
            [t.values.mean(1) for t in traced], [t.correction for t in traced], reach=reach, bins=bins,
            rng=rng(seed, "trace", "curve"),
        ),
        "matched": aligned(
            [v.mean(1) for v in alone], [t.correction for t in traced[: len(alone)]], reach=reach, bins=bins,
            rng=rng(seed, "trace", "curve", "matched"),
        ),
    }  # fmt: skip
    table = _table(traced, flat, latents, sae.labels)
    said = _sentence(table, len(found))
    return {**head, "status": "ok", "sentence": said, "matched": len(single), "baseline": len(good), "curves": curves,
            "latents": table}  # fmt: skip


async def _read(engine: Any, trials: Sequence[Any], rows: Any) -> list[NDArray[np.float32]]:
    """Activations over the response's tokens of each trial, one forward each."""
    inputs = [forced(engine, t.plan.user, t.text, system=t.plan.system) for t in trials]
    heads = [forced(engine, t.plan.user, "", system=t.plan.system) for t in trials]
    values = await in_batches(engine, inputs, readouts=rows)
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
    """Per latent: means per region, tests of off topic against on topic, ratios to the baseline."""
    usable = [t for t in traced if t.correction > t.off and t.on < len(t.values)]
    off = np.array([t.values[t.off : t.correction].mean(0) for t in usable]).reshape(-1, len(latents))
    turn = np.array([t.values[t.correction : max(t.on, t.correction + 1)].mean(0) for t in usable])
    on = np.array([t.values[t.on :].mean(0) for t in usable]).reshape(-1, len(latents))
    tests = [paired(off[:, k], on[:, k]) for k in range(len(latents))]
    adjusted = holm([t.wilcoxon_p for t in tests])
    rows = []
    for k, latent in enumerate(latents):
        calm = float(flat[:, k].mean()) if len(flat) else None
        rows.append(
            {
                "latent": int(latent), "label": labels.get(int(latent)), **tests[k].as_dict(), "p_holm": adjusted[k],
                "correction": float(turn[:, k].mean()) if len(turn) else None, "baseline": calm,
                "before_ratio": _ratio(tests[k].before, calm), "after_ratio": _ratio(tests[k].after, calm),
            }
        )  # fmt: skip
    return rows


def _ratio(value: float | None, calm: float | None) -> float | None:
    return value / calm if calm and value is not None else None


def _sentence(table: Sequence[Mapping[str, Any]], count: int) -> str:
    falls = [r for r in table if r["p_holm"] is not None and r["p_holm"] < 0.05]
    return (
        f"In {count} episodes, {len(falls)} of {len(table)} latents are more active off topic than after the"
        " correction (one-sided Wilcoxon, Holm, 5%)."
    )
