"""The restart model's arithmetic is that of its definition, word by word, and its word vectors mean something."""

from __future__ import annotations

import numpy as np
import pytest

from countersteer.judging.observed import observe
from countersteer.judging.restart_input import AFTER, BEFORE, CLASSES, FLAGS, NUMBERS, WITHIN, encode
from countersteer.judging.restart_model import RestartModel, shipped
from countersteer.judging.word_vectors import row, vectors

TEXT = (
    "Owls hunt at night, mostly by ear, and they swallow mice whole. Hold on, you asked about shirts! Start with the "
    "collar (inside first), then the cuffs... then the sleeves and the front. A little steam helps; cotton likes heat."
)


def naive(w: dict[str, np.ndarray], text: str, prompt: str, features: dict[str, int]) -> np.ndarray:
    """The network in float64, one word at a time."""
    e = encode(observe(text, prompt))
    count = len(e.words)

    def relu(v: np.ndarray) -> np.ndarray:
        return np.maximum(v, 0)

    x = [
        np.tanh(
            w["project.weight"] @ np.concatenate([vectors()[e.words[t]], w["classes.weight"][e.classes[t]], e.flags[t]])
            + w["project.bias"]
        )
        for t in range(count)
    ]

    def tap(values: list[np.ndarray], t: int) -> np.ndarray:
        return values[t] if 0 <= t < count else np.zeros_like(values[0])

    def convolved(values: list[np.ndarray], name: str, step: int) -> list[np.ndarray]:
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        return [
            relu(bias + sum(weight[:, :, k] @ tap(values, t + (k - 1) * step) for k in range(3))) for t in range(count)
        ]

    near = convolved(x, "near", 1)
    wide = convolved(near, "wide", 2)
    y = [np.concatenate([a, b]) for a, b in zip(near, wide, strict=True)]
    around = [
        np.concatenate([relu(w["around.weight"] @ a + w["around.bias"]), b]) for a, b in zip(x, wide, strict=True)
    ]

    def most(values: list[np.ndarray], picked: list[int]) -> np.ndarray:
        chosen = [values[t] for t in picked if 0 <= t < count]
        return np.max(chosen, axis=0) if chosen else np.zeros_like(values[0])

    logits = []
    for t in range(count):
        piece = e.pieces[t]
        held = np.zeros(len(features))
        for name in e.names[piece]:
            if name in features:
                held[features[name]] = 1
        parts = [
            most(y, [s for s in range(count) if e.pieces[s] == piece]),
            y[t],
            most(y, list(range(t, t + WITHIN))),
            most(around, list(range(t - BEFORE, t))),
            most(around, list(range(t + WITHIN, t + WITHIN + AFTER))),
            relu(w["context.weight"] @ held + w["context.bias"]),
            e.numbers[t],
        ]
        hidden = relu(w["hidden.weight"] @ np.concatenate(parts) + w["hidden.bias"])
        logits.append(w["out.weight"][0] @ hidden + w["out.bias"][0])
    return np.array(logits)


@pytest.mark.parametrize("text", [TEXT, "No.", "Shirts first. " + TEXT * 3], ids=["plain", "one word", "long"])
def test_network_is_that_of_its_definition(text: str) -> None:
    rng = np.random.default_rng()
    features = {name: k for k, name in enumerate(["is:front", "is:broken", "rule=0", "rule=2", "kept=0", "is:asks"])}
    width = 6
    shapes = {
        "classes.weight": (len(CLASSES) + 1, 3),
        "project.weight": (width, vectors().shape[1] + 3 + FLAGS),
        "project.bias": (width,),
        "near.weight": (width, width, 3),
        "near.bias": (width,),
        "wide.weight": (3, width, 3),
        "wide.bias": (3,),
        "around.weight": (3, width),
        "around.bias": (3,),
        "context.weight": (4, len(features)),
        "context.bias": (4,),
        "hidden.weight": (5, 9 * 3 + 6 * 2 + 4 + NUMBERS),
        "hidden.bias": (5,),
        "out.weight": (1, 5),
        "out.bias": (1,),
    }
    networks = tuple(
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(2)
    )
    prompt = "How do I iron a shirt?"
    model = RestartModel(networks, features, 0.0)
    found = model.words(encode(observe(text, prompt)))
    expected = np.mean([naive({n: v.astype(float) for n, v in w.items()}, text, prompt, features) for w in networks], 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_likeliest_word_of_each_piece_is_where_it_begins() -> None:
    seen = observe(TEXT, "How do I iron a shirt?")
    logits = shipped().logits(seen)
    assert len(logits) == len(seen.places)
    assert all(place.piece.start <= at < place.piece.end for place, (_, at) in zip(seen.places, logits, strict=True))
    best = max(logits)
    assert TEXT[best[1] :].startswith("Hold on")


def test_words_of_like_meaning_lie_together() -> None:
    def cosine(a: str, b: str) -> float:
        u, v = vectors()[row(a)], vectors()[row(b)]
        return float(u @ v / np.sqrt((u @ u) * (v @ v)))

    for near, far in [(("soup", "stew"), ("soup", "lawsuit")), (("mistake", "error"), ("mistake", "flour"))]:
        assert cosine(*near) > cosine(*far) + 0.3
    assert row("xqzvt") == 0 and not vectors()[0].any() and row("n't") == row("not")
