"""An ordinary vLLM OpenAI server with steering: `countersteer serve MODEL --engine vllm --bundles DIR`.

Chooses vLLM's options, preloads the bundles and becomes the server. Everything after `--` goes to vLLM as it is.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from countersteer.core.errors import InputError


def server_command(
    model: str,
    *,
    bundles: str | None = None,
    port: int = 8000,
    api_key: str | None = None,
    layers: Sequence[int] = (),
    rows: Sequence[int] = (128,),
    capture_layers: Sequence[int] = (),
    more: Sequence[str] = (),
) -> tuple[list[str], dict[str, str]]:
    """The command of the server and the environment it needs. Bundles are registered under their files' names.

    Raises InputError for bundles that cannot be read and for options that steering does not allow.
    """
    from countersteer.engines.vllm.engine import SCHEDULER, WORKER
    from countersteer.engines.vllm.private import CONFIG_KEY
    from countersteer.engines.vllm.settings import Settings
    from countersteer.engines.vllm.store import ENV, Store

    owned = ("--worker-cls", "--scheduler-cls", "--additional-config", "--async-scheduling", "--api-server-count")
    taken = [o for o in more if o.split("=")[0] in owned]
    if taken:
        raise InputError(f"steering chooses {', '.join(taken)} itself: leave it out")
    source = model
    if model == "organism":
        from countersteer import organism

        source = str(organism.path())
    settings = Settings(tuple(layers), tuple(rows), capture=tuple(capture_layers))
    store = Store(tempfile.mkdtemp(prefix="countersteer-server-", dir=os.environ.get(ENV)))
    if bundles is not None:
        store.preload(Path(bundles))
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
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", source, "--port", str(port)),
        *("--worker-cls", WORKER, "--scheduler-cls", SCHEDULER, "--no-async-scheduling"),
        *("--logits-processors", "countersteer.engines.vllm.admission:Admission"),
        *("--additional-config", json.dumps({CONFIG_KEY: settings.to_dict()})),
        *more,
    ]
    return command, environment


def serve_vllm(model: str, **options: object) -> None:
    """Become the server (this call does not return). Options as for `server_command`."""
    command, environment = server_command(model, **options)  # type: ignore[arg-type]
    os.execvpe(command[0], command, {**os.environ, **environment})
