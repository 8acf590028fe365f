"""The parts that need no vLLM: the layer operation, the ledger of rows, tickets, the store, the wire."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import countersteer as cs
from countersteer.core.errors import EngineError
from countersteer.core.request import Completion, EditReceipt, LayerReceipt, Receipt
from countersteer.edits.vectors import read_rows
from countersteer.engines.vllm.lanes import Lane, open_
from countersteer.engines.vllm.plan import Ledger, Piece, check_fits, pieces_of
from countersteer.engines.vllm.settings import Settings
from countersteer.engines.vllm.store import Store
from countersteer.engines.vllm.ticket import Ticket
from countersteer.engines.vllm.unit import Index, Sums, Unit
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


PROMPT, LENGTH = 4, 7


class Batch:
    """One layer's tables and tokens of several lanes in random order; `lanes`: lane -> which of `steers`."""

    def __init__(self, steers: Sequence[cs.Intervention | None], lanes: dict[int, int], *, parts: int = 3) -> None:
        self.settings = Settings(rows=(8, 2), reads=2, lanes=8, parts=parts)
        self.index = Index(64, torch.device("cpu"))
        self.unit = Unit(self.index, self.settings, d_model=WIDTH, dtype=torch.float32, editable=True, capture=True)
        self.steers, self.which, ledger = steers, lanes, Ledger(self.settings)
        self.lanes = {}
        for lane, number in lanes.items():
            if (steer := steers[number]) is not None:
                self.lanes[lane] = Lane(lane, Ticket(), PROMPT, ledger.reserve(str(lane), pieces_of(steer)))
        open_({0: self.unit}, list(self.lanes.values()))
        self.tokens = [(lane, position) for lane in lanes for position in range(LENGTH)]
        random.Random(1).shuffle(self.tokens)
        n = len(self.tokens)
        self.index.at[:2, :n] = torch.tensor([t[0] for t in self.tokens])
        self.index.at[2, :n] = torch.tensor([t[1] for t in self.tokens])
        g = torch.Generator().manual_seed(0)
        self.hidden, self.residual = torch.randn(2, n, WIDTH, generator=g)

    def rows_of(self, lane: int) -> list[int]:
        """The tokens of a lane, by position."""
        return [i for _, i in sorted((p, i) for i, (owner, p) in enumerate(self.tokens) if owner == lane)]

    def sums(self, lane: int) -> Sums:
        return Sums(self.unit.measured(torch.tensor([lane]))[0].tolist(), self.settings)


def test_the_layer_operation_is_the_formula_for_every_request_of_a_mixed_batch() -> None:
    batch = Batch([*some(), None], {3: 0, 1: 1, 7: 2, 2: 3, 8: 4, 0: 5})
    out = batch.unit((batch.hidden, batch.residual))
    stream, before = out[0] + out[1], batch.hidden + batch.residual
    for lane, which in batch.which.items():
        steer, rows = batch.steers[which], torch.tensor(batch.rows_of(lane))
        h = before[rows].double()
        want = cs.edits.apply(h, steer.edits, layer=0, prompt_tokens=PROMPT) if steer is not None else h
        torch.testing.assert_close(stream[rows].double(), want, rtol=1e-5, atol=1e-5)
        changed = (want != h).any(1)
        if steer is not None:
            spans = [range(*e.span.bounds(PROMPT)) for e in steer.edits]
            seen, acted = batch.sums(lane).layer[:2]
            assert seen == sum(any(p in s for s in spans) for p in range(LENGTH))
            assert acted == int(changed.sum())
        for at, same in ((out[0], batch.hidden), (out[1], batch.residual)):
            assert torch.equal(at[rows[~changed]], same[rows[~changed]])
    assert torch.equal(batch.unit.taken[: len(stream)], stream)


def test_each_edit_of_a_layer_is_measured_by_itself() -> None:
    d = [cs.direction(vector(i), layer=0) for i in range(3)]
    lost = cs.add(cs.direction([1e-12] * WIDTH, layer=0), 1.0).span("from(2)")  # rounds away in float32
    steer = lost + cs.limit(d[1], low=-0.1, high=0.1) + cs.add(d[2], 0.7).span("response")
    batch = Batch([steer, cs.add(d[0], 1.0)], {4: 0, 1: 1})
    h = (batch.hidden + batch.residual)[batch.rows_of(4)]
    batch.unit((batch.hidden, batch.residual))
    for piece, rows in batch.lanes[4].edits_at(0):
        assert piece.edit is not None
        alone = cs.edits.apply(h, (piece.edit,), layer=0, prompt_tokens=PROMPT)
        inside = torch.tensor([p in range(*piece.edit.span.bounds(PROMPT)) for p in range(LENGTH)])
        moved = (alone - h).norm(dim=1) / h.norm(dim=1)
        seen, changed, total = batch.sums(4).edit(piece.stage, piece.part, rows)["own"]
        assert (seen, changed) == (int(inside.sum()), int((alone != h).any(1).sum())), piece.edit
        assert total == pytest.approx(float(moved[1:].sum()), rel=1e-5)
        if piece.edit.span == lost.edits[0].span:
            assert changed == 0 and seen == LENGTH - 2
    with pytest.raises(cs.RefusedError, match="parts >= 3"):
        check_fits(pieces_of(steer), Settings(parts=2), n_layers=1, d_model=WIDTH)


def test_what_is_only_measured_changes_nothing_and_has_the_same_receipt() -> None:
    steer, lanes = some()[3], {2: 0, 5: 0}
    batch, acting = Batch([steer], lanes), Batch([steer], lanes)
    rows = batch.rows_of(2)
    batch.index.at[3, rows] = 1
    out, other = (b.unit((b.hidden, b.residual)) for b in (batch, acting))
    assert torch.equal(out[0][rows], batch.hidden[rows]) and torch.equal(out[1][rows], batch.residual[rows])
    assert not torch.equal(other[0][rows], batch.hidden[rows])
    assert torch.equal(out[0][batch.rows_of(5)], other[0][batch.rows_of(5)])
    assert batch.sums(2).values == acting.sums(2).values and batch.sums(2).layer[1] > 0
    assert torch.equal(batch.unit.taken[rows], (batch.hidden + batch.residual)[rows])


def test_equal_content_is_one_whatever_the_order_of_mention() -> None:
    a, b, c = cs.add(cs.direction(vector(1), layer=0), 2.0), cs.remove(cs.direction(vector(2), layer=0)), some()[4]
    one, other = a + b + c, c + b + a
    assert one.fingerprint == other.fingerprint
    assert [p.key for p in pieces_of(one)] == [p.key for p in pieces_of(other)]
    assert [p.part for p in pieces_of(one)] == [0, 1, 2]


def test_numbers_beyond_float32_are_refused() -> None:
    huge = cs.add(cs.direction(torch.full((WIDTH,), 1e200, dtype=torch.float64), layer=0), 1.0)
    with pytest.raises(cs.InputError, match="beyond float32"):
        check_fits(pieces_of(huge), Settings(), n_layers=1, d_model=WIDTH)


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
    [
        3,
        {"steer": 5},
        {"capture": "x"},
        {"capture": [True]},
        {"other": 1},
        "{broken",
        {"reduce": "sum"},
        {"id": ""},
        {"only": 1},
        {"exempt": "tool_call"},
        {"exempt": [["x"]]},
        {"exempt": ["fence"]},
    ],
)
def test_wrong_tickets_are_one_line(value: object) -> None:
    with pytest.raises(cs.InputError) as error:
        Ticket.of({"countersteer": value})
    assert "\n" not in str(error.value)


def test_tickets_survive_the_trip() -> None:
    ticket = Ticket(
        steer="a", only=True, exempt=("tool_call",), reads="b", capture=(1, 2), reduce="max", start=3, stop=9, id="c"
    )
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
    own = (EditReceipt("add", 5, 4, 0.5, (1.0,)), EditReceipt("limit", 3, 0, None, (), True))
    layer = LayerReceipt("resid_post.1", 5, 4, 0.5, 0.75, (1.0,), (2.0,), None, True, own)
    done = Completion("text", (1, 2), 3, "stop", Receipt((layer,), "vllm-1", ("note",)), np.ones((4, 2), np.float32))
    got = completion_from_json(completion_to_json(done))
    assert (got.text, got.tokens, got.receipt) == (done.text, done.tokens, done.receipt)
    assert np.array_equal(got.readouts, done.readouts)
    for error in (cs.InputError("a"), cs.RefusedError("a", "b", "c"), cs.NoOpError("n", done), EngineError("e")):
        again = error_from_json(error_to_json(error))
        assert type(again) is type(error) and str(again) == str(error)
    assert isinstance(error_from_json({"kind": "nearest", "message": "x"}), EngineError)


@pytest.mark.parametrize(("width", "rows", "lanes", "tokens"), [(4096, 128, 512, 8192), (512, 64, 64, 512)])
def test_tables_take_the_memory_that_the_docs_state(width: int, rows: int, lanes: int, tokens: int) -> None:
    index = Index(tokens, torch.device("meta"))
    settings = Settings(rows=(rows,), lanes=lanes)
    unit = Unit(index, settings, d_model=width, dtype=torch.bfloat16, editable=True, capture=True)
    taken = sum(b.nbytes for name, b in unit.named_buffers() if not name.startswith("index"))
    stated = 4 * rows * (2 * width + 5 * lanes) + 4 * settings.reads * (width + tokens) + tokens * width * 2
    assert taken == pytest.approx(stated, rel=0.015)
