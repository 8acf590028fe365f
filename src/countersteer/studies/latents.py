"""The latents of a study: chosen once, with the unit of their strengths; more of them where the study grew.

What is chosen stays. The order of the draw depends on the seed alone, so a study that asks for more goes on along it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from countersteer.engines.base import Engine
from countersteer.store import LatentRow, Run
from countersteer.studies import measure, selection
from countersteer.studies.growth import wanted_latents
from countersteer.studies.judges import LanguageJudge
from countersteer.studies.spec import Spec


@dataclass(frozen=True)
class Source:
    """What latents are chosen from: the model with its SAE and layers (steering, reading), prompts, labels if given."""

    engine: Engine
    sae: Any
    layers: tuple[int, int]
    prompts: Sequence[str]
    labels: Mapping[int, Any] | None


async def prepare(spec: Spec, run: Run, source: Source, judge: LanguageJudge | None) -> None:
    """Choose the latents that the study asks for and the run does not have yet; give each the unit of its strength.

    Raises InputError where none passes the filters.
    """
    sizes = run.fact("sizes", [])
    size = {"count": wanted_latents(spec.settings), "per_latent": spec.settings.trials.per_latent}
    there = run.latents()
    if not sizes and there:  # a run of an older version has one size, which is the study's
        sizes = [{**size, "latents": len(there)}]
        run.set_facts(sizes=sizes)
    old = [row for row in there if row.status == "not needed"] if spec.needs_calibration else []
    asked = sizes[-1]["count"] if sizes else 0
    grown = not sizes or {**sizes[-1], **size} != sizes[-1]
    if not grown and not old:
        return
    new: list[LatentRow] = []
    if size["count"] > asked:
        chosen = await _choose(spec, run, source, judge, there)
        new = [replace(row, rank=len(there) + i) for i, row in enumerate(chosen.latents)]
        for note in chosen.notes:
            run.note(note)
    rows = [*old, *new]
    norm = run.fact("median_norm")
    if norm is None and spec.settings.calibration.units == "relative" and spec.needs_calibration and rows:
        norm = await measure.median_norm(source.engine, source.prompts, layer=source.layers[0])
    units = measure.units(source.sae, [row.latent for row in rows], norm=norm)
    steps = [*sizes, {**size, "latents": len(there) + len(new)}] if grown else sizes
    run.plan_latents(
        [replace(row, unit=unit) for row, unit in zip(rows, units, strict=True)], sizes=steps, median_norm=norm,
        steer_layer=source.layers[0], read_layer=source.layers[1],
    )  # fmt: skip


async def _choose(
    spec: Spec, run: Run, source: Source, judge: LanguageJudge | None, there: Sequence[LatentRow]
) -> selection.Chosen:
    """The latents to add to those that are there."""
    section, sae = spec.settings.latents, source.sae
    labels = sae.label_rows if source.labels is None else source.labels
    keep = None
    if section.ids is None and section.relevance != "any":
        if sae.architecture == "topk":
            run.note("latents were not filtered by relevance: a TopK latent has no activation of its own")
        else:
            active = await source.engine.max_activations(source.prompts, sae, layer=source.layers[1], template=True)
            keep = selection.relevant(active, section.relevance)
    taken = {row.latent for row in there}
    barred = sorted(run.clamped_at_random() - taken)
    if barred:
        keep = np.ones(sae.d_sae, dtype=bool) if keep is None else keep
        keep[barred] = False
    walk: dict[str, Any] = {"seed": spec.settings.study.seed, "total": sae.d_sae, "keep": keep}
    if judge is not None and section.ids is None and section.concreteness > 0 and labels:
        labels, asked, failed = await selection.rated(section, labels=labels, rate=judge.concreteness, **walk)
        if asked:
            named = judge.caller.settings.model
            run.note(f"concreteness of {asked} labels rated by {named}, {failed} of them without a usable rating")
    need = any(arm.uses_label for arm in spec.arms)
    return selection.choose(section, labels=labels, need_label=need, taken=taken, barred=barred, **walk)
