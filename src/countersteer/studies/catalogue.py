"""What each shipped study needs: model, SAE, memory, downloads, licences. Data for `countersteer models`.

Memory is the weights in bfloat16 with room for a small batch; sizes are rounded. Licences are those of the model and
are to be accepted where it is downloaded.
"""

from __future__ import annotations

from typing import Any

from countersteer.studies import spec

NEEDS: dict[str, tuple[str, str, str, str]] = {
    "llama-3.3-70b": ("2 x 80 GB of GPU memory", "141 GB + SAE 4 GB", "Llama 3.3 Community",
                      "Goodfire/Llama-3.3-70B-Instruct-SAE-l50"),
    "llama-3.1-8b": ("24 GB of GPU memory", "16 GB + SAE 2 GB", "Llama 3.1 Community",
                     "Goodfire/Llama-3.1-8B-Instruct-SAE-l19"),
    "gemma-2-2b": ("8 GB of GPU memory", "5 GB + SAE 0.3 GB", "Gemma", "gemma-scope-2b-pt-res-canonical"),
    "gemma-2-9b": ("24 GB of GPU memory", "18 GB + SAE 0.5 GB", "Gemma", "gemma-scope-9b-pt-res-canonical"),
    "gemma-2-27b": ("80 GB of GPU memory", "54 GB + SAE 5 GB", "Gemma", "gemma-scope-27b-pt-res-canonical"),
}  # fmt: skip
"""Per preset: memory, downloads, licence, SAE release."""
SHIPPED = ("1 GB, no GPU", "none", "Apache-2.0", "shipped")


def catalogue() -> list[dict[str, Any]]:
    """The shipped studies by name, with what they need. Raises InputError for a preset that cannot be read."""
    found = []
    for name in spec.presets():
        loaded = spec.load(spec.PRESET + name)
        study = loaded.settings.study
        memory, downloads, licence, release = NEEDS.get(name, SHIPPED)
        found.append(
            {
                "preset": spec.PRESET + name,
                "model": study.model,
                "sae": release,
                "steer_layer": "SAE's" if study.steer_layer is None else study.steer_layer,
                "read_layer": "SAE's" if study.read_layer is None else study.read_layer,
                "memory": memory,
                "downloads": downloads,
                "licence": licence,
                "arms": len(loaded.arms),
            }
        )
    return found
