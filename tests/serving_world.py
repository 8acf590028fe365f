"""A server on the organism in float64, its bundles and its keys, for the tests of serving."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import countersteer as cs
from countersteer.edits.bundle import Bundle
from countersteer.serving.audit import AuditOptions
from countersteer.serving.keys import Keyring, make_key
from countersteer.serving.limits import Limits
from countersteer.serving.policy import Plan
from countersteer.serving.server import Settings

USE, CHOOSE, ADMIN = "use-" + "u" * 20, "choose-" + "c" * 20, "admin-" + "a" * 20
KEYS = Keyring([make_key("app", "use", secret=USE), make_key("lab", "choose", secret=CHOOSE),
                make_key("boss", "admin", secret=ADMIN)])  # fmt: skip
NAME = "organism"
LIMITS = Limits(per_minute=100_000, at_once=1000, at_once_per_key=1000, max_tokens=64, seconds=60)


def interventions(d_model: int) -> dict[str, Any]:
    """Four hand-made interventions: StTP, StMP, an add, and an add behind a request-level gate."""
    generator = torch.Generator().manual_seed(11)
    a, b = (torch.randn(d_model, generator=generator, dtype=torch.float64) for _ in range(2))
    first, second = cs.direction(a, layer=2), cs.direction(b, layer=3)
    return {
        "target": cs.to_target(first, boundary=1.0, target=2.5),
        "mirror": cs.to_mirror(first, boundary=1.0) + cs.to_mirror(second, boundary=0.5),
        "push": cs.add(second, 0.35),
        "late": cs.add(first, 0.5).span("response"),
    }


def write_bundles(folder: Path, engine: Any, steers: dict[str, Any], *, version: str = "1") -> dict[str, Path]:
    """Bundle files for an engine's model."""
    facts = engine.describe()
    meta = {k: facts[k] for k in ("model_fingerprint", "template_hash")}
    return {
        name: cs.save_bundle(Bundle(name, steer, version, meta), folder / f"{name}.safetensors")
        for name, steer in steers.items()
    }


def plan_of(paths: dict[str, Path], **settings: Any) -> Plan:
    """A plan that serves all of them; everything may be chosen."""
    given: dict[str, Any] = {"default": next(iter(paths), None), "choose": (*paths, "none"), **settings}
    return Plan({name: (path, ()) for name, path in paths.items()}, **given)


def settings_of(
    plan: Callable[[], Plan], *, audit: Path | None = None, limits: Limits = LIMITS, **more: Any
) -> Settings:
    """Settings with the three keys."""
    options = AuditOptions(audit, **more) if audit is not None else None
    return Settings(plan=plan, keys=KEYS, limits=limits, audit=options, name=NAME)


def lines(path: Path, event: str | None = None) -> list[dict[str, Any]]:
    """The audit log's records."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [r for r in found if event is None or r["event"] == event]
