"""What a study with a [finetune] section does before it runs: data and adapters, kept in the folder of the run.

Every step is skipped when its result is there, so an interrupted study goes on where it was. The data and the adapters
are those of this study: a folder with others is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

from countersteer.core.errors import InputError
from countersteer.finetune import data as making
from countersteer.finetune import examples
from countersteer.finetune.answers import each_prompt
from countersteer.finetune.settings import TrainSettings
from countersteer.store import Run
from countersteer.store.database import FILE
from countersteer.studies.inputs import read_inputs
from countersteer.studies.judges import JudgeOptions
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
    Raises CountersteerError; a second call with everything there does nothing.
    """
    section = spec.settings.finetune
    if section is None:
        return []
    place = Path(out)
    train, held_out = load_prompts(section.prompts), _evaluated(spec)
    if set(train) & set(held_out) and not section.overlap:
        both = sorted(set(train) & set(held_out))
        raise InputError(
            f"[finetune] prompts and the study's own share {len(both)}, {both[0]!r} for one: the adapters would be"
            " measured on what they were trained on; use other prompts, or overlap = true"
        )
    wanted = [place / ADAPTERS / name for name in section.adapters.values()]
    engine = spec.settings.engine
    settings = TrainSettings(
        dtype=engine.dtype, device=engine.device, template=spec.settings.study.template, **section.optimiser()
    )
    made = _data(spec, section, place, train, held_out, observer, options)
    steering = _steering(spec, place) if section.steering else None
    _train(spec, section, made, place / ADAPTERS, settings, steering, observer)
    return wanted


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
    runs: tuple[Path, ...] = ()
    if section.episodes or section.steering:
        run_study(episodes_study(spec), place / EPISODES, observer=observer, options=options).close()
        runs = (place / EPISODES,) if section.episodes else ()
    if (place / DATA / examples.HEADER).is_file():
        kept = examples.load(place / DATA)
        other = _differs(kept, spec, section, train, held_out)
        if other:
            raise InputError(f"{place / DATA} was made for {other}; choose another folder with --out")
        return kept
    import countersteer as cs

    engine_section = spec.settings.engine
    engine = cs.load_engine(
        spec.settings.study.model, dtype=engine_section.dtype, device=engine_section.device, places=64,
        template=spec.settings.study.template,
    )  # fmt: skip
    try:
        made = making.make(
            engine, train=train, held_out=held_out,
            sources=making.Sources(section.templates, runs, words=section.templates),
            corrections=section.corrections, normals=section.normals, seed=spec.settings.study.seed,
            overlap=section.overlap, sampling=spec.sampling,
            stage=None if observer is None else observer.stage,
            progress=None if observer is None else observer.progress, keep=place / ANSWERS,
        )  # fmt: skip
    finally:
        engine.close()
    examples.save(made, place / DATA)
    return made


def _differs(
    kept: examples.Dataset, spec: Spec, section: FinetuneSection, train: list[str], held_out: list[str]
) -> str:  # fmt: skip
    """What the data of an earlier call was made for, if not for this study; else nothing."""
    if (set(kept.train), set(kept.held_out)) != (set(train), set(held_out)):
        return "other prompts"
    sources, asked = kept.facts.get("sources", {}), spec.sampling
    pairs = {
        "another seed": (kept.facts.get("seed"), spec.settings.study.seed),
        "other templates": (sources.get("templates"), section.templates),
        "other episodes": (bool(sources.get("runs")), section.episodes),
        "another number of normal examples": (len(kept.of_kind(examples.NORMAL)), section.normals),
        "another sampling": (
            kept.facts.get("sampling"), {"temperature": asked.temperature, "max_tokens": asked.max_tokens}
        ),
    }  # fmt: skip
    return next((what for what, (a, b) in pairs.items() if a != b), "")


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
    )  # fmt: skip


def shown(observer: Any) -> Callable[[int, int, float | None, float | None], None]:
    """Training's progress on an observer, with both losses."""

    def step(done: int, total: int, loss: float | None, validation: float | None) -> None:
        words = [f"loss {loss:.3f}"] if loss is not None else []
        words += [f"validation {validation:.3f}"] if validation is not None else []
        observer.note(", ".join(words))
        observer.progress(done, total)

    return step
