"""Peak memory of taking 26 latents out of a 65,536-latent SAE: `sae_rows_peak_mb`.

Writes a synthetic SAE (d_model 4,096, bf16: 1 GiB of weights) to a temporary folder, and in a fresh process measures by
how much the resident set rises at its peak while the SAE is opened and its latents are loaded. Prints one JSON object.
Run: `python bench/sae_rows.py [--d-model N] [--d-sae N] [--count N]`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from countersteer.sources.tensorfile import write_tensors


def make(folder: Path, d_model: int, d_sae: int) -> int:
    """A JumpReLU SAE with random bf16 weights; returns its size in bytes."""
    random = np.random.default_rng(0)

    def blocks(rows: int, columns: int):  # type: ignore[no-untyped-def]
        step = max(1, (8 << 20) // (2 * columns))
        for start in range(0, rows, step):
            values = random.standard_normal((min(step, rows - start), columns), np.float32)
            yield (values.view(np.uint32) >> 16).astype(np.uint16)

    shapes = {"W_enc": (d_model, d_sae), "W_dec": (d_sae, d_model)}
    vectors = {"b_enc": (1, d_sae), "b_dec": (1, d_model), "threshold": (1, d_sae)}
    tensors = {name: ("BF16", shape, blocks(*shape)) for name, shape in shapes.items()}
    tensors |= {name: ("BF16", shape[1:], blocks(*shape)) for name, shape in vectors.items()}
    path = folder / "sae_weights.safetensors"
    write_tensors(path, tensors)
    config = {
        "architecture": "jumprelu",
        "d_in": d_model,
        "d_sae": d_sae,
        "dtype": "bfloat16",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.19.hook_resid_post"},
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    return path.stat().st_size


def peak_bytes() -> int:
    """The process's largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(folder: Path, count: int) -> dict[str, float]:
    """Open, load, and compare the peak with the peak after all imports."""
    import torch

    from countersteer.edits.vectors import as_vector
    from countersteer.sources.sae import load_sae

    as_vector(torch.zeros(8) @ torch.zeros(8, 8), what="a warm-up of torch")
    before, start = peak_bytes(), time.perf_counter()
    sae = load_sae(folder)
    indices = np.random.default_rng(1).choice(sae.d_sae, count, replace=False)
    latents = sae.latents(indices.tolist())
    seconds = time.perf_counter() - start
    assert len(latents) == count and latents[0].read.shape == (sae.d_model,)
    return {"sae_rows_peak_mb": round((peak_bytes() - before) / 2**20, 2), "sae_rows_s": round(seconds, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--d-model", type=int, default=4096)
    parser.add_argument("--d-sae", type=int, default=65536)
    parser.add_argument("--count", type=int, default=26)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.count)))
        return
    with tempfile.TemporaryDirectory() as folder:
        size = make(Path(folder), given.d_model, given.d_sae)
        command = [sys.executable, __file__, "--measure", folder, "--count", str(given.count)]
        out = subprocess.run(command, check=True, capture_output=True, text=True)
    print(json.dumps(json.loads(out.stdout) | {"sae_file_mb": round(size / 2**20), "latents": given.count}))


if __name__ == "__main__":
    main()
