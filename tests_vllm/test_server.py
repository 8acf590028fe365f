"""An ordinary vLLM server with the plugin: studies by URL, names, refusals, cross-talk, a server that dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import countersteer as cs
import worlds
from countersteer.cli.serve_vllm import server_command
from countersteer.core.errors import EngineError
from countersteer.engines.vllm.remote import RemoteEngine, load_remote
from helpers_models import prompts
from helpers_reference import residuals
from runs import free_port

KEY = "a-test-key"
COUNT = int(os.environ.get("COUNTERSTEER_TEST_REQUESTS", "300"))


@dataclass(frozen=True)
class World:
    """A running server and what plain hooks make of the requests it gets."""

    url: str
    cases: list[worlds.Case]
    want: list[worlds.Expected]
    process: Any
    model: Any
    sae: Path
    """The folder of the SAE that the server was started with."""


@pytest.fixture(scope="module")
def world(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    path = worlds.save("llama", folder)
    model = worlds.load(path)
    cases = worlds.cases(model)
    want = [worlds.expected(model, c) for c in cases]
    bundles = tmp_path_factory.mktemp("bundles")
    named = next(c for c in cases if c.name == "shared 0 add")
    cs.save_bundle(named.request.intervention, bundles / "warm.safetensors", name="warm")
    sae = worlds.save_sae(folder / "served-sae", layer=1, seed=2)
    port = free_port()
    more = "--skip-tokenizer-init --max-model-len 128 --max-num-batched-tokens 64 --block-size 32"
    more += f" --max-num-seqs 32 --kv-cache-memory-bytes {1 << 27} --enforce-eager"
    command, environment = server_command(
        str(path),
        bundles=str(bundles),
        port=port,
        api_key=KEY,
        dtype="float32",
        rows=(40, 8),
        parts=3,
        saes=[sae],
        more=more.split(),
    )
    log = tmp_path_factory.mktemp("server") / "log"
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=log.open("w"), stderr=subprocess.STDOUT
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        else:
            raise AssertionError(log.read_text()[-3000:])
        yield World(url, cases, want, process, model, sae)
        assert process.poll() is None, log.read_text()[-3000:]
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()


def check(world: World, number: int, tokens: list[int]) -> bool:
    """Whether tokens are the first of what is expected, up to a near tie."""
    want = world.want[number]
    part = worlds.Expected(want.tokens[: len(tokens)], want.logprobs, want.margins)
    return worlds.agree(part, tokens)[1]


def completion(done: Any) -> Any:
    return done.completion if isinstance(done, cs.NoOpError) else done


def test_by_url_every_case_equals_plain_hooks(world: World) -> None:
    with load_remote([world.url], api_key=KEY) as engine:
        assert engine.family == "vllm-1" and engine.n_layers == 3 and engine.d_model == worlds.WIDTH
        out = engine.run([c.request for c in world.cases], errors="return")
        for i, done in enumerate(out):
            done = completion(done)
            assert not isinstance(done, Exception), (world.cases[i].name, done)
            assert check(world, i, list(done.tokens)) and len(done.tokens) == worlds.NEW, world.cases[i].name
            steer = world.cases[i].request.intervention
            layers = {f"resid_post.{n}" for n in steer.layers} if steer is not None else set()
            assert {r.site for r in done.receipt.layers} == layers
        values = engine.run([world.cases[0].request.with_(readouts=[cs.direction([1.0] * worlds.WIDTH, layer=1)])])
        read = len(world.cases[0].tokens) + worlds.NEW - 1
        assert values[0].readouts.shape == (read, 1)


def test_by_url_maxima_of_an_sae_are_the_servers_or_taken_here(world: World, tmp_path: Path) -> None:
    other = worlds.save_sae(tmp_path / "other", layer=1, seed=3)
    texts = prompts(40, seed=33, low=2, high=70)
    h = [residuals(world.model, text, 1) for text in texts]
    with load_remote([world.url], api_key=KEY) as engine:
        assert engine.describe()["saes"] == [cs.load_sae(world.sae).fingerprint]
        for folder in (world.sae, other):  # the second one is unknown there
            got = asyncio.run(engine.max_activations(texts, cs.load_sae(folder)))
            want = worlds.maxima(folder, h).numpy()
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    path, good = f"{world.url}/v1/countersteer/pool", {"Authorization": f"Bearer {KEY}"}
    assert httpx.post(path, json={}, timeout=60).status_code == 401
    for wrong in (str(other), "../other", "0" * 32):
        answer = httpx.post(path, json={"inputs": texts[:1], "sae": wrong}, headers=good, timeout=60)
        assert answer.status_code == 400, answer.text


def spoiled(world: World, value: float, folder: Path) -> bytes:
    """A bundle file in which one number of what is written is not one."""
    from safetensors import safe_open
    from safetensors.torch import save

    path = cs.save_bundle(world.cases[0].request.intervention, folder / "spoiled.safetensors", name="spoiled")
    with safe_open(str(path), framework="pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    (name,) = [n for n in tensors if "write" in n]
    tensors[name][0, 0] = value
    return save(tensors, metadata=about)


def test_names_keys_and_refusals(world: World, tmp_path: Path) -> None:
    path = f"{world.url}/v1/countersteer"
    good = {"Authorization": f"Bearer {KEY}"}
    assert httpx.get(path).status_code == 401
    assert httpx.put(f"{path}/interventions", content=b"x").status_code == 401
    assert list(httpx.get(path, headers=good).json()["interventions"]) == ["warm"]
    broken = httpx.put(f"{path}/interventions", content=b"not a bundle", headers=good)
    assert broken.status_code == 400 and "bundle" in broken.json()["error"]["message"]
    for value in (float("nan"), float("inf")):
        put = httpx.put(f"{path}/interventions", content=spoiled(world, value, tmp_path), headers=good)
        assert put.status_code == 400 and "\n" not in put.json()["error"]["message"], put.text
    with load_remote([world.url], api_key=KEY) as engine:
        other = world.cases[0].request.intervention
        assert engine.register(other, "other") == other.fingerprint
        assert engine.register(other, "other") == other.fingerprint
        with pytest.raises(cs.InputError, match="taken"):
            engine.register(other, "warm")
        wide = cs.add(cs.direction([1.0, 2.0], layer=0), 1.0)
        with pytest.raises(cs.InputError, match="2 wide"):
            engine.run([world.cases[0].request.with_(intervention=wide)])
    with pytest.raises(cs.InputError, match="API key"):
        load_remote([world.url], api_key="wrong")
    # an ordinary completion that names a bundle
    number = next(i for i, c in enumerate(world.cases) if c.name == "shared 0 add")
    body = {
        "model": httpx.get(f"{world.url}/v1/models", headers=good).json()["data"][0]["id"],
        "prompt": world.cases[number].tokens,
        "max_tokens": worlds.NEW,
        "temperature": 0,
        "return_token_ids": True,
        "vllm_xargs": {"countersteer": "warm"},
    }
    answer = httpx.post(f"{world.url}/v1/completions", json=body, headers=good, timeout=120)
    assert answer.status_code == 200, answer.text
    assert check(world, number, answer.json()["choices"][0]["token_ids"])
    for wrong in ("unknown", '{"steer": 3}', '{"nonsense": 1}', "../warm"):
        body["vllm_xargs"] = {"countersteer": wrong}
        answer = httpx.post(f"{world.url}/v1/completions", json=body, headers=good, timeout=120)
        assert answer.status_code == 400, (wrong, answer.status_code, answer.text)


def test_random_arrivals_and_cancellations_never_mix(world: World) -> None:
    draw = random.Random(3)
    wrong, done, cancelled = [], [0], [0]

    async def one(engine: RemoteEngine, number: int, wait: float, stop: int | None, length: int) -> None:
        await asyncio.sleep(wait)
        request = world.cases[number].request
        request = request.with_(sampling=cs.Sampling(temperature=0, max_tokens=length))
        tokens: list[int] = []
        stream = engine.stream(request)
        try:
            async for chunk in stream:
                tokens += chunk.tokens
                if stop is not None and len(tokens) >= stop:
                    cancelled[0] += 1
                    break
        except cs.NoOpError:
            pass
        finally:
            await stream.aclose()  # type: ignore[attr-defined]
        done[0] += 1
        if not check(world, number, tokens) or (stop is None and len(tokens) != length):
            wrong.append((world.cases[number].name, tokens, world.want[number].tokens))

    async def every() -> None:
        with load_remote([world.url], api_key=KEY) as engine:
            await asyncio.gather(
                *(
                    one(
                        engine,
                        draw.randrange(len(world.cases)),
                        draw.random() * COUNT / 15,
                        draw.choice([None, None, None, 1, 3]),
                        draw.randint(4, worlds.NEW),
                    )
                    for _ in range(COUNT)
                )
            )

    asyncio.run(every())
    print(f"{done[0]} requests, {cancelled[0]} cancelled, {len(wrong)} wrong")
    assert done[0] == COUNT and cancelled[0] > COUNT / 10 and not wrong, wrong[:3]


class Proxy:
    """A second address of the server that can be made to die."""

    def __init__(self, target: str) -> None:
        self.host, self.port = target.removeprefix("http://").split(":")
        self.door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.door.getsockname()[1]}"
        self.lines: list[socket.socket] = []
        self.passed = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self.door.accept()
                far = socket.create_connection((self.host, int(self.port)))
            except OSError:
                return
            self.lines += [near, far]
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(a, b), daemon=True).start()

    def _copy(self, a: socket.socket, b: socket.socket) -> None:
        try:
            while data := a.recv(65536):
                self.passed += 1
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def die(self) -> None:
        """Cut every line and answer no more."""
        self.door.close()
        for line in self.lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()


def test_a_server_that_dies_in_the_middle_loses_nothing(world: World) -> None:
    proxy = Proxy(world.url)
    numbers = [i for i in range(len(world.cases))] * 2
    with load_remote([proxy.url, world.url], api_key=KEY) as engine:
        before = proxy.passed
        killer = threading.Timer(1.5, proxy.die)
        killer.start()
        out = engine.run([world.cases[i].request for i in numbers], errors="return")
        killer.join()
        assert proxy.passed > before, "the dying server got no work"
    for i, done in zip(numbers, out, strict=True):
        done = completion(done)
        assert not isinstance(done, Exception), done
        assert check(world, i, list(done.tokens)) and len(done.tokens) == worlds.NEW
    with pytest.raises(EngineError, match="no server answers"):
        load_remote([proxy.url], api_key=KEY)
