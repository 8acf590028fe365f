"""What a study reads from files, read and checked before a model is loaded: prompts, labels, latent ids, vectors.

A run keeps a digest of each, so that it goes on with the same content wherever the files lie, and is refused another
one. Names of digests are those of the settings, "arms.ARM.clamp".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from countersteer.core.errors import InputError, RefusedError
from countersteer.core.fingerprint import fingerprint
from countersteer.judging.rubrics import load as load_rubric
from countersteer.sources.labels import Label, load_labels
from countersteer.studies.arms import Arm
from countersteer.studies.prompts import load_prompts
from countersteer.studies.schema import ArmSection
from countersteer.studies.schema_arms import CONTRAST, DETECTORS, HELD_OUT, RandomClamp
from countersteer.studies.schema_finetune import FINETUNE
from countersteer.studies.spec import Spec


@dataclass(frozen=True)
class Inputs:
    """The content of a study's files: its prompts, those of arms with their own, its labels, digests by setting."""

    prompts: tuple[str, ...]
    by_arm: Mapping[str, tuple[str, ...]]
    labels: Mapping[int, Label] | None
    digests: Mapping[str, str]

    def of(self, arm: Arm) -> Sequence[str]:
        """The prompts of an arm: its own set, or the study's."""
        return self.by_arm.get(section_of(arm.name), self.prompts)

    @property
    def all_prompts(self) -> list[str]:
        """Every prompt that the study asks, once."""
        return list(dict.fromkeys([*self.prompts, *(p for own in self.by_arm.values() for p in own)]))


def section_of(arm: str) -> str:
    """The section of a study that an arm's name comes from, its level left out."""
    return arm.split("@", 1)[0]


def is_file(key: str, value: Any) -> bool:
    """Whether a setting of an arm names a file or folder."""
    if not isinstance(value, str):
        return False
    words = {"clamp": (DETECTORS, HELD_OUT), "prompts": (), "directions": (CONTRAST,), "adapter": (FINETUNE,)}
    return key in words and value not in words[key]


def read_inputs(spec: Spec) -> Inputs:
    """Read every file that a study names. Raises InputError for one that cannot be used, naming the arm."""
    settings = spec.settings
    prompts = tuple(load_prompts(settings.trials.prompts))
    wanted = settings.trials.per_latent
    if wanted > len(prompts):
        raise InputError(
            f"[trials] per_latent = {wanted} but there are {len(prompts)} prompts; lower it or add prompts"
        )
    digests = {"prompts": fingerprint(list(prompts))}
    labels = None
    if settings.latents.labels is not None:
        labels = load_labels(settings.latents.labels)
        digests["labels"] = _of_file(settings.latents.labels, "[latents] labels")
    if settings.judge.rubric is not None:
        digests["rubric"] = load_rubric(settings.judge.rubric).digest
    if settings.finetune is not None:
        digests["finetune.prompts"] = fingerprint(load_prompts(settings.finetune.prompts))
    own: dict[str, tuple[str, ...]] = {}
    for name, section in settings.arms.items():
        if section.prompts is not None:
            own[name] = tuple(_named(name, "prompts", lambda s=section: load_prompts(str(s.prompts))))
            if len(own[name]) < wanted:
                raise InputError(f"[arms.{name}] has {len(own[name])} prompts, but each latent draws {wanted}")
            digests[f"arms.{name}.prompts"] = fingerprint(list(own[name]))
        digests |= _of_arm(name, section, next(arm for arm in spec.arms if section_of(arm.name) == name))
    return Inputs(prompts, own, labels, digests)


def _of_arm(name: str, section: ArmSection, arm: Arm) -> dict[str, str]:
    """Digests of an arm's files, its prompts left out: of latent ids as they were read when the study was."""
    found = {}
    if is_file("clamp", section.clamp):
        found[f"arms.{name}.clamp"] = fingerprint(list(arm.clamp))
    if is_file("directions", section.directions):
        found[f"arms.{name}.directions"] = _of_file(str(section.directions), f"[arms.{name}] directions")
    return found


def _named(arm: str, key: str, read: Any) -> Any:
    """What `read` gives; its InputError says which arm's setting it is about."""
    try:
        return read()
    except InputError as error:
        raise InputError(f"[arms.{arm}] {key}: {error}") from None


def _of_file(path: str, what: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{what}: cannot read {path}: {error.strerror or error}; check the path") from error
    return digest.hexdigest()


def check_sae(spec: Spec, sae: Any, inputs: Inputs | None) -> None:
    """Raise InputError unless the SAE has every latent that the study names, and its width is that of its vectors.

    Without `inputs`, no more is asked of files.
    """
    from countersteer.studies import directions

    last = sae.d_sae - 1
    known = f"the SAE has {sae.d_sae}; use 0 to {last}"
    for index in spec.settings.latents.ids or ():
        if index > last:
            raise InputError(f"[latents] ids names latent {index}, but {known}")
    beyond = max((inputs and inputs.labels) or (), default=0)
    if beyond > last:
        raise InputError(f"[latents] labels labels latent {beyond}, but {known}")
    for arm in spec.arms:
        if arm.clamps and sae.architecture == "topk":
            raise RefusedError(
                f"[arms.{arm.name}] clamp on a TopK SAE",
                "whether a latent is active depends on all others, so it has no threshold of its own",
                "the SAE's JumpReLU conversion",
            )
        rule = arm.clamp_rule
        of = rule.of if isinstance(rule, RandomClamp) and rule.of != DETECTORS else ()
        for index in (*arm.clamp, *(int(i) for i in of)):
            if not 0 <= index <= last:
                raise InputError(f"[arms.{arm.name}] clamp names latent {index}, but {known}")
        if inputs is not None and arm.directions is not None and arm.directions != CONTRAST:
            _named(arm.name, "directions", lambda a=arm: directions.load(str(a.directions), d_model=sae.d_model))
    if any(arm.directions == CONTRAST for arm in spec.arms):
        directions.titles(spec.settings.directions)
