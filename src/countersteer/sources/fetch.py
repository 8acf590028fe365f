"""Bringing an SAE into the folder format: from SAELens's catalogue, or from a Goodfire torch file at hand.

sae-lens is heavy, so it is needed here only, once per SAE; what reads the folder afterwards needs none of it. The
configuration is fetched and checked first, so that an SAE that could not be used is refused before gigabytes are
downloaded. A folder appears complete or not at all.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError
from countersteer.sources import torchfile
from countersteer.sources.sae import SAE, WEIGHTS_NAME, load_sae
from countersteer.sources.sae_config import CONFIG_NAME, parse_config

log = logging.getLogger(__name__)


def fetch(
    source: str | Path,
    sae_id: str | None = None,
    *,
    out: str | Path,
    layer: int | None = None,
    model: str | None = None,
    max_gb: float = 40.0,
) -> SAE:
    """Write the SAE `source` into the new folder `out` and open it.

    `source` is a release of SAELens's catalogue or a Hugging Face repository with `sae_id` an SAE of it (saved in
    float32); or the path of a Goodfire torch file, with the `layer` whose output it reads. `max_gb` limits the size
    of the result. Raises InputError for unknown names, unusable files, an existing `out`, too little space or a
    missing sae-lens, RefusedError for an SAE that cannot be an edit of the residual stream.
    """
    path = Path(source)
    if path.suffix.lower() in torchfile.SUFFIXES or path.is_file():
        if sae_id is not None:
            raise InputError(f"{path} is a file and takes no SAE id: leave {sae_id!r} out")
        return _convert(path, Path(out), layer=layer, model=model, max_gb=max_gb)
    if sae_id is None:
        raise InputError(f"release {str(source)!r} needs the id of one of its SAEs, or give the path of a torch file")
    if layer is not None:
        raise InputError("a catalogued SAE knows its own layer: leave the layer out")
    return _download(str(source), sae_id, Path(out), max_gb=max_gb)


def _convert(path: Path, out: Path, *, layer: int | None, model: str | None, max_gb: float) -> SAE:
    if not path.is_file():
        raise InputError(f"no file at {path}: give the path of a torch file, or a release and an SAE id")
    if layer is None:
        hint = torchfile.suggested_layer(path)
        raise InputError(
            f"{path.name} does not say at which layer it reads: give layer=N"
            + (f" (its name suggests {hint})" if hint else "")
        )
    with _folder(out, needed=path.stat().st_size, max_gb=max_gb) as partial:
        torchfile.convert(path, partial, layer=layer, model=model)
    return load_sae(out)


def _download(release: str, sae_id: str, out: Path, *, max_gb: float) -> SAE:
    if importlib.util.find_spec("sae_lens") is None:
        raise InputError("fetching a catalogued SAE needs sae-lens: run `pip install 'countersteer[sae]'`")
    from sae_lens import SAE as Catalogued
    from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface
    from sae_lens.loading.pretrained_saes_directory import get_norm_scaling_factor
    from safetensors.torch import save_file

    what = f"SAE {sae_id!r} of release {release!r}"
    with _one_line(what):
        raw = dict(load_sae_config_from_huggingface(release, sae_id))
        if get_norm_scaling_factor(release, sae_id) is not None:
            raw["normalize_activations"] = "none"  # from_pretrained folds the catalogue's factor into the weights
    config = parse_config(raw, Path(release) / sae_id)
    with _folder(out, needed=8 * config.d_model * config.d_sae, max_gb=max_gb) as partial:
        log.info("downloading %s: %d latents of width %d", what, config.d_sae, config.d_model)
        with _one_line(what):
            sae: Any = Catalogued.from_pretrained(release, sae_id, device="cpu", dtype="float32")
        state = sae.state_dict()
        sae.process_state_dict_for_saving(state)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial / WEIGHTS_NAME)
        settings = sae.cfg.to_dict()
        settings["metadata"] |= {"release": release, "sae_id": sae_id}
        (partial / CONFIG_NAME).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return load_sae(out)


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Whatever sae-lens or the hub raises (unknown names, no network, no access) as one InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot fetch {what}: {reason}; check both names and the network") from error


@contextmanager
def _folder(out: Path, *, needed: int, max_gb: float) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` if the body succeeds and the SAE in it opens; else it is removed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists already: give a new folder, nothing is overwritten")
    if needed > max_gb * 1e9:
        raise InputError(f"the SAE takes {needed / 1e9:.1f} GB, more than the limit of {max_gb:g} GB: raise the limit")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(out.parent).free) < needed:
            raise InputError(
                f"{out.parent} has {free / 1e9:.1f} GB free, the SAE takes {needed / 1e9:.1f} GB: make room"
            )
        partial.mkdir()
        yield partial
        load_sae(partial).decoder_norms()
        os.replace(partial, out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
