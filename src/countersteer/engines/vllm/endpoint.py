"""The HTTP side of steering: a vLLM endpoint plugin (`VLLM_PLUGINS=countersteer`).

GET  /v1/countersteer              facts of the server and the names of its interventions
PUT  /v1/countersteer/interventions[?name=NAME]   a bundle file; answers its fingerprint. Names never change
POST /v1/countersteer/encode       a request; its token ids
POST /v1/countersteer/generate     a request; lines of JSON: pieces, then the completion with receipt and readouts
GET  /v1/countersteer/receipts/ID  the receipt of an ordinary completion whose `vllm_xargs` gave it that id; once
POST /v1/countersteer/forward      a teacher-forced pass; answers a safetensors file
POST /v1/countersteer/pool         maxima of an SAE of the server's, by its fingerprint; answers a safetensors file
Ordinary completions steer too: `vllm_xargs={"countersteer": "NAME"}`, or with an id that the client draws
`{"countersteer": "{\"steer\": \"NAME\", \"id\": \"ID\"}"}`. With an API key (`--api-key`) every path needs
it; without one nothing can be registered.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from countersteer.core.errors import CountersteerError, EngineError, InputError
from countersteer.core.site import Site
from countersteer.edits.bundle import load_bundle
from countersteer.engines.embedded.adapter import text_facts
from countersteer.engines.vllm import private
from countersteer.engines.vllm.adapters import served_adapters
from countersteer.engines.vllm.engine import describe, read_facts
from countersteer.engines.vllm.measured import notes_of, problem_of, receipt_of
from countersteer.engines.vllm.pooling import max_activations
from countersteer.engines.vllm.session import FAMILY, Session
from countersteer.engines.vllm.settings import CONFIG_KEY, SHAPE, Settings
from countersteer.engines.vllm.store import Store, check_made_for
from countersteer.engines.vllm.wire import (
    completion_to_json,
    error_to_json,
    finite,
    reads_from_bytes,
    request_from_json,
)

log = logging.getLogger(__name__)
MAX_BUNDLE = 256 << 20
MAX_MAXIMA = 256 << 20
"""Bytes of one answer with maxima."""
PATH = "/v1/countersteer"


class SteerEndpoint:
    """Routes over one session on the server's engine."""

    name = "countersteer"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self.session: Session | None = None
        self.key: str | None = None

    def attach_router(self, app: Any) -> None:
        """Add the routes."""
        app.router.routes += [
            Route(PATH, self._guarded(self.facts), methods=["GET"]),
            Route(f"{PATH}/interventions", self._guarded(self.register, needs_key=True), methods=["PUT"]),
            Route(f"{PATH}/encode", self._guarded(self.encode), methods=["POST"]),
            Route(f"{PATH}/generate", self._guarded(self.generate), methods=["POST"]),
            Route(f"{PATH}/receipts/{{id}}", self._guarded(self.receipt), methods=["GET"]),
            Route(f"{PATH}/forward", self._guarded(self.forward), methods=["POST"]),
            Route(f"{PATH}/pool", self._guarded(self.pool), methods=["POST"]),
        ]

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Look at the engine that the server has started."""
        if engine_client is None:
            return
        keys = [k for k in (getattr(args, "api_key", None) or []) if k] or [os.environ.get("VLLM_API_KEY") or ""]
        self.key = keys[0] or None
        config, store = engine_client.vllm_config, Store.here()
        settings = Settings.from_dict(config.additional_config.get(CONFIG_KEY))
        workers = await Session.workers(engine_client, store)
        facts = read_facts(config, config.model_config.model, workers)
        store.check_model(model_fingerprint=facts.fingerprint, template_hash=facts.more["template_hash"])
        for key in store.saes():
            store.sae(key).require_width(facts.d_model, model=facts.name)
        facts = replace(facts, more={**facts.more, "saes": store.saes()})
        # for the admission of ordinary completions
        os.environ[SHAPE] = f"{facts.n_layers},{facts.d_model},{int(facts.tokenizer is not None)}"
        loras = private.served_loras(state)
        text = text_facts(facts.tokenizer, facts.template)
        facts = replace(facts, adapters=served_adapters(loras, model=facts.fingerprint, name=facts.name, text=text))
        self.session = Session(engine_client, store, settings, facts)

    def _guarded(self, work: Any, *, needs_key: bool = False) -> Any:
        async def handle(request: HttpRequest) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            if self.key is not None and not hmac.compare_digest(given.encode(), self.key.encode()):
                return JSONResponse({"error": {"kind": "InputError", "message": "the API key is wrong"}}, 401)
            if needs_key and self.key is None:
                message = "nothing can be registered on a server without an API key: start it with one"
                return JSONResponse({"error": {"kind": "InputError", "message": message}}, 403)
            if self.session is None:
                return JSONResponse({"error": {"kind": "EngineError", "message": "the server is starting"}}, 503)
            try:
                response: Response = await work(request, self.session)
                return response
            except InputError as error:
                return JSONResponse({"error": error_to_json(error)}, 400)
            except CountersteerError as error:
                return JSONResponse({"error": error_to_json(error)}, 500)

        return handle

    async def facts(self, request: HttpRequest, session: Session) -> Response:
        """What the server is."""
        about = describe(session.facts, session.settings)
        return JSONResponse({"facts": finite(about), "interventions": session.store.names()})

    async def register(self, request: HttpRequest, session: Session) -> Response:
        """Keep an intervention under its content and, if asked, a name."""
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > MAX_BUNDLE:
                raise InputError(f"the bundle is larger than {MAX_BUNDLE >> 20} MiB")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bundle.safetensors"
            path.write_bytes(data)
            bundle = load_bundle(path)
        steer, about = bundle.intervention, session.facts
        check_made_for(bundle, model_fingerprint=about.fingerprint, template_hash=about.more["template_hash"])
        session.planner.pieces(steer)
        key = session.store.put(steer)
        if name := request.query_params.get("name"):
            session.store.name(name, key)
        return JSONResponse({"fingerprint": key})

    async def encode(self, request: HttpRequest, session: Session) -> Response:
        """The token ids of a request's prompt."""
        return JSONResponse({"tokens": session.encode(request_from_json(await _json(request), None))})

    async def generate(self, request: HttpRequest, session: Session) -> Response:
        """Lines of JSON, the last one the completion or the error."""
        data = await _json(request)
        reference = data.get("steer")
        steer = session.store.get(reference) if reference else None
        asked = request_from_json(data, steer)
        session.check(asked)

        async def lines() -> AsyncIterator[bytes]:
            stream = session.stream(asked)
            try:
                async for chunk in stream:
                    line: dict[str, Any] = {"text": chunk.text, "tokens": list(chunk.tokens)}
                    if chunk.completion is not None:
                        line = {"completion": finite(completion_to_json(chunk.completion))}
                    yield json.dumps(line).encode() + b"\n"
            except Exception as error:
                log.debug("a request failed", exc_info=True)
                yield json.dumps({"error": finite(error_to_json(error))}).encode() + b"\n"
            finally:
                await stream.aclose()  # type: ignore[attr-defined]

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def receipt(self, request: HttpRequest, session: Session) -> Response:
        """What was measured for an ordinary completion, and why its intervention was a no-op, if it was."""
        try:
            measured = await session.collector.collect(request.path_params["id"])
        except EngineError as error:
            return JSONResponse({"error": error_to_json(error)}, 404)
        steer = session.store.get(measured.steer) if measured.steer else None
        receipt = receipt_of(steer, measured, prompt_tokens=measured.prompt_tokens, family=FAMILY)
        notes = (*notes_of(measured), *receipt.notes)
        found = None
        if steer is not None:
            found = problem_of(steer, receipt, measured, prompt_tokens=measured.prompt_tokens)
        return JSONResponse({"receipt": finite(replace(receipt, notes=notes).to_dict()), "no_op": found})

    async def forward(self, request: HttpRequest, session: Session) -> Response:
        """Tensors `input.N` (readouts or one capture) or `input.N.M` (capture M of several)."""
        import base64

        data = await _json(request)
        inputs = _inputs(data)
        options: dict[str, Any] = {k: data[k] for k in ("reduce", "span", "template") if k in data}
        if data.get("reads"):
            options["readouts"] = list(reads_from_bytes(base64.b64decode(data["reads"]), list(data.get("sites") or ())))
        if data.get("capture") is not None:
            sites = [Site.parse(s) for s in data["capture"]]
            options["capture"] = sites[0] if data.get("one") else sites
        tensors = {}
        for i, value in enumerate(await session.forward(inputs, **options)):
            for j, part in enumerate(value if isinstance(value, list) else [value]):
                tensors[f"input.{i}.{j}" if isinstance(value, list) else f"input.{i}"] = part.contiguous()
        return Response(save(tensors), media_type="application/octet-stream")

    async def pool(self, request: HttpRequest, session: Session) -> Response:
        """Tensor `maxima` [texts, d_sae]: an SAE that the server was started with, at a layer or its own."""
        data = await _json(request)
        inputs, sae = _inputs(data), session.store.sae(data.get("sae"))
        if 4 * len(inputs) * sae.d_sae > MAX_MAXIMA:
            most = MAX_MAXIMA // (4 * sae.d_sae)
            raise InputError(f"{len(inputs)} texts of {sae.d_sae} latents are too large an answer: send {most} at once")
        template = bool(data.get("template", False))
        maxima = await max_activations(session, inputs, sae, layer=data.get("layer"), template=template)
        return Response(save({"maxima": torch.from_numpy(maxima)}), media_type="application/octet-stream")


def _inputs(data: dict[str, Any]) -> list[Any]:
    inputs = data.get("inputs")
    if not isinstance(inputs, list) or not all(isinstance(item, str | list) for item in inputs):
        raise InputError("inputs must be a list of texts or of token ids")
    return inputs


async def _json(request: HttpRequest) -> dict[str, Any]:
    try:
        data = await request.json()
    except ValueError as error:
        raise InputError(f"the body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InputError("the body is not a JSON object")
    return data
