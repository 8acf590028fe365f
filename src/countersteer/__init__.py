"""countersteer: steer language models precisely, measure how they resist, deploy steering as a tested defence.

The public names below are loaded on first use, so that `import countersteer` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "edits": "countersteer.edits",
    "Sampling": "countersteer.core.request",
    "Request": "countersteer.core.request",
    "Completion": "countersteer.core.request",
    "Receipt": "countersteer.core.request",
    "Site": "countersteer.core.site",
    "Span": "countersteer.core.span",
    "CountersteerError": "countersteer.core.errors",
    "InputError": "countersteer.core.errors",
    "RefusedError": "countersteer.core.errors",
    "NoOpError": "countersteer.core.errors",
    "Edit": "countersteer.edits.edit",
    "Gate": "countersteer.edits.edit",
    "Intervention": "countersteer.edits.edit",
    "Direction": "countersteer.edits.vectors",
    "Latent": "countersteer.edits.vectors",
    "direction": "countersteer.edits.vectors",
    "add": "countersteer.edits.methods",
    "clamp": "countersteer.edits.methods",
    "ablate": "countersteer.edits.methods",
    "remove": "countersteer.edits.methods",
    "limit": "countersteer.edits.methods",
    "to_target": "countersteer.edits.methods",
    "to_mirror": "countersteer.edits.methods",
    "fixed": "countersteer.edits.methods",
    "gated_add": "countersteer.edits.methods",
    "contextual_add": "countersteer.edits.methods",
    "save_bundle": "countersteer.edits.bundle",
    "load_bundle": "countersteer.edits.bundle",
    "attach": "countersteer.engines.embedded.attach",
    "load_engine": "countersteer.engines.load",
    "ScriptedEngine": "countersteer.engines.scripted",
    "load_sae": "countersteer.sources.sae",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _WHERE:
        raise AttributeError(f"module 'countersteer' has no attribute {name!r}")
    module = importlib.import_module(_WHERE[name])
    value = module if name == "edits" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
