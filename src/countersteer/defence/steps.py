"""The three steps as the command line takes them: folders and files in, folders and files out.

    fit FOLDER  ->  sweep FOLDER -> BUNDLE and BUNDLE's .sweep folder  ->  scorecard BUNDLE -> scorecard.json and .html

The sweep's folder holds `sweep.json` and the bundles of the other points: the best of each method, and of each control.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError, RefusedError
from countersteer.defence import data as data_module
from countersteer.defence.data import TraitData
from countersteer.defence.settings import Settings, checked, load
from countersteer.edits.bundle import Bundle, load_bundle, save_bundle

ORGANISM = "preset:defence-organism"


def chosen_settings(
    source: str | None, *, model: str | None = None, trait: str | None = None, seed: int | None = None,
    bundle: Path | None = None,
) -> Settings:  # fmt: skip
    """Settings from a file or preset with another model, trait or seed. Raises InputError.

    Without a file: those that the bundle was made with; else, for the organism, its preset; else the papers' defaults.
    """
    kept = load_bundle(bundle).meta.get("settings") if bundle is not None and source is None else None
    if kept is not None:
        base = checked(kept, where=f"bundle {bundle}")
    else:
        base = load(source or (ORGANISM if model in (None, "organism") else None))
    given = {"model": model, "trait": trait, "seed": seed}
    subject = {**base.defence.model_dump(), **{k: v for k, v in given.items() if v is not None}}
    return checked({**base.model_dump(), "defence": subject}, where="the options")


def engine_for(settings: Settings, *, adapter: str | None = None) -> Any:
    """The embedded engine of the settings' model, under an adapter if one is given. Raises InputError, RefusedError."""
    from countersteer.engines.load import VLLM, load_engine

    own = settings.defence
    if own.model.startswith(VLLM):
        raise RefusedError("a defence made on vLLM", "it needs likelihoods and gradients", f"{own.model[len(VLLM) :]}")
    return load_engine(own.model, dtype=own.dtype, device=own.device, places=own.places, adapter=adapter)


def run_fit(settings: Settings, out: Path, *, observer: Any = None) -> dict[str, Any]:
    """Fit and save; the facts of the fit."""
    from countersteer.defence.fit import fit

    traits = data_module.load(settings.defence.trait)
    with engine_for(settings) as engine:
        found = fit(engine, traits, settings, observer=observer)
    found.save(out)
    return dict(found.facts)


def sweep_folder(bundle: Path) -> Path:
    """Where a sweep keeps what it saw, beside its bundle."""
    return bundle.with_name(bundle.name.removesuffix(".safetensors") + ".sweep")


def crew_of(settings: Settings, workers: int, crew: Any = None) -> Any:
    """A context with `workers` processes that answer, or with None for one: this process. Raises InputError.

    `crew`: one that exists already is used, and goes on afterwards; for the same settings only.
    """
    from countersteer.defence.crew import Crew

    if crew is not None and not crew.serves(settings):
        raise InputError("the crew was made for other settings: give none, or make one with these")
    return nullcontext(crew) if crew is not None or workers == 1 else Crew(settings, workers)


def run_sweep(
    folder: Path, settings: Settings | None, out: Path, *, workers: int = 1, crew: Any = None, observer: Any = None
) -> dict[str, Any]:
    """Sweep a fit, write the bundle and the sweep's folder; the sweep's facts.

    `settings` None: those that the fit was made with. `workers`: processes that answer; `crew`: those that are there
    already for the same settings. Raises InputError where no
    point keeps the floor (the folder is written all the same).
    """
    from countersteer.defence.bundles import make_bundle
    from countersteer.defence.fit import load_fit
    from countersteer.defence.judges import make_judge
    from countersteer.defence.sweep import sweep

    fitted = load_fit(folder)
    kept = settings or checked(fitted.facts["settings"], where=str(folder))
    traits = data_module.load(kept.defence.trait)
    if traits.digest != fitted.facts["trait"]["digest"]:
        raise InputError(f"the data of trait {traits.name} changed since the fit in {folder}; fit again")
    where = sweep_folder(out)
    with crew_of(kept, workers, crew) as crew, engine_for(kept) as engine:
        judge = make_judge(engine, traits, kept, folder=where, crew=crew)
        swept = sweep(engine, fitted, traits, kept, judge, observer=observer, crew=crew)
        where.mkdir(parents=True, exist_ok=True)
        write_json(swept.facts, where / "sweep.json")
        for old in where.glob("*.safetensors"):
            old.unlink()
        for arm, chosen in swept.chosen.items():
            best = swept.facts["arms"][arm]["method"]
            for method, candidate in chosen.items():
                if method == "prompt" or (arm != "fitted" and method != best):
                    continue
                name = f"method-{method}" if arm == "fitted" else f"control-{arm}"
                save_bundle(make_bundle(engine, fitted, swept, kept, candidate), where / f"{name}.safetensors")
        best_point = swept.best()
        if best_point is None:
            raise InputError(
                f"no point of the sweep keeps coherence above {swept.facts['floor']:.1f}; what was seen is in"
                f" {where / 'sweep.json'}: try other layers, smaller strengths, or a lower sweep.floor"
            )
        save_bundle(make_bundle(engine, fitted, swept, kept, best_point), out)
    return dict(swept.facts)


def run_scorecard(
    bundle_file: Path, settings: Settings, out: Path, *, adapter: str | None = None, parts: tuple[str, ...],
    with_points: bool = True, stamp: bool = True, workers: int = 1, crew: Any = None, observer: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """Grade a bundle, write `scorecard.json` and `scorecard.html` into `out`, and a summary into the bundle.

    `workers`: processes that answer under attack and without; `crew`: those that are there already for the same
    settings.
    """
    from countersteer.defence import page
    from countersteer.defence.capability import capability
    from countersteer.defence.judges import make_judge
    from countersteer.defence.scorecard import scorecard, summary_for_bundle

    adapter = adapter or settings.defence.adapter
    bundle = load_bundle(bundle_file)
    folder = sweep_folder(bundle_file)
    traits = data_module.load(settings.defence.trait)
    if (bundle.meta.get("trait") or {}).get("digest") not in (None, traits.digest):
        raise InputError(f"bundle {bundle.name!r} was made on other data than trait {traits.name}; give --trait")
    known = capability(settings, bundle.intervention, adapter=adapter) if settings.scorecard.capability else None
    with crew_of(settings, workers, crew) as crew, engine_for(settings, adapter=adapter) as engine:
        base = engine if adapter is None else engine_for(settings)
        try:
            out.mkdir(parents=True, exist_ok=True)
            judge = make_judge(base, traits, settings, folder=out, crew=crew)
            points = _points(folder, bundle) if with_points and adapter is None else {}
            answer = None if crew is None else partial(crew.answered, judge, adapter=adapter)
            card = scorecard(engine, bundle, traits, settings, judge, points=points, parts=parts, observer=observer,
                             answer=answer)  # fmt: skip
            if known is not None:
                card["capability"] = known.summary(settings, judge)
        finally:
            if base is not engine:
                base.close()
    write_json(card, out / "scorecard.json")
    swept = folder / "sweep.json"
    facts = json.loads(swept.read_text(encoding="utf-8")) if swept.is_file() and adapter is None else None
    page.write(card, out / "scorecard.html", swept=facts)
    if stamp:
        save_bundle(replace(bundle, meta={**bundle.meta, "scorecard": summary_for_bundle(card)}), bundle_file)
    return card


def _points(folder: Path, bundle: Bundle) -> dict[str, Bundle]:
    """The other points of the sweep's folder; the bundle's own is left out."""
    found = {path.stem: load_bundle(path) for path in sorted(folder.glob("*.safetensors"))}
    return {k: b for k, b in found.items() if b.intervention.fingerprint != bundle.intervention.fingerprint}


def check_data(source: str) -> tuple[TraitData, list[dict[str, Any]]]:
    """A trait's data, and every leak between its splits as plain data."""
    from countersteer.defence.leakage import check

    loaded = data_module.load(source)
    return loaded, [{**vars(leak), "text": str(leak)} for leak in check(loaded)]


def write_json(data: Mapping[str, Any], target: Path) -> None:
    """Write plain data as JSON. Raises InputError."""
    try:
        text = json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False)
        target.write_text(text + "\n", encoding="utf-8")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot write {target}: {error}") from error
