"""No cross-talk: whatever else is in flight, a request's tokens are those it has alone.

What each request gives alone is computed once, by plain hooks on full passes; then hypothesis draws schedules in which
requests arrive, finish and are cancelled at random times, and every survivor is compared token for token.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import countersteer as cs
from countersteer.core.errors import EngineError
from helpers_cases import METHODS, Maker
from helpers_models import VOCAB, tiny
from helpers_reference import reference

POOL = 90
SPANS = ("all", "prompt", "response", "generation", "from(5)", "until(3)")
SIZES = {
    "llama": {"num_hidden_layers": 2},
    "gemma3": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
}


@lru_cache(maxsize=2)
def pool(name: str) -> tuple[Any, tuple[cs.Request, ...], tuple[tuple[int, ...], ...], tuple[tuple[int, int], ...]]:
    """A model, requests of every kind, and per request the tokens and (seen, changed) that it has alone."""
    model = tiny(name, seed=5, **SIZES[name])
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, VOCAB, size=int(n)).tolist() for n in rng.integers(1, 25, size=POOL)]
    makers = [Maker(model, layer, rng.integers(3, VOCAB, size=31).tolist()) for layer in (0, 1)]
    requests, alone, counts = [], [], []
    for i, text in enumerate(texts):
        sampling = cs.Sampling(
            temperature=(0.0, 1.0, 1.5)[i % 3],
            top_k=(0, 10)[i % 2],
            top_p=(1.0, 0.8)[(i // 2) % 2],
            repetition_penalty=(1.0, 1.0, 1.3)[(i // 3) % 3],
            seed=i,
            max_tokens=int(rng.integers(2, 12)),
        )
        steer, writes = None, []
        for j in range(int(rng.integers(0, 4))):
            # several requests share a vector, others have their own
            part, write = makers[(i + j) % 2].make(METHODS[int(rng.integers(12))], seed=int(rng.integers(5)))
            span = "generation" if j == 0 else SPANS[int(rng.integers(len(SPANS)))]
            try:
                steer = part.span(span).order(j) if steer is None else steer + part.span(span).order(j)
            except cs.RefusedError:
                break
            writes.append(replace(write, span=span, order=j))
        requests.append(cs.Request(tokens=tuple(text), intervention=steer, sampling=sampling))
        alone.append(tuple(reference(model, text, writes, sampling=sampling)))
    with cs.load_engine(model, places=1) as engine:
        for out, expected in zip(engine.run(requests, errors="return"), alone, strict=True):
            done = out.completion if isinstance(out, cs.NoOpError) else out
            assert done.tokens == expected
            layers = done.receipt.layers
            counts.append((sum(r.tokens_seen for r in layers), sum(r.tokens_changed for r in layers)))
    return model, tuple(requests), tuple(alone), tuple(counts)


async def follow(engine: Any, request: cs.Request, wait: float, leave: int | None) -> Any:
    """One client: waits, asks, and perhaps leaves after some pieces (or at once)."""
    await asyncio.sleep(wait)
    if leave is None:
        try:
            return await engine.generate(request)
        except cs.NoOpError as error:
            return error.completion
    if leave == 0:
        task = asyncio.create_task(engine.generate(request))
        await asyncio.sleep(wait / 3)
        task.cancel()
        try:
            await task
        except (asyncio.CancelledError, cs.NoOpError):
            return None
        return None
    stream = engine.stream(request)
    count = 0
    try:
        async for _ in stream:
            count += 1
            if count >= leave:
                break
    except cs.NoOpError:
        return None
    await stream.aclose()
    return None


CLIENT = st.tuples(
    st.integers(0, POOL - 1),
    st.floats(0, 0.03),
    st.one_of(st.none(), st.none(), st.none(), st.integers(0, 6)),
)
DONE: dict[str, int] = {"compared": 0, "left": 0}


def check_schedule(engine: Any, name: str, clients: list[tuple[int, float, int | None]]) -> None:
    _, requests, alone, counts = pool(name)

    async def everyone() -> list[Any]:
        return await asyncio.gather(*(follow(engine, requests[i], wait, leave) for i, wait, leave in clients))

    for (i, _, leave), done in zip(clients, asyncio.run(everyone()), strict=True):
        if leave is not None:
            DONE["left"] += 1
            continue
        DONE["compared"] += 1
        assert done.tokens == alone[i], f"request {i}: {done.tokens} instead of {alone[i]}"
        layers = done.receipt.layers
        assert (sum(r.tokens_seen for r in layers), sum(r.tokens_changed for r in layers)) == counts[i]


@pytest.mark.parametrize(("name", "places"), [("llama", 3), ("llama", 7), ("gemma3", 4)])
def test_requests_that_come_and_go_do_not_touch_each_other(name: str, places: int) -> None:
    model = pool(name)[0]
    with cs.load_engine(model, places=places) as engine:
        # no shrinking: what a schedule does depends on the clock, so a smaller one proves nothing
        @settings(max_examples=48, phases=(Phase.explicit, Phase.generate))
        @given(st.lists(CLIENT, min_size=10, max_size=45))
        def schedule(clients: list[tuple[int, float, int | None]]) -> None:
            check_schedule(engine, name, clients)

        schedule()
        assert engine.loop.active == [] and sorted(engine.loop.free) == list(range(places))
        for table in engine.hooks.tables.values():
            assert not table.active and not any(stage.held for stage in table.stages.values())


def test_thousands_were_compared() -> None:
    """Runs after the schedules above (same module, file order) and holds their number."""
    if DONE["compared"] == 0:
        for name, places in (("llama", 3), ("llama", 7), ("gemma3", 4)):
            test_requests_that_come_and_go_do_not_touch_each_other(name, places)
    assert DONE["compared"] >= 1200 and DONE["left"] >= 150, DONE


def test_clients_in_many_threads() -> None:
    """`run` from several threads at once, next to an event loop's streams."""
    model, requests, alone, _ = pool("llama")
    wrong: list[Any] = []
    with cs.load_engine(model, places=6) as engine:

        def client(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(6):
                some = rng.integers(POOL, size=int(rng.integers(1, 15))).tolist()
                outs = engine.run([requests[i] for i in some], errors="return")
                for i, out in zip(some, outs, strict=True):
                    done = out.completion if isinstance(out, cs.NoOpError) else out
                    if done.tokens != alone[i]:
                        wrong.append((i, done.tokens, alone[i]))

        threads = [threading.Thread(target=client, args=(s,)) for s in range(6)]
        for thread in threads:
            thread.start()
        check_schedule(engine, "llama", [(i, 0.01 * (i % 5), None if i % 3 else 2) for i in range(40)])
        for thread in threads:
            thread.join(120)
    assert not wrong


def test_forward_passes_between_requests_change_nothing() -> None:
    """Teacher-forced passes run on the same model, unsteered, while steered requests are in flight."""
    model, requests, alone, _ = pool("llama")
    text = list(range(3, 30))
    v = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept: list[torch.Tensor] = []
    handle = model.model.layers[1].register_forward_hook(lambda m, a, out: kept.append(out[0].clone()))
    with torch.inference_mode():
        model(input_ids=torch.tensor([text]), use_cache=False)
    handle.remove()
    wanted = kept[0] @ (v / v.norm())

    async def both(engine: Any) -> None:
        tasks = [asyncio.create_task(follow(engine, r, 0.001 * i, None)) for i, r in enumerate(requests)]
        for _ in range(20):
            (reads,) = await engine.forward([text], readouts=cs.direction(v, layer=1))
            torch.testing.assert_close(torch.as_tensor(reads)[:, 0], wanted, rtol=1e-5, atol=1e-5)
        for i, done in enumerate(await asyncio.gather(*tasks)):
            assert done.tokens == alone[i]

    with cs.load_engine(model, places=4) as engine:
        asyncio.run(both(engine))


def test_places_left_full_of_large_values_do_not_leak() -> None:
    """Every cached number is overwritten with a huge one between two rounds; only written positions may be read."""
    model, requests, alone, _ = pool("llama")
    with cs.load_engine(model, places=4) as engine:
        for poison in (1e30, -1e30, 0.0, 1e30):
            outs = engine.run(requests[:40], errors="return")
            for i, out in enumerate(outs):
                done = out.completion if isinstance(out, cs.NoOpError) else out
                assert done.tokens == alone[i]
            with torch.inference_mode():
                for layer in engine.loop.batch.cache.layers:
                    layer.keys.fill_(poison)
                    layer.values.fill_(poison)


def test_a_request_that_overflows_leaves_the_others_alone() -> None:
    """An absurd strength drives one request to infinities or NaN; its neighbours keep their tokens."""
    model, requests, alone, _ = pool("llama")
    v = torch.randn(32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mad = cs.Request(
        tokens=(5, 6, 7),
        intervention=cs.add(cs.direction(v, layer=0), 1e300) + cs.add(cs.direction(-v, layer=1), 1e308),
        sampling=cs.Sampling(temperature=0, max_tokens=12),
    )
    order = [r for pair in zip([mad] * 40, requests[:40], strict=True) for r in pair]
    with cs.load_engine(model, places=5) as engine:
        outs = engine.run(order, errors="return")
        assert all(isinstance(out, EngineError) for out in outs[::2])
        for i, out in enumerate(outs[1::2]):
            done = out.completion if isinstance(out, cs.NoOpError) else out
            assert done.tokens == alone[i]
        again = engine.run(requests[40:70], errors="return")
        for i, out in enumerate(again, start=40):
            done = out.completion if isinstance(out, cs.NoOpError) else out
            assert done.tokens == alone[i]


def test_closing_in_full_flight_tells_every_waiter() -> None:
    model, requests, _, _ = pool("llama")
    engine = cs.load_engine(model, places=2)
    futures = [engine.submit(r.with_(sampling=replace(r.sampling, max_tokens=60))) for r in requests]
    engine.close()
    for future in futures:
        error = future.exception(timeout=30)
        assert error is None or isinstance(error, EngineError | cs.NoOpError)
    assert any(isinstance(f.exception(), EngineError) for f in futures)
    with pytest.raises(EngineError, match="closed"):
        engine.run([requests[0]])
