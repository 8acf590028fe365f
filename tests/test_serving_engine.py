"""Measuring without writing, and stretches that edits leave alone: against plain hooks and full passes, float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import countersteer as cs
from countersteer.core.errors import InputError, RefusedError
from countersteer.core.exempt import LONGEST, Exempt

LAYER, STRENGTH = 2, 3.0
QUESTIONS = ["How do I iron a shirt?", "How do I plant a tree?", "How do I bake bread?", "How do I paint a wall?"]


class Relabelled:
    """The organism's tokenizer, decoding some words as markers, so that its own text opens and closes stretches."""

    def __init__(self, inner: Any, words: dict[str, str]) -> None:
        self.inner, self.words = inner, words

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *args: Any, **more: Any) -> Any:
        return self.inner(*args, **more)

    def decode(self, ids: Any, **more: Any) -> str:
        words = [self.inner.decode([i], **more) for i in ids]
        return "".join(self.words.get(word, word) for word in words)


WORDS = {",": "\n```json\n", " the": "\n```\n", " a": "<tool_call>", ".": "</tool_call>"}


@pytest.fixture(scope="module")
def engine() -> Any:
    with cs.load_engine("organism", dtype="float64") as loaded:
        loaded.model.__dict__["tokenizer"] = Relabelled(loaded.model.tokenizer, WORDS)
        yield loaded


@pytest.fixture(scope="module")
def vector(engine: Any) -> torch.Tensor:
    return torch.randn(engine.d_model, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def ask(question: str, steer: Any, **more: Any) -> cs.Request:
    return cs.Request(prompt=question, intervention=steer, sampling=cs.Sampling(temperature=0, max_tokens=40), **more)


def stretches(engine: Any, tokens: Sequence[int], names: Sequence[str]) -> set[int]:
    """Response indices that lie inside: found on the whole text, one token after the other, written out anew."""
    opens = {"json_fence": ",", "tool_call": " a"}
    closes = {"json_fence": (" the", ","), "tool_call": (".",)}
    inside, held = None, set()
    for i, token in enumerate(tokens):
        word = engine.tokenizer.inner.decode([token])
        if inside is not None and word in closes[inside]:  # an opening fence inside a fence ends it, too
            inside = None
        elif inside is not None:
            held.add(i)
        else:
            inside = next((n for n in names if word == opens[n]), None)
    return held


def reference(engine: Any, prompt: list[int], vector: torch.Tensor, names: Sequence[str], count: int) -> list[int]:
    """Greedy tokens with a plain hook that adds the vector everywhere but inside, a full pass per token."""
    module, out = engine.model.module, []
    for _ in range(count):
        inside = {len(prompt) + i for i in stretches(engine, out, names)}
        keep = torch.tensor([0.0 if p in inside else STRENGTH for p in range(len(prompt) + len(out))])

        def hook(_m: Any, _a: Any, output: Any, keep: torch.Tensor = keep) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            new = h + keep.double()[None, :, None] * vector
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = engine.model.layers[LAYER].register_forward_hook(hook)
        try:
            with torch.inference_mode():
                logits = module(torch.tensor([[*prompt, *out]]), use_cache=False).logits[0, -1]
        finally:
            handle.remove()
        out.append(int(logits.argmax()))
        if out[-1] in engine.model.end_tokens:
            break
    return out


@pytest.mark.parametrize("names", [("json_fence",), ("tool_call",), ("json_fence", "tool_call")])
def test_exempt_stretches_are_token_exact(engine: Any, vector: torch.Tensor, names: tuple[str, ...]) -> None:
    steer = cs.add(cs.direction(vector, layer=LAYER), STRENGTH)
    requests = [ask(q, steer, exempt=names) for q in QUESTIONS]
    rested = 0
    for request, done in zip(requests, engine.run(requests), strict=True):
        prompt = engine.encode(request)
        assert list(done.tokens) == reference(engine, prompt, vector, names, 40)
        held = {i for i in stretches(engine, done.tokens, names) if i < len(done.tokens) - 1}
        layer, read = done.receipt.layers[0], len(prompt) + len(done.tokens) - 1
        assert layer.tokens_seen == layer.tokens_changed == read - len(held)
        rested += len(held)
    assert rested >= 8, "the texts held too few stretches to test this"


def test_a_mean_counts_only_the_positions_that_were_edited(engine: Any, vector: torch.Tensor) -> None:
    direction = cs.direction(vector, layer=LAYER)
    steer = cs.to_target(direction, boundary=1e6, target=3.0)  # acts everywhere, so the mean after is the target
    (done,) = engine.run([ask(QUESTIONS[0], steer, exempt=("json_fence",))])
    assert any("exempt from" in note for note in done.receipt.notes)
    assert done.receipt.layers[0].after[0] == pytest.approx(3.0, rel=1e-9)


def test_measuring_only_changes_nothing_and_says_what_would_have_been(engine: Any, vector: torch.Tensor) -> None:
    direction = cs.direction(vector, layer=LAYER)
    one = cs.add(direction, STRENGTH)
    gated = cs.to_mirror(direction, boundary=0.5)
    requests = [ask(q, s, measure_only=m) for q in QUESTIONS for s, m in
                ((None, False), (one, True), (gated, True), (one + gated.order(1), True), (one, False))]  # fmt: skip
    done = engine.run(requests)
    unit = vector / vector.norm()
    for i in range(0, len(done), 5):
        plain, added, mirrored, both, acted = done[i : i + 5]
        assert plain.tokens == added.tokens == mirrored.tokens == both.tokens
        ids = [*engine.encode(requests[i]), *plain.tokens[:-1]]
        h = torch.cat(_residuals(engine, ids))
        rho = h @ unit
        assert added.receipt.layers[0].tokens_changed == len(ids)
        moved = (STRENGTH * vector).norm() / h[1:].norm(dim=1)
        assert added.receipt.layers[0].mean_relative == pytest.approx(float(moved.mean()), rel=1e-9)
        assert mirrored.receipt.layers[0].tokens_changed == int((rho < 0.5).sum())
        assert mirrored.receipt.layers[0].before[0] == pytest.approx(float(rho[1:].mean()), rel=1e-9)
        after = torch.where(rho < 0.5, 1.0 - rho, rho)[1:].mean()
        assert mirrored.receipt.layers[0].after[0] == pytest.approx(float(after), rel=1e-9)
        second = rho + STRENGTH * vector.norm()  # the later step reads what the earlier one would have written
        assert both.receipt.layers[0].edits[1].tokens_changed == int((second < 0.5).sum())
        assert any("measured only" in note for note in added.receipt.notes)
        assert not any("measured only" in note for note in acted.receipt.notes)
    assert any(done[i].tokens != done[i + 4].tokens for i in range(0, len(done), 5)), "the edit itself must matter"


def _residuals(engine: Any, ids: list[int]) -> list[torch.Tensor]:
    kept: list[torch.Tensor] = []

    def hook(_m: Any, _a: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output)[0])

    handle = engine.model.layers[LAYER].register_forward_hook(hook)
    try:
        with torch.inference_mode():
            engine.model.module(torch.tensor([ids]), use_cache=False)
    finally:
        handle.remove()
    return kept


def test_a_span_that_holds_nothing_is_no_error_when_only_measured(engine: Any, vector: torch.Tensor) -> None:
    steer = cs.add(cs.direction(vector, layer=LAYER), STRENGTH).span("from(400)")
    (done,) = engine.run([ask(QUESTIONS[0], steer, measure_only=True)])
    assert any("would have been refused as a no-op" in note for note in done.receipt.notes)


def test_other_engines_refuse_by_name() -> None:
    scripted = cs.ScriptedEngine({"a": "b"})
    for more in ({"measure_only": True}, {"exempt": ("tool_call",)}):
        with pytest.raises(RefusedError, match="the embedded or the vLLM engine"):
            scripted.run([cs.Request(prompt="a", **more)])
    with pytest.raises(InputError, match="did you mean 'json_fence'"):
        cs.Request(prompt="a", exempt=("json_fenced",))
    with pytest.raises(InputError, match="list of names"):
        cs.Request(prompt="a", exempt="json_fence")


def follow(pieces: list[str], names: tuple[str, ...]) -> list[int]:
    """The pieces that lie inside, each piece one token."""
    watch, held = Exempt(names, lambda ids: "".join(pieces[i] for i in ids)), []
    for i in range(len(pieces)):
        before = watch.inside
        watch.push(range(i + 1))
        if before is not None and watch.inside is not None:
            held.append(i)
    return held


@pytest.mark.parametrize(
    ("pieces", "names", "inside"),
    [
        (["Sure:", "\n```", "json\n", "{", "}", "\n```", " done"], ("json_fence",), [3, 4]),
        (["```json\n", "{}", "\n", "```", "\n", "{}"], ("json_fence",), [1, 2]),
        (["a ```json\n", "{}", "\n```"], ("json_fence",), []),  # not at the beginning of a line
        (["\n```python\n", "x", "\n```"], ("json_fence",), []),  # another language
        (["\n```jsonl\n", "x", "\n```"], ("json_fence",), []),
        (["\n```json", " is a fence", "\nx"], ("json_fence",), []),  # the line goes on
        (["\n```json\n```\n", "free text"], ("json_fence",), []),  # opened and closed by one token
        (["\n```json\n", "```", "free"], ("json_fence",), []),
        (["\n```json\n{", "}\n``", "`\n", "free"], ("json_fence",), [1]),
        (["<tool_", "call>", "{}", "</tool_call>", "free"], ("tool_call",), [2]),
        (["<tool_call>", "{}", "</tool_call>"], ("json_fence",), []),  # not asked for
        (
            ["<tool_call>", "\n```json\n", "x", "\n```", "y", "</tool_call>", "z"],
            ("tool_call", "json_fence"),
            [1, 2, 3, 4],
        ),
        (["\n```json\n", "x", "\n```", "\n```json\n", "y", "\n```", "z"], ("json_fence",), [1, 4]),
    ],
)
def test_markers_err_towards_acting(pieces: list[str], names: tuple[str, ...], inside: list[int]) -> None:
    assert follow(pieces, names) == inside


def test_a_stretch_that_never_closes_ends() -> None:
    pieces = ["\n```json\n", *(" x" for _ in range(LONGEST + 20))]
    assert follow(pieces, ("json_fence",)) == list(range(1, LONGEST))


def test_the_cut_of_the_window_is_not_the_beginning_of_a_line() -> None:
    for lead in range(28, 40):
        assert follow([*("a" for _ in range(lead)), "```json\n", "x"], ("json_fence",)) == []
