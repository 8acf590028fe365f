"""Which study a run may go on with: the one it was begun with, wherever its files lie now, or that one grown.

Arms (and levels of an arm), latents, prompts per latent and fresh draws may be added; nothing that is there moves. A
section from which nothing was decided yet may still change. Everything else is another study.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import ValidationError

from countersteer.core.fingerprint import fingerprint
from countersteer.store import Run, RunRefusedError
from countersteer.studies.inputs import Inputs, is_file, section_of
from countersteer.studies.schema import ArmSection, Study
from countersteer.studies.schema_arms import CONTRAST, DETECTORS
from countersteer.studies.spec import Spec

PLACES = {
    "study": ("model", "sae"), "engine": ("adapter", "urls"), "latents": ("labels",), "trials": ("prompts",),
    "judge": ("rubric",), "finetune": ("prompts",),
}  # fmt: skip
"""Settings that say where something lies: what counts is its content, of which the run keeps a fingerprint."""
_LOADED = (("study", "model"), ("study", "sae"), ("engine", "adapter"))
_LEVELS = ("strength", "strength_scale", "strength_sd")


@dataclass(frozen=True)
class Growth:
    """What a study has more than its run's, in words; whether a model or SAE is named at another place.

    `again`: sections that changed before anything that stays was decided from them.
    """

    grown: tuple[str, ...] = ()
    moved: bool = False
    again: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.grown or self.moved or self.again)


def kept_settings(run: Run) -> Study | None:
    """The settings that a run keeps, later ones with their defaults; None for a study that this version cannot read."""
    try:
        return Study.model_validate(tomllib.loads(run.study))
    except (tomllib.TOMLDecodeError, ValidationError):
        return None


def identity(settings: Study) -> str:
    """Fingerprint of a study's settings without the places of its files."""
    plain = settings.model_dump(mode="json", exclude_none=True)
    for section, keys in PLACES.items():
        if section in plain:
            plain[section] |= {key: True for key in keys if key in plain[section]}
    for arm in plain["arms"].values():
        arm |= {key: True for key, value in arm.items() if is_file(key, value)}
    return fingerprint(plain)


def base_of(settings: Study) -> str:
    """The arm that a study's contrasts are against."""
    return "base" if "base" in settings.arms else next(iter(settings.arms))


def same_arms(run: Run, spec: Spec) -> frozenset[str]:
    """Sections of arms that a run and a study share, the study's being the same or grown."""
    kept = kept_settings(run)
    if kept is None:
        return frozenset()
    asked = spec.settings.arms
    return frozenset(name for name, arm in kept.arms.items() if name in asked and not _arm(name, arm, asked[name])[1])


def compare(run: Run, spec: Spec, inputs: Inputs, *, arms: Collection[str] | None = None) -> Growth:
    """How `spec` differs from the study of `run`, which has begun. `arms`: sections of the run to hold it to (all).

    Raises RunRefusedError for another study, other contents of its files, and growth that would move what is there.
    """
    kept = kept_settings(run)
    if kept is None:
        if run.study == spec.text:
            return Growth()
        _refuse(run, "it was written by another version, or imported")
    free = _undecided(run)
    grown: list[str] = []
    moved = False
    again = set()
    for section in Study.model_fields:
        if section == "arms":
            continue
        ours, theirs = getattr(kept, section), getattr(spec.settings, section)
        if ours == theirs:
            continue
        if section in free or (section == "finetune" and ours is None):
            grown.append(f"[{section}]")
            again.add(section)
            continue
        if ours is None or theirs is None:
            _refuse(run, f"[{section}] is {'not ' * (ours is None)}there")
        more, elsewhere = _section(run, section, ours, theirs, free)
        grown += more
        moved |= elsewhere
    if base_of(kept) != spec.base:
        _refuse(run, f"its base arm is {base_of(kept)!r}, not {spec.base!r}")
    held = kept.arms if arms is None else {name: arm for name, arm in kept.arms.items() if name in arms}
    for name, arm in held.items():
        if name not in spec.settings.arms:
            _refuse(run, f"arm {name!r} is in it; keep it in the study")
        more, wrong, elsewhere = _arm(name, arm, spec.settings.arms[name])
        if wrong:
            _refuse(run, wrong)
        grown += more
        moved |= elsewhere
    grown += [f"arm {name}" for name in spec.settings.arms if name not in held]
    check_inputs(run, **_digests(inputs, held, free))
    _check_growth(run, spec, inputs, held, kept)
    return Growth(tuple(grown), moved, frozenset(again))


def _section(run: Run, section: str, ours: Any, theirs: Any, free: frozenset[str]) -> tuple[list[str], bool]:
    """What a section has more, in words, and whether a model or SAE moved. Raises RunRefusedError for a change."""
    grown, moved = [], False
    for key in type(ours).model_fields:
        a, b = getattr(ours, key), getattr(theirs, key)
        if a == b or (key == "count" and ours.ids is not None and theirs.ids is not None):
            continue
        if key in PLACES.get(section, ()) and a is not None and b is not None:
            moved |= (section, key) in _LOADED
        elif (section, key) == ("latents", "ids") and a is not None and b is not None:
            if gone := sorted(set(a) - set(b)):
                _refuse(run, f"[latents] ids holds latent {gone[0]} there; keep it")
            if len(b) > len(a):
                grown.append(f"latents {len(a)} to {len(b)}")
        elif section == "trials" and key in ("per_latent", "resample") and "latents" in free:
            grown.append(f"{key} {a} to {b}")
        elif (section, key) in (("latents", "count"), ("trials", "per_latent"), ("trials", "resample")):
            if b < a:
                _refuse(run, f"[{section}] {key} = {a} there, {b} here, and a run does not shrink")
            grown.append(f"{key} {a} to {b}")
        else:
            _refuse(run, f"[{section}] {key} = {_short(a)} there, {_short(b)} here")
    return grown, moved


def _arm(name: str, ours: ArmSection, theirs: ArmSection) -> tuple[list[str], str, bool]:
    """What an arm has more, why it is another one (or nothing), and whether its adapter moved."""
    grown, moved = [], False
    for key in ArmSection.model_fields:
        a, b = getattr(ours, key), getattr(theirs, key)
        if a == b:
            continue
        if is_file(key, a) and is_file(key, b):
            moved |= key == "adapter"
        elif key in _LEVELS and isinstance(a, tuple) and isinstance(b, tuple) and set(a) <= set(b):
            grown += [f"level {name}@{value:g}" for value in b if value not in a]
        else:
            return [], f"[arms.{name}] {key} = {_short(a)} there, {_short(b)} here", False
    return grown, "", moved


def _undecided(run: Run) -> frozenset[str]:
    """Sections from which nothing that stays was decided yet."""
    free, rows, arms = set(), run.latents(), run.arms()
    if not rows:
        free |= {"latents", "calibration"}
    if all(row.status == "not needed" for row in rows) and not run.own_strengths():
        free.add("calibration")
    rules = [arm.get("clamp_rule") for arm in arms.values()]
    if not any(isinstance(rule, str) or (rule and rule.get("of") == DETECTORS) for rule in rules):
        free.add("detectors")
    if not any(arm.get("directions") == CONTRAST for arm in arms.values()) and not run.own_strengths():
        free.add("directions")
    return frozenset(free)


def _digests(inputs: Inputs, held: Mapping[str, ArmSection], free: frozenset[str]) -> dict[str, str]:
    """Digests of the files that a run must have been begun with."""
    found = {}
    for name, digest in inputs.digests.items():
        arm = name.split(".", 2)[1] if name.startswith("arms.") else None
        if (arm is None or arm in held) and not (name == "labels" and "latents" in free):
            found[name] = digest
    return found


def _check_growth(run: Run, spec: Spec, inputs: Inputs, held: Mapping[str, ArmSection], kept: Study) -> None:
    """Raise RunRefusedError for growth that what was frozen leaves no room for."""
    known = {reference.prompt for reference in run.references()}
    if known and (bare := [prompt for prompt in inputs.all_prompts if prompt not in known]):
        raise RunRefusedError(
            f"{run.folder}: its judge's references were frozen without {bare[0]!r} and {len(bare) - 1} more prompts of"
            " new arms; run them as a study of their own, in another folder"
        )
    rows = run.latents()
    bare_rows = [row.latent for row in rows if row.label is None]
    for arm in spec.arms:
        if section_of(arm.name) not in held and arm.uses_label and bare_rows:
            raise RunRefusedError(
                f"[arms.{arm.name}] names the latent's label, but latent {bare_rows[0]} of {run.folder} has none;"
                " leave {label} out, or choose another folder with --out"
            )
    if rows and wanted_latents(spec.settings) > wanted_latents(kept):
        if run.calibrating():
            raise RunRefusedError(
                f"{run.folder} is in the middle of its calibration; run its study as it was, then add latents"
            )
        taken = run.clamped_at_random() - {row.latent for row in rows}
        if clash := sorted(taken & set(spec.settings.latents.ids or ())):
            raise RunRefusedError(
                f"{run.folder}: latent {clash[0]} is clamped in a random set there, so it cannot be steered with;"
                " leave it out, or choose another folder with --out"
            )


def wanted_latents(settings: Study) -> int:
    """How many latents a study asks for."""
    return settings.latents.count if settings.latents.ids is None else len(settings.latents.ids)


def check_inputs(run: Run, **now: Any) -> None:
    """Refuse to go on with other inputs than a run was begun with."""
    then = run.header.get("inputs", {})
    for name, value in now.items():
        if name in then and then[name] != value:
            said = f"[{name.rpartition('.')[0]}] {name.rpartition('.')[2]}" if "." in name else name.replace("_", " ")
            raise RunRefusedError(
                f"{run.folder} was begun with another {said} ({str(then[name])[:12]}, now {str(value)[:12]});"
                " restore it, or choose another folder with --out"
            )


def _refuse(run: Run, why: str) -> NoReturn:
    raise RunRefusedError(f"{run.folder} holds a run of another study ({why}); choose another folder with --out")


def _short(value: Any) -> str:
    text = "not set" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
