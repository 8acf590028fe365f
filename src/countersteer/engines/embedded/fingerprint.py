"""The fingerprint of a model on disk: configuration, safetensors headers and 64 KiB of each tensor; of a tokenizer.

Cheap for any size (a few megabytes are read from a 70B model), equal for equal weights whatever dtype they are loaded
in, and cached within the process by path, size and time of each file.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint

SAMPLE = 64 * 1024
MAX_HEADER = 100 << 20
_UNSTABLE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "_attn_implementation")


def folder_fingerprint(folder: Path) -> str:
    """Fingerprint of a model folder with `config.json` and safetensors files. Raises InputError."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} holds no safetensors weights: convert them with save_pretrained first")
    stamp = tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in (folder / "config.json", *files))
    return _of_files(stamp)


@lru_cache(maxsize=64)
def _of_files(stamp: tuple[tuple[str, int, int], ...]) -> str:
    config = json.loads(Path(stamp[0][0]).read_text(encoding="utf-8"))
    for key in _UNSTABLE:
        config.pop(key, None)
    digest = hashlib.blake2b(digest_size=16)
    for name, size, _ in stamp[1:]:
        with open(name, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER, size):
                raise InputError(f"{name} is not a safetensors file, or it is truncated")
            raw = file.read(length)
            try:
                header: dict[str, Any] = json.loads(raw)
            except ValueError as error:
                raise InputError(f"{name} is not a safetensors file, or it is truncated") from error
            header.pop("__metadata__", None)
            digest.update(json.dumps(header, sort_keys=True).encode())
            for entry in sorted(header.values(), key=lambda e: int(e["data_offsets"][0])):
                start, stop = entry["data_offsets"]
                if 8 + length + stop > size:
                    raise InputError(f"{name} is truncated: it ends before its last tensor")
                file.seek(8 + length + start)
                digest.update(file.read(min(stop - start, SAMPLE)))
    return fingerprint({"config": config, "weights": digest.hexdigest()})


def module_fingerprint(model: nn.Module) -> str:
    """Fingerprint of a model that was made in memory: configuration and 64 KiB of each parameter."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in _UNSTABLE}  # type: ignore[union-attr,operator]
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.state_dict().items()):
        digest.update(f"{name}{list(parameter.shape)}{parameter.dtype}".encode())
        flat = parameter.detach().reshape(-1)[: SAMPLE // max(parameter.element_size(), 1)].contiguous().cpu()
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return fingerprint({"config": json.loads(json.dumps(config, default=str)), "weights": digest.hexdigest()})


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Fingerprint of a tokenizer: its whole pipeline where it is a fast one, else its vocabulary; special tokens.

    A model's fingerprint does not hold it, and the same weights behind another tokenizer are another model.
    """
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        rules = json.loads(fast.to_str())
        for key in ("truncation", "padding"):  # left behind by earlier calls
            rules.pop(key, None)
    else:
        rules = {"class": type(tokenizer).__name__, "vocabulary": dict(tokenizer.get_vocab())}
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    return fingerprint({"rules": rules, "special": special})
