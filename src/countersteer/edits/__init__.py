"""The only steering arithmetic: edits, their constructors, the mixed-batch table, receipts and bundle files."""

from countersteer.edits.apply import apply
from countersteer.edits.bundle import load_bundle, save_bundle
from countersteer.edits.edit import Edit, Gate, Intervention
from countersteer.edits.methods import (
    ablate,
    add,
    clamp,
    contextual_add,
    fixed,
    gated_add,
    limit,
    remove,
    to_mirror,
    to_target,
)
from countersteer.edits.vectors import Direction, Latent, Latents, direction

__all__ = [
    "Direction",
    "Edit",
    "Gate",
    "Intervention",
    "Latent",
    "Latents",
    "ablate",
    "add",
    "apply",
    "clamp",
    "contextual_add",
    "direction",
    "fixed",
    "gated_add",
    "limit",
    "load_bundle",
    "remove",
    "save_bundle",
    "to_mirror",
    "to_target",
]
