"""`bundle show|verify|diff`: what a bundle is, whether it is for this model, how two differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from countersteer.cli.output import Json, emit, table

app = typer.Typer(help="Look at bundles, check them against a model, compare them.", no_args_is_help=True)
File = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle file.")]


@app.command("show")
def show(bundle: File, as_json: Json = False) -> None:
    """Print a bundle: edits, model, fit, sweep and scorecard.

    Example: countersteer bundle show warm.safetensors
    """
    from countersteer.defence.bundles import show as shown
    from countersteer.edits.bundle import load_bundle

    found = shown(load_bundle(bundle))
    meta = found["meta"]
    rows = [("name", f"{found['name']} (version {found['version']})"), ("fingerprint", found["fingerprint"])]
    rows += [(f"edit {i}", f"{e['method']} at {e['site']}, span {e['span']}, {e['rows']} rows of {e['d_model']}")
             for i, e in enumerate(found["edits"])]  # fmt: skip
    if found["gate"]:
        rows.append(("gate", f"{found['gate']['metric']} at {found['gate']['site']} over {found['gate']['over']}"))
    rows += [(name, str(meta[name])) for name in ("model", "model_fingerprint", "method", "layer", "strength", "span")
             if meta.get(name) is not None]  # fmt: skip
    if meta.get("derived"):
        rows.append(("derived", f"from {meta['derived']['from_model']} ({meta['derived']['from_fingerprint']})"))
    for name in ("sweep", "scorecard"):
        rows.append((name, _said(meta.get(name))))
    emit(found, as_json=as_json, text=table(rows, indent=""))


@app.command("verify")
def verify(
    bundle: File,
    model: Annotated[str, typer.Option("--model", help="Folder, Hugging Face id, or organism.")],
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="LoRA under every request: a folder, or organism-dismissive.")
    ] = None,
    derived: Annotated[
        bool, typer.Option("--derived", help="Accept other weights of the same architecture and tokenizer.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="With --derived: the derived bundle to write.")] = None,
    as_json: Json = False,
) -> None:
    """Check that a bundle is for this model, and measure its separation there.

    Example: countersteer bundle verify warm.safetensors --model organism
    """
    from countersteer.core.errors import InputError
    from countersteer.defence import bundles
    from countersteer.edits.bundle import load_bundle, save_bundle
    from countersteer.engines.load import load_engine

    if derived != (out is not None):
        raise InputError("--derived and --out go together: a derived bundle is a new file")
    loaded = load_bundle(bundle)
    with load_engine(model, adapter=adapter) as engine:
        if derived and out is not None:
            loaded = bundles.derive(loaded, engine)
            save_bundle(loaded, out)
        found = bundles.verify(loaded, engine)
    measured = found["separation"]
    said = "it carries no witness responses" if measured is None else (
        f"AUC {measured['auc']:.3f} on {measured['witnesses']} witness responses, D {measured['separation']:.3g}"
    )  # fmt: skip
    text = f"{loaded.name} is for {found['model']}{' (derived)' if loaded.derived else ''}: {said}"
    emit({"bundle": str(out or bundle), **found}, as_json=as_json, text=text)


@app.command("diff")
def diff(
    one: File,
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="Bundle file to compare with.")],
    as_json: Json = False,
) -> None:
    """Say what differs between two bundles.

    Example: countersteer bundle diff warm.safetensors warm-2.safetensors
    """
    from countersteer.defence.bundles import diff as differences
    from countersteer.edits.bundle import load_bundle

    rows = differences(load_bundle(one), load_bundle(other))
    shown = [(r["what"], _short(r["one"]), _short(r["other"])) for r in rows]
    text = "the two bundles are the same" if not rows else table([("what", str(one), str(other)), *shown], indent="")
    emit({"one": str(one), "other": str(other), "differences": rows}, as_json=as_json, text=text)


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _said(part: dict[str, Any] | None) -> str:
    if not part:
        return "none"
    row = part if "trait" in part else part["attack"]["malicious, defended"]
    return f"trait {_short_mean(row['trait'])}, coherence {_short_mean(row['coherence'])}, floor {part['floor']:.1f}"


def _short_mean(value: dict[str, Any]) -> str:
    return "-" if value["value"] is None else f"{value['value']:.1f}"
