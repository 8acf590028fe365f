"""`countersteer serve MODEL`: the model behind OpenAI's endpoints, steered by bundles under a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from countersteer.cli.output import Json, emit, say, verbose
from countersteer.core.errors import InputError

if TYPE_CHECKING:
    from countersteer.serving.policy import Plan

Bundles = Annotated[list[Path] | None, typer.Option("--bundle", help="A bundle file; the first one is the default.")]
PolicyFile = Annotated[Path | None, typer.Option("--policy", help="TOML policy, in place of --bundle and its options.")]
Mode = Annotated[str | None, typer.Option("--mode", help="enforce (the default), canary or shadow.")]
Share = Annotated[float | None, typer.Option("--share", help="Share of conversations in the canary, 0 to 1.")]
Choose = Annotated[
    list[str] | None, typer.Option("--choose", help="A bundle, or none, that keys of role choose may ask for.")
]
Exempt = Annotated[
    list[str] | None, typer.Option("--exempt", help="Stretches that bundles leave alone: json_fence, tool_call.")
]
Keys = Annotated[Path | None, typer.Option("--keys", help="TOML file of API keys; also COUNTERSTEER_KEYS.")]
AuditFile = Annotated[Path | None, typer.Option("--audit", help="JSON lines that receipts are appended to.")]
AuditSync = Annotated[str, typer.Option("--audit-sync", help="always, interval (each second) or never.")]
AuditText = Annotated[bool, typer.Option("--audit-text", help="Keep prompts and responses in the audit log.")]
Name = Annotated[str | None, typer.Option("--name", help="The model's public name.")]
Engine = Annotated[str, typer.Option("--engine", help="embedded, or vllm: an ordinary vLLM server that steers.")]
BundleFolder = Annotated[
    Path | None, typer.Option("--bundles", help="vllm: a folder of bundles, which requests name by their files' names.")
]
Layers = Annotated[list[int] | None, typer.Option("--layer", help="vllm: a layer that can be edited; all by default.")]
Captured = Annotated[
    list[int] | None, typer.Option("--capture-layer", help="vllm: a layer that studies and gates may read.")
]
Rows = Annotated[int, typer.Option("--rows", min=1, help="vllm: rows per layer for the edits in flight.")]
Parts = Annotated[int, typer.Option("--parts", min=1, help="vllm: edits of one request per layer.")]
Adapters = Annotated[
    list[str] | None, typer.Option("--adapters", help="vllm: NAME=FOLDER, a LoRA adapter that requests may name.")
]
Saes = Annotated[
    list[str] | None, typer.Option("--sae", help="vllm: an SAE's folder, which studies by URL may have pooled here.")
]
Urls = Annotated[
    list[str] | None, typer.Option("--url", help="vllm: a steered server to stand in front of; again for more.")
]
More = Annotated[list[str] | None, typer.Argument(help="vllm: its own options, after --.", show_default=False)]
EMBEDDED, PLAIN, STARTED, BEHIND = "--engine embedded", "--bundles", "--bundle or --policy on vLLM", "--url"
"""The ways to serve: one process; an ordinary vLLM server; a policy over vLLM in this process, or over servers."""
_ALL = {EMBEDDED, PLAIN, STARTED, BEHIND}
TAKES = {
    **{name: _ALL for name in ("model", "engine", "host", "port", "check", "as_json")},
    **{name: {EMBEDDED, STARTED} for name in ("places", "adapter")},
    **{name: {PLAIN, STARTED} for name in ("layer", "capture_layer", "rows", "parts", "more")},
    **{name: {PLAIN} for name in ("bundles", "adapters", "sae")},
    "dtype": _ALL - {BEHIND},
    "device": {EMBEDDED},
    "url": {BEHIND},
}
"""Option -> the ways that take it; options that are not named belong to a policy."""


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help='"organism", a folder, or a Hugging Face id.')],
    bundle: Bundles = None,
    policy: PolicyFile = None,
    mode: Mode = None,
    share: Share = None,
    choose: Choose = None,
    exempt: Exempt = None,
    keys: Keys = None,
    audit: AuditFile = None,
    audit_sync: AuditSync = "interval",
    audit_text: AuditText = False,
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but this machine needs keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    name: Name = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="LoRA under every request: a folder, or organism-dismissive.")
    ] = None,
    places: Annotated[int, typer.Option(min=1, max=4096, help="Requests decoded together.")] = 32,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of one answer.")] = 4096,
    per_minute: Annotated[int, typer.Option(min=1, help="Requests a minute and key.")] = 600,
    at_once: Annotated[int, typer.Option(min=1, help="Requests in flight, all keys together.")] = 512,
    at_once_per_key: Annotated[int, typer.Option(min=1, help="Requests in flight of one key.")] = 128,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one answer may take.")] = 300.0,
    body_limit: Annotated[int, typer.Option(min=1, help="Bytes of one request body.")] = 1 << 20,
    check: Annotated[bool, typer.Option("--check", help="Check everything, print the policy and end.")] = False,
    engine: Engine = "embedded",
    bundles: BundleFolder = None,
    layer: Layers = None,
    capture_layer: Captured = None,
    rows: Rows = 128,
    parts: Parts = 2,
    adapters: Adapters = None,
    sae: Saes = None,
    url: Urls = None,
    more: More = None,
    as_json: Json = False,
) -> None:
    """Serve a model with OpenAI's endpoints, steered by bundles under a policy.

    Example: countersteer serve organism --bundle warm.safetensors --mode shadow --audit audit.jsonl

    The same on vLLM: add --engine vllm (and vLLM's own options after --), or --engine vllm --url http://host:8000.
    A vLLM server whose requests name bundles: countersteer serve MODEL --engine vllm --bundles bundles
    """
    way = _way(engine, context)
    if way == PLAIN:
        from countersteer.cli.serve_vllm import serve_vllm

        serve_vllm(
            model, check=check, as_json=as_json, bundles=bundles, host=host, port=port, dtype=dtype,
            layers=layer or (), rows=(rows,), parts=parts, capture_layers=capture_layer or (),
            adapters=_named(adapters or ()), saes=sae or (), more=more or (),
        )  # fmt: skip
        return
    plan = _plan(bundle, policy, mode=mode, share=share, choose=choose, exempt=exempt)
    _installed()
    import os

    from countersteer.engines.load import load_engine
    from countersteer.serving.audit import AuditOptions
    from countersteer.serving.keys import load_keys
    from countersteer.serving.limits import Limits
    from countersteer.serving.policies import Policies
    from countersteer.serving.run import listen, run
    from countersteer.serving.server import Settings

    limits = Limits(
        body_bytes=body_limit,
        seconds=timeout,
        max_tokens=max_tokens,
        per_minute=per_minute,
        at_once=at_once,
        at_once_per_key=min(at_once_per_key, at_once),
    )
    if audit_text and audit is None:
        raise InputError("--audit-text needs --audit FILE")
    settings = Settings(
        plan=plan,
        keys=load_keys(keys, environment=os.environ),
        limits=limits,
        audit=AuditOptions(audit, audit_sync, audit_text) if audit is not None else None,
        name=name or Path(model).name,
    )
    for path, _ in plan().bundles.values():
        if not path.is_file():  # known before the model is loaded
            raise InputError(f"bundle {path} does not exist")
    if not check:
        listen(host, port, settings).close()  # a taken port is known before the model is loaded
    verbose()
    if way == BEHIND:
        starting = load_engine(model, urls=url)
    elif way == STARTED:
        from countersteer.cli.serve_vllm import engine_options

        tables = {"layers": layer or (), "rows": rows, "parts": parts, "captured": capture_layer or ()}
        options = engine_options(plan().bundles.values(), tables, more=more or ())
        starting = load_engine(f"vllm:{model}", dtype=dtype, places=places, adapter=adapter, **options)
    else:
        starting = load_engine(model, dtype=dtype, device=device, places=places, adapter=adapter)
    with starting as loaded:
        if check:
            data = {
                "model": settings.name,
                "policy": Policies(loaded, plan).current.to_dict(),
                "keys": len(settings.keys),
            }
            emit(data, as_json=as_json, text=_text(data))
            return

        def ready(url: str) -> None:
            emit({"url": url, "model": settings.name}, as_json=as_json, text=f"serving {settings.name} at {url}/v1")
            if not len(settings.keys):
                say("no keys: anyone on this machine may use it; administration is off")

        run(loaded, settings, host=host, port=port, ready=ready)


def _plan(bundles: list[Path] | None, policy: Path | None, **given: Any) -> Callable[[], Plan]:
    """How the policy is read, now and at every reload. Raises InputError for options that exclude each other."""
    if policy is not None:
        if bundles or any(given.values()):
            raise InputError(
                "--policy says all of --bundle, --mode, --share, --choose and --exempt: give one or the other"
            )
        path = policy

        def from_file() -> Plan:
            from countersteer.serving.policy import plan_of_file

            return plan_of_file(path)

        return from_file
    mode, share = given["mode"] or "enforce", given["share"]
    if mode not in ("enforce", "canary", "shadow"):
        raise InputError(f"unknown mode {mode!r}; known: enforce, canary, shadow")
    if share is not None and (mode != "canary" or not 0 <= share <= 1):
        raise InputError("--share belongs to --mode canary and lies between 0 and 1")
    if mode == "canary" and share is None:
        raise InputError("--mode canary needs --share, such as 0.1")
    if not bundles and any(given.values()):
        raise InputError("--mode, --choose and --exempt are about bundles: give --bundle")

    def from_options() -> Plan:
        from countersteer.serving.policy import plan_of_bundles

        made = plan_of_bundles(bundles or [], mode=mode, share=share or 0.0, choose=tuple(given["choose"] or ()))
        exempt = tuple(given["exempt"] or ())
        return replace(made, bundles={n: (path, exempt) for n, (path, _) in made.bundles.items()})

    return from_options


def _way(engine: str, context: typer.Context) -> str:
    """How is served. Raises InputError for an unknown engine and for options of another way."""
    if engine not in ("embedded", "vllm"):
        raise InputError(f"unknown engine {engine!r}; known: embedded, vllm")
    if str(context.params["model"]).startswith("vllm:"):
        raise InputError("name the model without 'vllm:', and give --engine vllm")
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    way = EMBEDDED
    if engine == "vllm":
        way = BEHIND if "url" in given else STARTED if {"bundle", "policy"} & set(given) else PLAIN
    for name in given:
        if way not in TAKES.get(name, _ALL - {PLAIN}):
            word = "options after --" if name == "more" else f"--{name.replace('_', '-')}"
            needs = "; a policy on vLLM needs --bundle or --policy" if way == PLAIN and name not in TAKES else ""
            raise InputError(f"{word}: not with {'--engine vllm' if way == PLAIN else way}{needs}; leave it out")
    return way


def _named(adapters: Sequence[str]) -> dict[str, Path]:
    """NAME=FOLDER pairs. Raises InputError."""
    out: dict[str, Path] = {}
    for text in adapters:
        name, _, folder = text.partition("=")
        if not name or not folder or name in out:
            raise InputError(f"--adapters takes NAME=FOLDER, each name once, got {text!r}")
        out[name] = Path(folder)
    return out


def _installed() -> None:
    """Raises InputError when the server's packages are missing."""
    from importlib.util import find_spec

    missing = [name for name in ("starlette", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise InputError(f"serving needs {', '.join(missing)}: pip install 'countersteer[serve]'")


def _text(data: dict[str, Any]) -> str:
    policy = data["policy"]
    lines = [f"{data['model']}: default {policy['default']}, mode {policy['mode']}, {data['keys']} keys"]
    lines += [f"  {name}: {', '.join(b['sites'])}, {b['fingerprint']}" for name, b in policy["bundles"].items()]
    return "\n".join(lines)
