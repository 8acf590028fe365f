"""Trained tokens are exactly those of the span, for four models' templates; what cannot be placed is refused."""

from __future__ import annotations

from typing import Any

import pytest

from countersteer.core.errors import InputError, RefusedError
from countersteer.core.request import Request
from countersteer.engines.embedded.text import encode_request
from countersteer.finetune.compose import correction, normal
from countersteer.finetune.encode import IGNORED, Encoder, encode_all, shown
from countersteer.finetune.examples import CORRECTION, Example
from finetune_tokenizers import END, MADE, llama3, token_bytes

STRETCH = "The volcano erupted twice. It was on the island."
SORRY = "Wait, that's not right. Let me try again."
ANSWER = "First, heat the iron. Then lay the shirt on the board."
PLAIN = [
    correction("How do I iron a shirt?", STRETCH, SORRY, ANSWER, source="test"),
    normal("How do I iron a shirt?", ANSWER, source="test"),
    Example("Why?", f"{STRETCH} {SORRY} {ANSWER}", ((0, 11), (48, 72)), CORRECTION, "test", end=False),
]
UNUSUAL = [
    correction(
        "Wie bügle ich?", "Der Vulkan ist groß — sehr 🌋!", "Moment, das war falsch 🤦.", "Zuerst: heiß!", source="t"
    ),
    correction(
        "Line\nbreaks?", "One.\n\nTwo on the way.", "Wait.", "First line.\n\n* then a list\n* of two", source="t"
    ),
]


def expected(name: str, tokenizer: Any, example: Example, ids: list[int]) -> list[int]:
    """Labels by the bytes of each token, whatever the tokenizer says about offsets."""
    sent = tokenizer.apply_chat_template(example.messages[:-1], add_generation_prompt=True, tokenize=False)
    front, answer = sent.encode(), example.answer.encode()
    spans = [
        (len(front) + len(example.answer[:a].encode()), len(front) + len(example.answer[:b].encode()))
        for a, b in example.spans
    ]
    at, labels = 0, []
    for token in ids:
        size = len(token_bytes(name, tokenizer, token))
        inside = any(a <= at and at + size <= b for a, b in spans)
        ends = example.end and at == len(front) + len(answer) and tokenizer.decode([token]) == END[name]
        labels.append(token if inside or ends else IGNORED)
        at += size
    assert b"".join(token_bytes(name, tokenizer, t) for t in ids) == front + answer + END[name].encode()
    return labels


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("number", range(len(PLAIN) + len(UNUSUAL)))
def test_trained_tokens_are_exactly_those_of_the_span(name: str, number: int) -> None:
    if name == "organism" and number >= len(PLAIN):
        example = correction("How do I 3x?", "A # 12 zz Qq!", "Wait, that's not right.", "First, 7 ~ vwx.", source="t")
    else:
        example = [*PLAIN, *UNUSUAL][number]
    tokenizer = MADE[name]()
    found = Encoder(tokenizer)(example)
    labels = expected(name, tokenizer, example, list(found.ids))
    assert list(found.labels) == labels
    assert sum(label != IGNORED for label in labels) == found.trained > 3


@pytest.mark.parametrize("name", MADE)
def test_training_sees_what_a_study_sends(name: str) -> None:
    tokenizer = MADE[name]()
    found = Encoder(tokenizer)(PLAIN[1])
    sent = tokenizer.apply_chat_template(PLAIN[1].messages[:-1], add_generation_prompt=True, tokenize=False)
    before = tokenizer(sent, add_special_tokens=False)["input_ids"]
    assert list(found.ids[: found.prompt_tokens]) == before
    assert set(found.labels[: len(before)]) == {IGNORED} and IGNORED not in found.labels[len(before) :]


def test_thoughts_stand_where_a_study_has_them_and_nowhere_else() -> None:
    """Qwen3's template writes an empty block of thoughts before an answer it is given, but not into a prompt."""
    text = {}
    for name in ("qwen3", "qwen3 without thinking"):
        tokenizer = MADE[name]()
        text[name] = shown(PLAIN[0], Encoder(tokenizer)(PLAIN[0]), tokenizer)
    assert f"<|im_start|>assistant\n{STRETCH}[[ {SORRY} {ANSWER}<|im_end|>]]" in text["qwen3"]
    empty = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert f"{empty}{STRETCH}[[ {SORRY} {ANSWER}<|im_end|>]]" in text["qwen3 without thinking"]


def test_a_variation_of_the_template_is_trained_as_the_engine_sends_it() -> None:
    tokenizer = llama3()
    found = Encoder(tokenizer, template="esr-reference")(PLAIN[0])
    asked = Request(prompt=PLAIN[0].prompt)
    assert list(found.ids[: found.prompt_tokens]) == encode_request(asked, tokenizer, template="esr-reference")
    own = Encoder(tokenizer)(PLAIN[0])
    assert found.ids[found.prompt_tokens :] == own.ids[own.prompt_tokens :] and len(found.ids) > len(own.ids)
    assert found.labels[found.prompt_tokens :] == own.labels[own.prompt_tokens :] and found.trained == own.trained


def test_thoughts_are_switched_off_as_the_models_card_says() -> None:
    """`template = "no-thinking"` is what a template with the switch built in does, in the prompt and in the mask."""
    own, plain = MADE["qwen3"](), MADE["qwen3 without thinking"]()
    asked = Request(prompt=PLAIN[0].prompt)
    assert encode_request(asked, own, template="no-thinking") == encode_request(asked, plain)
    assert encode_request(asked, own) != encode_request(asked, plain)
    for example in PLAIN:
        assert Encoder(own, template="no-thinking")(example) == Encoder(plain)(example)
    for other in ("llama3", "gemma2"):
        with pytest.raises(RefusedError, match=r"no-thinking.*knows no enable_thinking"):
            Encoder(MADE[other](), template="no-thinking")


def test_several_system_prompts_and_spans_are_placed() -> None:
    tokenizer = llama3()
    one = Example("Why?", "A b. C d.", ((0, 4),), CORRECTION, "t", system="Be kind.", end=False)
    text = shown(one, Encoder(tokenizer)(one), tokenizer)
    assert text.endswith("[[A b.]] C d.<|eot_id|>") and "Be kind." in text


def test_a_template_that_drops_or_rewrites_content_is_refused() -> None:
    trims = llama3()
    padded = Example("Why?", " Because.", ((0, 9),), "normal", "t")
    with pytest.raises(RefusedError, match="drops or rewrites part of the answer"):
        Encoder(trims)(padded)
    drops = llama3()
    drops.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[{{ m['content'] }}]{% endif %}{% endfor %}"
    )
    with pytest.raises(RefusedError, match="drops or rewrites the assistant's message"):
        Encoder(drops)(PLAIN[1])
    no_system = llama3()
    no_system.chat_template = (
        "{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    with pytest.raises(RefusedError, match=r"the system message 'Be kind\.'"):
        Encoder(no_system)(Example("Why?", "So.", ((0, 3),), "normal", "t", system="Be kind."))
    for reasoning in (MADE["qwen3"](), MADE["qwen3 without thinking"]()):
        with pytest.raises(RefusedError, match="drops or rewrites part of the answer"):
            Encoder(reasoning)(normal("Why?", "<think>\nso\n</think>\n\nBecause.", source="t"))
    with pytest.raises(InputError, match="cannot render these messages: System role not supported"):
        Encoder(MADE["gemma2"]())(Example("Why?", "So.", ((0, 3),), "normal", "t", system="Be kind."))


def test_a_span_that_cuts_a_token_is_refused_with_the_token() -> None:
    tokenizer = llama3()
    answer = "Off topic. the end"
    cut = Example("Why?", answer, ((12, len(answer)),), CORRECTION, "t")  # " the" is one token, the span begins in it
    with pytest.raises(RefusedError, match=r"the token ' the' straddles its border"):
        Encoder(tokenizer)(cut)
    with pytest.raises(InputError, match=r"example 2 \('Why\?'\): the span"):
        encode_all([PLAIN[1], cut], tokenizer)


def test_offsets_that_do_not_map_are_refused() -> None:
    tokenizer = llama3()

    class Shifted:
        """A tokenizer whose offsets are one character late."""

        chat_template, is_fast, all_special_ids = tokenizer.chat_template, True, tokenizer.all_special_ids
        added_tokens_decoder = tokenizer.added_tokens_decoder
        apply_chat_template, decode = tokenizer.apply_chat_template, tokenizer.decode

        def __call__(self, text: str, **options: Any) -> dict[str, Any]:
            found = tokenizer(text, **options)
            late = [(min(a + 1, len(text)), min(b + 1, len(text))) for a, b in found["offset_mapping"]]
            return {"input_ids": found["input_ids"], "offset_mapping": late}

    with pytest.raises(RefusedError):
        Encoder(Shifted())(PLAIN[0])


def test_tokenizers_without_template_or_offsets_are_refused() -> None:
    bare = llama3()
    bare.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        Encoder(bare)
    with pytest.raises(InputError, match="no chat template"):
        Encoder(None)

    class Slow:
        chat_template, is_fast = "x", False

    with pytest.raises(RefusedError, match="without character offsets"):
        Encoder(Slow())


def test_too_long_examples_are_refused_and_not_cut() -> None:
    with pytest.raises(InputError, match=r"example 1 is .* tokens long, more than max_length = 20"):
        encode_all([PLAIN[0]], llama3(), max_length=20)


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        (((0, 99),), "lies outside the answer of 9 characters"),
        (((-1, 4),), "lies outside"),
        (((4, 4),), "or is empty"),
        (((0, 5), (4, 9)), "overlaps the one before it"),
        ((), "without a trained span"),
        (((0, 4),), "the end of the turn is trained, but the last span stops at 4"),
    ],
)
def test_spans_outside_the_text_are_refused(spans: tuple[tuple[int, int], ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Example("Why?", "A b. C d.", spans, CORRECTION, "t")
