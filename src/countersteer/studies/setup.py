"""What a study works with: the engine and the SAE it names, its adapters, its judge, its layers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError, RefusedError
from countersteer.engines.base import Engine
from countersteer.studies.arms import Arm
from countersteer.studies.inputs import Inputs, check_sae
from countersteer.studies.prompts import load_prompts
from countersteer.studies.spec import Spec


@dataclass(frozen=True)
class Tools:
    """What a run works with. Whoever made the engine closes it; with `close` that is the run."""

    engine: Engine
    sae: Any
    close: bool = False


URLS = "COUNTERSTEER_URLS"
"""Environment variable with addresses, separated by commas, that take the place of a study's [engine] urls: a run whose
servers have moved goes on with it."""
PLACES = 64
"""Requests that vLLM decodes together, as many as a study keeps in flight."""
ADAPTERS = "adapters"
"""Where a run keeps the adapters that its study's [finetune] section trained."""


def load_tools(
    spec: Spec, *, out: str | Path | None = None, inputs: Inputs | None = None, day: str | None = None
) -> Tools:
    """The SAE and the engine that a study names. Raises InputError before the model is loaded where it can.

    `out`: the folder of the run, which holds the adapters that the study's [finetune] section made. `inputs`: the
    content of the study's files, to be checked. `day` (ISO): what chat templates with a date take for today, which is
    the day that the run began.
    """
    import countersteer as cs

    study, settings = spec.settings.study, spec.settings.engine
    sae = cs.load_sae(study.sae)
    check_sae(spec, sae, inputs)
    if settings.kind == "vllm":
        return Tools(_vllm(spec, sae, adapters_of(spec, out=out)), sae, close=True)
    engine = cs.load_engine(
        study.model, dtype=settings.dtype, device=settings.device, adapter=settings.adapter,
        adapters=adapters_of(spec, out=out), template=study.template, date=day or date.today().isoformat(),
    )  # fmt: skip
    return Tools(engine, sae, close=True)


def _vllm(spec: Spec, sae: Any, adapters: Mapping[str, Path]) -> Any:
    """The servers that a study names, or vLLM in this process, ready for the layers that the study reads."""
    import countersteer as cs

    study, settings = spec.settings.study, spec.settings.engine
    urls = [u for u in os.environ.get(URLS, "").split(",") if u] or settings.urls
    if urls is not None:
        return cs.load_engine(study.model, urls=urls, template=study.template, adapters=adapters)
    given = settings.started
    if settings.rows is not None:
        given["rows"] = (settings.rows,)
    read = sorted({*layers(spec, sae), *(arm.layer for arm in spec.arms if arm.layer is not None)})
    options: dict[str, Any] = {"dtype": settings.dtype, "template": study.template, "places": PLACES, **given}
    options |= {"adapter": settings.adapter, "adapters": adapters, "capture_layers": tuple(read)}
    return cs.load_engine(f"vllm:{study.model}", **options)


def adapters_of(spec: Spec, *, out: str | Path | None = None) -> dict[str, Path]:
    """Folders of the adapters that arms name. Raises InputError for one that is not there.

    RefusedError for an adapter that was trained on prompts of its arm, unless its data says that this is meant.
    """
    from countersteer.engines.embedded.adapter_record import read_adapter, read_merged

    made = set(spec.settings.finetune.adapters.values()) if spec.settings.finetune is not None else set()
    found: dict[str, Path] = {}
    merged = read_merged(spec.settings.study.model)
    for arm in spec.arms:
        _require_unseen(merged, spec, arm)
        if spec.settings.engine.adapter is not None:
            _require_unseen(read_adapter(spec.settings.engine.adapter).facts, spec, arm)
        if arm.adapter is None:
            continue
        folder = Path(out or ".") / ADAPTERS / arm.adapter if arm.adapter in made else Path(arm.adapter)
        if arm.adapter in made and not folder.is_dir():
            raise InputError(f"{folder} is not trained yet; `countersteer run {spec.name} --out {out}` trains it")
        found[arm.adapter] = folder
        _require_unseen(read_adapter(folder).facts, spec, arm)
    return found


def _require_unseen(facts: Mapping[str, Any], spec: Spec, arm: Arm) -> None:
    """Raise RefusedError if an arm's prompts were trained on, by the facts of an adapter."""
    both = set(facts.get("train_prompts", ())) & set(load_prompts(arm.prompts or spec.settings.trials.prompts))
    if both and not facts.get("overlap"):
        raise RefusedError(
            f"[arms.{arm.name}] on {len(both)} prompts that its adapter was trained on",
            f"it would measure memory ({sorted(both)[0]!r} for one)",
            "other prompts, or data made with --overlap",
        )


def make_judge(references: Mapping[str, Sequence[str]]) -> Any:
    """The study's judge over its frozen references (texts per prompt)."""
    from countersteer.judging.offline import OfflineJudge
    from countersteer.judging.references import ReferenceSet

    return OfflineJudge(ReferenceSet.of(references))


def layers(spec: Spec, sae: Any) -> tuple[int, int]:
    """(steering layer, reading layer) of a study: the SAE's own unless given."""
    study, own = spec.settings.study, int(sae.site.layer)
    return (
        own if study.steer_layer is None else study.steer_layer,
        own if study.read_layer is None else study.read_layer,
    )


def check_layers(spec: Spec, sae: Any, described: Mapping[str, Any]) -> None:
    """Raise InputError unless the model has every layer that the study reads or writes."""
    count = described.get("layers")
    wanted = {*layers(spec, sae), *(arm.layer for arm in spec.arms if arm.layer is not None)}
    for layer in sorted(wanted):
        if isinstance(count, int) and layer >= count:
            raise InputError(f"layer {layer} is out of range: the model has {count} layers; use 0 to {count - 1}")
