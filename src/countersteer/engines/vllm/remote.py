"""An engine of one or several steered vLLM servers: work goes to the least busy, and on to another if one dies.

Trial keys do not change with the servers: all must serve the same weights in the same dtype, or the engine refuses.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load

from countersteer.core.errors import EngineError, InputError, RefusedError
from countersteer.core.request import Chunk, Completion, Request
from countersteer.core.site import Site
from countersteer.edits.bundle import bundle_bytes
from countersteer.edits.edit import Intervention
from countersteer.engines.embedded.adapter_record import AdapterRecord
from countersteer.engines.vllm.adapters import read_adapters
from countersteer.engines.vllm.collector import RowsOf
from countersteer.engines.vllm.engine import Bridge, gather
from countersteer.engines.vllm.fleet import Fleet, Server, Tried, Unreachable
from countersteer.engines.vllm.remote_pooling import max_activations, shared
from countersteer.engines.vllm.wire import completion_from_json, error_from_json, reads_to_bytes, request_to_json

PATH = "/v1/countersteer"
CONNECTIONS = 256
"""Most requests on their way at once; further ones wait here, where waiting costs nothing."""


class RemoteEngine:
    """The engine protocol over HTTP (see `load_remote`)."""

    def __init__(
        self, servers: list[Server], bridge: Bridge, client: httpx.AsyncClient, adapters: Mapping[str, AdapterRecord]
    ) -> None:
        self.fleet, self.bridge, self.client, self.adapters = Fleet(servers), bridge, client, adapters
        self.rows = RowsOf()
        self.room = asyncio.Semaphore(CONNECTIONS)

    @property
    def family(self) -> str:
        """Engine family with its major version, as the servers say."""
        return str(self.fleet.first.facts["engine"])

    @property
    def model_fingerprint(self) -> str:
        """The servers' fingerprint of the model."""
        return str(self.fleet.first.facts["model_fingerprint"])

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.fleet.first.facts["d_model"])

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return int(self.fleet.first.facts["layers"])

    def describe(self) -> dict[str, Any]:
        """The first server's facts, all URLs, the SAEs that all servers pool, and adapters by their names here."""
        facts = {k: v for k, v in self.fleet.first.facts.items() if k != "adapters"}
        adapters = {name: record.described() for name, record in self.adapters.items()}
        facts["saes"] = shared(self.fleet.servers)
        return {**facts, "urls": [s.url for s in self.fleet.servers], **({"adapters": adapters} if adapters else {})}

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Pieces as they are generated. A server that dies after the first piece ends the stream with EngineError."""
        return self.bridge.stream(self._stream(request))

    async def generate(self, request: Request) -> Completion:
        """The whole completion, from another server if one dies."""
        out: Completion = await asyncio.wrap_future(self.bridge.start(self._generate(request)))
        return out

    def run(self, requests: Sequence[Request], *, errors: str = "raise") -> list[Any]:
        """Completions in order, synchronously. With `errors="return"` a failed one is its exception."""
        return gather(self.bridge, self._generate, requests, errors)

    async def forward(
        self,
        inputs: Sequence[Any],
        *,
        readouts: Any = None,
        capture: Any = None,
        reduce: str = "none",
        span: Any = "all",
        template: bool = False,
    ) -> list[Any]:
        """Teacher-forced, unsteered pass; see the engine protocol."""
        if isinstance(inputs, str):
            raise InputError("forward takes a list of texts: forward([text])")
        one = isinstance(capture, Site)
        groups = self.rows(readouts)
        texts = [i if isinstance(i, str) else [int(t) for t in i] for i in inputs]
        what = {
            "reduce": reduce,
            "span": str(span),
            "template": template,
            "reads": base64.b64encode(reads_to_bytes(groups)).decode() if groups else None,
            "sites": [str(g.site) for g in groups],
            "capture": None if capture is None else [str(s) for s in ([capture] if one else capture)],
            "one": one,
        }
        work = self.anywhere(lambda server: self.passes(server, texts, **what))
        tensors = await asyncio.wrap_future(self.bridge.start(work))
        if groups or one:
            return [tensors[f"input.{i}"] for i in range(len(inputs))]
        return [[tensors[f"input.{i}.{j}"] for j in range(len(capture))] for i in range(len(inputs))]

    async def max_activations(self, inputs: Sequence[Any], sae: Any, **options: Any) -> NDArray[np.float32]:
        """Maxima of an SAE, [texts, d_sae]; options as in the protocol (layer, template).

        Servers that were started with the SAE (`describe()["saes"]`) answer them; others' residuals are pooled here.
        """
        work = max_activations(self, inputs, sae, **options)
        out: NDArray[np.float32] = await asyncio.wrap_future(self.bridge.start(work))
        return out

    def encode(self, request: Request) -> list[int]:
        """The token ids of a request's prompt, by the servers' tokenizer. Raises InputError, EngineError."""
        _check(request)
        body = request_to_json(request, None, [])

        async def on(server: Server) -> list[int]:
            ids: list[int] = (await self.send(server, "POST", f"{PATH}/encode", json=body)).json()["tokens"]
            return ids

        out: list[int] = self.bridge.start(self.anywhere(on)).result()
        return out

    def register(self, intervention: Intervention, name: str) -> str:
        """Give an intervention a name on every server, for good; returns its fingerprint. Raises EngineError when one
        of them cannot be reached, InputError where the name is taken."""

        async def everywhere() -> str:
            for server in self.fleet.servers:
                try:
                    await self._tell(server, intervention, name)
                except Unreachable as error:
                    raise EngineError(f"server {server.url} could not be told of {name!r}: {error}") from error
            return intervention.fingerprint

        return str(self.bridge.start(everywhere()).result())

    def close(self) -> None:
        """Close the connections. The servers go on."""
        if self.bridge.thread.is_alive():
            self.bridge.start(self.client.aclose()).result(timeout=30)
            self.bridge.stop()

    def __enter__(self) -> RemoteEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Everything below runs on the bridge's loop.

    async def _generate(self, request: Request) -> Completion:
        _check(request)

        async def on(server: Server) -> Completion:
            async with self.room:
                async for chunk in self._lines(server, request):
                    if chunk.completion is not None:
                        return chunk.completion
            raise Unreachable("the stream broke off")

        out: Completion = await self.anywhere(on)
        return out

    async def _stream(self, request: Request) -> AsyncIterator[Chunk]:
        _check(request)
        tried = Tried()
        while True:
            server, begun = await self.fleet.choose(tried), False
            server.flying += 1
            try:
                await self.look(server)
                async with self.room:
                    async for chunk in self._lines(server, request):
                        begun = True
                        yield chunk
                        if chunk.completion is not None:
                            return
                raise Unreachable("the stream broke off")
            except Unreachable as error:
                self.fleet.down(server, tried, error)
                if begun:
                    raise EngineError(f"server {server.url} died in the middle of a stream: {error}") from error
            finally:
                server.flying -= 1

    async def anywhere(self, work: Any) -> Any:
        """Do the work on the least busy server; on another when that one cannot be reached."""
        tried = Tried()
        while True:
            server = await self.fleet.choose(tried)
            server.flying += 1
            try:
                await self.look(server)
                return await work(server)
            except Unreachable as error:
                self.fleet.down(server, tried, error)
            finally:
                server.flying -= 1

    async def look(self, server: Server) -> None:
        """See that a server which was away is the same model still, before it gets work. Raises Unreachable."""
        if server.seen:
            return
        facts = (await self.send(server, "GET", PATH)).json()["facts"]
        try:
            server.look(facts, self.fleet.first)
            _check_adapters([server], self.adapters)
        except RefusedError as error:
            server.seen = False
            raise Unreachable(str(error)) from error

    async def _lines(self, server: Server, request: Request) -> AsyncIterator[Chunk]:
        """The pieces of a request, which is told again to a server that has forgotten its intervention."""
        steer: Intervention | None = request.intervention
        told = steer is not None and steer.fingerprint in server.known
        try:
            async for chunk in self._told(server, request):
                told = False
                yield chunk
        except InputError:
            if not told:
                raise
            server.known.clear()
            async for chunk in self._told(server, request):
                yield chunk

    async def _told(self, server: Server, request: Request) -> AsyncIterator[Chunk]:
        steer: Intervention | None = request.intervention
        if steer is not None and steer.fingerprint not in server.known:
            await self._tell(server, steer)
        groups = self.rows(request.readouts)
        named = request.with_(adapter=self._adapter(server, request.adapter)) if request.adapter else request
        body = request_to_json(named, steer.fingerprint if steer is not None else None, groups)
        try:
            async with self.client.stream("POST", f"{server.url}{PATH}/generate", json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _error(response)
                async for line in response.aiter_lines():
                    data = json.loads(line)
                    if "error" in data:
                        error = error_from_json(data["error"])
                        if isinstance(error, EngineError):
                            raise Unreachable(str(error))
                        raise error
                    if "completion" in data:
                        yield Chunk(completion=completion_from_json(data["completion"]))
                    else:
                        yield Chunk(data["text"], tuple(data["tokens"]))
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error

    def _adapter(self, server: Server, name: str) -> str:
        """The name that a server gives to the adapter of a name. Raises InputError for one that was not given."""
        record = self.adapters.get(name)
        if record is None:
            known = ", ".join(self.adapters) or "none"
            raise InputError(f"adapter {name!r} is not loaded (loaded: {known}); give it to load_engine(adapters=...)")
        return _served_as(server, record) or name

    async def _tell(self, server: Server, steer: Intervention, name: str | None = None) -> None:
        content = bundle_bytes(steer, name=name or "unnamed")
        given = {"name": name} if name else {}
        await self.send(server, "PUT", f"{PATH}/interventions", content=content, params=given)
        server.known.add(steer.fingerprint)

    async def passes(self, server: Server, inputs: Sequence[Any], **what: Any) -> dict[str, Any]:
        """The tensors of a teacher-forced pass on a server, by the names that the endpoint gives them."""
        response = await self.send(server, "POST", f"{PATH}/forward", json={"inputs": inputs, **what})
        return dict(load(response.content))

    async def send(self, server: Server, method: str, path: str, **options: Any) -> httpx.Response:
        """One request to one server. Raises Unreachable, InputError."""
        try:
            response = await self.client.request(method, f"{server.url}{path}", **options)
        except httpx.HTTPError as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error
        if response.status_code != 200:
            raise _error(response)
        return response


def _error(response: httpx.Response) -> Exception:
    if response.status_code == 401:
        return InputError("the server wants another API key: give it as api_key")
    try:
        error: Exception = error_from_json(response.json()["error"])
    except (ValueError, KeyError, TypeError, AttributeError):
        error = EngineError(f"the server answered {response.status_code}")
        if response.status_code < 500:
            error = InputError(f"the server answered {response.status_code}: is it a steered vLLM server?")
    if response.status_code >= 500 or isinstance(error, EngineError):
        return Unreachable(str(error))
    return error


def _check(request: Any) -> None:
    if not isinstance(request, Request):
        raise InputError(f"an engine takes a Request, got {type(request).__name__}")
    if request.intervention is not None and not isinstance(request.intervention, Intervention):
        raise InputError(f"an intervention is made by cs.add, ...; got {type(request.intervention).__name__}")


def _served_as(server: Server, record: AdapterRecord) -> str | None:
    """The name under which a server serves an adapter, by its content; None if it does not."""
    offered = server.facts.get("adapters") or {}
    return next((name for name, facts in offered.items() if facts.get("fingerprint") == record.fingerprint), None)


def _check_adapters(servers: Sequence[Server], adapters: Mapping[str, AdapterRecord]) -> None:
    """Raises RefusedError where one of the adapters is not served."""
    for name, record in adapters.items():
        lacking = [s.url for s in servers if _served_as(s, record) is None]
        if lacking:
            raise RefusedError(
                f"adapter {name!r}", f"{', '.join(lacking)} does not serve it", "starting the servers with --adapters"
            )


def load_remote(
    urls: Sequence[str],
    *,
    api_key: str | None = None,
    timeout: float = 600.0,
    adapters: Mapping[str, str | os.PathLike[str]] | None = None,
) -> RemoteEngine:
    """An engine over steered vLLM servers. At least one must answer; all that answer must be the same model.

    `timeout`: seconds without a byte after which a server counts as dead. `adapters`: folders by the names that
    requests use; every server must have been started with them, under whatever names. Raises InputError, RefusedError,
    EngineError.
    """
    if isinstance(urls, str) or not urls:
        raise InputError("urls takes a list of servers: urls=['http://host:8000', ...]")
    for url in urls:
        if not str(url).startswith(("http://", "https://")):
            raise InputError(f"{str(url)!r} is no address of a server: give one such as http://host:8000")
    servers = [Server(str(u).rstrip("/")) for u in urls]
    records = read_adapters(adapters or {})
    bridge = Bridge("countersteer-remote")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def start() -> RemoteEngine:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        times = httpx.Timeout(timeout, connect=10.0, pool=None)
        engine = RemoteEngine(
            servers, bridge, httpx.AsyncClient(headers=headers, timeout=times, limits=limits), records
        )
        answered: list[Server] = []
        for server in servers:
            try:
                facts = (await engine.send(server, "GET", PATH)).json()["facts"]
                server.look(facts, answered[0] if answered else None)
                answered.append(server)
            except Unreachable:
                server.rest()
        if not answered:
            raise EngineError(f"no server answers: tried {engine.fleet.urls}")
        _check_adapters(answered, records)
        return engine

    try:
        engine: RemoteEngine = bridge.start(start()).result()
    except BaseException:
        bridge.stop()
        raise
    return engine
