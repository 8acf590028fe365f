"""Before a study runs: the engine and the SAE it names, checked against each other and against its run.

A run remembers what it was begun with. Going on with another model, SAE or prompt file is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError, RefusedError
from countersteer.core.fingerprint import fingerprint
from countersteer.engines.base import Engine
from countersteer.store import Run, RunRefusedError
from countersteer.studies.arms import Arm
from countersteer.studies.header import header
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


def load_tools(spec: Spec, *, out: str | Path | None = None) -> Tools:
    """The SAE and the engine that a study names. Raises InputError before the model is loaded where it can.

    `out`: the folder of the run, which holds the adapters that the study's [finetune] section made.
    """
    import countersteer as cs

    study, settings = spec.settings.study, spec.settings.engine
    sae = cs.load_sae(study.sae)
    check_latents(spec, sae)
    if settings.kind == "vllm":
        return Tools(_vllm(spec, sae, adapters_of(spec, out=out)), sae, close=True)
    engine = cs.load_engine(
        study.model, dtype=settings.dtype, device=settings.device, adapter=settings.adapter,
        adapters=adapters_of(spec, out=out), template=study.template,
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
    made = set(spec.settings.finetune.adapters.values()) if spec.settings.finetune is not None else set()
    found: dict[str, Path] = {}
    for arm in spec.arms:
        if spec.settings.engine.adapter is not None:
            _require_unseen(Path(spec.settings.engine.adapter), spec, arm)
        if arm.adapter is None:
            continue
        folder = Path(out or ".") / ADAPTERS / arm.adapter if arm.adapter in made else Path(arm.adapter)
        if arm.adapter in made and not folder.is_dir():
            raise InputError(f"{folder} is not trained yet; `countersteer run {spec.name} --out {out}` trains it")
        found[arm.adapter] = folder
        _require_unseen(folder, spec, arm)
    return found


def _require_unseen(folder: Path, spec: Spec, arm: Arm) -> None:
    """Raise RefusedError if an arm's prompts were trained on."""
    from countersteer.engines.embedded.adapter_record import read_adapter

    facts = read_adapter(folder).facts
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


def open_run(spec: Spec, out: str | Path) -> Run | None:
    """The run of this study in `out`, for reading, if it is finished; None if there is work to do.

    Raises RunRefusedError for a run of another study, or of other prompts than the file holds now.
    """
    if not Run.exists(out):
        return None
    run = Run.open(out, study=spec.text)
    try:
        check_inputs(run, prompts=load_prompts(spec.settings.trials.prompts))
        if run.finished:
            return run
    except BaseException:
        run.close()
        raise
    run.close()
    return None


def writable(spec: Spec, out: str | Path) -> Run:
    """The run in `out`, made if missing, open for writing. Raises RunRefusedError."""
    if Run.exists(out):
        run = Run.open(out, write=True, study=spec.text)
        if not run.begun:
            run.restart(spec.text, header(spec))
        return run
    return Run.create(out, spec.text, header(spec))


def adopt(spec: Spec, run: Run, tools: Tools, prompts: Sequence[str]) -> dict[str, Any]:
    """Check model and SAE against each other, and against what the run was begun with; returns what to begin with."""
    described = tools.engine.describe()
    width = described.get("d_model")
    if isinstance(width, int):
        tools.sae.require_width(width, model=spec.settings.study.model)
    check_layers(spec, tools.sae, described)
    check_latents(spec, tools.sae)
    inputs = {
        "model": tools.engine.model_fingerprint,
        "engine": tools.engine.family,
        "dtype": described.get("dtype"),
        "sae": tools.sae.fingerprint,
        "prompts": fingerprint(list(prompts)),
    }
    for name, key in (("adapter", "adapter"), ("adapters", "adapters")):
        if described.get(key):
            inputs[name] = fingerprint(described[key])
    check_inputs(run, **inputs)
    return {"inputs": inputs, "engine": described}


def check_inputs(run: Run, **now: Any) -> None:
    """Refuse to go on with other inputs than a run was begun with."""
    if isinstance(now.get("prompts"), list):
        now["prompts"] = fingerprint(now["prompts"])
    then = run.header.get("inputs", {})
    for name, value in now.items():
        if name in then and then[name] != value:
            raise RunRefusedError(
                f"{run.folder} was begun with another {name} ({str(then[name])[:12]}, now {str(value)[:12]});"
                " restore it, or choose another folder with --out"
            )


def check_latents(spec: Spec, sae: Any) -> None:
    """Raise InputError unless the SAE has every latent that the study names."""
    for index in spec.settings.latents.ids or ():
        if index >= sae.d_sae:
            raise InputError(
                f"[latents] ids names latent {index}, but the SAE has {sae.d_sae}; use 0 to {sae.d_sae - 1}"
            )
    for arm in spec.arms:
        if arm.clamps and sae.architecture == "topk":
            raise RefusedError(
                f"[arms.{arm.name}] clamp on a TopK SAE",
                "whether a latent is active depends on all others, so it has no threshold of its own",
                "the SAE's JumpReLU conversion",
            )
        for index in arm.clamp:
            if index >= sae.d_sae:
                known = f"the SAE has {sae.d_sae}; use 0 to {sae.d_sae - 1}"
                raise InputError(f"[arms.{arm.name}] clamp names latent {index}, but {known}")


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
