"""Opening the run of a study: the finished one, the one to go on with, or one that begins where another has got to.

A run remembers what it was begun with. Going on with another model, SAE or content of a file is refused; with a study
that holds more, it grows.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError
from countersteer.store import Run, RunRefusedError
from countersteer.store.begin import begin_from
from countersteer.studies import growth as growing
from countersteer.studies.growth import Growth, check_inputs, compare, identity
from countersteer.studies.header import header
from countersteer.studies.inputs import Inputs, check_sae, section_of
from countersteer.studies.setup import Tools, check_layers
from countersteer.studies.spec import Spec, dump

_STALE = ("detectors_steered",)
"""What was found over all trials, and is found again when there are more."""


def check_folder(out: str | Path) -> None:
    """Raise InputError for what cannot be the folder of a run."""
    if str(out).strip() in ("", ".") and not Run.exists(out):
        raise InputError("--out needs a folder of its own for the run, such as runs/first")
    if Path(out).exists() and not Path(out).is_dir():
        raise InputError(f"--out {out} is a file; give a folder")


def open_run(spec: Spec, out: str | Path, inputs: Inputs) -> Run | None:
    """The run of this study in `out`, for reading, if it is finished; None if there is work to do.

    Raises RunRefusedError for a run of another study, or of other content of its files.
    """
    check_folder(out)
    if not Run.exists(out):
        return None
    run = Run.open(out)
    try:
        if run.begun and not compare(run, spec, inputs) and run.finished:
            return run
    except BaseException:
        run.close()
        raise
    run.close()
    return None


def writable(spec: Spec, out: str | Path) -> Run:
    """The run in `out`, made if missing, open for writing; one that holds nothing yet gets this study."""
    if not Run.exists(out):
        return Run.create(out, spec.text, _header(spec))
    run = Run.open(out, write=True)
    if not run.begun:
        run.restart(spec.text, _header(spec))
    return run


def _header(spec: Spec) -> dict[str, Any]:
    return {**header(spec), "identity": identity(spec.settings)}


def adopt(spec: Spec, run: Run, tools: Tools, inputs: Inputs) -> dict[str, Any]:
    """Check model and SAE against each other and the study, and against what the run was begun with.

    Returns what to begin with: {"inputs", "engine"}. Raises InputError, RunRefusedError.
    """
    described = tools.engine.describe()
    width = described.get("d_model")
    if isinstance(width, int):
        tools.sae.require_width(width, model=spec.settings.study.model)
    check_layers(spec, tools.sae, described)
    check_sae(spec, tools.sae, inputs)
    now: dict[str, Any] = {
        "model": tools.engine.model_fingerprint,
        "engine": tools.engine.family,
        "dtype": described.get("dtype"),
        "sae": tools.sae.fingerprint,
    }
    for name in ("template_hash", "tokenizer", "end_tokens", "adapter"):
        if described.get(name) is not None:
            now[name] = described[name]
    adapters = described.get("adapters", {})
    now |= {f"arms.{arm.name}.adapter": adapters[arm.adapter]["fingerprint"] for arm in spec.arms if arm.adapter}
    check_inputs(run, **now)
    return {"inputs": {**inputs.digests, **now}, "engine": described}


def grow(spec: Spec, run: Run, growth: Growth, begin: dict[str, Any]) -> None:
    """Record a grown study, or that its files moved: what is there stays, what was found over all of it goes."""
    kept = growth_of(run)
    before = run.header
    head = _header(spec)
    kept_head = {name: value for name, value in before.items() if name not in ("settings", "defaulted", "identity")}
    more = {name: head[name] for name in ("settings", "defaulted", "identity")}
    inputs = {**begin["inputs"], **before.get("inputs", {})}
    if "latents" in growth.again and "labels" in begin["inputs"]:
        inputs["labels"] = begin["inputs"]["labels"]
    facts: dict[str, Any] = {}
    if growth.grown:
        facts["grown"] = [*run.fact("grown", []), {"more": list(growth.grown), "countersteer": head["countersteer"],
                                                  "git": head["git"]}]  # fmt: skip
    if "detectors" in growth.again:
        made = {section_of(name) for name in run.arms()}
        facts["random_sets"] = {root: sets for root, sets in run.fact("random_sets", {}).items() if root in made}
    forget = [*_STALE, *(("detectors",) if "detectors" in growth.again else ())]
    if not run.fact("sizes") and run.latents():
        facts["sizes"] = [kept]
    run.grow(spec.text, {**kept_head, **more, "inputs": inputs}, forget=forget if growth.grown else (), **facts)
    for note in spec.notes:
        run.note(note)


def growth_of(run: Run) -> dict[str, int]:
    """How large a run's study is: latents asked for, latents there, prompts per latent."""
    kept = growing.kept_settings(run)
    assert kept is not None
    return {
        "count": growing.wanted_latents(kept), "latents": len(run.latents()), "per_latent": kept.trials.per_latent
    }  # fmt: skip


def take_over(spec: Spec, inputs: Inputs, origin: str | Path, out: str | Path) -> None:
    """Begin the run in `out` with what the run in `origin` decided: references, latents, strengths, plans of arms.

    The two studies share their base conditions; arms that differ are left behind, and where this study holds more, it
    grows. Raises RunRefusedError, StoreError.
    """
    check_folder(out)
    with Run.open(origin) as run:
        if not run.begun:
            raise RunRefusedError(f"{origin} has not begun; let it run until its trials begin")
        same = growing.same_arms(run, spec)
        kept = growing.kept_settings(run)
        if kept is None or spec.base not in same:
            compare(run, spec, inputs)  # says why
            raise RunRefusedError(f"{origin} holds a run of another study; choose another --calibration")
        compare(run, spec, inputs, arms=same)
        if not run.calibrated:
            raise RunRefusedError(f"{origin} has no calibration yet; let it run until its trials begin")
        settings = kept.model_copy(update={"arms": {n: arm for n, arm in kept.arms.items() if n in same}})
        arms = [name for name in run.arms() if section_of(name) in same]
        head = {**run.header, "settings": settings.model_dump(mode="json", exclude_none=True),
                "identity": identity(settings)}  # fmt: skip
        text = run.study if len(settings.arms) == len(kept.arms) else dump(settings)
    if begin_from(origin, out, study=text, header=head, arms=arms):
        for name in arms:
            vectors = Path(origin) / f"directions-{name}.safetensors"
            if vectors.is_file():
                shutil.copyfile(vectors, Path(out) / vectors.name)
