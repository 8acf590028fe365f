"""Study files: read, check, complete with defaults, write back as resolved.

Every problem is one line that names the setting, why it cannot be used and what to do instead.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from countersteer.core.errors import InputError, RefusedError, nearest
from countersteer.core.request import Sampling
from countersteer.judging.rubrics import load as load_rubric
from countersteer.organism import ADAPTERS, SHIPPED
from countersteer.studies.adapter_rules import check_adapters
from countersteer.studies.arms import Arm, expand
from countersteer.studies.prompts import NAMED
from countersteer.studies.schema import LATER, ArmSection, Study
from countersteer.studies.schema_arms import CONTRAST, DETECTORS, HELD_OUT
from countersteer.studies.schema_finetune import FINETUNE

PRESET = "preset:"
_SECTIONS = tuple(Study.model_fields)


@dataclass(frozen=True)
class Spec:
    """A checked study. `text` is the resolved TOML, which identifies it; `defaulted` names what was not given.

    `arms` are the expanded levels in order; `base` the name of the arm that contrasts are against.
    """

    name: str
    settings: Study
    text: str
    defaulted: tuple[str, ...]
    arms: tuple[Arm, ...]
    base: str
    notes: tuple[str, ...]

    @property
    def sampling(self) -> Sampling:
        """The study's sampling (its seed is replaced trial by trial)."""
        return Sampling(**self.settings.sampling.model_dump())

    @property
    def needs_calibration(self) -> bool:
        """Whether any arm steers at a strength calibrated for the base arm."""
        return any(arm.strength is None and not arm.own_strengths for arm in self.arms)

    @property
    def needs_detectors(self) -> bool:
        """Whether any arm clamps detectors, or random latents matched to them."""
        rules = [arm.clamp_rule for arm in self.arms]
        return any(isinstance(rule, str) or (rule is not None and rule.of == DETECTORS) for rule in rules)


def load(source: str | Path) -> Spec:
    """The study in a TOML file, or the shipped one that `preset:NAME` names. Raises InputError."""
    text = str(source)
    if text.startswith(PRESET):
        return parse(preset(text[len(PRESET) :]), name=text, folder=Path.cwd())
    path = Path(source)
    try:
        content = path.read_bytes()
    except OSError as error:
        hint = f"; shipped studies: {', '.join(PRESET + n for n in presets())}"
        raise InputError(f"cannot read study {path}: {error.strerror or error}{hint}") from error
    try:
        return parse(content.decode("utf-8-sig"), name=path.name, folder=path.resolve().parent)
    except UnicodeDecodeError as error:
        raise InputError(f"study {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def presets() -> tuple[str, ...]:
    """Names of the shipped studies."""
    folder = resources.files("countersteer.studies") / "presets"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def preset(name: str) -> str:
    """The text of a shipped study. Raises InputError."""
    if name not in presets():
        raise InputError(f"no preset {name!r}{nearest(name, presets())}; there are: {', '.join(presets())}")
    return (resources.files("countersteer.studies") / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def parse(text: str, *, name: str = "study", folder: Path | None = None) -> Spec:
    """The study in a TOML text; relative paths are meant from `folder`. Raises InputError."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name} is not valid TOML: {error}") from error
    _refuse_later(data, name)
    try:
        settings = Study.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{name}: {_one_line(error)}") from error
    settings = _absolute(settings, folder or Path.cwd())
    _check(settings, name)
    arms, base, notes = expand(settings)
    check_adapters(settings, arms, base, name)
    return Spec(name, settings, dump(settings), tuple(_defaulted(settings)), arms, base, notes)


def _refuse_later(data: dict[str, Any], name: str) -> None:
    """Refuse by name what the format has but this version does not do."""

    def later(what: str, instead: str) -> RefusedError:
        return RefusedError(f"{name}: {what}", "it is not part of this version", instead)

    for where, instead in LATER.items():
        section = data.get(where[0])
        if not isinstance(section, dict):
            continue
        tables = section.items() if where[1] == "*" else [(None, section)]
        for arm, table in tables:
            if isinstance(table, dict) and where[-1] in table:
                raise later(f"[{where[0] if arm is None else f'arms.{arm}'}] {where[-1]}", instead)


def _absolute(settings: Study, folder: Path) -> Study:
    """The same study with the paths it names made absolute."""

    def found(value: str | None) -> str | None:
        if value is None or value in ADAPTERS or Path(value).is_absolute():
            return value
        path = (folder / Path(value).expanduser()).resolve()
        return str(path) if path.exists() else value

    study = settings.study
    same = {"model": study.model, "sae": study.sae}
    moved = {k: v if v in SHIPPED else found(v) for k, v in same.items()}
    made = settings.finetune.adapters.values() if settings.finetune is not None else ()
    words = {"clamp": (DETECTORS, HELD_OUT), "prompts": NAMED, "directions": (CONTRAST,), "adapter": (FINETUNE, *made)}

    def of(section: Any, *keys: str) -> Any:
        given = {key: getattr(section, key) for key in keys}
        files = {k: v for k, v in given.items() if isinstance(v, str) and v not in words[k]}
        return _changed(section, **{key: found(value) for key, value in files.items()})

    return _changed(
        settings,
        study=_changed(study, **moved),
        trials=of(settings.trials, "prompts"),
        latents=_changed(settings.latents, labels=found(settings.latents.labels)),
        judge=_changed(settings.judge, rubric=found(settings.judge.rubric)),
        engine=_changed(settings.engine, adapter=found(settings.engine.adapter)),
        finetune=None if settings.finetune is None else of(settings.finetune, "prompts"),
        arms={name: of(arm, *words) for name, arm in settings.arms.items()},
    )


def _changed(section: Any, **values: Any) -> Any:
    """A copy with some values changed that still knows which of its values were given."""
    copy = section.model_copy(update={k: v for k, v in values.items() if getattr(section, k) != v})
    copy.__pydantic_fields_set__.intersection_update(section.model_fields_set)
    return copy


def _check(settings: Study, name: str) -> None:
    """What no single section can know."""
    Sampling(**settings.sampling.model_dump())
    _check_engine(settings, name)
    calibration = settings.calibration
    if not calibration.low < calibration.centre < calibration.high:
        raise InputError(
            f"{name}: [calibration] needs low < centre < high,"
            f" got {calibration.low}, {calibration.centre}, {calibration.high}"
        )
    if calibration.method != "bisection":
        for key in ("rounds", "per_round", "prior_sd"):
            if getattr(calibration, key) is not None:
                raise InputError(f'{name}: [calibration] {key} belongs to method = "bisection"; leave it out')
    if not settings.judge.offline:
        rubric = load_rubric(settings.judge.rubric or "attempts")
        if rubric.name != "attempts":
            raise InputError(f"{name}: [judge] rubric must be of the kind attempts, not {rubric.name}; leave it out")
    ids = settings.latents.ids
    if ids is not None and (not ids or len(set(ids)) != len(ids)):
        raise InputError(f"{name}: [latents] ids must name at least one latent and each once")


def _check_engine(settings: Study, name: str) -> None:
    """What goes with which kind of engine."""
    engine = settings.engine
    if engine.kind == "embedded":
        for key in ("urls", *engine.started):
            if getattr(engine, key) is not None:
                raise InputError(f'{name}: [engine] {key} belongs to kind = "vllm"; leave it out, or say so')
        return
    if settings.finetune is not None:
        raise RefusedError(
            f"{name}: [finetune] with vLLM",
            "training needs the model in this process",
            'training in a run with kind = "embedded", then naming the adapters\' folders in arms',
        )
    if engine.urls is not None and engine.adapter is not None:
        raise RefusedError(
            f"{name}: [engine] adapter with urls", "servers answer with the adapter that a request names",
            "adapter = ... in the arms",
        )  # fmt: skip
    if engine.device is not None:
        raise InputError(f"{name}: [engine] device is vLLM's own choice; leave it out")
    if any("@" in url for url in engine.urls or ()):
        raise InputError(f"{name}: [engine] urls must not hold a password: the servers' key is $VLLM_API_KEY")
    alone = [key for key in ("dtype", *engine.started) if getattr(engine, key) is not None]
    if engine.urls is not None and alone:
        raise InputError(f"{name}: [engine] {alone[0]} was decided where the servers were started; leave it out")


def _one_line(error: ValidationError) -> str:
    """The problem of a validation to mend first, in our words: a mistyped key explains the one that is missing."""
    problems = error.errors(include_url=False)
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    where = [str(part) for part in first["loc"]]
    value = first.get("input")
    section = f"[{where[0]}]" if len(where) == 2 else f"[{'.'.join(where[:-1])}]"
    key = where[-1] if where else ""
    if first["type"] == "extra_forbidden":
        known = _keys(where[:-1])
        if len(where) == 1:
            return f"unknown section [{key}]{nearest(key, known)}; known: {', '.join(known)}"
        return f"unknown key {key!r} in {section}{nearest(key, known)}; known: {', '.join(known)}"
    if first["type"] == "missing":
        if len(where) == 1:
            need = "[arms.base]" if key == "arms" else f"[{key}]"
            return f"section {need} is missing; add it"
        return f"{section} needs {key!r}"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = message[0].lower() + message[1:]
    if len(where) == 1:
        return f"[{key}] {message}, got {_short(value)}"
    return f"{section} {key}: {message}, got {_short(value)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys(where: list[str]) -> tuple[str, ...]:
    """The known keys of the section at `where`."""
    if not where:
        return _SECTIONS
    if where[0] == "arms":
        model: type[BaseModel] = ArmSection
        if where[2:3] == ["sampling"]:
            from countersteer.studies.schema import ArmSampling

            model = ArmSampling
        return tuple(model.model_fields)
    kind = Study.model_fields[where[0]].annotation
    kinds = [k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, BaseModel)]
    return tuple(kinds[0].model_fields) if kinds else ()


def _defaulted(settings: Study) -> list[str]:
    """Names of the settings that were left to their defaults, `section.key`."""
    names = []
    for section in _SECTIONS:
        value = getattr(settings, section)
        if section != "arms" and value is not None:
            names += [f"{section}.{key}" for key in type(value).model_fields if key not in value.model_fields_set]
    return names


def dump(settings: Study) -> str:
    """The resolved TOML: every setting that has a value, arms in their order."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))
