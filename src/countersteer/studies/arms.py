"""Arms: how each condition changes the base trials, with lists of levels expanded into arms of their own.

`strength_scale = [0.5, 1]` in arm `sweep` gives the arms `sweep@0.5` and `sweep@1`. Levels below zero are clipped to
zero (no intervention); levels that come out equal are one level, with a note.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError, nearest
from countersteer.core.request import Sampling
from countersteer.studies.schema import ArmSection, Study
from countersteer.studies.schema_arms import DETECTORS, HELD_OUT, META_PROMPTS, PrefixRule, RandomClamp
from countersteer.studies.schema_finetune import FINETUNE

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LABEL = "{label}"


@dataclass(frozen=True)
class Arm:
    """One condition. `strength` fixed for all latents (0: none) or None: calibrated, times `scale`.

    `span`, `layer` (None: the SAE's own) and `sampling` are resolved; texts may hold "{label}". `clamp` may depend on
    the prompt (`clamp_by_prompt`). What a run finds out first is a rule until then: `clamp_rule` ("detectors",
    "detectors-held-out" or random latents, set number `random_set`), `prefix_rule`, `sd` (standard deviations from the
    mean calibrated strength; `relative` once that is known). `against`: the arm it is compared with.
    """

    name: str
    strength: float | None
    scale: float
    suffix: str | None
    prefix: str | None
    system: str | None
    clamp: tuple[int, ...]
    span: str
    layer: int | None
    sampling: Sampling
    clamp_rule: str | RandomClamp | None = None
    random_set: int = 0
    clamp_by_prompt: Mapping[str, tuple[int, ...]] | None = None
    prefix_rule: PrefixRule | None = None
    sd: float | None = None
    relative: float | None = None
    prompts: str | None = None
    directions: str | None = None
    recalibrate: bool = False
    against: str | None = None
    adapter: str | None = None
    """What requests call the adapter: its folder, or its name in the [finetune] section."""
    adapter_facts: Mapping[str, Any] | None = None
    own_sampling: Mapping[str, Any] | None = None
    """Settings of the arm's own [sampling]; `sampling` holds them already."""

    @property
    def own_strengths(self) -> bool:
        """Whether strengths are calibrated for this arm alone."""
        return self.recalibrate or (self.directions is not None and self.strength is None)

    @property
    def clamps(self) -> bool:
        """Whether latents are clamped, known already or not."""
        return bool(self.clamp) or self.clamp_rule is not None or self.clamp_by_prompt is not None

    def clamp_for(self, prompt: str) -> tuple[int, ...]:
        """The latents clamped in a trial on `prompt`."""
        return self.clamp if self.clamp_by_prompt is None else self.clamp_by_prompt.get(prompt, self.clamp)

    def needs(self, base: str) -> frozenset[str]:
        """The arms whose responses must be there before this one is planned."""
        found = set()
        if self.prefix_rule is not None:
            found |= {name for name in (self.prefix_rule.of, self.prefix_rule.matched) if name}
        if isinstance(self.clamp_rule, RandomClamp):
            found.add(base)
        return frozenset(found)

    @property
    def uses_label(self) -> bool:
        """Whether a text of the arm names the latent's label."""
        return any(LABEL in text for text in (self.suffix, self.prefix, self.system) if text)

    @property
    def steered(self) -> bool:
        """Whether trials of this arm are steered with their latent."""
        return self.strength != 0 and self.scale != 0

    @property
    def judged_alone(self) -> bool:
        """Whether what the model writes after a prefix is judged by itself as well: the matched-prefix control."""
        rule = self.prefix_rule
        return rule is not None and (rule.part == "corrective" or rule.matched is not None)

    def strength_for(self, calibrated: float | None, *, unit: float = 1.0) -> float | None:
        """The strength used for a latent, None if it needs a calibration that there is not."""
        if self.strength is not None:
            return self.strength
        if self.sd is not None:
            return None if self.relative is None else self.relative * unit
        if self.scale == 0:
            return 0.0
        return None if calibrated is None else self.scale * calibrated

    def user_turn(self, prompt: str, label: str | None) -> str:
        """The user turn: the prompt, and the suffix after a space."""
        return prompt if self.suffix is None else f"{prompt} {self.suffix.replace(LABEL, label or '')}"

    def text(self, which: str, label: str | None) -> str | None:
        """The arm's `system` or `prefix` with the label put in, or None."""
        value: str | None = getattr(self, which)
        return None if value is None else value.replace(LABEL, label or "")

    def describe(self) -> dict[str, Any]:
        """Plain data for the run: what the arm sets."""
        kind = {"strength_scale": self.scale} if self.strength is None else {"strength": self.strength}
        if self.sd is not None:
            kind = {"strength_sd": self.sd, **({} if self.relative is None else {"relative": self.relative})}
        texts = {k: getattr(self, k) for k in ("suffix", "prefix", "system") if getattr(self, k) is not None}
        more: dict[str, Any] = {"clamp": list(self.clamp)} if self.clamp else {}
        rule = self.clamp_rule
        if rule is not None:
            more["clamp_rule"] = rule if isinstance(rule, str) else {**rule.model_dump(), "set": self.random_set}
        if self.prefix_rule is not None:
            more["prefix"] = self.prefix_rule.model_dump(exclude_none=True)
        more |= {"judged_alone": True} if self.judged_alone else {}
        given = {"prompts": self.prompts, "directions": self.directions, "against": self.against}
        more |= {name: value for name, value in given.items() if value is not None}
        more |= {"recalibrate": True} if self.recalibrate else {}
        more |= {"sampling": dict(self.own_sampling)} if self.own_sampling else {}
        more |= {"adapter": {"name": self.adapter, **(self.adapter_facts or {})}} if self.adapter else {}
        return {**kind, **texts, **more, "span": self.span, "layer": self.layer, "steered": self.steered}


def expand(settings: Study) -> tuple[tuple[Arm, ...], str, tuple[str, ...]]:
    """The arms with their levels and sets expanded, the base arm's name, and notes. Raises InputError."""
    if not settings.arms:
        raise InputError("the study has no arm; add [arms.base]")
    base = "base" if "base" in settings.arms else next(iter(settings.arms))
    arms: list[Arm] = []
    notes: list[str] = []
    for name, section in settings.arms.items():
        _check(name, section, is_base=name == base)
        made = _levels(settings, name, section, notes)
        if name == base and len(made) > 1:
            raise InputError(f"[arms.{name}] is the base arm, which has one level; put the list into another arm")
        arms += made
    _check_references(arms, base)
    return tuple(arms), base, tuple(notes)


def order(arms: Sequence[Arm], base: str) -> list[list[Arm]]:
    """The arms in phases: each needs responses of earlier phases only."""
    left, done, phases = list(arms), set[str](), []
    while left:
        ready = [arm for arm in left if arm.needs(base) <= done]
        phases.append(ready)
        done |= {arm.name for arm in ready}
        left = [arm for arm in left if arm.name not in done]
        if not ready:
            raise InputError(f"the arms {', '.join(arm.name for arm in left)} wait for each other; break the cycle")
    return phases


def _check(name: str, section: ArmSection, *, is_base: bool) -> None:
    """What one arm may not combine."""
    if not _NAME.fullmatch(name):
        raise InputError(f"arm name {name!r} is not letters, digits, '.', '_' and '-' (at most 64)")
    given = [key for key in ("strength", "strength_scale", "strength_sd") if getattr(section, key) is not None]
    if len(given) > 1:
        raise InputError(f"[arms.{name}] has both {given[0]} and {given[1]}; give one")
    clamp = section.clamp
    if isinstance(clamp, tuple) and (not clamp or len(set(clamp)) != len(clamp)):
        raise InputError(f"[arms.{name}] clamp must name at least one latent and each once")
    if section.suffix is not None and section.meta_prompt is not None:
        raise InputError(f"[arms.{name}] has both suffix and meta_prompt; give one")
    if section.directions is not None and section.strength_sd is not None:
        raise InputError(f"[arms.{name}] has directions, whose strengths are its own; use strength or strength_scale")
    if section.recalibrate and given and given[0] != "strength_scale":
        raise InputError(f"[arms.{name}] recalibrate finds strengths, so {given[0]} has no place; leave one out")
    if section.recalibrate and isinstance(section.prefix, PrefixRule):
        raise InputError(f"[arms.{name}] cannot recalibrate under a prefix taken from another arm; leave one out")
    if is_base:
        for key in ("strength_sd", "directions", "against", "prompts", "adapter"):
            if getattr(section, key) is not None:
                raise InputError(f"[arms.{name}] is the base arm, which takes no {key}; put it into another arm")
        if (
            section.recalibrate
            or isinstance(clamp, RandomClamp)
            or clamp in (DETECTORS, HELD_OUT)
            or isinstance(section.prefix, PrefixRule)
        ):
            raise InputError(f"[arms.{name}] is the base arm, which cannot depend on other arms; put it into another")


def _check_references(arms: Sequence[Arm], base: str) -> None:
    """Every arm named by another must exist and come before it."""
    names = [arm.name for arm in arms]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two arms are called {twice!r} once their levels are written out; rename one")
    for arm in arms:
        for other in sorted({*arm.needs(base), *({arm.against} if arm.against else set())}):
            if other not in names:
                raise InputError(
                    f"[arms.{arm.name}] refers to arm {other!r}, which there is not{nearest(other, names)}"
                )
            if other == arm.name:
                raise InputError(f"[arms.{arm.name}] refers to itself; name another arm")
    order(arms, base)


def _levels(settings: Study, name: str, section: ArmSection, notes: list[str]) -> list[Arm]:
    """The arm, or one arm per level, per set or per adapter."""
    if section.adapter == FINETUNE:
        if settings.finetune is None:
            need = "needs a [finetune] section; add one, or give a folder"
            raise InputError(f'[arms.{name}] adapter = "finetune" {need}')
        one = _level(settings, name, section, notes)
        if len(one) > 1 or isinstance(section.clamp, RandomClamp):
            raise InputError(f"[arms.{name}] has both adapters and other levels; put one into another arm")
        return [replace(one[0], name=f"{name}@{k}", adapter=v) for k, v in settings.finetune.adapters.items()]
    if isinstance(section.clamp, RandomClamp):
        one = _level(settings, name, section, notes)
        if len(one) > 1:
            raise InputError(f"[arms.{name}] has both random sets and a list of levels; put one into another arm")
        return [replace(one[0], name=f"{name}@set{i}", random_set=i) for i in range(1, section.clamp.sets + 1)]
    return _level(settings, name, section, notes)


def _level(settings: Study, name: str, section: ArmSection, notes: list[str]) -> list[Arm]:
    if section.strength_sd is not None:
        return _sd_levels(settings, name, section)
    scaled = section.strength is None
    given = section.strength_scale if scaled else section.strength
    values = given if isinstance(given, tuple) else (1.0 if given is None else given,)
    arms: dict[float, Arm] = {}
    for value in values:
        clipped = max(value, 0.0)
        if clipped in arms:
            reason = "negative levels are clipped to 0" if value < 0 else "it is there already"
            notes.append(f"arm {name}: level {value:g} is the same as level {clipped:g} and left out ({reason})")
            continue
        if value < 0:
            notes.append(f"arm {name}: level {value:g} is clipped to 0, which is no intervention")
        level = f"{name}@{value:g}" if isinstance(given, tuple) else name
        arms[clipped] = _arm(settings, level, section, None if scaled else clipped, clipped if scaled else 1.0)
    return list(arms.values())


def _sd_levels(settings: Study, name: str, section: ArmSection) -> list[Arm]:
    """Levels in standard deviations; which of them are clipped to the same strength is known after the calibration."""
    given = section.strength_sd
    values = list(dict.fromkeys(given)) if isinstance(given, tuple) else [given]
    several = isinstance(given, tuple)
    return [replace(_arm(settings, f"{name}@{v:g}" if several else name, section, None, 1.0), sd=v) for v in values]


def _arm(settings: Study, name: str, section: ArmSection, strength: float | None, scale: float) -> Arm:
    sampling = settings.sampling.model_dump()
    own = {} if section.sampling is None else section.sampling.model_dump(exclude_none=True)
    sampling |= own
    layer = settings.study.steer_layer if section.steer_layer is None else section.steer_layer
    clamp: Any = section.clamp
    rule: str | RandomClamp | None = None
    if isinstance(clamp, RandomClamp) or clamp in (DETECTORS, HELD_OUT):
        clamp, rule = (), clamp
    elif isinstance(clamp, str):
        clamp = read_ids(clamp)
    suffix = META_PROMPTS[section.meta_prompt] if section.meta_prompt else section.suffix
    ruled = isinstance(section.prefix, PrefixRule)
    return Arm(
        name,
        strength,
        scale,
        suffix,
        None if ruled else section.prefix,
        section.system,
        clamp or (),
        section.span or settings.study.span,
        layer,
        Sampling(**sampling),
        clamp_rule=rule,
        prefix_rule=section.prefix if ruled else None,
        prompts=section.prompts,
        directions=section.directions,
        recalibrate=section.recalibrate,
        against=section.against,
        adapter=section.adapter,
        own_sampling=own or None,
    )


def read_ids(path: str) -> tuple[int, ...]:
    """Latent ids from a text file, separated by commas, spaces or lines. Raises InputError."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        known = f'"{DETECTORS}", "{HELD_OUT}"'
        raise InputError(f"clamp = {path!r} is neither {known} nor a file of latent ids: {why}") from error
    words = text.replace(",", " ").replace("[", " ").replace("]", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise InputError(f"{path} must hold latent ids separated by commas, spaces or lines, and nothing else")
    ids = tuple(int(word) for word in words)
    if len(set(ids)) != len(ids):
        raise InputError(f"{path} names a latent twice; keep it once")
    return ids
