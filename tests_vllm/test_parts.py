"""The parts that need no vLLM: the layer operation, the ledger of rows, tickets, the store, the wire."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import countersteer as cs
from countersteer.core.errors import EngineError
from countersteer.core.request import Completion, LayerReceipt, Receipt
from countersteer.edits.vectors import read_rows
from countersteer.engines.vllm.plan import Ledger, Piece, pieces_of
from countersteer.engines.vllm.settings import Settings
from countersteer.engines.vllm.store import Store
from countersteer.engines.vllm.ticket import Ticket
from countersteer.engines.vllm.unit import CHANGED, SEEN, Index, Unit
from countersteer.engines.vllm.wire import (
    completion_from_json,
    completion_to_json,
    error_from_json,
    error_to_json,
    reads_from_bytes,
    reads_to_bytes,
)

WIDTH = 16


def vector(seed: int) -> list[float]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(WIDTH, generator=g).tolist()


def some() -> list[cs.Intervention]:
    d = [cs.direction(vector(i), layer=0) for i in range(6)]
    return [
        cs.add(d[0], 2.0).span("prompt"),
        cs.remove(d[1]),
        cs.to_target(d[2], boundary=0.2, target=1.5).span("from(2)"),
        cs.add(d[3], -1.0) + cs.add(d[3], -1.0) + cs.limit(d[4], low=-0.1, high=0.1).span("until(3)").order(1),
        cs.gated_add(d[5], 3.0, gate=d[0], threshold=0.0).span("response"),
    ]


def test_the_layer_operation_is_the_formula_for_every_request_of_a_mixed_batch() -> None:
    torch.manual_seed(0)
    settings = Settings(rows=(8, 2), reads=2, lanes=8)
    index = Index(64, torch.device("cpu"))
    unit = Unit(index, settings, d_model=WIDTH, dtype=torch.float32, editable=True, capture=True)
    ledger, prompt, steers = Ledger(settings), 4, [*some(), None]
    lanes = {3: 0, 1: 1, 7: 2, 2: 3, 8: 4, 0: 5}
    for lane, which in lanes.items():
        if steers[which] is None:
            continue
        unit.open(lane)
        for piece, rows, new in ledger.reserve(str(lane), pieces_of(steers[which])):
            assert piece.edit is not None
            if new:
                unit.tables[piece.stage].put(rows, piece.edit)
            unit.tables[piece.stage].switch(lane, rows, piece.edit.span.bounds(prompt))
    tokens = [(lane, position) for lane in lanes for position in range(7)]
    random.Random(1).shuffle(tokens)
    n = len(tokens)
    index.at[0, :n] = index.at[1, :n] = torch.tensor([t[0] for t in tokens])
    index.at[2, :n] = torch.tensor([t[1] for t in tokens])
    hidden, residual = torch.randn(n, WIDTH), torch.randn(n, WIDTH)
    out = unit((hidden, residual))
    stream, before = out[0] + out[1], hidden + residual
    for lane, which in lanes.items():
        steer = steers[which]
        at = sorted((p, i) for i, (owner, p) in enumerate(tokens) if owner == lane)
        rows = torch.tensor([i for _, i in at])
        h = before[rows].double()
        want = cs.edits.apply(h, steer.edits, layer=0, prompt_tokens=prompt) if steer is not None else h
        torch.testing.assert_close(stream[rows].double(), want, rtol=1e-5, atol=1e-5)
        changed = (want != h).any(1)
        if steer is not None:
            spans = [range(*e.span.bounds(prompt)) for e in steer.edits]
            assert unit.stats[lane, SEEN] == sum(any(p in s for s in spans) for p in range(7))
            assert unit.stats[lane, CHANGED] == int(changed.sum())
        untouched = rows[~changed]
        assert torch.equal(out[0][untouched], hidden[untouched]) and torch.equal(out[1][untouched], residual[untouched])
    assert torch.equal(unit.taken[:n], stream)


def test_the_ledger_never_gives_a_row_to_two_contents() -> None:
    draw, settings = random.Random(5), Settings(rows=(7,), lanes=5)
    ledger, owners = Ledger(settings), {}
    for step in range(3000):
        user, keys = str(step), [draw.choice("abcdef") for _ in range(draw.randint(1, 2))]
        pieces = tuple(Piece(0, 0, k, 1 + "abcdef".index(k) % 3) for k in dict.fromkeys(keys))
        if ledger.fits(pieces):
            owners[user] = {p.key: rows for p, rows, _ in ledger.reserve(user, pieces)}
        else:
            new = {p.key: p.rows for p in pieces if all(p.key not in o for o in owners.values())}
            used = {k: len(r) for o in owners.values() for k, r in o.items()}
            assert sum(new.values()) + sum(used.values()) > 7 or len(owners) >= 5
        if owners and (draw.random() < 0.5 or len(owners) >= 5):
            gone = draw.choice(sorted(owners))
            ledger.release(gone)
            del owners[gone]
        held = {k: tuple(r) for o in owners.values() for k, r in o.items()}
        for o in owners.values():
            assert all(tuple(r) == held[k] for k, r in o.items())
        assert max(Counter(r for rows in held.values() for r in rows).values(), default=1) == 1
    for user in list(owners):
        ledger.release(user)
    assert sorted(ledger.tables[0, 0].free) == list(range(7)) and not ledger.tables[0, 0].held


@pytest.mark.parametrize(
    "value",
    [3, {"steer": 5}, {"capture": "x"}, {"capture": [True]}, {"other": 1}, "{broken", {"reduce": "sum"}, {"id": ""}],
)
def test_wrong_tickets_are_one_line(value: object) -> None:
    with pytest.raises(cs.InputError) as error:
        Ticket.of({"countersteer": value})
    assert "\n" not in str(error.value)


def test_tickets_survive_the_trip() -> None:
    ticket = Ticket(steer="a", reads="b", capture=(1, 2), reduce="max", start=3, stop=9, id="c")
    assert Ticket.of(ticket.to_args()) == ticket
    assert Ticket.of({"countersteer": "warm"}) == Ticket(steer="warm") and Ticket.of({}) is None


def test_a_store_is_the_same_for_every_process_and_its_names_never_change(tmp_path: Path) -> None:
    one, other = Store(tmp_path), Store(tmp_path)
    steer, second = some()[0], some()[1]
    key = one.put(steer)
    assert other.get(key).fingerprint == steer.fingerprint == key
    one.name("warm", key)
    one.name("warm", key)
    assert other.get("warm").fingerprint == key
    with pytest.raises(cs.InputError, match="taken"):
        other.name("warm", other.put(second))
    for bad in ("../x", "", "a/b", "0" * 32, "missing"):
        with pytest.raises(cs.InputError):
            other.get(bad)
    groups = read_rows([cs.direction(vector(1), layer=2), cs.direction(vector(2), layer=0)])
    again = other.reads(one.put_reads(groups))
    assert [g.site for g in again] == [g.site for g in groups]
    assert all(torch.equal(a.read, b.read) for a, b in zip(again, groups, strict=True))


def test_what_travels_comes_back_the_same() -> None:
    groups = read_rows(
        [cs.direction(vector(1), layer=2), cs.edits.Latent(3, cs.Site(0), vector(2), 0.5, vector(3), threshold=0.25)]
    )
    back = reads_from_bytes(reads_to_bytes(groups), [str(g.site) for g in groups])
    assert all(torch.equal(a.threshold, b.threshold) for a, b in zip(back, groups, strict=True))
    layer = LayerReceipt("resid_post.1", 5, 4, 0.5, 0.75, (1.0,), (2.0,), None, True)
    done = Completion("text", (1, 2), 3, "stop", Receipt((layer,), "vllm-1", ("note",)), np.ones((4, 2), np.float32))
    got = completion_from_json(completion_to_json(done))
    assert (got.text, got.tokens, got.receipt) == (done.text, done.tokens, done.receipt)
    assert np.array_equal(got.readouts, done.readouts)
    for error in (cs.InputError("a"), cs.RefusedError("a", "b", "c"), cs.NoOpError("n", done), EngineError("e")):
        again = error_from_json(error_to_json(error))
        assert type(again) is type(error) and str(again) == str(error)
    assert isinstance(error_from_json({"kind": "nearest", "message": "x"}), EngineError)
