"""Directions in place of latents: mean-centred residuals of topic prompts, or vectors from a file.

"contrast" (ESR paper version 2): the residual of the last token of "Tell me about {title}." for each title, minus the
mean over the titles. A file is safetensors: each tensor a vector [d_model] or rows [n, d_model]; its names are labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.site import Site
from countersteer.engines.base import Engine
from countersteer.studies.schema import DirectionsSection

TITLES = (
    "the Roman Empire", "photosynthesis", "jazz music", "volcanoes", "chess", "the French Revolution", "black holes",
    "sourdough bread", "the stock market", "whales", "medieval castles", "football", "the human heart", "railways",
    "impressionist painting", "vaccines", "the Amazon rainforest", "cryptography", "glaciers", "Greek mythology",
    "coffee", "the Cold War", "honey bees", "quantum computers",
)  # fmt: skip
"""Topics used where a study gives no titles of its own."""


def titles(section: DirectionsSection) -> list[str]:
    """The titles to contrast. Raises InputError for fewer than 3, and for a template without a place for them."""
    found = list(section.titles or TITLES)
    if len(set(found)) < 3 or len(set(found)) != len(found):
        raise InputError('directions = "contrast" needs at least 3 titles, each once; set [directions] titles')
    if "{title}" not in section.template:
        raise InputError("[directions] template must hold {title}")
    return found


async def contrast(engine: Engine, section: DirectionsSection, *, layer: int) -> list[tuple[str, Any]]:
    """(title, vector [d_model]) of each title at `layer`. Raises InputError for fewer than 3 titles."""
    import torch

    named = titles(section)
    asked = [section.template.replace("{title}", title) for title in named]
    residuals = await engine.forward(asked, capture=Site(layer), template=True)
    last = torch.stack([h[-1].double() for h in residuals])
    centred = (last - last.mean(0)).float()
    return list(zip(named, centred, strict=True))


def load(path: str | Path, *, d_model: int) -> list[tuple[str, Any]]:
    """(name, vector [d_model]) of each direction in a safetensors file. Raises InputError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(str(path))
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read directions {path}: {why}; give a .safetensors file of vectors") from error
    found: list[tuple[str, Any]] = []
    for name, tensor in sorted(tensors.items()):
        if tensor.ndim not in (1, 2) or tensor.shape[-1] != d_model or not tensor.isfinite().all():
            raise InputError(f"{path}: {name!r} is not finite vectors [{d_model}], but {list(tensor.shape)}")
        rows = [tensor] if tensor.ndim == 1 else list(tensor)
        found += [(name if len(rows) == 1 else f"{name} {i}", row.float()) for i, row in enumerate(rows)]
    if not found:
        raise InputError(f"{path} holds no direction")
    return found


def save(path: Path, found: Sequence[tuple[str, Any]]) -> None:
    """Keep directions beside their run, in order."""
    import torch
    from safetensors.torch import save_file

    part = path.with_name(path.name + ".part")
    save_file({"directions": torch.stack([vector for _, vector in found])}, part)
    part.replace(path)
