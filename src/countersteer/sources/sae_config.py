"""What an SAE folder's `cfg.json` says: architecture, widths, site, and the conventions that decide a latent.

Two layouts of SAELens are read: the flat one of versions before 6 and the one with a `metadata` section since then.
What cannot be honoured as an edit of the residual stream is refused here, by name, before any weight is read.
Conventions as in SAELens 6.54 (`SAE.process_sae_in`, `handle_pre_6_0_config`, `fold_activation_norm_scaling_factor`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError, RefusedError
from countersteer.core.site import Site

CONFIG_NAME = "cfg.json"
SCALER_NAME = "activation_scaler.json"
READABLE = {
    "standard": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "topk": ("b_enc",),
}
_TRAINING = "it is a training class, whose activations depend on the other latents or tokens of a batch"
_REFUSED = {
    "batchtopk": (_TRAINING, "save its inference model (save_inference_model), which is a JumpReLU SAE"),
    "matryoshka_batchtopk": (_TRAINING, "save its inference model (save_inference_model), which is a JumpReLU SAE"),
    "abstopk": ("a latent's activation depends on all others of the token", "use a standard, jumprelu or gated SAE"),
    "matching_pursuit": ("a latent's activation depends on all others", "use a standard, jumprelu or gated SAE"),
    "temporal": ("a latent's activation depends on earlier tokens", "use a standard, jumprelu or gated SAE"),
}
_NORMS = {
    "layer_norm": "every token is centred and rescaled by its own standard deviation",
    "constant_norm_rescale": "every token is rescaled to the same norm",
    "covariance_whitening": "its whitening is not folded into the weights",
}
_POST = re.compile(r"blocks\.(\d+)\.hook_(?:resid_post|out)|(?:\w+\.)*(?:layers|h)\.(\d+)")
_PRE = re.compile(r"blocks\.(\d+)\.hook_(?:resid_pre|in)")


@dataclass(frozen=True)
class SAEConfig:
    """The settings of an SAE that decide what its latents are.

    `subtract_b_dec`: b_dec is taken from the input before encoding. `norm_factor`: the input is multiplied by it
    (1.0 unless a folded activation norm has yet to be folded). `model`: the model's name, if the file says it.
    """

    architecture: str
    d_model: int
    d_sae: int
    site: Site
    subtract_b_dec: bool
    norm_factor: float = 1.0
    model: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_config(folder: Path) -> SAEConfig:
    """The configuration in `folder`. Raises InputError for a missing or malformed file, RefusedError as documented."""
    return parse_config(_json(folder / CONFIG_NAME), folder)


def parse_config(raw: Mapping[str, Any], folder: Path) -> SAEConfig:
    """The configuration that `raw`, the content of a `cfg.json` in `folder`, stands for. Raises as `read_config`."""
    path = folder / CONFIG_NAME
    metadata = raw.get("metadata")
    nested: dict[str, Any] = metadata if isinstance(metadata, dict) else {}
    rename = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}
    cfg = nested | {rename.get(k, k): v for k, v in raw.items() if k != "metadata" and v is not None}
    architecture = _architecture(cfg, nested, path)
    if cfg.get("finetuning_scaling_factor") is True:
        raise RefusedError(
            f"{path}: finetuning_scaling_factor",
            "SAELens 6 dropped this extra output factor and cannot check it",
            "fold the factor into W_dec and set it to false",
        )
    return SAEConfig(
        architecture,
        _width(cfg, "d_in", path),
        _width(cfg, "d_sae", path),
        _site(cfg, path),
        _flag(cfg, "apply_b_dec_to_input", path),
        _norm_factor(cfg, folder),
        cfg.get("model_name"),
        nested or {k: v for k, v in cfg.items() if k not in ("device", "d_in", "d_sae", "architecture")},
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; an SAE folder holds cfg.json and sae_weights.safetensors"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): write it again") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold one JSON object")
    return data


def _architecture(cfg: Mapping[str, Any], nested: Mapping[str, Any], path: Path) -> str:
    name = cfg.get("architecture", "standard")  # the flat layout leaves it out for ReLU
    activation = cfg.get("activation_fn_str", cfg.get("activation_fn", "relu"))
    if name == "standard" and activation in ("topk", "batchtopk"):
        name = str(activation)
    if "transcoder" in str(name) or nested.get("hook_name_out"):
        raise RefusedError(
            f"{path}: a transcoder ({name})",
            "it reads one place of the model and writes another, so its latents are not residual-stream latents",
            "use an SAE trained on the residual stream (hook_resid_post)",
        )
    if name in _REFUSED:
        why, instead = _REFUSED[name]
        raise RefusedError(f"{path}: architecture {name!r}", why, instead)
    if name not in READABLE:
        raise RefusedError(
            f"{path}: architecture {name!r}", f"it is not one of {', '.join(READABLE)}", "use one of these"
        )
    if name != "topk" and activation not in ("relu", None):
        raise RefusedError(
            f"{path}: activation function {activation!r}", "latents are edited through ReLU or a threshold", "use ReLU"
        )
    return str(name)


def _width(cfg: Mapping[str, Any], key: str, path: Path) -> int:
    value = cfg.get(key)
    if value is None:
        raise InputError(f"{path} lacks the key {key!r}: is it an SAE in SAELens's format?")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{path}: {key} must be a whole number >= 1, got {value!r}")
    return value


def _flag(cfg: Mapping[str, Any], key: str, path: Path) -> bool:
    value = cfg.get(key, True)  # SAELens's own default in both layouts
    if not isinstance(value, bool):
        raise InputError(f"{path}: {key} must be true or false, got {value!r}")
    return value


def _site(cfg: Mapping[str, Any], path: Path) -> Site:
    name = cfg.get("hook_name")
    if not name:
        raise InputError(f"{path} lacks the key 'hook_name' (in 'metadata' since SAELens 6): the site is unknown")
    reshaped = cfg.get("reshape_activations") or "none"
    before, after = _PRE.fullmatch(str(name)), _POST.fullmatch(str(name))
    if reshaped != "none" or cfg.get("hook_head_index") is not None or not (before or after):
        raise RefusedError(
            f"{path}: hook point {name!r}",
            "edits act on the residual stream at the output of a decoder layer",
            "use an SAE trained on hook_resid_post (or hook_resid_pre of a layer after the first)",
        )
    if after:
        return Site(int(after[1] or after[2]))
    assert before
    if int(before[1]) == 0:
        raise RefusedError(
            f"{path}: hook point {name!r}", "it is the embedding, before any decoder layer", "use layer >= 1"
        )
    return Site(int(before[1]) - 1)  # what enters layer L is what layer L - 1 puts out


def _norm_factor(cfg: Mapping[str, Any], folder: Path) -> float:
    norm = cfg.get("normalize_activations") or "none"
    if norm == "none":
        return 1.0
    what = f"{folder / CONFIG_NAME}: normalize_activations {norm!r}"
    if norm not in ("expected_average_only_in", True):
        why = _NORMS.get(norm, "it is not a known normalisation")
        raise RefusedError(what, f"{why}, which is no linear read of the residual stream", "use an SAE without it")
    scaler = folder / SCALER_NAME
    factor = _json(scaler).get("scaling_factor") if scaler.is_file() else cfg.get("norm_scaling_factor")
    if factor is None:
        raise RefusedError(
            what,
            "the factor that its inputs are multiplied by is in neither the folder nor the weights",
            f'write {{"scaling_factor": sqrt(d_in) / mean |h|}} to {scaler.name} in the folder, or fold it in SAELens',
        )
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not (math.isfinite(factor) and factor > 0):
        raise InputError(f"{scaler}: scaling_factor must be a finite number above 0, got {factor!r}")
    return float(factor)
