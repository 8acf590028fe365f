"""The small words: spans, sites and their text forms."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import countersteer as cs
from countersteer.core.errors import InputError

TEXTS = ("all", "prompt", "response", "generation", "from(0)", "from(5)", "until(1)", "until(9)", "between(0,2)",
         "between(2,5)", "between(4,11)")  # fmt: skip


def holds(span: str, p: int, prompt: int) -> bool:
    if span.startswith("from"):
        return p >= int(span[5:-1])
    if span.startswith("until"):
        return p < int(span[6:-1])
    if span.startswith("between"):
        first, stop = span[8:-1].split(",")
        return int(first) <= p < int(stop)
    return {"all": True, "prompt": p < prompt, "response": p >= prompt, "generation": p >= prompt - 1}[span]


@given(st.sampled_from(TEXTS), st.integers(1, 12), st.integers(0, 25))
def test_bounds_and_counts_hold_exactly_the_positions(text: str, prompt: int, tokens: int) -> None:
    span = cs.Span.parse(text)
    start, stop = span.bounds(prompt)
    inside = [p for p in range(tokens) if holds(text, p, prompt)]
    assert [p for p in range(tokens) if start <= p < stop] == inside
    assert span.count(prompt, tokens) == len(inside)
    assert str(span) == text and cs.Span.parse(str(span)) == span == cs.Span.parse(f"  {text} ")


def test_disjoint_means_no_shared_position_whatever_the_prompt() -> None:
    for a, b in itertools.product(TEXTS, TEXTS):
        if cs.Span.parse(a).disjoint(cs.Span.parse(b)):
            assert not any(holds(a, p, n) and holds(b, p, n) for n in range(1, 15) for p in range(40)), (a, b)
    for a, b in (("prompt", "response"), ("until(3)", "from(3)"), ("from(9)", "until(9)"),
                 ("between(0,2)", "between(2,5)"), ("between(4,11)", "from(11)")):  # fmt: skip
        assert cs.Span.parse(a).disjoint(cs.Span.parse(b)) and cs.Span.parse(b).disjoint(cs.Span.parse(a))


BAD = ("", "al", "from", "from()", "from(x)", "from(1.5)", "until(0)", "prompt(3)", "all(1)", "between(3)",
       "between(3,3)", "from(1,2)", "between(1,x)")  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_bad_spans_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        cs.Span.parse(text)


def test_sites_have_one_text_form() -> None:
    for layer in (0, 7, 120):
        assert str(cs.Site(layer)) == f"resid_post.{layer}" and cs.Site.parse(f"resid_post.{layer}") == cs.Site(layer)
    for text in ("resid_pre.3", "resid_post", "resid_post.-1", "resid_post.x", "3", ""):
        with pytest.raises(InputError):
            cs.Site.parse(text)
    for layer in (-1, 1.0, True, "3", None):
        with pytest.raises(InputError):
            cs.Site(layer)  # type: ignore[arg-type]
