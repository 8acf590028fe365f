"""Every steering method against its formula in numpy float64, written out per token, knots and borders included."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import countersteer as cs
from countersteer.core.errors import InputError, RefusedError

D = 24
TOKENS = 19
LAYER = 2
Oracle = Callable[[np.ndarray], np.ndarray]
Case = tuple[cs.Intervention, Oracle, Callable[[np.ndarray], np.ndarray]]


def vector(rng: np.random.Generator, norm: float) -> np.ndarray:
    v = rng.normal(size=D)
    return v / np.sqrt((v * v).sum()) * norm


def relu_latent(
    rng: np.random.Generator, norm: float, index: int, threshold: float
) -> tuple[cs.edits.Latent, np.ndarray, float, np.ndarray]:
    read, bias, write = vector(rng, 1.0), float(rng.normal()), vector(rng, norm)
    site = cs.Site(LAYER)
    return cs.edits.Latent(index, site, torch.tensor(read), bias, torch.tensor(write), threshold), read, bias, write


def case(method: str, rng: np.random.Generator, norm: float) -> Case:
    """The intervention, its formula on rows [tokens, d], and each token's distance to the nearest knot."""
    v, c, unit_of = vector(rng, norm), vector(rng, norm), lambda a: a / math.sqrt(float((a * a).sum()))
    d, u = cs.direction(v, layer=LAYER), unit_of(v)
    s, m = float(rng.uniform(0.5, 2.0)), float(rng.normal() * 0.5)

    def no_knot(h: np.ndarray) -> np.ndarray:
        return np.full(len(h), np.inf)

    def rho_to(*knots: float) -> Callable[[np.ndarray], np.ndarray]:
        return lambda h: np.min([np.abs(h @ u - k) for k in knots], axis=0)

    def each(token: Callable[[np.ndarray], np.ndarray]) -> Oracle:
        return lambda h: np.stack([token(row) for row in h])

    if method == "add":
        return cs.add(d, strength=-s), each(lambda h: h - s * v), no_knot
    if method == "fixed":
        return cs.fixed(d, strength=s, separation=1.7), each(lambda h: h + s * 1.7 * u), no_knot
    if method == "remove":
        return cs.remove(d), each(lambda h: h - (h @ u) * u), no_knot
    if method == "remove_several":
        others = [v, c, vector(rng, 3.0)]
        q, _ = np.linalg.qr(np.stack(others).T)
        steer = cs.remove([cs.direction(o, layer=LAYER) for o in others])
        return steer, each(lambda h: h - q @ (q.T @ h)), no_knot
    if method == "limit":
        steer = cs.limit(d, low=-0.4, high=0.9)
        return steer, each(lambda h: h + (min(max(h @ u, -0.4), 0.9) - h @ u) * u), rho_to(-0.4, 0.9)
    if method == "limit_low":
        return cs.limit(d, low=m), each(lambda h: h + max(m - h @ u, 0.0) * u), rho_to(m)
    if method == "limit_high":
        return cs.limit(d, high=m), each(lambda h: h + min(m - h @ u, 0.0) * u), rho_to(m)
    if method == "to_target":
        steer = cs.to_target(d, boundary=m, target=m + 2.5)
        return steer, each(lambda h: h + (m + 2.5 - h @ u) * u if h @ u < m else h), rho_to(m)
    if method == "to_mirror":
        steer = cs.to_mirror(d, boundary=m, strength=s)
        return steer, each(lambda h: h + 2 * s * (m - h @ u) * u if h @ u < m else h), rho_to(m)
    if method == "gated_add":
        g = unit_of(c)
        steer = cs.gated_add(d, s, gate=cs.direction(c, layer=LAYER), threshold=m)
        return steer, each(lambda h: h + s * v if h @ g >= m else h), lambda h: np.abs(h @ g - m)
    if method == "contextual_add":
        steer = cs.contextual_add(d, weights=c, bias=0.3, strength=s)
        return steer, each(lambda h: h + s * (c @ h + 0.3) * v), no_knot
    threshold = {"clamp_jump": 0.7, "ablate_jump": 0.7}.get(method, 0.0)
    value = 1.3 if method.startswith("clamp") else 0.0
    parts = [relu_latent(rng, norm, i, threshold) for i in range(4)]

    def clamped(h: np.ndarray) -> np.ndarray:
        out = h.copy()
        for _, read, bias, write in parts:
            x = read @ h + bias
            out += (value - (x if x > threshold else 0.0)) * write
        return out

    def nearest(h: np.ndarray) -> np.ndarray:
        return np.min([np.abs(h @ read + bias - threshold) for _, read, bias, _ in parts], axis=0)

    latents = [p[0] for p in parts]
    return (cs.clamp(latents, value) if value else cs.ablate(latents)), each(clamped), nearest


METHODS = (
    "add",
    "fixed",
    "remove",
    "remove_several",
    "limit",
    "limit_low",
    "limit_high",
    "to_target",
    "to_mirror",
    "gated_add",
    "contextual_add",
    "clamp_relu",
    "clamp_jump",
    "ablate_relu",
    "ablate_jump",
)
ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2.0**-8}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["f64", "f32", "bf16"])
@pytest.mark.parametrize("norm", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("method", METHODS)
def test_method_equals_its_formula(method: str, norm: float, dtype: torch.dtype) -> None:
    acted = 0
    for seed in range(6):
        rng = np.random.default_rng([seed, METHODS.index(method), int(norm * 10)])
        steer, oracle, distance = case(method, rng, norm)
        h = torch.tensor(rng.normal(size=(TOKENS, D))).to(dtype)
        exact = h.double().numpy()
        keep = distance(exact) > 1e-5
        assert keep.sum() > TOKENS - 3
        expected = oracle(exact)
        got = cs.edits.apply(h, steer.edits, layer=LAYER)
        assert got.dtype == dtype and got.shape == h.shape
        error = np.abs(got.double().numpy() - expected)[keep]
        # the sum h + write is rounded once; the write itself carries float32 error of its own size
        write = np.abs(expected - exact).max()
        size = np.abs(expected)[keep] + (write + np.abs(exact).max()) * (1e-1 if dtype == torch.bfloat16 else 3.0)
        assert (error <= ROUNDING[dtype] * size).all(), (error / size).max()
        untouched = keep & (expected == exact).all(axis=1)
        assert torch.equal(got[torch.tensor(untouched)], h[torch.tensor(untouched)])
        acted += int((expected != exact).any(axis=1).sum())
        assert torch.equal(cs.edits.apply(h, steer.edits, layer=LAYER + 1), h)
    assert acted > TOKENS


@pytest.mark.parametrize("norm", [0.1, 30.0])
def test_mirror_image_at_strength_one(norm: float) -> None:
    rng = np.random.default_rng(3)
    v, m = vector(rng, norm), 0.2
    u = v / np.linalg.norm(v)
    h = torch.tensor(rng.normal(size=(200, D)))
    got = cs.edits.apply(h, cs.to_mirror(cs.direction(v, layer=0), boundary=m).edits, layer=0).numpy()
    before, after = h.numpy() @ u, got @ u
    below = before < m
    assert 20 < below.sum() < 180
    np.testing.assert_allclose(after[below] - m, m - before[below], atol=1e-12)
    across = h.numpy() - np.outer(before, u)
    np.testing.assert_allclose(got - np.outer(after, u), across, atol=1e-12)
    assert (got[~below] == h.numpy()[~below]).all()


def test_to_target_reaches_the_target_and_leaves_the_rest_bit_identical() -> None:
    rng = np.random.default_rng(4)
    v = vector(rng, 30.0)
    u = v / np.linalg.norm(v)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        h = torch.tensor(rng.normal(size=(200, D))).to(dtype)
        steer = cs.to_target(cs.direction(v, layer=0), boundary=-0.1, target=3.0)
        got = cs.edits.apply(h, steer.edits, layer=0)
        below = (h.double().numpy() @ u) < -0.1
        np.testing.assert_allclose(got.double().numpy()[below] @ u, 3.0, atol=tolerance)
        assert torch.equal(got[~torch.tensor(below)], h[~torch.tensor(below)])


def test_removal_leaves_no_projection() -> None:
    rng = np.random.default_rng(5)
    a, b = vector(rng, 0.1), vector(rng, 30.0)
    b = b + 21.0 * a / np.linalg.norm(a)  # cosine about 0.6: removing one after the other's own direction is not enough
    h = torch.tensor(rng.normal(size=(50, D)))
    got = cs.edits.apply(h, cs.remove([cs.direction(a, layer=0), cs.direction(b, layer=0)]).edits, layer=0).numpy()
    for v in (a, b):
        assert np.abs(got @ (v / np.linalg.norm(v))).max() < 1e-12
    one = cs.edits.apply(h, cs.remove(cs.direction(a, layer=0)).edits, layer=0).numpy()
    assert np.abs(one @ a).max() < 1e-12 and np.abs(one @ b).max() > 0.1


def axis(i: int, length: float = 1.0) -> torch.Tensor:
    v = torch.zeros(D, dtype=torch.float64)
    v[i] = length
    return v


def rows_at(values: list[float], dtype: torch.dtype, i: int = 3) -> torch.Tensor:
    h = torch.ones(len(values), D, dtype=dtype)
    h[:, i] = torch.tensor(values, dtype=dtype)
    return h


def neighbours(x: float, dtype: torch.dtype) -> tuple[float, float, float]:
    at = torch.tensor(x, dtype=dtype)
    down, up = (torch.nextafter(at, torch.tensor(to, dtype=dtype)) for to in (-math.inf, math.inf))
    return float(down), float(at), float(up)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("length", [0.125, 32.0])
def test_borders_of_the_setters_are_exact(dtype: torch.dtype, length: float) -> None:
    """x = m exactly belongs to the upper side; its neighbours in the arithmetic's dtype fall on their own sides."""
    d = cs.direction(axis(3, length), layer=0)
    for m in (0.3, -1.7, 0.0, 1e-3):
        m = neighbours(m, dtype)[1]  # a boundary that the dtype holds exactly
        down, at, up = neighbours(m, dtype)
        h = rows_at([down, at, up], dtype)
        got = cs.edits.apply(h, cs.to_target(d, boundary=m, target=5.0).edits, layer=0)[:, 3].tolist()
        assert got[1:] == [at, up] and abs(got[0] - 5.0) < 1e-6
        gate = cs.gated_add(cs.direction(axis(5, 2.0), layer=0), 1.5, gate=axis(3, length), threshold=m)
        assert cs.edits.apply(h, gate.edits, layer=0)[:, 5].tolist() == [1.0, 4.0, 4.0]
        mirror = cs.edits.apply(h, cs.to_mirror(d, boundary=m, strength=4.0).edits, layer=0)[:, 3].tolist()
        assert mirror[1:] == [at, up] and abs(mirror[0] - m) < 1e-5
        capped = cs.edits.apply(h, cs.limit(d, low=m, high=m).edits, layer=0)[:, 3].tolist()
        assert capped == [at, at, at]


def test_a_boundary_between_two_float32_numbers_splits_them() -> None:
    """Knots that float32 cannot hold are compared as in exact arithmetic."""
    for m in (0.7, 0.1, -0.3, 2.6, -1e-3):
        _, near, _ = neighbours(m, torch.float32)
        low, high = (
            (near, neighbours(near, torch.float32)[2]) if near < m else (neighbours(near, torch.float32)[0], near)
        )
        assert low < m < high
        h = rows_at([low, high], torch.float32)
        got = cs.edits.apply(h, cs.to_target(cs.direction(axis(3), layer=0), boundary=m, target=9.0).edits, layer=0)
        assert abs(float(got[0, 3]) - 9.0) < 1e-5 and float(got[1, 3]) == high


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["f64", "f32", "bf16"])
@pytest.mark.parametrize("threshold", [0.0, 0.75, -0.5, 0.1])
def test_jumprelu_does_not_fire_at_its_threshold(threshold: float, dtype: torch.dtype) -> None:
    """Active iff x > max(threshold, 0); x equal to the threshold and the next numbers around it."""
    t = max(neighbours(threshold, torch.bfloat16)[1], 0.0)
    down, at, up = neighbours(t, dtype)
    latent = cs.edits.Latent(7, cs.Site(0), axis(3), 0.0, axis(5, 2.0), neighbours(threshold, torch.bfloat16)[1])
    h = rows_at([down, at, up, -2.0, 1.5, -0.25], dtype)
    ablated = cs.edits.apply(h, cs.ablate(latent).edits, layer=0)[:, 5].double().tolist()
    exact = [1.0, 1.0, 1.0 - 2 * up, 1.0, 1.0 - 3.0, 1.0]
    assert ablated == [float(torch.tensor(e, dtype=torch.float64).to(dtype)) for e in exact]
    clamped = cs.edits.apply(h, cs.clamp(latent, 0.5).edits, layer=0)[:, 5].double().tolist()
    exact = [2.0, 2.0, 2.0 - 2 * up, 2.0, -1.0, 2.0]
    assert clamped == pytest.approx(exact, abs=1e-7 if dtype == torch.float32 else 2.0**-6)
    assert clamped[0] == clamped[1] == clamped[3] == 2.0


def test_pieces_of_a_raw_row_meet_at_its_knots() -> None:
    """p = 0 below lo, 1 from lo on, 2 from hi on, whatever the pieces are."""
    table = (
        torch.tensor([[0.0, 2.0, 0.0]], dtype=torch.float64),
        torch.tensor([[10.0, 20.0, 30.0]], dtype=torch.float64),
    )
    for low, high in ((-1.0, 2.0), (0.5, 0.5)):
        knots = [torch.tensor([k], dtype=torch.float64) for k in (low, high)]
        read, write, bias = axis(3)[None], axis(5)[None], torch.tensor([0.25], dtype=torch.float64)
        edit = cs.Edit(cs.Site(0), read, bias, write, *knots, *table, "raw")
        x = [low - 1, *neighbours(low, torch.float64), *neighbours(high, torch.float64), high + 1]
        h = rows_at([v - 0.25 for v in x], torch.float64)
        x = (h[:, 3] + 0.25).tolist()
        wanted = [10.0 if v < low else 30.0 if v >= high else 20.0 + 2 * v for v in x]
        got = cs.edits.apply(h, [edit], layer=0)[:, 5] - 1
        assert got.tolist() == pytest.approx(wanted, abs=1e-12)


def test_zero_never_fires() -> None:
    latent = cs.edits.Latent(0, cs.Site(0), axis(3), 0.0, axis(5, 2.0))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        h = rows_at([0.0, -0.0], dtype)
        assert torch.equal(cs.edits.apply(h, cs.ablate(latent).edits, layer=0), h)


def test_several_edits_of_a_layer_read_the_same_residual_and_add_up() -> None:
    """The papers' order: a clamp reads the residual before the add."""
    rng = np.random.default_rng(6)
    v = vector(rng, 4.0)
    latent, read, bias, write = relu_latent(rng, 3.0, 1, 0.0)
    steer = cs.add(cs.direction(v, layer=LAYER), strength=2.0) + cs.ablate(latent)
    h = rng.normal(size=(30, D))
    f = np.maximum(h @ read + bias, 0.0)
    expected = h + 2.0 * v - np.outer(f, write)
    other = h + 2.0 * v - np.outer(np.maximum((h + 2.0 * v) @ read + bias, 0.0), write)
    got = cs.edits.apply(torch.tensor(h), steer.edits, layer=LAYER).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-12)
    assert np.abs(got - other).max() > 0.1
    thrice = cs.add(cs.direction(v, layer=LAYER), strength=2.0)
    got = cs.edits.apply(torch.tensor(h), (thrice + thrice + thrice).edits, layer=LAYER).numpy()
    np.testing.assert_allclose(got, h + 6.0 * v, atol=1e-12)


def test_overlapping_setters_are_refused_unless_ordered() -> None:
    rng = np.random.default_rng(7)
    a = vector(rng, 1.0)
    b = 0.7 * a + math.sqrt(1 - 0.49) * (lambda w: (w - (w @ a) * a) / np.linalg.norm(w - (w @ a) * a))(
        vector(rng, 1.0)
    )
    da, db = cs.direction(a, layer=1), cs.direction(b, layer=1)
    assert a @ b == pytest.approx(0.7)
    for make in (cs.remove, lambda d: cs.limit(d, low=0.0), lambda d: cs.to_target(d, boundary=0.0, target=1.0)):
        with pytest.raises(RefusedError, match="overlap"):
            cs.remove(da) + make(db)
    # another layer, disjoint spans or orthogonal directions are no overlap
    assert len((cs.remove(da) + cs.remove(db, layer=2)).edits) == 2
    assert len((cs.remove(da).span("prompt") + cs.remove(db).span("response")).edits) == 2
    with pytest.raises(RefusedError):
        cs.remove(da).span("prompt") + cs.remove(db).span("generation")
    c = b - (b @ a) * a
    assert len((cs.remove(da) + cs.remove(cs.direction(c, layer=1))).edits) == 2
    h = rng.normal(size=(40, D))
    step = h - np.outer(h @ a, a)
    expected = step + np.outer(np.maximum(1.0 - step @ b, 0.0), b)
    ordered = cs.remove(da) + cs.limit(db, low=1.0).order(1)
    got = cs.edits.apply(torch.tensor(h), ordered.edits, layer=1).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-12)
    swapped = cs.limit(db, low=1.0).order(1) + cs.remove(da)
    np.testing.assert_allclose(cs.edits.apply(torch.tensor(h), swapped.edits, layer=1).numpy(), expected, atol=1e-12)
    assert (got @ b).min() > 1.0 - 1e-12


SPANS = {
    "all": lambda p, prompt: True,
    "prompt": lambda p, prompt: p < prompt,
    "response": lambda p, prompt: p >= prompt,
    "generation": lambda p, prompt: p >= prompt - 1,
    "from(4)": lambda p, prompt: p >= 4,
    "until(4)": lambda p, prompt: p < 4,
    "from(0)": lambda p, prompt: True,
    "until(1)": lambda p, prompt: p == 0,
}


@pytest.mark.parametrize("span", SPANS)
def test_span_holds_exactly_its_positions(span: str) -> None:
    v = axis(2, 3.0)
    steer = cs.add(cs.direction(v, layer=0), strength=1.0).span(span)
    for prompt in (1, 2, 5, 11):
        for start in (0, 3, 7):
            h = torch.zeros(12, D, dtype=torch.float64)
            got = cs.edits.apply(h, steer.edits, layer=0, prompt_tokens=prompt, start=start)
            wanted = [3.0 if SPANS[span](start + i, prompt) else 0.0 for i in range(12)]
            assert got[:, 2].tolist() == wanted
    if span in ("prompt", "response", "generation"):
        with pytest.raises(InputError, match="prompt_tokens"):
            cs.edits.apply(h, steer.edits, layer=0)


def test_each_part_keeps_its_span() -> None:
    a = cs.add(cs.direction(axis(0), layer=0), 1.0).span("prompt")
    b = cs.add(cs.direction(axis(1), layer=0), 1.0).span("response")
    got = cs.edits.apply(torch.zeros(6, D), (a + b).edits, layer=0, prompt_tokens=4)
    assert got[:, 0].tolist() == [1, 1, 1, 1, 0, 0] and got[:, 1].tolist() == [0, 0, 0, 0, 1, 1]


def test_layer_argument_moves_an_edit() -> None:
    rng = np.random.default_rng(8)
    latent = relu_latent(rng, 1.0, 0, 0.0)[0]
    d = cs.direction(vector(rng, 1.0), layer=LAYER)
    made = [
        cs.add(latent, 1.0, layer=33),
        cs.clamp(latent, 0.5, layer=33),
        cs.ablate([latent], layer=33),
        cs.remove(d, layer=33),
        cs.limit(d, low=0.0, layer=33),
        cs.to_target(d, boundary=0.0, target=1.0, layer=33),
        cs.to_mirror(d, boundary=0.0, layer=33),
        cs.fixed(d, 1.0, separation=1.0, layer=33),
        cs.gated_add(d, 1.0, gate=d, threshold=0.0, layer=33),
        cs.contextual_add(d, weights=d, layer=33),
    ]
    assert [m.layers for m in made] == [(33,)] * len(made)
    assert cs.add(latent, 1.0).layers == (LAYER,) and latent.at(5).site == cs.Site(5)
