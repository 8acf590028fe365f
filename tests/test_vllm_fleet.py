"""Work over several servers: spread evenly, never to one that came back as another model, told again after a restart.

The servers are stand-ins that speak the protocol of `engines/vllm/endpoint.py`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import countersteer as cs
from countersteer.core.errors import EngineError
from countersteer.core.request import Completion, Receipt
from countersteer.engines.vllm import fleet
from countersteer.engines.vllm.remote import load_remote
from countersteer.engines.vllm.wire import completion_to_json

STEER = cs.add(cs.direction([1.0, 2.0, 3.0], layer=1), 2.0)


class Steered(ThreadingHTTPServer):
    """A server that knows the interventions it was told, answers with its own number, and can wait before it does."""

    daemon_threads = True

    def __init__(self, number: int, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.number, self.model, self.known, self.answered = number, "f" * 32, set[str](), 0
        self.wait = threading.Event()
        self.wait.set()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def die(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Steered

    def do_GET(self) -> None:
        facts = {"engine": "vllm-1", "model": "m", "model_fingerprint": self.server.model, "layers": 6, "d_model": 3}
        self.say(200, {"facts": facts})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.known.add(STEER.fingerprint)
        self.say(200, {"fingerprint": STEER.fingerprint})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["steer"] and asked["steer"] not in self.server.known:
            self.say(400, {"error": {"kind": "InputError", "message": "no intervention is registered"}})
            return
        self.server.answered += 1
        self.server.wait.wait(20)
        done = Completion("a", (self.server.number,), 1, "length", Receipt((), "vllm-1"))
        self.say(200, {"completion": completion_to_json(done)})

    def say(self, status: int, data: Any) -> None:
        body = json.dumps(data).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def start(monkeypatch: Any) -> Iterator[Callable[..., Steered]]:
    monkeypatch.setattr(fleet, "PAUSE", 0.01)
    monkeypatch.setattr(fleet, "REST_SECONDS", 0.05)
    started: list[Steered] = []

    def begin(*args: Any) -> Steered:
        started.append(Steered(*args))
        return started[-1]

    yield begin
    for server in started:
        server.wait.set()
        server.die()


def ask(steer: Any = None) -> cs.Request:
    return cs.Request(tokens=(1,), intervention=steer)


def test_streams_go_to_the_least_busy_server(start: Any) -> None:
    servers = [start(1), start(2)]
    for server in servers:
        server.wait.clear()

    async def first_pieces() -> list[int]:
        with load_remote([s.url for s in servers]) as engine:

            async def one() -> int:
                async for chunk in engine.stream(ask()):
                    if chunk.completion is not None:
                        return chunk.completion.tokens[0]
                raise AssertionError

            running = [asyncio.create_task(one()) for _ in range(8)]
            while sum(s.answered for s in servers) < 8:
                await asyncio.sleep(0.01)
            for server in servers:
                server.wait.set()
            return list(await asyncio.gather(*running))

    assert sorted(asyncio.run(first_pieces())) == [1] * 4 + [2] * 4


def test_a_server_that_comes_back_as_another_model_gets_no_work(start: Any) -> None:
    good, bad = start(1), start(2)
    with load_remote([bad.url, good.url]) as engine:
        port = bad.server_port
        bad.die()
        assert engine.run([ask()])[0].tokens == (1,)
        other = start(2, port)
        other.model = "0" * 32
        for _ in range(3):
            threading.Event().wait(0.06)  # the rest after a failure is over, so it would be tried again
            assert [c.tokens for c in engine.run([ask()] * 4)] == [(1,)] * 4
        assert other.answered == 0
        good.die()
        with pytest.raises(EngineError, match="came back with another model_fingerprint"):
            engine.run([ask()])
    again = start(3, good.server_port)
    assert again.answered == 0


def test_a_server_that_was_away_at_the_start_is_looked_at_before_it_gets_work(start: Any) -> None:
    good, late = start(1), start(2)
    port = late.server_port
    late.die()
    with load_remote([f"http://127.0.0.1:{port}", good.url]) as engine:
        assert engine.model_fingerprint == "f" * 32
        back = start(2, port)
        threading.Event().wait(0.06)
        good.wait.clear()
        threading.Timer(0.3, good.wait.set).start()
        assert {c.tokens[0] for c in engine.run([ask(STEER)] * 6)} == {1, 2}
        assert back.answered > 0
    wrong = start(3)
    wrong.model = "0" * 32
    with pytest.raises(cs.RefusedError, match="differ in model_fingerprint"):
        load_remote([good.url, wrong.url])


def test_a_server_that_has_forgotten_an_intervention_is_told_again(start: Any) -> None:
    server = start(1)
    with load_remote([server.url]) as engine:
        assert engine.run([ask(STEER)])[0].tokens == (1,)
        server.known.clear()  # as after a restart between two requests
        assert engine.run([ask(STEER)])[0].tokens == (1,)
        assert server.known == {STEER.fingerprint}
        server.die()
        with pytest.raises(EngineError, match=r"could not be told of 'warm'"):
            engine.register(STEER, "warm")
