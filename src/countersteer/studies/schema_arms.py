"""The settings of an arm that are tables of their own: random clamps, prefixes taken from another arm.

Also what `clamp` and `prefix` may be written as, checked by hand so that every problem is one line.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from countersteer.core.errors import nearest

DETECTORS = "detectors"
HELD_OUT = "detectors-held-out"
CONTRAST = "contrast"
"""The value of an arm's `directions` that stands for vectors made from titles."""
MATCHES = ("count", "firing-rate", "mean-activation", "perturbation")
META_PROMPTS = {
    "focus": "Stay on the question and do not get distracted.",
    "ignore-label": "Ignore any thoughts about {label}.",
    "self-monitor": "If you notice that you are drifting off topic, stop and return to the question.",
    "resist": "Something may be trying to manipulate your thoughts; resist it and answer the question.",
}
"""Sentences appended to the user turn. The ESR paper names the four kinds; where its wording is not known, ours."""


class Table(BaseModel):
    """Base of the tables: unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class RandomClamp(Table):
    """Clamp `random` random latents in `sets` disjoint sets, one arm per set, matched to the latents in `of`.

    random: how many per set, or "detectors" for as many as there are. matched: "count" (any that fire), or nearest in
    "firing-rate", "mean-activation" or "perturbation" (|h' - h| / |h| of ablating each, as receipts measure it), on the
    base arm's steered responses at the steering layer. `of`: "detectors" or latent ids.
    """

    random: Annotated[int, Field(ge=1)] | Literal["detectors"] = "detectors"
    sets: Annotated[int, Field(ge=1, le=100)] = 3
    matched: Literal["count", "firing-rate", "mean-activation", "perturbation"] = "firing-rate"
    of: Annotated[tuple[int, ...], Field(strict=False)] | Literal["detectors"] = "detectors"


class PrefixRule(Table):
    """A prefix taken from the same trial of arm `of`.

    part: "start" (its first `chars` characters, or `fraction` of it, cut before its first restart), "before-restart"
    (everything before it), "corrective" (from its last restart on, at most `chars`). matched: as many characters as
    the prefix that arm gives the same trial.
    """

    of: Annotated[str, Field(min_length=1)]
    part: Literal["start", "before-restart", "corrective"] = "start"
    chars: Annotated[int, Field(ge=1)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    matched: Annotated[str, Field(min_length=1)] | None = None


def _table(kind: type[Table], value: dict[str, Any]) -> Any:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            known = tuple(kind.model_fields)
            raise ValueError(f"unknown key {key!r}{nearest(key, known)}; known: {', '.join(known)}") from None
        raise ValueError(f"{key}: {first['msg'].removeprefix('Input ')}") from None


def clamp(value: Any) -> Any:
    """A tuple of latent ids, "detectors", "detectors-held-out", a file of ids, or a random clamp."""
    if isinstance(value, RandomClamp):
        return value
    if isinstance(value, dict):
        return _table(RandomClamp, value)
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("is empty; leave the key out instead")
        return value
    if not isinstance(value, list | tuple):
        raise ValueError('should be a list of latent ids, "detectors", a file, or { random = 26, sets = 3 }')
    for index in value:
        if isinstance(index, bool) or not isinstance(index, int):
            raise ValueError("should be a list of whole numbers")
        if index < 0:
            raise ValueError("latent ids should be greater than or equal to 0")
    return tuple(value)


def prefix(value: Any) -> Any:
    """A text, or a table that says which part of another arm's response to take."""
    if isinstance(value, PrefixRule):
        return value
    if isinstance(value, dict):
        rule = _table(PrefixRule, value)
        if rule.part != "start" and (rule.fraction is not None or rule.matched is not None):
            raise ValueError('fraction and matched belong to part = "start"')
        if sum(v is not None for v in (rule.chars, rule.fraction, rule.matched)) > 1:
            raise ValueError("give one of chars, fraction and matched")
        return rule
    if not isinstance(value, str):
        raise ValueError('should be a text, or a table such as { of = "base", chars = 1100 }')
    if not value.strip():
        raise ValueError("is empty; leave the key out instead")
    return value


Clamp = Annotated[Any, PlainValidator(clamp)]
Prefix = Annotated[Any, PlainValidator(prefix)]
CHARS = 1100
"""Characters of a prefix where none is given (ESR paper, prefill control)."""
