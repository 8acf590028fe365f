"""`doctor`: does this installation work? Each check says what it found; the first broken one sets exit code 1."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from countersteer.cli.output import Json, emit, table


def doctor(
    out: Annotated[Path, typer.Option("--out", help="Folder that runs are to be written to.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Check the installation: Python, torch, threads, disk, and that the organism loads and steers as predicted.

    Example: countersteer doctor
    """
    checks = [_check(name, what) for name, what in _checks(out).items()]
    good = all(check["ok"] for check in checks)
    rows = [("ok" if c["ok"] else "BROKEN", c["name"], c["detail"]) for c in checks]
    emit({"ok": good, "checks": checks}, as_json=as_json, text=table(rows, indent=""))
    if not good:
        raise typer.Exit(1)


def _checks(out: Path) -> dict[str, Callable[[], str]]:
    return {
        "python": _python,
        "torch": _torch,
        "threads": _threads,
        "folder": lambda: _writable(out),
        "organism": _organism,
        "steering": _steering,
    }


def _check(name: str, what: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"name": name, "ok": True, "detail": what()}
    except Exception as error:  # a broken installation can fail in any way; the check reports it
        return {"name": name, "ok": False, "detail": " ".join(f"{type(error).__name__}: {error}".split())[:500]}


def _python() -> str:
    return f"{platform.python_version()} at {sys.executable}"


def _torch() -> str:
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU only"
    return f"{torch.__version__}, {device}"


def _threads() -> str:
    import torch

    return f"{torch.get_num_threads()} of {os.cpu_count()} (set OMP_NUM_THREADS to change)"


def _writable(out: Path) -> str:
    from countersteer.store import Run

    parent = out if out.is_dir() else next(p for p in [out.absolute(), *out.absolute().parents] if p.is_dir())
    with tempfile.TemporaryDirectory(dir=parent) as folder, Run.create(folder, "", {}) as run:
        run.set_facts(check=True)
    return f"{parent} is writable"


def _organism() -> str:
    from countersteer import organism

    files = [f for f in organism.path().rglob("*") if f.is_file()]
    if not files:
        raise FileNotFoundError(f"no weights in {organism.path()}; install the package again")
    return f"{sum(f.stat().st_size for f in files) / 1e6:.1f} MB in {organism.path()}"


def _steering() -> str:
    """Loading verifies a probe write at the edited layers; one steered response must carry a receipt of change."""
    import countersteer as cs

    sae = cs.load_sae("organism")
    engine = cs.load_engine("organism")
    try:
        steer = cs.add(sae.latent(0), strength=1.0)
        request = cs.Request(prompt="How do I iron a shirt?", intervention=steer, sampling=cs.Sampling(max_tokens=4))
        (done,) = engine.run([request])
        (layer,) = done.receipt.layers
        return f"{layer.tokens_changed} of {layer.tokens_seen} tokens changed at {layer.site}"
    finally:
        engine.close()
