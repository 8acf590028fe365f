"""What a study with a [finetune] section does before it runs: data and adapters, kept in the folder of the run.

Every step is skipped when its result is there, so an interrupted study goes on where it was. The data and the adapters
are those of this study: a folder with others is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import tomli_w

from countersteer.core.errors import InputError, RefusedError
from countersteer.engines.embedded.adapter_record import RECORD
from countersteer.finetune import data as making
from countersteer.finetune import examples, keys
from countersteer.finetune.answers import each_prompt
from countersteer.finetune.settings import TrainSettings
from countersteer.store import Run
from countersteer.store.database import FILE
from countersteer.store.errors import one_line
from countersteer.store.lock import FolderLock
from countersteer.studies.growth import compare
from countersteer.studies.inputs import read_inputs
from countersteer.studies.judges import JudgeOptions
from countersteer.studies.opening import check_folder
from countersteer.studies.plan import estimate
from countersteer.studies.prompts import load_prompts
from countersteer.studies.runner import run_study
from countersteer.studies.schema_finetune import FinetuneSection
from countersteer.studies.setup import ADAPTERS
from countersteer.studies.spec import Spec, parse

log = logging.getLogger(__name__)
DATA, EPISODES, ANSWERS = "finetune-data", "finetune-episodes", "finetune-answers.jsonl"


def prepare(
    spec: Spec, out: str | Path, *, observer: Any = None, options: JudgeOptions | None = None
) -> list[Path]:  # fmt: skip
    """Make the data and train the adapters of a study's [finetune] section; their folders, [] without one.

    `options`: what the judge of the episodes may cost and how fast it may be asked, as in `run_study`.
    Raises CountersteerError, RunRefusedError while another process works in the folder; a second call with everything
    there does nothing.
    """
    section = spec.settings.finetune
    if section is None:
        return []
    check_folder(out)
    place = Path(out)
    train, held_out = load_prompts(section.prompts), _evaluated(spec)
    if set(train) & set(held_out) and not section.overlap:
        both = sorted(set(train) & set(held_out))
        raise InputError(
            f"[finetune] prompts and the study's own share {len(both)}, {both[0]!r} for one: the adapters would be"
            " measured on what they were trained on; use other prompts, or overlap = true"
        )
    making.require_words(section.templates, train)
    wanted = [place / ADAPTERS / name for name in section.adapters.values()]
    engine = spec.settings.engine
    settings = TrainSettings(
        dtype=engine.dtype, device=engine.device, template=spec.settings.study.template, **section.optimiser()
    )
    with one_line(place, "make the run folder"):
        place.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(place)
    try:
        made = _data(spec, section, place, train, held_out, observer, options)
        steering = _steering(spec, place) if section.steering else None
        _train(spec, section, made, place / ADAPTERS, settings, steering, observer)
    finally:
        lock.release()
    return wanted


def require_trained(spec: Spec, out: str | Path) -> None:
    """Raise RefusedError unless the adapters of a study are in `out`: a shard does not train its own."""
    section = spec.settings.finetune
    names = () if section is None else section.adapters.values()
    if not all((Path(out) / ADAPTERS / name / RECORD).is_file() for name in names):
        raise RefusedError(
            f"--shard of a study with [finetune], whose adapters are not in {Path(out) / ADAPTERS} yet",
            "every shard would train its own",
            f"training them once without --shard, then naming their folders in arms, or copying {DATA}, {EPISODES} and"
            f" {ADAPTERS} into the folder of each shard",
        )


def spent(out: str | Path) -> float:
    """USD that the judge of a study's episodes was paid: part of what the study may cost."""
    if not (Path(out) / EPISODES / FILE).is_file():
        return 0.0
    with Run.open(Path(out) / EPISODES) as run:
        return float(run.judging()["usd"])


def estimated(spec: Spec) -> tuple[dict[str, int], int, dict[str, int]]:
    """What `prepare` generates: (judged stages, answers to train prompts that nobody judges, tokens of each stage)."""
    section = spec.settings.finetune
    if section is None:
        return {}, 0, {}
    train = load_prompts(section.prompts)
    answers = each_prompt(section.normals, train) * len(train)
    stages: dict[str, int] = {}
    tokens = {"fine-tuning answers": answers * spec.sampling.max_tokens}
    if section.episodes or section.steering:
        study = episodes_study(spec)
        found = estimate(study, read_inputs(study))
        stages = {
            f"fine-tuning episodes, {name}": count
            for name, count in found["generations"].items()
            if name != "references" and count
        }
        answers += found["generations"]["references"]
        tokens["fine-tuning answers"] += found["tokens"]["references"]
        tokens |= {name: found["tokens"][name.removeprefix("fine-tuning episodes, ")] for name in stages}
    return stages, answers, tokens


def _evaluated(spec: Spec) -> list[str]:
    """Every prompt on which the study tries its model."""
    sets = [spec.settings.trials.prompts, *(arm.prompts for arm in spec.arms if arm.prompts)]
    return list(dict.fromkeys(prompt for name in sets for prompt in load_prompts(name)))


def episodes_study(spec: Spec) -> Spec:
    """The study whose base arm gives the model's own steered episodes on the train prompts."""
    section = spec.settings.finetune
    assert section is not None
    given = spec.settings.model_dump(mode="json", exclude_none=True, exclude={"finetune", "arms"})
    given["trials"]["prompts"], given["trials"]["resample"] = section.prompts, 0
    arm = spec.settings.arms[spec.base].model_dump(mode="json", exclude_none=True)
    return parse(tomli_w.dumps({**given, "arms": {"base": arm}}), name=f"episodes of {spec.name}")


def _data(
    spec: Spec, section: FinetuneSection, place: Path, train: list[str], held_out: list[str], observer: Any,
    options: JudgeOptions | None,
) -> examples.Dataset:  # fmt: skip
    """The data of a study: what is there, compared with the study, or made now."""
    kept = _kept(spec, place, train, held_out)
    if section.episodes or section.steering:
        trained = kept is not None or any((place / ADAPTERS).glob(f"*/{RECORD}"))
        _episodes(spec, place, observer, options, trained=trained)
    if kept is not None:
        (place / ANSWERS).unlink(missing_ok=True)  # killed after the data was written
        return kept
    import countersteer as cs

    chosen, study = spec.settings.engine, spec.settings.study
    engine = cs.load_engine(
        study.model, dtype=chosen.dtype, device=chosen.device, places=64, template=study.template, date=_day(place)
    )
    try:
        made_for = keys.decisive(spec, train, keys.identity_in(engine.describe()), sae=_sae(spec))
        return making.make(
            engine, train=train, held_out=held_out, corrections=section.corrections, normals=section.normals,
            sources=making.Sources(
                section.templates, (place / EPISODES,) if section.episodes else (), words=section.templates
            ),
            seed=study.seed, overlap=section.overlap, sampling=spec.sampling, keep=place / ANSWERS, out=place / DATA,
            stage=None if observer is None else observer.stage,
            progress=None if observer is None else observer.progress, facts={keys.MADE_FOR: made_for},
        )  # fmt: skip
    finally:
        engine.close()


def _kept(spec: Spec, place: Path, train: list[str], held_out: list[str]) -> examples.Dataset | None:
    """The data that is there, None without any. Raises InputError for data of another study, and for half of one."""
    folder = place / DATA
    if not (folder / examples.HEADER).is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is not whole (it has no {examples.HEADER}); remove it and run again")
        return None
    kept, study = examples.load(folder), spec.settings.study
    wanted = keys.decisive(spec, train, keys.identity_of(study.model, study.template), sae=_sae(spec))
    if other := keys.differs(kept, wanted, train, held_out):
        raise InputError(f"{folder} was made for {other}; choose another folder with --out")
    return kept


def _sae(spec: Spec) -> str | None:
    """Fingerprint of the SAE of a study whose data holds episodes."""
    import countersteer as cs

    section = spec.settings.finetune
    return str(cs.load_sae(spec.settings.study.sae).fingerprint) if section and section.episodes else None


def _day(place: Path) -> str:
    """The day that prompts tell, if they tell one: that of the episodes."""
    today = date.today().isoformat()
    if not Run.exists(place / EPISODES):
        return today
    with Run.open(place / EPISODES) as run:
        return str(run.header.get("engine", {}).get("date") or today)


def _episodes(spec: Spec, place: Path, observer: Any, options: JudgeOptions | None, *, trained: bool) -> None:
    """Make the model's own steered episodes, or go on with them.

    What was trained on them (`trained`) stays as it was: then a larger study does not make them grow.
    """
    study, folder = episodes_study(spec), place / EPISODES
    if trained and Run.exists(folder):
        with Run.open(folder) as run:
            if run.finished and compare(run, study, read_inputs(study)).grown:
                return
    run_study(study, folder, observer=observer, options=options).close()


def _steering(spec: Spec, place: Path) -> Callable[[examples.Example], Any]:
    import countersteer as cs
    from countersteer.finetune.steering import steering_of

    with Run.open(place / EPISODES) as run:
        model = run.header["inputs"]["model"]
    return steering_of(place / EPISODES, cs.load_sae(spec.settings.study.sae), model=model)


def _train(
    spec: Spec, section: FinetuneSection, made: examples.Dataset, folder: Path, settings: TrainSettings,
    steering: Callable[[examples.Example], Any] | None, observer: Any,
) -> None:  # fmt: skip
    from countersteer.finetune import training

    def watch(name: str) -> training.Progress | None:
        if observer is None:
            return None
        observer.stage(f"training {name}", None)
        return shown(observer)

    model = spec.settings.study.model
    training.train_all(
        lambda: training.load_base(model, settings), made, folder, ratios=section.ratios, seeds=section.seeds,
        settings=settings, steering=steering, progress=watch, fingerprint=training.fingerprint_of(model),
        text=training.text_of(model, settings.template),
    )  # fmt: skip


def shown(observer: Any) -> Callable[[int, int, float | None, float | None], None]:
    """Training's progress on an observer, with both losses."""

    def step(done: int, total: int, loss: float | None, validation: float | None) -> None:
        words = [f"loss {loss:.3f}"] if loss is not None else []
        words += [f"validation {validation:.3f}"] if validation is not None else []
        observer.note(", ".join(words))
        observer.progress(done, total)

    return step
