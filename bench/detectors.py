"""Speed and memory of the detector search over 65,536 latents.

Prints one JSON object. The search is set beside the bare matrix product over the same residuals, interleaved; memory is
the peak of a process of its own for few and for many tokens.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

D_MODEL, D_SAE = 1024, 65_536


def make_sae(folder: Path) -> Path:
    """A JumpReLU SAE of 65,536 latents in SAELens's format."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    encoder = draw.standard_normal((D_MODEL, D_SAE), dtype=np.float32)
    save_file(
        {"W_enc": encoder, "W_dec": np.ascontiguousarray(encoder.T), "b_enc": np.zeros(D_SAE, np.float32),
         "b_dec": np.zeros(D_MODEL, np.float32), "threshold": np.full(D_SAE, 1.0, np.float32)},
        folder / "sae_weights.safetensors",
    )  # fmt: skip
    config = {"architecture": "jumprelu", "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32",
              "apply_b_dec_to_input": False, "normalize_activations": "none",
              "metadata": {"hook_name": "blocks.2.hook_resid_post", "model_name": "bench"}}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def search(folder: Path, texts: int) -> dict[str, float]:
    """CPU seconds of max-pooled encoding and of the bare product, interleaved; the median ratio."""
    import torch

    from countersteer.sources.sae import load_sae

    torch.set_num_threads(1)
    sae = load_sae(folder)
    residuals = [torch.randn(100, D_MODEL) for _ in range(texts)]
    from safetensors.torch import load_file

    bare = load_file(str(folder / "sae_weights.safetensors"))["W_enc"]
    h = torch.cat(residuals)
    ours, theirs = [], []
    for _ in range(5):
        began = time.process_time()
        sae.max_activations(residuals)
        ours.append(time.process_time() - began)
        began = time.process_time()
        for start in range(0, D_SAE, 4096):
            h @ bare[:, start : start + 4096]
        theirs.append(time.process_time() - began)
    ratio = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {"detectors_search_s": statistics.median(ours), "detectors_product_s": statistics.median(theirs),
            "detectors_share_of_bare_product": statistics.median(ratio)}  # fmt: skip


def peak(folder: Path, texts: int) -> int:
    """Peak resident bytes of a process that encodes this many texts of 100 tokens, made as they are asked for."""
    code = (
        "import resource, sys, torch\nfrom countersteer.sources.sae import load_sae\ntorch.set_num_threads(1)\n"
        f"sae = load_sae({str(folder)!r})\nsae.max_activations(torch.randn(100, {D_MODEL}) for _ in range({texts}))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def separation(pairs: int) -> float:
    """CPU seconds of AUC, effect sizes and 500 null draws over 65,536 latents."""
    from countersteer.statistics import detectors

    draw = np.random.default_rng(0)
    count = pairs // 6
    shuffles = detectors.derangements(count, 5, draw)
    left = np.concatenate([np.arange(count)] * 6)
    right = np.concatenate([np.arange(count), *shuffles])
    values = np.maximum(draw.standard_normal((len(left), D_SAE), dtype=np.float32), 0)
    began = time.process_time()
    detectors.separation(values, left.tolist(), right.tolist(), draw)
    return time.process_time() - began


def main() -> None:
    """Everything, as one JSON object."""
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        sae = make_sae(Path(folder) / "sae")
        out |= search(sae, 40)
        out |= {"detectors_peak_bytes_20_texts": peak(sae, 20), "detectors_peak_bytes_200_texts": peak(sae, 200)}
    out["detectors_separation_s"] = separation(240)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
