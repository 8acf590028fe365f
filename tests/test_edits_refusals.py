"""Constructors refuse what would change nothing or cannot be used, and fingerprints follow content."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import countersteer as cs
from countersteer.core.errors import InputError, NoOpError

D = 24


def axis(i: int) -> torch.Tensor:
    v = torch.zeros(D, dtype=torch.float64)
    v[i] = 1.0
    return v


def vector(rng: np.random.Generator, norm: float) -> np.ndarray:
    v = rng.normal(size=D)
    return v / np.sqrt((v * v).sum()) * norm


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "2", None, True])
def test_strength_must_be_a_finite_number(bad: object) -> None:
    d = cs.direction(axis(0), layer=0)
    makers: list[Callable[[], object]] = [
        lambda: cs.add(d, strength=bad),  # type: ignore[arg-type]
        lambda: cs.fixed(d, strength=bad, separation=1.0),  # type: ignore[arg-type]
        lambda: cs.fixed(d, strength=1.0, separation=bad),  # type: ignore[arg-type]
        lambda: cs.to_mirror(d, boundary=0.0, strength=bad),  # type: ignore[arg-type]
        lambda: cs.to_mirror(d, boundary=bad),  # type: ignore[arg-type]
        lambda: cs.to_target(d, boundary=bad, target=1.0),  # type: ignore[arg-type]
        lambda: cs.to_target(d, boundary=0.0, target=bad),  # type: ignore[arg-type]
        lambda: cs.gated_add(d, strength=bad, gate=d, threshold=0.0),  # type: ignore[arg-type]
        lambda: cs.gated_add(d, strength=1.0, gate=d, threshold=bad),  # type: ignore[arg-type]
        lambda: cs.contextual_add(d, weights=d, bias=bad),  # type: ignore[arg-type]
        lambda: cs.clamp(cs.edits.Latent(0, cs.Site(0), axis(0), 0.0, axis(0)), bad),  # type: ignore[arg-type]
    ]
    for make in makers:
        with pytest.raises(InputError):
            make()


def test_what_would_change_nothing_is_an_error() -> None:
    d, zero = cs.direction(axis(0), layer=0), cs.direction(torch.zeros(D), layer=0)
    silent = cs.edits.Latent(0, cs.Site(0), axis(0), 0.0, torch.zeros(D))
    makers: list[Callable[[], object]] = [
        lambda: cs.add(d, strength=0),
        lambda: cs.add(d, strength=-0.0),
        lambda: cs.add(zero, strength=1.0),
        lambda: cs.add(silent, strength=1.0),
        lambda: cs.ablate(silent),
        lambda: cs.clamp([], 0.0),
        lambda: cs.remove([]),
        lambda: cs.remove(zero),
        lambda: cs.limit(zero, low=0.0),
        lambda: cs.limit(d),
        lambda: cs.to_target(zero, boundary=0.0, target=1.0),
        lambda: cs.to_mirror(d, boundary=0.0, strength=0),
        lambda: cs.fixed(d, strength=0.0, separation=1.0),
        lambda: cs.fixed(d, strength=1.0, separation=0.0),
        lambda: cs.gated_add(zero, 1.0, gate=d, threshold=0.0),
        lambda: cs.contextual_add(d, weights=torch.zeros(D)),
        lambda: cs.contextual_add(zero, weights=d),
    ]
    for make in makers:
        with pytest.raises(NoOpError):
            make()
    for make in (
        lambda: cs.gated_add(d, 1.0, gate=torch.zeros(D), threshold=0.0),
        lambda: cs.add(d, 1.0).span("until(0)"),
    ):
        with pytest.raises(InputError):
            make()


def test_unusable_sources_are_refused_with_one_line() -> None:
    d = cs.direction(axis(0), layer=0)
    latent = cs.edits.Latent(0, cs.Site(0), axis(0), 0.0, axis(1))
    makers: list[Callable[[], object]] = [
        lambda: cs.direction([1.0, math.nan], layer=0),
        lambda: cs.direction([1.0, math.inf], layer=0),
        lambda: cs.direction([[1.0, 2.0]], layer=0),
        lambda: cs.direction([], layer=0),
        lambda: cs.direction(axis(0), layer=-1),
        lambda: cs.direction(axis(0), layer=1.5),  # type: ignore[arg-type]
        lambda: cs.add(axis(0), 1.0),  # type: ignore[arg-type]
        lambda: cs.add("organism", 1.0),  # type: ignore[arg-type]
        lambda: cs.clamp(d, 0.0),  # type: ignore[arg-type]
        lambda: cs.clamp(latent, -1.0),
        lambda: cs.clamp([latent, latent], 0.0),
        lambda: cs.remove([d, d]),
        lambda: cs.remove([d, d.at(1)]),
        lambda: cs.limit(d, low=1.0, high=0.0),
        lambda: cs.limit(d, low=math.nan),
        lambda: cs.add(d, 1.0) + cs.add(cs.direction(torch.ones(D + 1), layer=0), 1.0),
        lambda: cs.add(d, 1.0).span("reponse"),
        lambda: cs.add(d, 1.0).span("from"),
        lambda: cs.add(d, 1.0).span("from(-1)"),
        lambda: cs.add(d, 1.0).span("all(restart)"),
        lambda: cs.edits.apply(torch.ones(3, D), cs.add(d, 1.0).span("until(restart)").edits, layer=0),
        lambda: cs.add(d, 1.0).order(-1),
        lambda: cs.edits.apply(torch.ones(3, D + 1), cs.add(d, 1.0).edits, layer=0),
        lambda: cs.edits.apply(torch.ones(D), cs.add(d, 1.0).edits, layer=0),
        lambda: cs.gated_add(d, 1.0, gate=d.at(3), threshold=0.0),
        lambda: cs.edits.Latent(0, cs.Site(0), axis(0), math.nan, axis(0)),
        lambda: cs.edits.Latent(0, cs.Site(0), axis(0)[:-1], 0.0, axis(0)),
    ]
    for i, make in enumerate(makers):
        with pytest.raises(InputError) as caught:
            make()
        assert "\n" not in str(caught.value) and len(str(caught.value)) > 15, i


def test_fingerprint_follows_content() -> None:
    rng = np.random.default_rng(9)
    v, w = vector(rng, 1.0), vector(rng, 1.0)

    def make(**changes: object) -> cs.Intervention:
        given: dict[str, object] = {"v": v, "strength": 2.0, "layer": 1, "span": "all", "m": 0.1, "order": 0} | changes
        d = cs.direction(given["v"], layer=given["layer"], label=given.get("label"))  # type: ignore[arg-type]
        a = cs.add(d, strength=given["strength"])  # type: ignore[arg-type]
        e = cs.direction(w, layer=2)
        b = cs.to_target(e, boundary=given["m"], target=3.0).order(given["order"])  # type: ignore[arg-type]
        return a.span(given["span"]) + b  # type: ignore[arg-type]

    base = make().fingerprint
    assert make().fingerprint == base and make(label="other name").fingerprint == base
    assert make(v=torch.tensor(v)).fingerprint == base
    bent = v.copy()
    bent[-1] = np.nextafter(bent[-1], 10.0)
    changed = [
        make(v=bent),
        make(v=-v),
        make(strength=math.nextafter(2.0, 3.0)),
        make(layer=2),
        make(span="response"),
        make(span="from(3)"),
        make(span="from(4)"),
        make(m=math.nextafter(0.1, 1.0)),
        make(order=1),
        make().gated(cs.Gate(cs.Site(1), torch.tensor(w), 0.5)),
        make().gated(cs.Gate(cs.Site(2), torch.tensor(w), 0.5)),
        make().gated(cs.Gate(cs.Site(1), torch.tensor(v), 0.5)),
        make().gated(cs.Gate(cs.Site(1), torch.tensor(w), 0.6)),
        make().gated(cs.Gate(cs.Site(1), torch.tensor(w), 0.5, over="last")),
        make().gated(cs.Gate(cs.Site(1), torch.tensor(w), 0.5, metric="dot")),
        make().gated(cs.Gate(cs.Site(1), torch.tensor(w), 0.5, above=False)),
        make() + cs.add(cs.direction(v, layer=1), 2.0),
    ]
    prints = [base, *(c.fingerprint for c in changed)]
    assert len(set(prints)) == len(prints)
    a, b = cs.add(cs.direction(v, layer=0), 1.0), cs.add(cs.direction(w, layer=0), 2.0)
    assert (a + b).fingerprint == (b + a).fingerprint != a.fingerprint


@pytest.mark.parametrize("value", [np.float32(4), np.float64(4), np.int64(4), torch.tensor(4.0), torch.tensor([4])])
def test_numbers_of_numpy_and_torch_are_numbers(value: object) -> None:
    d = cs.direction([1.0, 2.0], layer=0)
    assert cs.add(d, value).fingerprint == cs.add(d, 4.0).fingerprint  # type: ignore[arg-type]
    assert cs.limit(d, high=value).fingerprint == cs.limit(d, high=4.0).fingerprint  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call",
    [
        lambda d: cs.limit(d, low="a"),
        lambda d: cs.limit(d, low=True),
        lambda d: cs.add(d, torch.tensor([1.0, 2.0])),
        lambda d: cs.direction("abc", layer=3),
        lambda d: cs.direction([[1.0], [2.0, 3.0]], layer=3),
        lambda d: cs.Gate(d.site, d.vector, "x"),
        lambda d: cs.Gate(d.site, "abc", 0.5),
        lambda d: cs.load_sae(None),
    ],
)
def test_values_of_the_wrong_type_are_refused_in_one_line(call: object) -> None:
    with pytest.raises(InputError) as caught:
        call(cs.direction([1.0, 2.0], layer=0))  # type: ignore[operator]
    assert "\n" not in str(caught.value)
