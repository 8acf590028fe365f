"""Interventions, readouts and SAEs as content-addressed files that every process of an engine reads.

`<fingerprint>.safetensors` holds an intervention (a bundle file), `<fingerprint>.read` readout rows, `<name>.name` the
fingerprint that a name stands for, `<name>.made_for` the model that a preloaded bundle
names. None of these is ever overwritten, so what was read once may be kept. `<fingerprint>.sae` says in which folder an
SAE lies; only the process that started the engine writes it. On several nodes the folder, and those of SAEs, must lie
on a file system that they share.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from countersteer.core.errors import InputError, nearest
from countersteer.core.fingerprint import fingerprint
from countersteer.core.site import Site
from countersteer.edits.bundle import Bundle, load_bundle, refuse_other_model, save_bundle
from countersteer.edits.edit import Intervention
from countersteer.edits.vectors import ReadRows
from countersteer.sources.sae import SAE, load_sae

ENV = "COUNTERSTEER_STORE"
"""The environment variable by which an engine's processes find its store."""
KEPT = 4096
MADE_FOR = ("model_fingerprint", "template_hash", "model")
"""What a bundle says of the model that it was made for."""
_CONTENT = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_made_for(bundle: Bundle, *, model_fingerprint: str, template_hash: str | None) -> None:
    """Raise RefusedError if a bundle says that it was made for another model; one that says nothing may run."""
    if bundle.meta.get("model_fingerprint"):
        refuse_other_model(bundle, model_fingerprint=model_fingerprint, template_hash=template_hash)


class Store:
    """A folder of interventions and readouts; the last `KEPT` read ones stay in memory. Safe between threads."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._kept: OrderedDict[str, Intervention | tuple[ReadRows, ...]] = OrderedDict()
        self._names: dict[str, str] = {}
        self._lock = threading.Lock()

    @classmethod
    def here(cls) -> Store:
        """The store of the engine that this process belongs to. Raises InputError."""
        folder = os.environ.get(ENV)
        if not folder:
            raise InputError(f"{ENV} is not set: it names the folder of interventions that processes share")
        return cls(folder)

    def put(self, intervention: Intervention) -> str:
        """Keep an intervention; returns its fingerprint."""
        key = intervention.fingerprint
        if self._kept_value(key) is not None:
            return key
        path = self.folder / f"{key}.safetensors"
        if not path.exists():
            partial = self.folder / f"{key}.{os.getpid()}.{threading.get_ident()}"
            save_bundle(intervention, partial, name=key)
            partial.replace(path)
        self._keep(key, intervention)
        return key

    def put_reads(self, groups: Sequence[ReadRows]) -> str:
        """Keep readout rows (their thresholds stay with the asker); returns their fingerprint."""
        sites = [str(g.site) for g in groups]
        key = fingerprint({"sites": sites, "rows": [g.fingerprint for g in groups]})
        if self._kept_value(key) is not None:
            return key
        path = self.folder / f"{key}.read"
        if not path.exists():
            tensors = {}
            for i, group in enumerate(groups):
                tensors[f"read.{i}"], tensors[f"bias.{i}"] = group.read.double().contiguous(), group.bias.double()
            partial = self.folder / f"{key}.{os.getpid()}.{threading.get_ident()}"
            partial.write_bytes(save(tensors, metadata={"sites": json.dumps(sites)}))
            partial.replace(path)
        self._keep(key, tuple(groups))
        return key

    def put_sae(self, sae: SAE) -> str:
        """Note where an SAE lies; returns its fingerprint."""
        path, folder = self.folder / f"{sae.fingerprint}.sae", str(sae.folder.resolve())
        if not path.exists() or path.read_text(encoding="utf-8") != folder:
            partial = self.folder / f"{sae.fingerprint}.{os.getpid()}.{threading.get_ident()}"
            partial.write_text(folder, encoding="utf-8")
            partial.replace(path)
        return sae.fingerprint

    def sae(self, key: Any) -> SAE:
        """The SAE of a fingerprint, without its labels. Raises InputError, also where the folder holds another now."""
        if not isinstance(key, str) or not _CONTENT.fullmatch(key):
            raise InputError(f"{key!r} is no fingerprint of an SAE")
        path = self.folder / f"{key}.sae"
        if not path.exists():
            raise InputError(f"no SAE is known as {key}: a server knows those that it was started with (--sae)")
        found = load_sae(Path(path.read_text(encoding="utf-8")), labels=False)
        if found.fingerprint != key:
            raise InputError(f"{found.folder} holds another SAE than when it was given: load it again")
        return found

    def saes(self) -> list[str]:
        """Fingerprints of the SAEs that are known here."""
        return sorted(p.stem for p in self.folder.glob("*.sae"))

    def name(self, name: str, key: str) -> None:
        """Give an intervention a name, for good. Raises InputError if the name stands for something else."""
        if not _NAME.fullmatch(name) or _CONTENT.fullmatch(name):
            raise InputError(f"{name!r} is no name: use up to 64 letters, digits, dots, dashes and underscores")
        path = self.folder / f"{name}.name"
        partial = self.folder / f"{name}.{os.getpid()}.{threading.get_ident()}.partial"
        partial.write_text(key)
        try:
            os.link(partial, path)
        except FileExistsError:
            if path.read_text() != key:
                raise InputError(f"the name {name!r} is taken by another intervention, for good") from None
        finally:
            partial.unlink()

    def names(self) -> dict[str, str]:
        """Every name and the fingerprint it stands for."""
        return {p.stem: p.read_text() for p in sorted(self.folder.glob("*.name"))}

    def resolve(self, reference: str) -> str:
        """The fingerprint that a name or fingerprint stands for. Raises InputError."""
        if not isinstance(reference, str) or not (_NAME.fullmatch(reference) or _CONTENT.fullmatch(reference)):
            raise InputError(f"{reference!r} names no intervention")
        if _CONTENT.fullmatch(reference):
            return reference
        with self._lock:
            known = self._names.get(reference)
        if known is None:
            path = self.folder / f"{reference}.name"
            if not path.exists():
                names = self.names()
                raise InputError(f"no intervention is registered as {reference!r}{nearest(reference, names)}")
            known = path.read_text()
            with self._lock:
                self._names[reference] = known
        return known

    def get(self, reference: str) -> Intervention:
        """The intervention of a name or fingerprint. Raises InputError."""
        key = self.resolve(reference)
        found = self._kept_value(key)
        if found is None:
            path = self.folder / f"{key}.safetensors"
            if not path.exists():
                raise InputError(f"no intervention is registered as {reference!r}")
            found = load_bundle(path).intervention
            if found.fingerprint != key:
                raise InputError(f"{path} does not hold the intervention of its name")
            self._keep(key, found)
        if not isinstance(found, Intervention):
            raise InputError(f"{reference!r} names readouts, not an intervention")
        return found

    def reads(self, key: str) -> tuple[ReadRows, ...]:
        """The readout rows of a fingerprint. Raises InputError."""
        if not isinstance(key, str) or not _CONTENT.fullmatch(key):
            raise InputError(f"{key!r} names no readouts")
        found = self._kept_value(key)
        if found is None:
            try:
                with safe_open(str(self.folder / f"{key}.read"), framework="pt") as file:
                    sites = [Site.parse(s) for s in json.loads((file.metadata() or {})["sites"])]
                    parts = [(file.get_tensor(f"read.{i}"), file.get_tensor(f"bias.{i}")) for i in range(len(sites))]
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                raise InputError(f"no readouts are registered as {key!r}") from error
            found = tuple(
                ReadRows(s, read, bias, torch.full((len(bias),), -torch.inf, dtype=torch.float64))
                for s, (read, bias) in zip(sites, parts, strict=True)
            )
            self._keep(key, found)
        if isinstance(found, Intervention):
            raise InputError(f"{key!r} names an intervention, not readouts")
        return found

    def preload(self, folder: str | os.PathLike[str]) -> dict[str, str]:
        """Register every bundle of a folder under its file's name; returns name -> fingerprint. Raises InputError."""
        source = Path(folder)
        if not source.is_dir():
            raise InputError(f"bundle folder {source} does not exist")
        out = {}
        for path in sorted(source.glob("*.safetensors")):
            bundle = load_bundle(path)
            out[path.stem] = self.put(bundle.intervention)
            self.name(path.stem, out[path.stem])
            made_for = {k: bundle.meta[k] for k in MADE_FOR if bundle.meta.get(k)}
            (self.folder / f"{path.stem}.made_for").write_text(json.dumps(made_for))
        return out

    def check_model(self, *, model_fingerprint: str, template_hash: str | None) -> None:
        """Raise RefusedError if a preloaded bundle says that it was made for another model or chat template."""
        for name, key in self.names().items():
            path = self.folder / f"{name}.made_for"
            meta = json.loads(path.read_text()) if path.exists() else {}
            check_made_for(
                Bundle(name, self.get(key), meta=meta), model_fingerprint=model_fingerprint, template_hash=template_hash
            )

    def _kept_value(self, key: str) -> Intervention | tuple[ReadRows, ...] | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _keep(self, key: str, value: Intervention | tuple[ReadRows, ...]) -> None:
        with self._lock:
            self._kept[key] = value
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
