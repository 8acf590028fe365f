"""`sae fetch`: bring a catalogued SAE, or a local file, into the folder format that is read here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from countersteer.cli.output import Json, emit

app = typer.Typer(help="Sparse autoencoders.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Sparse autoencoders."""


@app.command("fetch")
def fetch(
    release: Annotated[str, typer.Argument(metavar="RELEASE", help="SAELens release, or a local Goodfire torch file.")],
    sae_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="SAE id within the release.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write (saes/RELEASE/ID).")] = None,
    layer: Annotated[int | None, typer.Option("--layer", min=0, help="Layer of a local file's SAE.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch a catalogued SAE (needs the extra [sae]), or convert a local torch file.

    Example: countersteer sae fetch gemma-scope-2b-pt-res-canonical layer_16/width_16k/canonical --out saes/gemma-2b
    """
    from countersteer.sources.fetch import fetch as bring

    if out is None:
        out = Path("saes") / Path(release).stem / (sae_id or "").replace("/", "-")
    found = bring(release, sae_id, out=out, layer=layer)
    data = {"out": str(found.folder), "site": str(found.site), "d_model": found.d_model, "d_sae": found.d_sae}
    text = f"{found.d_sae} latents at {found.site}, {found.d_model} wide, written to {found.folder}"
    emit(data, as_json=as_json, text=text)
