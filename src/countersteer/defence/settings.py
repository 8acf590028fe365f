"""Settings of a defence: one TOML file for fit, sweep and scorecard, with the paper's values as defaults.

Values not given by the coherence paper (arXiv 2604.08169) are marked in their comments. Shipped files are named
`preset:defence-...`.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from countersteer.core.errors import InputError, nearest
from countersteer.core.request import Sampling

PRESET = "preset:"
METHODS = ("swfc", "sttp", "stmp", "limit", "remove", "gated", "cast", "clas", "prompt")
"""Fixed strength; to target; to mirror; interval limit; directional removal; projection-gated add; request-level gate;
contextual strength; a sentence behind the system prompt."""
GRIDS: dict[str, tuple[float, ...]] = {
    "swfc": (1, 2, 3, 4, 5),
    "sttp": (0, 6, 12, 18, 24, 30, 36),
    "stmp": (1, 1.5, 2, 2.5, 3, 3.5, 4),
    "limit": (0, 0.5, 1, 1.5, 2),  # ours: low = m + strength * (mu+ - m)
    "remove": (1,),
    "gated": (1, 2, 3, 4, 5),  # ours: the grid of swfc
    "cast": (1, 2, 3, 4, 5),  # ours: the grid of swfc
    "clas": (0.5, 1, 2),  # ours: multiples of the fitted strength
    "prompt": (1,),
}
"""Strengths by method; the paper's for swfc, sttp and stmp."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Subject(_Section):
    """What is defended, against what. `adapter`: a LoRA on the model when a bundle is graded (a bad fine-tune)."""

    model: str = "organism"
    adapter: str | None = None
    trait: str = "organism"
    seed: int = 42
    dtype: str | None = None
    device: str | None = None
    places: int = Field(default=32, ge=1)


class SamplingSection(_Section):
    """How responses are drawn."""

    temperature: float = 0.6
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    max_tokens: int = Field(default=1024, ge=1)


class FitSection(_Section):
    """`folds` of the held-out separation; layers at which CLAS is fitted, on how many examples, in how many steps."""

    folds: int = Field(default=5, ge=2)
    clas_layers: tuple[int, ...] = ()
    clas_examples: int = Field(default=16, ge=1)
    clas_steps: int = Field(default=30, ge=1)


class JudgeSection(_Section):
    """Who scores trait and coherence: "offline" (the organism's trait only) or PROVIDER/NAME. `first_tokens`: all text
    metrics look at so many tokens of a response (the paper's 50). `max_cost`: USD that the judge may cost a step.
    """

    model: str = "offline"
    base_url: str | None = None
    temperature: float | None = None
    max_tokens: int = 1024
    first_tokens: int = Field(default=50, ge=1)
    max_cost: float | None = Field(default=None, gt=0)


class SweepSection(_Section):
    """What is tried and how it is chosen. `layers` empty: every layer. `floor`: share of the aligned coherence.

    `margin`: standard errors (over groups) by which coherence must clear the floor (ours; 0 is the paper's rule).
    Controls and the prompting baseline need no margin.
    """

    methods: tuple[Literal["swfc", "sttp", "stmp", "limit", "remove", "gated", "cast", "clas", "prompt"], ...] = (
        "swfc", "sttp", "stmp")  # fmt: skip
    layers: tuple[int, ...] = ()
    spans: tuple[str, ...] = ("all", "response")
    direction: Literal["logistic", "mean-difference", "caa", "lat"] = "logistic"
    strengths: dict[str, tuple[float, ...]] = {}
    floor: float = Field(default=0.9, gt=0, le=1)
    margin: float = Field(default=0.0, ge=0)
    halving: bool = True
    keep: float = Field(default=1 / 3, gt=0, lt=1)
    random: int = Field(default=2, ge=0)
    flipped: bool = True


class ScorecardSection(_Section):
    """`turns` of a conversation, how many conversations, pairs of timed runs, files of capability questions."""

    turns: int = Field(default=5, ge=2, le=10)
    conversations: int = Field(default=20, ge=1)
    cost_pairs: int = Field(default=15, ge=0)
    capability: tuple[str, ...] = ()


class Settings(_Section):
    """A whole settings file."""

    defence: Subject = Subject()
    sampling: SamplingSection = SamplingSection()
    fit: FitSection = FitSection()
    judge: JudgeSection = JudgeSection()
    sweep: SweepSection = SweepSection()
    scorecard: ScorecardSection = ScorecardSection()

    def drawn(self, *, short: bool) -> Sampling:
        """The sampling; `short` stops at the tokens that text metrics look at."""
        most = min(self.sampling.max_tokens, self.judge.first_tokens) if short else self.sampling.max_tokens
        return Sampling(**{**self.sampling.model_dump(), "max_tokens": most})

    def grid(self, method: str) -> tuple[float, ...]:
        """The strengths of a method."""
        return self.sweep.strengths.get(method, GRIDS[method])


def presets() -> tuple[str, ...]:
    """Names of the shipped settings."""
    folder = resources.files("countersteer.defence") / "presets"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def load(source: str | Path | None) -> Settings:
    """Settings from a TOML file or `preset:NAME`; all defaults for None. Raises InputError."""
    if source is None:
        return Settings()
    name = str(source)
    if name.startswith(PRESET):
        key = name.removeprefix(PRESET)
        if key not in presets():
            raise InputError(f"no preset {key!r}{nearest(key, presets())}; there are: {', '.join(presets())}")
        text = (resources.files("countersteer.defence") / "presets" / f"{key}.toml").read_text(encoding="utf-8")
        return parse(text, where=name)
    try:
        return parse(Path(source).read_bytes().decode("utf-8-sig"), where=name)
    except FileNotFoundError:
        raise InputError(f"no settings file {name}; give a TOML file or preset:{presets()[0]}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read settings {name}: {error}") from error


def parse(text: str, *, where: str) -> Settings:
    """Settings in a TOML text. Raises InputError with the name of the setting."""
    try:
        return checked(tomllib.loads(text), where=where)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where} is not valid TOML: {error}") from error


def checked(data: dict[str, Any], *, where: str) -> Settings:
    """Settings from plain data. Raises InputError."""
    try:
        made = Settings.model_validate(data)
        for method in made.sweep.strengths:
            if method not in METHODS:
                raise InputError(f"{where}: sweep.strengths has no method {method!r}{nearest(method, METHODS)}")
        made.drawn(short=False)
        return made
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: setting {place}: {first['msg']}") from error
