"""What a judge's calls cost: a dated table of prices that the user can override, and the arithmetic on it.

Unknown is None, never zero: a model without a known price can be used, but not under a cost cap.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError, nearest

_MILLION = 1_000_000
_KEYS = {"date", "free", "models"}
_OVERHEAD = 64
"""Tokens a provider may add around the messages of one call."""


@dataclass(frozen=True)
class Price:
    """USD per million tokens. `source` says where it comes from."""

    input: float
    output: float
    cached: float
    source: str

    def cost(self, *, input: int, output: int, cached: int = 0) -> float:
        """USD of a call; `input` without the `cached` ones."""
        return (input * self.input + cached * self.cached + output * self.output) / _MILLION

    def worst(self, text: str, max_output: int) -> float:
        """USD that a call with this input can cost at most: a token is at least one byte."""
        bound = len(text.encode("utf-8", "replace")) + _OVERHEAD
        return (bound * max(self.input, self.cached) + max_output * self.output) / _MILLION

    def expected(self, *, characters: float, output: float) -> float:
        """USD of a call of typical English: four characters per token."""
        return (characters / 4 * self.input + output * self.output) / _MILLION


_SNAPSHOT = re.compile(r"[-@](?:latest|\d{8}|\d{4}-\d{2}-\d{2})$")
"""What marks a dated snapshot of a model: another suffix is another model, with another price."""


@cache
def _shipped() -> str:
    return (resources.files("countersteer.judging") / "prices.toml").read_text(encoding="utf-8")


def price(model: str, *, file: str | Path | None = None, given: Any = None) -> Price | None:
    """The price of a model: `given` ([input, output] or [input, output, cached]), else a user's file, else the table.

    None if it is unknown. Raises InputError for prices that are no prices.
    """
    if given is not None:
        return _price(given, f"the price of {model}", "given")
    if file is not None:
        path = Path(file)
        try:
            found = _look_up(model, path.read_text(encoding="utf-8-sig"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read price file {path}: {error}; check the path") from error
        if found is not None:
            return found
    return _look_up(model, _shipped(), "the shipped table")


def _look_up(model: str, text: str, where: str) -> Price | None:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"price file {where} is not valid TOML: {error}") from error
    models, free = table.get("models", {}), table.get("free", [])
    if not isinstance(models, Mapping) or not isinstance(free, list) or not (models or free):
        raise InputError(f'price file {where} needs [models] with entries such as "openai/gpt-4o" = [2.5, 10.0]')
    unknown = sorted(set(table) - _KEYS)
    if unknown:
        raise InputError(f"price file {where}: unknown key {unknown[0]!r}{nearest(unknown[0], _KEYS)}; prices stand"
                         " under [models]")  # fmt: skip
    source = f"{where}, {table.get('date', 'undated')}"
    name = model if model in models else _SNAPSHOT.sub("", model)
    if name in models:
        return _price(models[name], f"{where}: the price of {name}", source)
    if model.split("/")[0] in free:
        return Price(0.0, 0.0, 0.0, f"{source}: runs on your own machines")
    return None


def _price(value: Any, what: str, source: str) -> Price:
    good = isinstance(value, list | tuple) and len(value) in (2, 3)
    numbers = [v for v in value if isinstance(v, int | float) and not isinstance(v, bool)] if good else []
    if len(numbers) != (len(value) if good else -1) or not all(math.isfinite(v) and v >= 0 for v in numbers):
        raise InputError(f"{what} must be [input, output] or [input, output, cached] in USD per million tokens")
    return Price(float(numbers[0]), float(numbers[1]), float(numbers[-1 if len(numbers) == 3 else 0]), source)
