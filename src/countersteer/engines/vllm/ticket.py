"""What a request to vLLM says about steering: names only, never tensors.

It travels in `SamplingParams.extra_args["countersteer"]`; over HTTP that is `vllm_xargs`, which takes plain values, so
a bundle's name or a JSON object as text are understood too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.exempt import check_exemptions
from countersteer.engines.vllm.settings import CONFIG_KEY


@dataclass(frozen=True)
class Ticket:
    """`steer`: name or fingerprint of an intervention, `only`: which is measured and not written, `exempt`: the
    stretches of the response that it leaves alone; `reads`: fingerprint of readouts; `capture`: layers whose residuals
    are wanted; `pooled`: only the worker that will pool an SAE over them keeps them; `reduce` none, max or mean over
    positions `start` .. `stop` - 1 (position 0 left out of max and mean); `id` under which receipt, readouts and
    residuals can be collected.
    """

    steer: str | None = None
    only: bool = False
    exempt: tuple[str, ...] = ()
    reads: str | None = None
    capture: tuple[int, ...] = ()
    pooled: bool = False
    reduce: str = "none"
    start: int = 0
    stop: int | None = None
    id: str | None = None

    def to_args(self) -> dict[str, Any]:
        """The value of `extra_args`."""
        data = {k: v for k, v in vars(self).items() if v != getattr(Ticket, k, None)}
        for name in ("capture", "exempt"):
            if name in data:
                data[name] = list(data[name])
        return {CONFIG_KEY: data}

    @classmethod
    def of(cls, extra_args: Any) -> Ticket | None:
        """The ticket in `extra_args`, None if there is none. Raises InputError."""
        value = (extra_args or {}).get(CONFIG_KEY)
        if value is None:
            return None
        if isinstance(value, str):
            if not value.lstrip().startswith("{"):
                return cls(steer=value)
            try:
                value = json.loads(value)
            except ValueError as error:
                raise InputError(f"{CONFIG_KEY} is not valid JSON: {error}") from error
        if not isinstance(value, dict) or set(value) - set(cls.__dataclass_fields__):
            raise InputError(f"{CONFIG_KEY} takes a bundle's name or {', '.join(cls.__dataclass_fields__)}")
        return cls(**cls._checked(value))

    @staticmethod
    def _checked(value: dict[str, Any]) -> dict[str, Any]:
        out = dict(value)
        for key in ("steer", "reads", "id"):
            if out.get(key) is not None and not (isinstance(out[key], str) and 0 < len(out[key]) <= 128):
                raise InputError(f"{CONFIG_KEY}: {key} must be a short text")
        capture = out.get("capture", ())
        if not isinstance(capture, list | tuple) or not all(type(v) is int and v >= 0 for v in capture):
            raise InputError(f"{CONFIG_KEY}: capture must be a list of layers")
        out["capture"] = tuple(capture)
        exempt = out.get("exempt", ())
        if not isinstance(exempt, list | tuple) or not all(isinstance(v, str) for v in exempt):
            raise InputError(f"{CONFIG_KEY}: exempt must be a list of names")
        out["exempt"] = check_exemptions(exempt)
        for key in ("only", "pooled"):
            if not isinstance(out.get(key, False), bool):
                raise InputError(f"{CONFIG_KEY}: {key} must be true or false")
        if out.get("reduce", "none") not in ("none", "max", "mean"):
            raise InputError(f"{CONFIG_KEY}: reduce must be none, max or mean")
        if type(out.get("start", 0)) is not int or type(out.get("stop") or 0) is not int:
            raise InputError(f"{CONFIG_KEY}: start and stop must be positions")
        return out
