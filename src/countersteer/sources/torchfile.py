"""Goodfire's SAEs: one torch file with two linear layers, rewritten as a folder in SAELens's format.

The file holds `encoder_linear.weight` [d_sae, d_model] and `decoder_linear.weight` [d_model, d_sae] with their biases;
both matrices are transposed in blocks, in the file's own dtype, so gigabytes pass through a bounded buffer. b_dec is
not taken from the input (SAELens's catalogue says the same of these files). Only plain tensors are ever unpickled.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from countersteer.core.errors import InputError
from countersteer.core.site import Site
from countersteer.sources.sae import WEIGHTS_NAME
from countersteer.sources.sae_config import CONFIG_NAME
from countersteer.sources.tensorfile import Array, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
KEYS = ("encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias")
_BLOCK = 128 << 20


def convert(path: Path, folder: Path, *, layer: int, model: str | None) -> None:
    """Write `cfg.json` and `sae_weights.safetensors` of the torch file `path` into the existing `folder`.

    Raises InputError if the file cannot be read safely or does not hold the four tensors.
    """
    weights = _load(path)
    encoder, decoder = weights[KEYS[0]], weights[KEYS[2]]
    d_sae, d_model = encoder.shape
    tensors = {
        "W_dec": (_dtype(decoder, path), (d_sae, d_model), _transposed(decoder)),
        "W_enc": (_dtype(encoder, path), (d_model, d_sae), _transposed(encoder)),
        "b_dec": (_dtype(weights[KEYS[3]], path), (d_model,), iter([_words(weights[KEYS[3]])])),
        "b_enc": (_dtype(weights[KEYS[1]], path), (d_sae,), iter([_words(weights[KEYS[1]])])),
    }
    write_tensors(folder / WEIGHTS_NAME, tensors)
    config = {
        "architecture": "standard",
        "d_in": d_model,
        "d_sae": d_sae,
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",  # the layout this follows
            "model_name": model,
            "hook_name": f"blocks.{Site(layer).layer}.hook_resid_post",
            "hook_head_index": None,
            "converted_from": path.name,
        },
    }
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def suggested_layer(path: Path) -> int | None:
    """The layer that the file's name speaks of ("...-SAE-l50.pt"): a hint for the caller, never used unasked."""
    found = re.search(r"[-_.]l(\d+)$", path.stem)
    return int(found[1]) if found else None


def _load(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        try:
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files in torch's old format cannot be mapped
            data = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} cannot be read as a torch file of plain tensors ({reason}): download it again"
        ) from error
    missing = [key for key in KEYS if not isinstance(data, dict) or not isinstance(data.get(key), torch.Tensor)]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}: only Goodfire's layout is converted from a torch file")
    encoder, decoder = data[KEYS[0]], data[KEYS[2]]
    d_sae, d_model = encoder.shape if encoder.ndim == 2 else (0, 0)
    shapes = ((d_sae, d_model), (d_sae,), (d_model, d_sae), (d_model,))
    if not d_sae or not d_model or any(tuple(data[k].shape) != s for k, s in zip(KEYS, shapes, strict=True)):
        raise InputError(f"{path}: encoder {list(encoder.shape)} and decoder {list(decoder.shape)} do not fit together")
    return {key: data[key].detach() for key in KEYS}


def _dtype(tensor: Tensor, path: Path) -> str:
    names = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16", "torch.float64": "F64"}
    if str(tensor.dtype) not in names:
        raise InputError(f"{path} holds {tensor.dtype} weights: only floating-point weights are converted")
    return names[str(tensor.dtype)]


def _transposed(matrix: Tensor) -> Iterator[Array]:
    step = max(1, _BLOCK // (matrix.shape[0] * matrix.element_size()))
    for start in range(0, matrix.shape[1], step):
        yield _words(matrix[:, start : start + step].T.contiguous())


def _words(tensor: Tensor) -> Any:
    import torch

    tensor = tensor.contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
