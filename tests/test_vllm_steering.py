"""A worker's book-keeping without vLLM: chunks, reordered batches, cached beginnings, recomputed positions, failures.

The layers pass on given streams, so what every position of every request looks like is known in advance.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import countersteer as cs
from countersteer.core.errors import EngineError
from countersteer.edits.vectors import read_rows
from countersteer.engines.vllm.measured import merge, problem_of, readouts_of, receipt_of
from countersteer.engines.vllm.ticket import Ticket
from helpers_vllm import LAYERS, WIDTH, Text, World, direction


def steers() -> list[cs.Intervention]:
    return [
        cs.add(direction(1, 0), 3.0).span("prompt") + cs.remove(direction(2, 1)).span("generation"),
        cs.limit(direction(3, 1), low=-0.2, high=0.2) + cs.add(direction(4, 1), 1.0).order(1),
        cs.to_target(direction(5, 0), boundary=0.5, target=1.0).span("response"),
    ]


def edited(text: Text, number: int) -> Tensor:
    """h' of a text at a layer, by the reference arithmetic."""
    h = text.streams[number].double()
    if text.steer is None:
        return h
    return cs.edits.apply(h, text.steer.edits, layer=number, prompt_tokens=text.prompt)


def test_random_schedules_steer_and_measure_every_position_once(tmp_path: Path, monkeypatch: Any) -> None:
    draw, world = random.Random(4), World(tmp_path, monkeypatch)
    reads = read_rows([direction(8, 1), direction(9, 0)])
    key = world.store.put_reads(reads)
    waiting = []
    for i in range(40):
        steer = [*steers(), None][i % 4]
        more: dict[str, Any] = {"reads": key} if i % 3 == 0 else {}
        prompt = draw.randint(2, 9)
        waiting.append(
            world.text(f"t{i}", length=prompt + draw.randint(2, 6), prompt=prompt, seed=i, steer=steer, **more)
        )
    everything, running, gone, new = list(waiting), [], set(), set()
    while waiting or running:
        while waiting and len(running) < 5:
            running.append(waiting.pop())
            new.add(running[-1].id)
        draw.shuffle(running)
        if draw.random() < 0.15:  # preempted: everything is computed again from the start
            again = draw.choice(running)
            if again.id not in new:
                again.computed = 0
                world.out[again.id] = [[] for _ in range(LAYERS)]
        batch = [
            (t, min(draw.randint(1, 5) if t.computed < t.prompt else 1, len(t.streams[0]) - t.computed))
            for t in running
        ]
        world.step(batch, gone=gone, new=new)
        gone, new = {t.id for t in running if t.computed == len(t.streams[0])}, set()
        running = [t for t in running if t.id not in gone]
    world.steering.begin(gone, [])
    assert not world.steering.lanes and sorted(world.steering.free) == list(range(1, 7))
    asked = [t.id for t in everything[::2] if t.ticket is not None]
    together = dict(zip(asked, world.steering.collect(asked), strict=True))  # lanes' numbers were used several times
    for text in everything:
        for number in range(LAYERS):
            torch.testing.assert_close(
                torch.cat(world.out[text.id][number]).double(), edited(text, number), rtol=1e-5, atol=1e-5
            )
        if text.ticket is None:
            continue
        measured = merge([together[text.id]]) if text.id in together else world.measured(text.id)
        assert (measured.first, measured.computed) == (0, len(text.streams[0]))
        receipt = receipt_of(text.steer, measured, prompt_tokens=text.prompt, family="f")
        for entry in receipt.layers:
            number = int(entry.site.split(".")[1])
            h, after = text.streams[number].double(), edited(text, number)
            assert text.steer is not None
            here = [e for e in text.steer.edits if e.site.layer == number]
            inside = [any(p in range(*e.span.bounds(text.prompt)) for e in here) for p in range(len(h))]
            relative = ((after - h).norm(dim=1) / h.norm(dim=1))[torch.tensor(inside) & (torch.arange(len(h)) > 0)]
            assert entry.tokens_seen == sum(inside)
            assert entry.tokens_changed == int((after != h).any(1).sum())
            assert entry.mean_relative == pytest.approx(float(relative.mean()), abs=1e-5)
            assert entry.max_relative == pytest.approx(float(relative.max()), abs=1e-5)
        if text.ticket.reads:
            unit = [torch.nn.functional.normalize(r.read[0], dim=0) for r in reads]
            want = torch.stack([edited(text, 1) @ unit[0], edited(text, 0) @ unit[1]], 1)
            torch.testing.assert_close(readouts_of(reads, measured).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduce", ["none", "max", "mean"])
def test_captures_are_of_the_span_whatever_the_chunks(reduce: str, tmp_path: Path, monkeypatch: Any) -> None:
    world = World(tmp_path, monkeypatch)
    for chunk in (1, 3, 4, 11):
        for start, stop in ((0, None), (2, 9), (10, None), (0, 3)):
            name = f"{chunk}-{start}-{stop}"
            text = world.text(
                name, length=11, prompt=11, seed=chunk, capture=(1,), reduce=reduce, start=start, stop=stop
            )
            first = True
            while text.computed < 11:
                world.step([(text, min(chunk, 11 - text.computed))], new={name} if first else set())
                first = False
            h = text.streams[1].double()
            rows = h[start:stop] if reduce == "none" else h[max(start, 1) : stop]
            want = {"none": rows, "max": rows.amax(0), "mean": rows.mean(0)}[reduce]
            got = world.measured(name).arrays["capture.1"].double()
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
            world.steering.begin({name}, [])


def test_positions_from_the_prefix_cache_are_not_measured_and_said_so(tmp_path: Path, monkeypatch: Any) -> None:
    world = World(tmp_path, monkeypatch)
    steer = cs.add(direction(1, 0), 1.0).span("prompt")
    text = world.text("a", length=10, prompt=8, seed=1, steer=steer)
    text.computed = 5
    world.step([(text, 3)], new={"a"})
    world.step([(text, 1)])
    measured = world.measured("a")
    receipt = receipt_of(steer, measured, prompt_tokens=8, family="f")
    assert receipt.layers[0].tokens_seen == receipt.layers[0].tokens_changed == 3
    assert "0..4" in receipt.notes[0] and problem_of(steer, receipt, measured, prompt_tokens=8) is None


def test_what_goes_wrong_is_an_error_of_that_request_only(tmp_path: Path, monkeypatch: Any) -> None:
    world = World(tmp_path, monkeypatch)
    good = world.text("good", length=6, prompt=3, seed=1, steer=steers()[0])
    bad = [Ticket(steer="0" * 32, id="b0"), Ticket(steer="nobody", id="b1"), Ticket(reads="f" * 32, id="b2")]
    wide = cs.ablate([cs.edits.Latent(i, cs.Site(0), [1.0] * WIDTH, 0.0, [float(i)] * WIDTH) for i in range(1, 9)])
    bad.append(Ticket(steer=world.store.put(wide), id="b3"))
    world.steering.begin(set(), [(t.id or "", t.to_args(), 3) for t in bad])
    world.steering.begin(set(), [("b4", {"countersteer": {"steer": 7}}, 3)])
    world.step([(good, 6)], new={"good"})
    torch.testing.assert_close(torch.cat(world.out["good"][0]).double(), edited(good, 0), rtol=1e-5, atol=1e-5)
    for ticket in bad:
        assert ticket.id is not None
        with pytest.raises(EngineError, match="not steered"):
            world.measured(ticket.id)
    with pytest.raises(EngineError, match="nothing of the request"):
        world.measured("never heard of")
    assert set(world.steering.lanes) == {"good"}
