"""The detector search of a study: which latents tell a response to another prompt from one to its own.

One unsteered response per prompt, matched and shuffled over several derangements, max-pooled at the reading layer over
prompt and response with BOS left out. The choice is made once and kept in the run; "held-out" choices come from the
other half of the prompts, so that detectors are not tested on the prompts that chose them. ESR paper, detector search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import rng
from countersteer.engines.base import Engine
from countersteer.statistics import clustered_auc, holm
from countersteer.statistics import detectors as separable
from countersteer.studies.schema import DetectorsSection
from countersteer.studies.teacher import forced, in_batches

KEPT = 200
"""Rows of the table that are stored beside the chosen latents."""
COMPARED = 2000


async def search(
    engine: Engine, sae: Any, texts: Mapping[str, str], *, layer: int, section: DetectorsSection, seed: int
) -> dict[str, Any]:
    """The search over (prompt: unsteered response), on all prompts and on either half, as plain data for the run.

    Raises InputError for fewer than 4 prompts with a response, RefusedError for a TopK SAE.
    """
    prompts = sorted(texts)
    if len(prompts) < 4:
        raise InputError(f"a detector search needs 4 prompts with an unsteered response, there are {len(prompts)}")
    order = rng(seed, "detectors", "halves").permutation(len(prompts))
    halves = [sorted(order[: len(order) // 2].tolist()), sorted(order[len(order) // 2 :].tolist())]
    cache: dict[tuple[int, int], NDArray[np.float32]] = {}
    whole, table, facts = await _over(engine, sae, prompts, texts, range(len(prompts)), cache, layer, section, seed)
    split = []
    for number, half in enumerate(halves):
        chosen, _, _ = await _over(engine, sae, prompts, texts, half, cache, layer, section, [seed, number])
        split.append({"prompts": [prompts[i] for i in half], "selected": chosen})
    labels = sae.labels
    return {
        "layer": layer,
        "settings": section.model_dump(),
        "prompts": len(prompts),
        "latents": sae.d_sae,
        "selected": whole,
        "halves": split,
        **facts,
        "table": [{"latent": row["latent"], "label": labels.get(row["latent"]), **row} for row in table],
    }


async def _over(
    engine: Engine, sae: Any, prompts: Sequence[str], texts: Mapping[str, str], which: Sequence[int],
    cache: dict[tuple[int, int], NDArray[np.float32]], layer: int, section: DetectorsSection, seed: Any,
) -> tuple[list[int], list[dict[str, Any]], dict[str, Any]]:  # fmt: skip
    """Chosen latents, table rows and facts of a search over some of the prompts."""
    members, count = list(which), len(which)
    root = seed if isinstance(seed, list) else [seed]
    draw = rng(root[0], "detectors", *root[1:])
    shuffles = separable.derangements(count, section.derangements, draw)
    left = np.concatenate([np.arange(count)] * (1 + len(shuffles)))
    right = np.concatenate([np.arange(count), *shuffles])
    pairs = [(members[i], members[j]) for i, j in zip(left, right, strict=True)]
    missing = [pair for pair in dict.fromkeys(pairs) if pair not in cache]
    inputs = [forced(engine, prompts[i], texts[prompts[j]]) for i, j in missing]
    cache.update(zip(missing, await engine.max_activations(inputs, sae, layer=layer), strict=True))
    values = np.stack([cache[pair] for pair in pairs])
    found = separable.separation(values, left.tolist(), right.tolist(), draw, draws=section.draws)
    chosen = choose(found, section)
    shown = list(dict.fromkeys([*chosen, *separable.top(found, KEPT).tolist()]))
    rows = [_row(found, latent, latent in set(chosen)) for latent in shown]
    facts = {
        "pairs": len(pairs),
        "derangements": len(shuffles),
        "null_95": float(np.quantile(found.null, 0.95)),
        "significant": int((found.p <= 0.05).sum()),
        "strict": int(found.strict.sum()),
    }
    return chosen, rows, facts


def choose(found: separable.Separation, section: DetectorsSection) -> list[int]:
    """The detectors by the section's rule, best first (possibly none)."""
    ranked = separable.top(found, found.auc.size)
    if section.rule == "top":
        return [int(i) for i in ranked[: section.count]]
    passes = {
        "threshold": found.auc >= section.auc - 1e-12,
        "significant": found.p <= 0.05,
        "strict": found.strict,
    }[section.rule]
    return [int(i) for i in ranked if passes[i]]


def _row(found: separable.Separation, latent: int, selected: bool) -> dict[str, Any]:
    return {
        "latent": int(latent),
        "auc": float(found.auc[latent]),
        "cohen_d": float(found.cohen_d[latent]),
        "matched": float(found.matched_mean[latent]),
        "shuffled": float(found.shuffled_mean[latent]),
        "shuffled_share": float(found.shuffled_share[latent]),
        "strict": bool(found.strict[latent]),
        "p": float(found.p[latent]),
        "selected": selected,
    }


async def compare_steered(
    engine: Engine, sae: Any, trials: Sequence[Any], selected: Sequence[int], *, layer: int, seed: int
) -> dict[str, Any]:
    """Detectors in steered responses with a restart against steered responses without one.

    Content detectors fire in both alike; what decides to restart would fire more where there is a restart. Per latent:
    means of the max-pooled activation, AUC = P(restart > none) + P(equal) / 2 with interval and p by whole steering
    latents (`statistics.auc`: trials of one are alike), Holm over the detectors, and the smallest AUC that would be
    found four times in five. `trials`: valid ones with scores, text and plan. A seeded sample of at most 2,000
    single-attempt ones is read.
    """
    several = [t for t in trials if len(t.scores) > 1]
    single = [t for t in trials if len(t.scores) == 1]
    order = rng(seed, "detectors", "steered").permutation(len(single))[:COMPARED]
    several, single = several[:COMPARED], [single[i] for i in sorted(order)]
    both = [*several, *single]
    latents, restarting = ({t.plan.latent for t in some} for some in (both, several))
    base = {"restarts": len(several), "single": len(single), "layer": layer, "latents": len(latents),
            "restart_latents": len(restarting)}  # fmt: skip
    if len(several) < 2 or len(single) < 2 or not selected:
        return {**base, "status": "too-few", "rows": []}
    rows = sae.latents(list(selected)).at(layer)
    inputs = [forced(engine, t.plan.user, t.text or "", system=t.plan.system) for t in both]
    pooled = np.stack([np.asarray(v.cpu()) for v in await in_batches(engine, inputs, readouts=rows, reduce="max")])
    kinds = np.arange(len(both)) < len(several)
    draw = rng(seed, "detectors", "steered", "auc")
    tested = clustered_auc(pooled, kinds, [t.plan.latent for t in both], draw)
    adjusted = holm(tested.p.tolist())
    reach = float(stats.norm.isf(0.025 / len(selected)) + stats.norm.ppf(0.8))
    labels = sae.labels
    found = [
        {"latent": int(latent), "label": labels.get(int(latent)), "restart_mean": float(pooled[kinds, k].mean()),
         "single_mean": float(pooled[~kinds, k].mean()), "auc": float(tested.auc[k]),
         "interval": interval.as_list() if interval else None, "p": float(tested.p[k]), "p_holm": adjusted[k],
         "detectable": seen if (seen := 0.5 + reach * float(tested.spread[k])) < 1 else None}
        for k, (latent, interval) in enumerate(zip(selected, tested.intervals, strict=True))
    ]  # fmt: skip
    return {**base, "status": "ok", "rows": found}
