"""Spans that follow the text turn at the token after the restart phrase completes, exactly as numbered spans would.

The organism in float64, where two ways to the same edits give the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import countersteer as cs
from countersteer.core.errors import InputError, NoOpError, RefusedError
from countersteer.core.request import Completion
from countersteer.core.restart import completes
from countersteer.core.span import END, Span

QUESTION, PREFIX = "How do I plant a tree?", "First, soak the the Judges -"


@pytest.fixture(scope="module")
def engine() -> Any:
    with cs.load_engine("organism", dtype="float64") as loaded:
        yield loaded


def request(engine: Any, span: str, *, seed: int, strength: float = 0.5) -> cs.Request:
    steer = cs.add(cs.load_sae("organism").latent(17), strength).span(span)
    sampling = cs.Sampling(seed=seed, max_tokens=60)
    return cs.Request(prompt=QUESTION, prefix=PREFIX, intervention=steer, sampling=sampling)


def turn_of(engine: Any, done: Completion) -> int | None:
    """The first position after the token that completes a phrase, found by decoding all that was generated."""
    for count in range(1, len(done.tokens)):
        if completes(engine.tokenizer.decode(list(done.tokens[:count]), skip_special_tokens=True)):
            return done.prompt_tokens + count
    return None


@pytest.mark.parametrize("kind", ["until", "from"])
def test_the_span_turns_exactly_where_a_numbered_one_would(engine: Any, kind: str) -> None:
    found = engine.run([request(engine, f"{kind}(restart)", seed=s) for s in range(24)])
    turned = 0
    for seed, done in enumerate(found):
        turn = turn_of(engine, done)
        computed = done.prompt_tokens + len(done.tokens) - 1
        seen = done.receipt.layers[0].tokens_seen
        if turn is None or turn >= computed:
            assert seen == (computed if kind == "until" else 0)
            continue
        turned += 1
        assert seen == (turn if kind == "until" else computed - turn)
        assert f"restart complete at position {turn - 1}" in done.receipt.notes
        (same,) = engine.run([request(engine, f"{kind}({turn})", seed=seed)])
        assert same.tokens == done.tokens
    assert turned >= 5, "the organism restarted too rarely to test this"


def test_without_a_restart_a_span_from_it_rests_and_is_no_error(engine: Any) -> None:
    sampling = cs.Sampling(temperature=0.0, max_tokens=3)
    steer = cs.add(cs.load_sae("organism").latent(17), 2.0).span("from(restart)")
    (done,) = engine.run([cs.Request(prompt="How do I iron a shirt?", intervention=steer, sampling=sampling)])
    (plain,) = engine.run([cs.Request(prompt="How do I iron a shirt?", sampling=sampling)])
    assert done.receipt.layers[0].tokens_seen == 0 and done.tokens == plain.tokens


def test_an_add_that_changes_nothing_before_a_restart_is_a_no_op(engine: Any) -> None:
    """until(restart) holds the prompt at least, so it may no more be silent than all may; rounding swallows the add."""
    sampling = cs.Sampling(temperature=0.0, max_tokens=3)
    tiny = cs.add(cs.load_sae("organism").latent(17), 1e-300)
    for span in ("all", "until(restart)"):
        with pytest.raises(NoOpError, match="changed no token"):
            engine.run([cs.Request(prompt=QUESTION, intervention=tiny.span(span), sampling=sampling)])


def test_a_phrase_may_begin_in_the_prefix_but_not_end_there(engine: Any) -> None:
    """The response's first word completes it; a phrase that was given whole turns nothing."""
    steer = cs.add(cs.load_sae("organism").latent(17), 1e-3).span("from(restart)")
    half, whole = "That is not", "That is not right."
    assert not completes(half) and completes(whole) and not completes(whole, after=len(whole) - 1)
    sampling = cs.Sampling(temperature=0.0, max_tokens=4)
    ids = engine.encode(cs.Request(prompt=QUESTION, prefix=f"{half} right"))
    assert ids[:-1] == engine.encode(cs.Request(prompt=QUESTION, prefix=half)), "the word is one token"
    with forced(engine, ids[-1]):
        (done,) = engine.run([cs.Request(prompt=QUESTION, prefix=half, intervention=steer, sampling=sampling)])
    assert f"restart complete at position {len(ids) - 1}" in done.receipt.notes
    assert done.receipt.layers[0].tokens_seen == 2  # of the four tokens, the last is never read back
    (given,) = engine.run([cs.Request(prompt=QUESTION, prefix=whole, intervention=steer, sampling=sampling)])
    assert not any("restart complete" in note for note in given.receipt.notes)


@contextmanager
def forced(engine: Any, token: int) -> Iterator[None]:
    """The model's first token after the prompt is `token`, whatever it would have been."""
    head, calls = engine.model.module.get_output_embeddings(), 0

    def hook(module: Any, args: Any, logits: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            logits = logits.clone()
            logits[..., token] = 1e6
        return logits

    handle = head.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_text_form_bounds_and_what_cannot_follow_a_text() -> None:
    for text in ("until(restart)", 'until("restart")', "from( restart )"):
        assert str(Span.parse(text)) == text.replace('"', "").replace(" ", "")
    assert Span.parse("until(restart)").turning(5, None) == (0, END)
    assert Span.parse("until(restart)").turning(5, 9) == (0, 9)
    assert Span.parse("from(restart)").turning(5, None) == (END, END)
    assert Span.parse("from(restart)").turning(5, 9) == (9, END)
    assert Span.parse("until(restart)").disjoint(Span.parse("from(restart)"))
    assert not Span.parse("until(restart)").disjoint(Span.parse("from(9)"))
    with pytest.raises(RefusedError, match="only the embedded engine"):
        Span.parse("until(restart)").bounds(5)
    with pytest.raises(InputError, match="follows a restart"):
        Span("all", restart=True)


def test_engines_that_do_not_follow_the_text_refuse_by_name() -> None:
    from countersteer.engines.vllm.plan import pieces_of

    steer = cs.add(cs.direction([1.0] * 16, layer=1), 1.0).span("until(restart)")
    with pytest.raises(RefusedError, match="span until"):
        pieces_of(steer)
    with pytest.raises(RefusedError, match="span until"):
        cs.ScriptedEngine({"a": "b"}).run([cs.Request(prompt="a", intervention=steer)])
    with pytest.raises(RefusedError, match="span until"):
        cs.attach(None, steer)
