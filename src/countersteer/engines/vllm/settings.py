"""What is decided when a vLLM engine starts: which layers can be edited or captured and how many rows they have.

vLLM traces the layer operation into its compiled graph, so the shapes are fixed at start. They travel in
`additional_config`, which is part of vLLM's compile-cache key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError

CONFIG_KEY = "countersteer"
"""The entry of `additional_config` (part of vLLM's compile-cache key) and of `extra_args` that is ours."""
CODE_KEY = "countersteer_code"
SHAPE = "COUNTERSTEER_SHAPE"
"""Environment variable with `layers,width,tokenizer` of the served model (tokenizer: 1 or 0), so that the front door
can check what fits."""
TRACED = ("unit.py", "rows.py", "../../edits/apply.py")
"""The files that vLLM compiles into its graph."""


@dataclass(frozen=True)
class Settings:
    """Shapes of the tables, the same in every worker.

    `layers`: editable layers (empty: all). `rows`: rows per layer and step of `order` (one entry per step), shared by
    content over everything in flight. `parts`: edits of one request per layer and step, each of which is measured by
    itself. `reads`: readout rows per layer. `capture`: layers whose residuals `forward` and gates may take. `lanes`:
    steered or read requests at once.
    """

    layers: tuple[int, ...] = ()
    rows: tuple[int, ...] = (128,)
    reads: int = 32
    capture: tuple[int, ...] = ()
    lanes: int = 512
    parts: int = 2

    def __post_init__(self) -> None:
        for name in ("layers", "rows", "capture"):
            value = tuple(getattr(self, name))
            if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in value):
                raise InputError(f"vLLM setting {name} must hold whole numbers >= 0, got {value!r}")
            object.__setattr__(self, name, tuple(sorted(set(value))) if name != "rows" else value)
        if not self.rows or min(self.rows) < 1:
            raise InputError(f"vLLM setting rows needs at least one entry >= 1, got {self.rows!r}")
        for name, least in (("reads", 0), ("lanes", 1), ("parts", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"vLLM setting {name} must be a whole number >= {least}, got {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `additional_config`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def additional_config(self) -> dict[str, Any]:
        """vLLM's `additional_config`: the settings, and a digest of the code that enters its compiled graph. Both are
        in the key of vLLM's compile cache, so a graph of other shapes or of an older version is never found there."""
        code = hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in TRACED)).hexdigest()
        return {CONFIG_KEY: self.to_dict(), CODE_KEY: code[:16]}

    @classmethod
    def from_dict(cls, data: Any) -> Settings:
        """The settings that `to_dict` wrote. Raises InputError."""
        if not isinstance(data, Mapping):
            raise InputError("vLLM runs without settings for steering: pass additional_config={'countersteer': {...}}")
        unknown = set(data) - set(cls.__dataclass_fields__)
        if unknown:
            raise InputError(f"unknown vLLM settings {sorted(unknown)}; known: {', '.join(cls.__dataclass_fields__)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)
