"""Speed and memory of experiments: the detector search over 65,536 latents, and the report of 100,000 trials.

Prints one JSON object. The search is set beside the bare matrix product over the same residuals, interleaved; memory is
the peak of a process of its own for few and for many tokens.
"""

from __future__ import annotations

import argparse
import json
import resource
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
    return {"search_s": statistics.median(ours), "product_s": statistics.median(theirs),
            "share_of_bare_product": statistics.median(ratio)}  # fmt: skip


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


def report(trials: int) -> dict[str, float]:
    """Wall seconds and peak bytes of `countersteer report --json` over a planted run."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import report_runs as planted

    draw = np.random.default_rng(0)
    arms: dict[str, list[Any]] = {}
    for arm in range(10):
        rows = []
        for i in range(trials // 10):
            scores = (20.0, 60.0) if draw.random() < 0.08 else (30.0,)
            rows.append(planted.T(i % 500, f"p{i % 38}", scores, text=f"Fold the towel {i}. "))
        arms["base" if arm == 0 else f"arm{arm}"] = rows
    with tempfile.TemporaryDirectory() as folder:
        planted.plant(Path(folder) / "run", planted.Planted(arms)).close()
        command = [sys.executable, "-m", "countersteer", "report", str(Path(folder) / "run"), "--json"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        began = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wall = time.monotonic() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {"report_s": wall, "report_cpu_s": after.ru_utime - before, "report_peak_bytes": after.ru_maxrss * 1024}


def main() -> None:
    """Everything, or only what is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=("search", "report"))
    parser.add_argument("--trials", type=int, default=100_000)
    given = parser.parse_args()
    out: dict[str, Any] = {}
    if given.only != "report":
        with tempfile.TemporaryDirectory() as folder:
            sae = make_sae(Path(folder) / "sae")
            out |= search(sae, 40)
            out |= {"peak_bytes_20_texts": peak(sae, 20), "peak_bytes_200_texts": peak(sae, 200)}
        out["separation_s"] = separation(240)
    if given.only != "search":
        out |= report(given.trials)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
