"""Maxima of a whole SAE taken in vLLM's workers, without vLLM: what travels, what is kept, what goes wrong, by URL.

The workers are those of `helpers_vllm` and a stand-in for vLLM's engine drives them; the rest is the product's.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from safetensors.torch import load, save_file
from starlette.applications import Starlette

import countersteer as cs
from countersteer.cli import main
from countersteer.cli.serve_vllm import server_command
from countersteer.core.errors import EngineError
from countersteer.engines.vllm import endpoint as served
from countersteer.engines.vllm import pooling
from countersteer.engines.vllm.endpoint import SteerEndpoint
from countersteer.engines.vllm.engine import describe
from countersteer.engines.vllm.pooling import max_activations, pool
from countersteer.engines.vllm.remote import load_remote
from countersteer.engines.vllm.session import Facts, Session
from countersteer.engines.vllm.settings import Settings
from countersteer.engines.vllm.store import Store
from countersteer.engines.vllm.ticket import Ticket
from countersteer.sources import encode
from helpers_vllm import LAYERS, WIDTH, Text, World

LATENTS, VOCAB = 40, 50
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def make_sae(folder: Path, *, width: int = WIDTH, seed: int = 0, **config: Any) -> Any:
    """A ReLU SAE of random weights that reads layer 1."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (width, LATENTS), "W_dec": (LATENTS, width), "b_enc": (LATENTS,), "b_dec": (width,)}
    folder.mkdir()
    save_file({k: torch.randn(s, generator=g) for k, s in shapes.items()}, folder / "sae_weights.safetensors")
    about = {"architecture": "standard", "d_in": width, "d_sae": LATENTS, "hook_name": "blocks.1.hook_resid_post"}
    (folder / "cfg.json").write_text(json.dumps({**about, **config}))
    return cs.load_sae(folder)


def by_hand(sae: Any, h: torch.Tensor) -> torch.Tensor:
    """The largest activation of each latent, position 0 left out, from the file's tensors in float64."""
    from safetensors.torch import load_file

    w = {k: v.double() for k, v in load_file(sae.folder / "sae_weights.safetensors").items()}
    return ((h.double()[1:] - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).clamp_min(0).amax(0)


def residuals(ids: list[int], layer: int) -> torch.Tensor:
    """What a text's positions look like at a layer."""
    table = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(layer))
    return table[ids] * (1 + 0.1 * torch.arange(len(ids))[:, None])


class Llm:
    """vLLM's engine over workers: computes texts in chunks, several at once. Texts of `hurt` lengths fail."""

    def __init__(self, *worlds: World) -> None:
        self.worlds, self.called, self.gone, self.hurt = worlds, list[tuple[str, Any]](), set[str](), set[int]()
        self.flying = self.most = 0

    async def generate(self, prompt: Any, ticket: Ticket, name: str, lora_request: Any = None) -> AsyncIterator[Any]:
        ids = prompt["prompt_token_ids"]
        streams = [residuals(ids, layer) for layer in range(LAYERS)]
        texts = [Text(name, streams, len(ids), None, ticket) for _ in self.worlds]
        self.flying += 1
        self.most = max(self.most, self.flying)
        try:
            for start in range(0, len(ids), 3):
                await asyncio.sleep(0)
                if len(ids) in self.hurt:
                    raise ValueError("out of luck")
                gone, self.gone = self.gone, set()
                for world, text in zip(self.worlds, texts, strict=True):
                    world.step([(text, min(3, len(ids) - start))], gone=gone, new={name} if start == 0 else set())
        finally:
            self.flying -= 1
            self.gone.add(name)  # workers hear of it in the next step, as vLLM's do
        out = SimpleNamespace(token_ids=[0], finish_reason="length", stop_reason=None)
        yield SimpleNamespace(outputs=[out])

    async def collective_rpc(self, name: str, args: Any) -> list[Any]:
        self.called.append((name, args))
        if name == "countersteer_collect":
            return [world.steering.collect(*args) for world in self.worlds]
        assert name == "countersteer_pool"
        return [pool(world.steering, *args) for world in self.worlds]

    def asked(self, name: str) -> int:
        return sum(1 for called, _ in self.called if called == name)


def kept(world: World) -> int:
    """Residuals that a worker holds, in positions."""
    lanes = [*world.steering.lanes.values(), *(v["lane"] for v in world.steering.finished.values() if "lane" in v)]
    return sum(len(h) for lane in lanes for parts in lane.taken.values() for h in parts)


@pytest.fixture
def worlds(tmp_path: Path, monkeypatch: Any) -> list[World]:
    """Two tensor-parallel workers of the stage that holds layer 1, and one of a stage that does not."""
    settings = Settings(rows=(6, 2), reads=4, lanes=64, capture=(1,))
    store = tmp_path / "store"
    return [
        World(store, monkeypatch, settings),
        World(store, monkeypatch, settings, pools=False),
        World(store, monkeypatch, settings, stage=[0]),
    ]


@pytest.fixture
def session(worlds: list[World], monkeypatch: Any) -> Session:
    facts = Facts("m", "f" * 32, None, frozenset(), VOCAB, 64, LAYERS, WIDTH, "float32", "cpu")
    monkeypatch.setattr(Session, "_params", lambda self, request, ticket, fresh: ticket if fresh else None)
    return Session(Llm(*worlds), Store(worlds[0].store.folder), worlds[0].settings, facts)


TEXTS = [[(3 * i + j) % VOCAB for j in range(2 + i % 9)] for i in range(70)]


def expected(sae: Any, layer: int = 1) -> np.ndarray:
    return torch.stack([by_hand(sae, residuals(ids, layer)) for ids in TEXTS]).numpy()


def pooled(session: Session, sae: Any, texts: Any = TEXTS, **options: Any) -> np.ndarray:
    return asyncio.run(max_activations(session, texts, sae, **options))


@pytest.mark.parametrize("positions", [10**6, 40, 1])
def test_maxima_are_those_of_the_residuals_and_nothing_stays(
    session: Session, worlds: list[World], tmp_path: Path, monkeypatch: Any, positions: int
) -> None:
    """In batches that one pass over the file takes; a longer text goes alone."""
    monkeypatch.setattr(encode, "HELD_BYTES", 4 * WIDTH * positions)
    sae = make_sae(tmp_path / "sae")
    got = pooled(session, sae)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected(sae), **CLOSE)
    assert (got == 0).any() and (got > 0).any()
    batches = [args[0] for name, args in session.llm.called]
    assert session.llm.asked("countersteer_collect") == 0  # no residual has travelled
    assert sum(map(len, batches)) == len(TEXTS) and session.llm.most == max(map(len, batches))
    assert session.llm.most == 32 if positions == 10**6 else session.llm.most < 20
    at = 0
    for ids in batches:
        lengths = [len(t) for t in TEXTS[at : at + len(ids)]]
        assert len(ids) == 1 or sum(lengths) <= positions
        at += len(ids)
    for world in worlds:
        world.steering.begin(session.llm.gone, [])
        assert not world.steering.lanes and not world.steering.finished and kept(world) == 0
    assert pooled(session, sae, []).shape == (0, LATENTS)


def test_only_the_worker_that_pools_keeps_residuals_and_answers(worlds: list[World], tmp_path: Path) -> None:
    sae = make_sae(tmp_path / "sae")
    key = worlds[0].store.put_sae(sae)
    ids = [1, 2, 3, 4, 5]
    for world in worlds:
        for name in ("over", "live"):
            ticket = Ticket(capture=(1,), pooled=True, id=name)
            streams = [residuals(ids, layer) for layer in range(LAYERS)]
            gone = {"over"} if name == "live" else set()
            world.step([(Text(name, streams, 5, None, ticket), 5)], gone=gone, new={name})
    assert [kept(world) for world in worlds] == [10, 0, 0]
    answers = [pool(world.steering, ["live", "over"], key, 1) for world in worlds]
    assert answers[1:] == [{}, {}]
    maxima = load(answers[0]["maxima"])["maxima"]
    want = by_hand(sae, residuals(ids, 1)).float()
    torch.testing.assert_close(maxima, torch.stack([want, want]), **CLOSE)
    assert kept(worlds[0]) == 0
    worlds[0].steering.begin({"live"}, [])
    assert not worlds[0].steering.finished
    torch.testing.assert_close(  # a worker's maxima and those of any residuals are the same numbers
        maxima[0], torch.from_numpy(sae.max_activations([residuals(ids, 1)])[0]), rtol=0, atol=0
    )


def test_what_goes_wrong_in_a_worker_is_an_answer_and_residuals_are_let_go(
    worlds: list[World], tmp_path: Path, monkeypatch: Any
) -> None:
    world, ids = worlds[0], [1, 2, 3, 4, 5]
    sae, wide = make_sae(tmp_path / "sae"), make_sae(tmp_path / "wide", width=WIDTH + 1)
    moved = make_sae(tmp_path / "moved", seed=1)
    key, wide_key, moved_key = (world.store.put_sae(s) for s in (sae, wide, moved))
    shutil.rmtree(tmp_path / "moved")
    make_sae(tmp_path / "moved", seed=2)

    def computed(name: str, *, count: int = 5, spoil: bool = False) -> str:
        streams = [residuals(ids, layer) for layer in range(LAYERS)]
        if spoil:
            streams[1][2, 3] = float("nan")
        text = Text(name, streams, 5, None, Ticket(capture=(1,), pooled=True, id=name))
        world.step([(text, count)], gone={t for t in world.steering.lanes if t != name}, new={name})
        return name

    def fails(key: Any, *names: str) -> str:
        answer = pool(world.steering, names, key, 1)
        assert set(answer) == {"error"} and kept(world) == 0
        with pytest.raises((cs.InputError, EngineError)) as error:
            pooling.maxima_of([{}, answer])
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "no SAE is known" in fails("0" * 32, computed("a"))
    for path in ("../sae", str(tmp_path / "sae"), "", 7):
        assert "no fingerprint" in fails(path, computed(f"p{path}"))
    assert "9 wide" in fails(wide_key, computed("b"))
    assert "holds another SAE" in fails(moved_key, computed("c"))
    assert "knows nothing" in fails(key, computed("d"), "never heard of")
    assert "3 of the 5 positions" in fails(key, computed("e", count=3))
    assert "NaN" in fails(key, computed("f", spoil=True))
    monkeypatch.setattr(type(sae), "encoder_block", lambda *a, **k: 1 / 0)
    assert "division" in fails(key, computed("g"))
    monkeypatch.undo()
    assert pool(world.steering, [computed("h")], None, 1) == {} and kept(world) == 0
    assert set(pool(world.steering, [computed("i")], key, 1)) == {"maxima"}
    with pytest.raises(EngineError, match="no worker holds"):
        pooling.maxima_of([{}, {}])


def test_a_text_that_fails_fails_the_call_and_frees_the_others(
    session: Session, worlds: list[World], tmp_path: Path
) -> None:
    sae, session.llm.hurt = make_sae(tmp_path / "sae"), {7}
    with pytest.raises(cs.InputError, match="out of luck"):
        pooled(session, sae)
    for world in worlds:
        assert kept(world) == 0
    session.llm.hurt = set()
    np.testing.assert_allclose(pooled(session, sae), expected(sae), **CLOSE)


def test_what_cannot_be_pooled_is_refused_before_anything_is_computed(session: Session, tmp_path: Path) -> None:
    sae = make_sae(tmp_path / "sae")
    topk = make_sae(tmp_path / "topk", architecture="topk", k=4)
    for texts, given, options, words in (
        (TEXTS, topk, {}, "TopK"),
        (TEXTS, make_sae(tmp_path / "wide", width=5), {}, "5 wide"),
        (TEXTS, sae, {"layer": 0}, "capture_layers"),
        (TEXTS, sae, {"layer": 9}, "layers 0..1"),
        (TEXTS, sae, {"layer": "1"}, "whole number"),
        ([[1, 2], [3]], sae, {}, "text 1 has no position"),
        ("a text", sae, {}, "list of texts"),
        ([[1, VOCAB]], sae, {}, "token ids"),
    ):
        with pytest.raises(cs.InputError, match=words):
            pooled(session, given, texts, **options)
    assert session.llm.called == [] and session.llm.most == 0


# by URL --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def url(session: Session) -> Iterator[str]:
    """The plugin's endpoint over the session, listening."""
    endpoint, app = SteerEndpoint(), Starlette()
    endpoint.session = session
    endpoint.attach_router(app)
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([door],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=10)


def knows(session: Session, *keys: str) -> None:
    """Make the server one that was started with these SAEs."""
    session.facts.more.update(template_hash=None, saes=list(keys))


def far(url: str, sae: Any, **options: Any) -> tuple[np.ndarray, list[str]]:
    """Maxima by URL and the SAEs that the engine says servers pool."""
    with load_remote([url]) as engine:
        return asyncio.run(engine.max_activations(TEXTS, sae, **options)), engine.describe()["saes"]


def test_a_server_pools_the_saes_that_it_was_started_with(session: Session, url: str, tmp_path: Path) -> None:
    sae = make_sae(tmp_path / "sae")
    knows(session, session.store.put_sae(sae))
    got, saes = far(url, sae)
    np.testing.assert_allclose(got, expected(sae), **CLOSE)
    assert saes == [sae.fingerprint]
    assert session.llm.asked("countersteer_pool") == 3 and session.llm.asked("countersteer_collect") == 0
    with pytest.raises(cs.RefusedError, match="capture_layers"):
        far(url, sae, layer=0)


def test_a_server_without_the_sae_hands_out_residuals(session: Session, url: str, tmp_path: Path) -> None:
    sae = make_sae(tmp_path / "sae")
    knows(session)
    got, saes = far(url, sae)
    np.testing.assert_allclose(got, expected(sae), **CLOSE)
    assert saes == [] and session.llm.asked("countersteer_pool") == 0 and session.llm.asked("countersteer_collect") > 0
    assert not session.store.saes()  # nobody can register one over HTTP


def test_a_server_that_was_started_again_without_the_sae_hands_out_residuals(
    session: Session, url: str, tmp_path: Path
) -> None:
    sae = make_sae(tmp_path / "sae")
    knows(session, sae.fingerprint)  # what the client was told; the server's store knows nothing of it
    with load_remote([url]) as engine:
        knows(session)
        got = asyncio.run(engine.max_activations(TEXTS, sae))
    np.testing.assert_allclose(got, expected(sae), **CLOSE)
    assert session.llm.asked("countersteer_pool") == 0


def test_requests_name_saes_by_content_and_never_a_path(
    session: Session, url: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(served, "MAX_MAXIMA", 4 * LATENTS * 3)
    key = session.store.put_sae(make_sae(tmp_path / "sae"))
    for body, words in (
        ({"sae": "../../sae"}, "no fingerprint"),
        ({"sae": str(tmp_path / "sae")}, "no fingerprint"),
        ({"sae": None}, "no fingerprint"),
        ({"sae": "0" * 32}, "no SAE is known"),
        ({"sae": key, "inputs": [[1, 2]] * 4}, "too large an answer"),
        ({"sae": key, "inputs": [7]}, "list of texts"),
        ({"sae": key, "inputs": "text"}, "list of texts"),
        ({"sae": key, "layer": True}, "whole number"),
        ({"sae": key, "layer": 0}, "capture layers"),
    ):
        answer = httpx.post(f"{url}/v1/countersteer/pool", json={"inputs": [[1, 2, 3]], **body}, timeout=60)
        assert answer.status_code == 400 and words in answer.json()["error"]["message"], (body, answer.text)
    assert session.llm.called == []


def test_a_server_is_started_with_saes_and_captures_their_layers(tmp_path: Path) -> None:
    sae = make_sae(tmp_path / "sae")
    make_sae(tmp_path / "topk", architecture="topk", k=4)
    command, environment = server_command("m", saes=[tmp_path / "sae"], capture_layers=[3])
    assert json.loads(command[command.index("--additional-config") + 1])["countersteer"]["capture"] == [1, 3]
    store = Store(environment["COUNTERSTEER_STORE"])
    assert store.saes() == [sae.fingerprint] and store.sae(sae.fingerprint).folder == tmp_path / "sae"
    assert str(tmp_path) not in " ".join(command).replace(environment["COUNTERSTEER_STORE"], "")
    with pytest.raises(cs.RefusedError, match="TopK"):
        server_command("m", saes=[tmp_path / "topk"])
    with pytest.raises(cs.InputError, match="no SAE folder"):
        server_command("m", saes=[tmp_path / "none"])


def test_an_sae_of_another_width_ends_the_start(session: Session, tmp_path: Path, monkeypatch: Any) -> None:
    async def workers(llm: Any, store: Any) -> list[Any]:
        return []

    knows(session)
    monkeypatch.setenv("COUNTERSTEER_STORE", str(session.store.folder))
    monkeypatch.setenv("COUNTERSTEER_SHAPE", "")
    monkeypatch.setattr(served, "read_facts", lambda *given: session.facts)
    monkeypatch.setattr(Session, "workers", workers)
    settings = {"countersteer": session.settings.to_dict()}
    config = SimpleNamespace(additional_config=settings, model_config=SimpleNamespace(model="m"))
    client, endpoint = SimpleNamespace(vllm_config=config), SteerEndpoint()
    good = session.store.put_sae(make_sae(tmp_path / "sae"))
    asyncio.run(endpoint.init_state(client, SimpleNamespace(), SimpleNamespace()))
    assert endpoint.session is not None and describe(endpoint.session.facts, session.settings)["saes"] == [good]
    session.store.put_sae(make_sae(tmp_path / "wide", width=WIDTH + 1))
    with pytest.raises(cs.InputError, match="9 wide but m is 8 wide"):
        asyncio.run(endpoint.init_state(client, SimpleNamespace(), SimpleNamespace()))


def test_the_embedded_engine_is_not_given_saes(capsys: Any) -> None:
    for more in ([], ["--engine", "vllm", "--bundle", "b"]):
        with pytest.raises(SystemExit) as done:
            main(["serve", "organism", "--sae", "organism", *more])
        error = capsys.readouterr().err.strip()
        assert done.value.code == 2 and "--sae: not with" in error and "\n" not in error
