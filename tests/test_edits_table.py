"""The mixed-batch table of edits against a token-by-token calculation in numpy, receipts included.

The reference below knows nothing of slots or row tables: it holds, per request, a list of plain writes with their
positions, and applies them to one token at a time in float64, rounding once per step of the order as the model would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

import countersteer as cs
from countersteer.core.span import Span
from countersteer.edits.table import RowTable

D = 10
LAYER = 3
SPANS = ("all", "prompt", "response", "generation", "from(2)", "from(9)", "until(3)", "until(1)")


def inside(span: str, p: int, prompt: int) -> bool:
    """Whether position p lies in a span, spelled out."""
    if span.startswith("from"):
        return p >= int(span[5:-1])
    if span.startswith("until"):
        return p < int(span[6:-1])
    return {"all": True, "prompt": p < prompt, "response": p >= prompt, "generation": p >= prompt - 1}[span]


@dataclass(frozen=True)
class Row:
    """One read and write: kind is how f follows from x = read . h + bias."""

    kind: str
    read: np.ndarray | None
    bias: float
    write: np.ndarray
    numbers: tuple[float, ...]

    def f(self, x: float) -> float:
        a = self.numbers
        if self.kind == "add":
            return a[0]
        if self.kind == "contextual":
            return a[0] * x
        if self.kind == "remove":
            return -x
        if self.kind == "clamp":
            return a[0] - (x if x > a[1] else 0.0)
        if self.kind == "limit":
            return min(max(x, a[0]), a[1]) - x
        if self.kind == "target":
            return a[1] - x if x < a[0] else 0.0
        if self.kind == "gated":
            return a[1] if x >= a[0] else 0.0
        raise AssertionError(self.kind)


@dataclass(frozen=True)
class Plain:
    """One edit as rows with a span and an order."""

    rows: tuple[Row, ...]
    span: str
    order: int
    setter: bool


@dataclass
class Tally:
    """What a receipt must say, summed token by token."""

    seen: int = 0
    changed: int = 0
    relative: list[float] = field(default_factory=list)
    before: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    after: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    missed: float = 0.0


def one_token(h: np.ndarray, p: int, prompt: int, edits: list[Plain], dtype: torch.dtype, tally: Tally) -> np.ndarray:
    """h' of one token, and its share of the receipt."""
    start, reached = h.copy(), False
    reads: list[tuple[tuple[int, int], Row, float, float, bool]] = []
    for order in sorted({e.order for e in edits}):
        total = np.zeros(D)
        for i, edit in enumerate(edits):
            if edit.order != order or not inside(edit.span, p, prompt):
                continue
            reached = True
            for j, row in enumerate(edit.rows):
                x = row.bias if row.read is None else float(row.read @ h) + row.bias
                f = row.f(x)
                total += f * row.write
                if row.read is not None:
                    reads.append(((i, j), row, x, f, edit.setter))
        if (total != 0).any():
            h = torch.tensor(h + total).to(dtype).double().numpy()
    if reached:
        tally.seen += 1
        tally.changed += int((h != start).any())
        if p > 0:
            tally.relative.append(float(np.linalg.norm(h - start) / np.linalg.norm(start)))
    for key, row, x, f, setter in reads:
        assert row.read is not None
        now = float(row.read @ h) + row.bias
        if p > 0:
            tally.before.setdefault(key, []).append(x)
            tally.after.setdefault(key, []).append(now)
        if setter and f != 0:
            tally.missed = max(tally.missed, abs(now - (x + f)))
    return h


def random_edit(rng: np.random.Generator, shared: list[np.ndarray]) -> tuple[cs.Intervention, Plain]:
    """An intervention of one edit and the same thing as plain rows."""
    v = shared[rng.integers(len(shared))] if rng.random() < 0.5 else rng.normal(size=D)
    c = rng.normal(size=D)
    u, g = v / np.linalg.norm(v), c / np.linalg.norm(c)
    d = cs.direction(v, layer=LAYER)
    span, order, s = str(rng.choice(SPANS)), int(rng.integers(3)), float(rng.uniform(0.5, 2))
    kind = str(rng.choice(["add", "contextual", "remove", "clamp", "limit", "target", "gated"]))
    setter = kind in ("remove", "limit", "target")
    if kind == "add":
        steer, rows = cs.add(d, s), [Row("add", None, 0.0, v, (s,))]
    elif kind == "contextual":
        steer = cs.contextual_add(d, weights=c, bias=0.2, strength=s)
        rows = [Row("contextual", c, 0.2, v, (s,))]
    elif kind == "remove":
        steer, rows = cs.remove(d), [Row("remove", u, 0.0, u, ())]
    elif kind == "limit":
        steer, rows = cs.limit(d, low=-0.3, high=0.4), [Row("limit", u, 0.0, u, (-0.3, 0.4))]
    elif kind == "target":
        steer, rows = cs.to_target(d, boundary=0.1, target=1.5), [Row("target", u, 0.0, u, (0.1, 1.5))]
    elif kind == "gated":
        steer = cs.gated_add(d, s, gate=c, threshold=0.1)
        rows = [Row("gated", g, 0.0, v, (0.1, s))]
    else:
        parts = [(rng.normal(size=D), float(rng.normal()), rng.normal(size=D)) for _ in range(int(rng.integers(1, 7)))]
        latents = [
            cs.edits.Latent(i, cs.Site(LAYER), torch.tensor(r), b, torch.tensor(w), 0.4)
            for i, (r, b, w) in enumerate(parts)
        ]
        steer, rows = cs.clamp(latents, 0.8), [Row("clamp", r, b, w, (0.8, 0.4)) for r, b, w in parts]
    return steer.span(span).order(order), Plain(tuple(rows), span, order, setter)


def random_intervention(rng: np.random.Generator, shared: list[np.ndarray]) -> tuple[tuple[cs.Edit, ...], list[Plain]]:
    edits: list[cs.Edit] = []
    plain: list[Plain] = []
    for _ in range(int(rng.integers(1, 5))):
        steer, rows = random_edit(rng, shared)
        edits += steer.edits
        plain.append(rows)
    # an edit of another layer, which this table must leave alone
    edits += cs.add(cs.direction(rng.normal(size=D), layer=LAYER + 1), 9.0).edits
    return tuple(edits), plain


@dataclass
class Live:
    """A request in a slot."""

    prompt: int
    plain: list[Plain]
    tally: Tally = field(default_factory=Tally)
    at: int = 0


def close(a: float | None, b: float | None, tolerance: float) -> bool:
    return (a is None and b is None) or (
        a is not None and b is not None and math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    )


def check_receipt(table: RowTable, slot: int, live: Live, tolerance: float) -> None:
    receipt = table.receipt(slot, live.at)
    assert receipt is not None
    t = live.tally
    assert (receipt.site, receipt.tokens_seen) == (f"resid_post.{LAYER}", t.seen)
    assert receipt.tokens_changed == t.changed
    assert close(receipt.mean_relative, float(np.mean(t.relative)) if t.relative else None, tolerance)
    assert close(receipt.max_relative, max(t.relative) if t.relative else None, tolerance)
    keys = [(i, j) for i, e in enumerate(live.plain) for j, r in enumerate(e.rows) if r.read is not None]
    if keys and all(k in t.before for k in keys):
        assert len(receipt.before) == len(keys)
        for k, b, a in zip(keys, receipt.before, receipt.after, strict=True):
            assert close(b, float(np.mean(t.before[k])), tolerance), (k, b, t.before[k])
            assert close(a, float(np.mean(t.after[k])), tolerance)
    setters = any(e.setter for e in live.plain)
    assert close(receipt.missed_target, t.missed if setters else None, tolerance)
    assert receipt.conditional == all(
        r.kind in ("clamp", "limit", "target", "gated") for e in live.plain for r in e.rows
    )


@pytest.mark.parametrize("seed", range(12))
def test_random_mixed_batches_equal_a_token_by_token_calculation(seed: int) -> None:
    """Slots filled and emptied at random, shared rows, growing capacity, padding between the tokens."""
    rng = np.random.default_rng(seed)
    slots = 5
    table = RowTable(LAYER, slots, D, dtype=torch.float64, device=torch.device("cpu"))
    shared = [rng.normal(size=D) for _ in range(3)]
    live: dict[int, Live] = {}
    steps = changed = 0
    for _ in range(60):
        for slot in range(slots):
            draw = rng.random()
            if slot not in live and draw < 0.4:
                edits, plain = random_intervention(rng, shared)
                prompt = int(rng.integers(1, 8))
                table.install(slot, edits, prompt)
                live[slot] = Live(prompt, plain)
            elif slot in live and draw < 0.08:
                check_receipt(table, slot, live[slot], 1e-10)
                table.remove(slot)
                assert table.receipt(slot, 5) is None
                del live[slot]
        # tokens of this pass: a newcomer's whole prompt, one token for the others, strangers and padding in between
        owner, position = [], []
        for slot, request in live.items():
            count = request.prompt if request.at == 0 else 1
            owner += [slot] * count
            position += range(request.at, request.at + count)
        for slot in set(range(slots)) - set(live):
            owner.append(slot)
            position.append(int(rng.integers(0, 20)))
        owner += [-1] * 3
        position += [0, 1, 40]
        h = rng.normal(size=(len(owner), D)) * rng.uniform(0.2, 3.0)
        got = table.apply(torch.tensor(h), torch.tensor(owner), torch.tensor(position)).numpy()
        for row, slot, p, new in zip(h, owner, position, got, strict=True):
            if slot in live:
                request = live[slot]
                expected = one_token(row, p, request.prompt, request.plain, torch.float64, request.tally)
                np.testing.assert_allclose(new, expected, rtol=1e-11, atol=1e-11)
                request.at = max(request.at, p + 1)
                changed += int((expected != row).any())
            else:
                assert (new == row).all()
            steps += 1
        for slot, request in live.items():
            check_receipt(table, slot, request, 1e-10)
    assert steps > 300 and changed > 150
    for slot in list(live):
        table.remove(slot)
    assert not table.active
    h = torch.tensor(rng.normal(size=(4, D)))
    assert torch.equal(table.apply(h, torch.arange(4), torch.full((4,), 7)), h)


@pytest.mark.parametrize("copies", [1, 2, 3, 4])
def test_the_same_edit_given_several_times_acts_as_often(copies: int) -> None:
    v = np.arange(1.0, D + 1)
    latent = cs.edits.Latent(0, cs.Site(LAYER), torch.tensor(v), 0.0, torch.ones(D))
    for part, step in ((cs.add(cs.direction(v, layer=LAYER), 0.5), 0.5 * v), (cs.clamp(latent, 400.0), None)):
        steer = part
        for _ in range(copies - 1):
            steer = steer + part
        table = RowTable(LAYER, 2, D, dtype=torch.float64, device=torch.device("cpu"))
        table.install(0, steer.edits, 3)
        table.install(1, part.edits, 3)
        got = table.apply(torch.ones(2, D, dtype=torch.float64), torch.tensor([0, 1]), torch.tensor([1, 1])).numpy()
        once = step if step is not None else np.full(D, 400.0 - v.sum())
        np.testing.assert_allclose(got[0], 1 + copies * once, rtol=1e-12)
        np.testing.assert_allclose(got[1], 1 + once, rtol=1e-12)


def test_the_same_edit_on_several_spans_acts_on_each() -> None:
    part = cs.add(cs.direction(np.ones(D), layer=LAYER), 1.0)
    steer = part.span("prompt") + part.span("all") + part.span("from(1)") + part.span("prompt")
    table = RowTable(LAYER, 1, D, dtype=torch.float64, device=torch.device("cpu"))
    table.install(0, steer.edits, 2)
    got = table.apply(torch.zeros(4, D, dtype=torch.float64), torch.zeros(4, dtype=torch.long), torch.arange(4))
    assert got[:, 0].tolist() == [3.0, 4.0, 2.0, 2.0]


def test_hundreds_of_rows_grow_the_table_and_are_reused() -> None:
    rng = np.random.default_rng(0)
    slots = 40
    table = RowTable(LAYER, slots, D, dtype=torch.float64, device=torch.device("cpu"))
    for _ in range(3):
        vectors = rng.normal(size=(slots, 3, D))
        for slot in rng.permutation(slots).tolist():
            parts = [cs.add(cs.direction(v, layer=LAYER), 1.0) for v in vectors[slot]]
            table.install(slot, (parts[0] + parts[1] + parts[2]).edits, 1)
        got = table.apply(torch.zeros(slots, D, dtype=torch.float64), torch.arange(slots), torch.ones(slots).long())
        np.testing.assert_allclose(got.numpy(), vectors.sum(1), atol=1e-12)
    assert sum(stage.capacity for stage in table.stages.values()) <= 4 * slots * 3, "rows that nobody uses are kept"


@pytest.mark.parametrize("strength", [1.0, 2.0**-7, 2.0**-9, 1e-4])
def test_receipts_measure_what_bfloat16_leaves_of_a_write(strength: float) -> None:
    """The receipt speaks of the tensor that is handed on, after rounding."""
    rng = np.random.default_rng(5)
    h = torch.tensor(rng.normal(size=(64, D))).to(torch.bfloat16)
    v = rng.normal(size=D)
    table = RowTable(LAYER, 1, D, dtype=torch.bfloat16, device=torch.device("cpu"))
    table.install(0, cs.add(cs.direction(v, layer=LAYER), strength).edits, 10)
    got = table.apply(h, torch.zeros(64, dtype=torch.long), torch.arange(64))
    exact = h.double().numpy() + strength * v
    rounded = torch.tensor(exact).to(torch.bfloat16)
    assert got.dtype == torch.bfloat16
    # float32 sums round like float64 ones except at ties: allow one unit in the last place there
    np.testing.assert_allclose(got.double().numpy(), rounded.double().numpy(), rtol=2.0**-7)
    moved = got.double().numpy() - h.double().numpy()
    receipt = table.receipt(0, 64)
    assert receipt is not None and receipt.tokens_seen == 64
    assert receipt.tokens_changed == int((moved != 0).any(1).sum())
    relative = (np.linalg.norm(moved, axis=1) / np.linalg.norm(h.double().numpy(), axis=1))[1:]
    assert receipt.mean_relative == pytest.approx(relative.mean(), rel=1e-4)
    assert receipt.max_relative == pytest.approx(relative.max(), rel=1e-4)
    if strength == 1e-4:
        asked = strength * np.linalg.norm(v) / np.linalg.norm(h.double().numpy(), axis=1)
        assert receipt.mean_relative < 0.8 * asked[1:].mean(), "most of so small a write is lost in bfloat16"


def test_a_setter_that_rounding_keeps_from_its_target_says_by_how_much() -> None:
    rng = np.random.default_rng(6)
    v = rng.normal(size=D)
    u = v / np.linalg.norm(v)
    h = torch.tensor(rng.normal(size=(32, D)) * 20).to(torch.bfloat16)
    table = RowTable(LAYER, 1, D, dtype=torch.bfloat16, device=torch.device("cpu"))
    table.install(0, cs.to_target(cs.direction(v, layer=LAYER), boundary=0.0, target=3.0).edits, 4)
    got = table.apply(h, torch.zeros(32, dtype=torch.long), torch.arange(32)).double().numpy()
    below = h.double().numpy() @ u < 0
    missed = np.abs(got[below] @ u - 3.0).max()
    receipt = table.receipt(0, 32)
    assert receipt is not None and receipt.tokens_changed == below.sum() and 5 < below.sum() < 27
    assert receipt.missed_target == pytest.approx(missed, rel=1e-3) and missed > 1e-3


def test_non_finite_values_of_one_request_stay_its_own() -> None:
    rng = np.random.default_rng(7)
    table = RowTable(LAYER, 2, D, dtype=torch.float64, device=torch.device("cpu"))
    latent = cs.edits.Latent(0, cs.Site(LAYER), torch.tensor(rng.normal(size=D)), 0.0, torch.tensor(rng.normal(size=D)))
    table.install(0, cs.ablate(latent).edits, 1)
    table.install(1, cs.remove(cs.direction(rng.normal(size=D), layer=LAYER)).edits, 1)
    clean = torch.tensor(rng.normal(size=(2, D)))
    position = torch.tensor([3, 3])
    expected = table.apply(clean, torch.tensor([0, 1]), position)
    before = table.receipt(1, 4)
    for poison in (math.nan, math.inf):
        dirty = clean.clone()
        dirty[0] = poison
        table.install(1, cs.remove(cs.direction(rng.normal(size=D), layer=LAYER)).edits, 1)
        again = table.apply(clean, torch.tensor([0, 1]), position)
        table.install(1, table.entries[1].edits, 1)
        got = table.apply(dirty, torch.tensor([0, 1]), position)
        assert torch.equal(got[1], again[1])
        receipt = table.receipt(1, 4)
        assert receipt is not None and receipt.mean_relative is not None and math.isfinite(receipt.mean_relative)
        # padding may hold anything
        got = table.apply(dirty, torch.tensor([-1, 1]), position)
        assert torch.equal(got[1], again[1]) and torch.equal(got[0], dirty[0]) == (poison == math.inf)
    assert before is not None and torch.isfinite(expected).all()


def test_receipts_start_afresh_when_a_slot_is_reused() -> None:
    steer = cs.remove(cs.direction(np.ones(D), layer=LAYER)).edits
    table = RowTable(LAYER, 1, D, dtype=torch.float64, device=torch.device("cpu"))
    h = torch.tensor(np.random.default_rng(8).normal(size=(6, D)))
    seen = []
    for _ in range(3):
        table.install(0, steer, 6)
        table.apply(h, torch.zeros(6, dtype=torch.long), torch.arange(6))
        seen.append(table.receipt(0, 6))
    assert seen[0] == seen[1] == seen[2] and seen[0] is not None and seen[0].tokens_seen == 6
    assert Span.parse("all").count(6, 6) == 6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_steps_that_reuse_what_was_looked_up_equal_steps_that_look_again(dtype: torch.dtype) -> None:
    """Bit for bit, receipts included: slots come, go, pause and are only measured between steps of one token each."""
    rng = np.random.default_rng(11)
    directions = [cs.direction(rng.normal(size=D), layer=LAYER) for _ in range(3)]
    some = [
        cs.to_target(directions[0], boundary=0.0, target=0.5),
        cs.add(directions[1], 1.5).span("response"),
        cs.limit(directions[2], low=-0.2, high=0.3).span("until(9)"),
        cs.add(directions[1], 0.5) + cs.to_mirror(directions[0], boundary=0.1, strength=2.0).span("from(6)"),
    ]
    for everywhere in (True, False):
        quick, plain = (RowTable(LAYER, 5, D, dtype=dtype, device=torch.device("cpu")) for _ in range(2))
        position = dict.fromkeys(range(5), 5)
        for slot in position:
            steer = some[0] if everywhere else some[slot % 4]
            for table in (quick, plain):
                table.install(slot, steer.edits, 5, measure_only=slot == 3)
        slots = list(position)
        given = torch.tensor(slots)
        for step in range(12):
            if step == 4:  # one goes, and comes again as another
                for table in (quick, plain):
                    table.remove(1)
                    table.install(1, some[1].edits, 5)
                position[1] = 5
            if step == 7:
                slots = [0, 4, 1, 3]
                given = torch.tensor(slots)
                for table in (quick, plain):
                    table.pause(4, position[4])
            if step == 9:
                for table in (quick, plain):
                    table.resume(4, position[4])
            h = torch.tensor(rng.normal(size=(len(slots), D))).to(dtype)
            at = torch.tensor([position[s] for s in slots])
            assert torch.equal(quick.apply(h, given, at, decoding=True), plain.apply(h, given.clone(), at))
            for slot in slots:
                position[slot] += 1
        for slot in slots:
            assert quick.receipt(slot, position[slot]) == plain.receipt(slot, position[slot]) is not None
        assert quick.looked.slot is given, "what was looked up is kept while the slots stay"
