"""Arms: how each condition changes the base trials, with lists of levels expanded into arms of their own.

`strength_scale = [0.5, 1]` in arm `sweep` gives the arms `sweep@0.5` and `sweep@1`. Levels below zero are clipped to
zero (no intervention); levels that come out equal are one level, with a note.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.request import Sampling
from countersteer.studies.schema import ArmSection, Study

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LABEL = "{label}"


@dataclass(frozen=True)
class Arm:
    """One condition. `strength` fixed for all latents (0: none) or None: calibrated, times `scale`.

    `span`, `layer` (None: the SAE's own) and `sampling` are resolved; texts may hold "{label}".
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

    @property
    def uses_label(self) -> bool:
        """Whether a text of the arm names the latent's label."""
        return any(LABEL in text for text in (self.suffix, self.prefix, self.system) if text)

    @property
    def steered(self) -> bool:
        """Whether trials of this arm are steered with their latent."""
        return self.strength != 0 and self.scale != 0

    def strength_for(self, calibrated: float | None) -> float | None:
        """The strength used for a latent, None if it needs a calibration that there is not."""
        if self.strength is not None:
            return self.strength
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
        texts = {k: getattr(self, k) for k in ("suffix", "prefix", "system") if getattr(self, k) is not None}
        more: dict[str, Any] = {"clamp": list(self.clamp)} if self.clamp else {}
        return {**kind, **texts, **more, "span": self.span, "layer": self.layer, "steered": self.steered}


def expand(settings: Study) -> tuple[tuple[Arm, ...], str, tuple[str, ...]]:
    """The arms with their levels expanded, the base arm's name, and notes. Raises InputError."""
    if not settings.arms:
        raise InputError("the study has no arm; add [arms.base]")
    base = "base" if "base" in settings.arms else next(iter(settings.arms))
    arms: list[Arm] = []
    notes: list[str] = []
    for name, section in settings.arms.items():
        if not _NAME.fullmatch(name):
            raise InputError(f"arm name {name!r} is not letters, digits, '.', '_' and '-' (at most 64)")
        if section.strength is not None and section.strength_scale is not None:
            raise InputError(f"[arms.{name}] has both strength and strength_scale; give one")
        if section.clamp is not None and (not section.clamp or len(set(section.clamp)) != len(section.clamp)):
            raise InputError(f"[arms.{name}] clamp must name at least one latent and each once")
        made = _levels(settings, name, section, notes)
        if name == base and len(made) > 1:
            raise InputError(f"[arms.{name}] is the base arm, which has one level; put the list into another arm")
        arms += made
    return tuple(arms), base, tuple(notes)


def _levels(settings: Study, name: str, section: ArmSection, notes: list[str]) -> list[Arm]:
    """The arm, or one arm per level."""
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


def _arm(settings: Study, name: str, section: ArmSection, strength: float | None, scale: float) -> Arm:
    sampling = settings.sampling.model_dump()
    if section.sampling is not None:
        sampling |= section.sampling.model_dump(exclude_none=True)
    layer = settings.study.steer_layer if section.steer_layer is None else section.steer_layer
    return Arm(
        name,
        strength,
        scale,
        section.suffix,
        section.prefix,
        section.system,
        section.clamp or (),
        section.span or settings.study.span,
        layer,
        Sampling(**sampling),
    )
