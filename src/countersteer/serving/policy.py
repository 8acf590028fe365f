"""The administrator's policy: which bundles are served, which one by default, how far it is rolled out, who may choose.

A policy is one frozen value. A request reads it once and keeps it, so a change never reaches into a running answer.
Everything that a policy names is read and checked against the model before the policy is taken; the paths in it are
the administrator's, no request can name a file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from countersteer.core.errors import InputError, nearest
from countersteer.core.exempt import EXEMPTIONS
from countersteer.edits.bundle import Bundle, load_bundle, refuse_other_engine

NONE = "none"
Mode = Literal["shadow", "canary", "enforce"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    path: str = Field(min_length=1)
    exempt: list[str] = []


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    default: str | None = None
    mode: Mode = "enforce"
    share: float = Field(default=0.1, ge=0, le=1)
    choose: list[str] = []
    salt: str = ""
    bundles: dict[str, _Entry] = {}


@dataclass(frozen=True)
class Plan:
    """What is to be served, before anything is read: names and paths as the administrator gave them."""

    bundles: Mapping[str, tuple[Path, tuple[str, ...]]] = field(default_factory=dict)
    default: str | None = None
    mode: Mode = "enforce"
    share: float = 0.1
    choose: tuple[str, ...] = ()
    salt: str = ""


@dataclass(frozen=True, eq=False)
class Served:
    """A bundle as it is served: by its name here, with its exemptions."""

    name: str
    bundle: Bundle
    exempt: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name, the bundle's own version and content, for logs: `warm (calm 3, 1f2e...)`."""
        return f"{self.name} ({self.bundle.name} {self.bundle.version}, {self.bundle.intervention.fingerprint})"

    @property
    def derived(self) -> bool:
        """Whether the bundle was made for other weights and accepted for these."""
        return self.bundle.derived


@dataclass(frozen=True, eq=False)
class Policy:
    """A policy in force. `number` counts the changes since the server started, 1 first."""

    number: int
    default: str
    mode: Mode
    share: float
    choose: frozenset[str]
    salt: str
    bundles: Mapping[str, Served]

    def numbered(self, number: int, **changes: Any) -> Policy:
        """A copy under a new number."""
        return replace(self, number=number, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the administrator and the log; no path, no secret."""
        return {
            "number": self.number,
            "default": self.default,
            "mode": self.mode,
            "share": self.share,
            "choose": sorted(self.choose),
            "bundles": {
                name: {
                    "name": served.bundle.name,
                    "version": served.bundle.version,
                    "fingerprint": served.bundle.intervention.fingerprint,
                    "sites": sorted({str(e.site) for e in served.bundle.intervention.edits}),
                    "exempt": list(served.exempt),
                    "derived": served.derived,
                }
                for name, served in self.bundles.items()
            },
        }


def plan_of_file(path: Path) -> Plan:
    """The plan of a policy file (TOML); bundle paths are relative to it. Raises InputError."""
    try:
        data = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"policy {path}: {where}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read policy {path}: {reason}") from error
    bundles = {n: (path.parent / e.path, tuple(e.exempt)) for n, e in data.bundles.items()}
    return Plan(bundles, data.default, data.mode, data.share, tuple(data.choose), data.salt)


def plan_of_bundles(paths: Sequence[Path], **settings: Any) -> Plan:
    """The plan of bundles given by path: each under its file's name, the first one as default. Raises InputError."""
    bundles: dict[str, tuple[Path, tuple[str, ...]]] = {}
    for path in paths:
        if path.stem in bundles:
            raise InputError(f"two bundles are named {path.stem!r}: rename one file, or use a policy file")
        bundles[path.stem] = (path, ())
    return Plan(bundles, next(iter(bundles), None), **settings)


def load_policy(plan: Plan, facts: Mapping[str, Any], *, number: int = 1) -> Policy:
    """Read and check everything that a plan names, for the model of `facts` (an engine's `describe()`).

    Raises InputError and RefusedError: unknown names, unreadable bundles, bundles for another model.
    """
    bundles = {name: _served(name, path, exempt, facts) for name, (path, exempt) in plan.bundles.items()}
    default = plan.default if plan.default is not None else NONE
    for name in (default, *plan.choose):
        if name != NONE and name not in bundles:
            raise InputError(f"policy names bundle {name!r}{nearest(name, bundles)}, which it does not list")
    if plan.mode not in ("shadow", "canary", "enforce"):
        raise InputError(f"unknown rollout mode {plan.mode!r}; known: shadow, canary, enforce")
    if not 0 <= plan.share <= 1:
        raise InputError(f"the canary's share must lie in 0..1, got {plan.share}")
    return Policy(number, default, plan.mode, plan.share, frozenset(plan.choose), plan.salt, bundles)


def _served(name: str, path: Path, exempt: tuple[str, ...], facts: Mapping[str, Any]) -> Served:
    if name == NONE or not name.isprintable() or len(name) > 64:
        raise InputError(f"a bundle cannot be called {name!r}")
    for item in exempt:
        if item not in EXEMPTIONS:
            raise InputError(f"unknown exemption {item!r}{nearest(item, EXEMPTIONS)}; known: {', '.join(EXEMPTIONS)}")
    bundle = load_bundle(path)
    check_model(bundle, facts)
    return Served(name, bundle, exempt)


def check_model(bundle: Bundle, facts: Mapping[str, Any]) -> None:
    """Refuse a bundle that is not for this model. Raises InputError and RefusedError."""
    for edit in bundle.intervention.edits:
        if edit.site.layer >= facts["layers"] or edit.d_model != facts["d_model"]:
            raise InputError(f"bundle {bundle.name!r} edits {edit.site}, {edit.d_model} wide; the model has layers "
                             f"0..{facts['layers'] - 1}, {facts['d_model']} wide")  # fmt: skip
    refuse_other_engine(bundle, facts)
