"""An ordinary vLLM OpenAI server with steering: `countersteer serve MODEL --engine vllm --bundles DIR`.

Chooses vLLM's options, preloads the bundles and becomes the server. Everything after `--` goes to vLLM as it is.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError

LOCAL = ("127.0.0.1", "::1", "localhost")
OWNED = {
    "--worker-cls": "steering chooses it",
    "--scheduler-cls": "steering chooses it",
    "--additional-config": "steering chooses it",
    "--async-scheduling": "steering needs it off",
    "--api-server-count": "steering needs one",
    "--model": "it is the first argument",
    "--host": "give it before --",
    "--port": "give it before --",
    "--dtype": "give it before --",
    "--api-key": "set VLLM_API_KEY, where other users of the machine cannot read it",
}
"""vLLM's options that may not follow `--`, and why."""


def server_command(
    model: str,
    *,
    bundles: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    dtype: str | None = None,
    layers: Sequence[int] = (),
    rows: Sequence[int] = (128,),
    parts: int = 2,
    capture_layers: Sequence[int] = (),
    adapters: Mapping[str, str | Path] | None = None,
    saes: Sequence[str | Path] = (),
    more: Sequence[str] = (),
) -> tuple[list[str], dict[str, str]]:
    """The command of the server and the environment it needs. Bundles are registered under their files' names.

    `saes`: folders of SAEs whose maxima the server can take; the layers that they read are captured. Raises InputError
    for bundles and SAEs that cannot be read, for options that steering does not allow, and for an address that other
    machines reach without an API key; RefusedError for a TopK SAE.
    """
    from countersteer import organism
    from countersteer.engines.vllm.adapters import lora_options, read_adapters
    from countersteer.engines.vllm.engine import SCHEDULER, WORKER
    from countersteer.engines.vllm.settings import Settings
    from countersteer.engines.vllm.store import ENV, Store
    from countersteer.sources.sae import load_sae

    for given in (option.split("=")[0].replace("_", "-") for option in more):
        if given in OWNED:
            raise InputError(f"{given} cannot be given to vLLM: {OWNED[given]}")
    if host not in LOCAL and not (api_key or os.environ.get("VLLM_API_KEY")):
        raise InputError(f"host {host} lets other machines in without a key: set VLLM_API_KEY")
    source = str(organism.path(model)) if model in organism.SHIPPED else model
    loaded = [load_sae(folder, labels=False) for folder in saes]
    for sae in loaded:
        sae.require_activations()
    captured = {*capture_layers, *(sae.site.layer for sae in loaded)}
    settings = Settings(tuple(layers), tuple(rows), capture=tuple(captured), parts=parts)
    records = read_adapters(adapters or {})
    given_store = os.environ.get(ENV)
    if given_store:
        Path(given_store).mkdir(parents=True, exist_ok=True)
    store = Store(tempfile.mkdtemp(prefix="countersteer-server-", dir=given_store))
    if bundles is not None:
        store.preload(bundles)
    for sae in loaded:
        store.put_sae(sae)
    plugins = [p for p in os.environ.get("VLLM_PLUGINS", "").split(",") if p and p != "countersteer"]
    environment = {
        ENV: str(store.folder),
        "COUNTERSTEER_SETTINGS": json.dumps(settings.to_dict()),
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_PLUGINS": ",".join([*plugins, "countersteer"]),
    }
    if api_key:
        environment["VLLM_API_KEY"] = api_key  # not on the command line, where every user of the machine can read it
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", source),
        *("--host", host, "--port", str(port), *(("--dtype", dtype) if dtype else ())),
        *("--worker-cls", WORKER, "--scheduler-cls", SCHEDULER, "--no-async-scheduling"),
        *("--logits-processors", "countersteer.engines.vllm.admission:Admission"),
        *("--additional-config", json.dumps(settings.additional_config())),
    ]
    for name, value in lora_options(records).items():
        command += [f"--{name.replace('_', '-')}", *(() if value is True else (str(value),))]
    if records:
        command += ["--lora-modules", *(f"{name}={record.folder}" for name, record in records.items())]
    command += more
    return command, environment


def engine_options(
    bundles: Iterable[tuple[Path, Any]], tables: Mapping[str, Any], *, more: Sequence[str]
) -> dict[str, Any]:
    """The arguments of `load_engine("vllm:...")` for a policy that serves these bundles; gates need their layers read.

    `tables`: layers, rows, parts, captured; `more`: vLLM's own options as on its command line. Raises InputError.
    """
    from countersteer.edits.bundle import load_bundle

    gates = [load_bundle(path).intervention.gate for path, _ in bundles]
    captured = {*tables["captured"], *(gate.site.layer for gate in gates if gate is not None)}
    return {
        "layers": tuple(tables["layers"]),
        "rows": (tables["rows"],),
        "parts": tables["parts"],
        "capture_layers": tuple(sorted(captured)),
        **vllm_options(more),
    }


def vllm_options(more: Sequence[str]) -> dict[str, Any]:
    """vLLM's command-line options as arguments of its engine, only those that are given. Raises InputError."""
    if not more:
        return {}
    import argparse

    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError as error:
        raise InputError("vLLM is not installed: pip install 'countersteer[vllm]'") from error
    for given in (option.split("=")[0].replace("_", "-") for option in more):
        if given in OWNED:
            raise InputError(f"{given} cannot be given to vLLM: {OWNED[given]}")

    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> Any:
            raise InputError(f"vLLM's options after --: {' '.join(message.split())}")

    parser = AsyncEngineArgs.add_cli_args(Parser(add_help=False))
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return dict(vars(parser.parse_args(list(more))))


def serve_vllm(model: str, *, check: bool, as_json: bool, **options: Any) -> None:
    """Become the server (this call does not return); with `check` say what would be run, and end.

    Options as for `server_command`. Raises InputError, also where vLLM is not installed.
    """
    from importlib.util import find_spec

    from countersteer.cli.output import emit
    from countersteer.engines.vllm.store import ENV, Store

    if find_spec("vllm") is None:
        raise InputError("vLLM is not installed: pip install 'countersteer[vllm]'")
    command, environment = server_command(model, **options)
    if check:
        store = Store(environment[ENV])
        names, saes = store.names(), store.saes()
        data = {"model": model, "engine": "vllm", "bundles": names, "saes": saes, "command": command}
        text = [
            f"{model} on vLLM, {len(names)} bundles",
            *(f"  {n}: {f}" for n, f in names.items()),
            *(f"  SAE {key}" for key in saes),
        ]
        emit(data, as_json=as_json, text="\n".join(text))
        return
    os.execvpe(command[0], command, {**os.environ, **environment})
