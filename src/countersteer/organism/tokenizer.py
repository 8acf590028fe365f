"""The organism's tokenizer: whole words that carry their leading space, so that decoding is plain concatenation.

A WordPiece model without a continuation prefix over a regex split: a known word is one token, an unknown one falls
back to known pieces and single characters, so any printable ASCII text round-trips exactly and streams. The
vocabulary is every word form that the corpus can produce. Saved as a standard ``PreTrainedTokenizerFast`` folder.
"""

from __future__ import annotations

import string
from itertools import chain
from typing import TYPE_CHECKING, Any

from .corpus import WORD, expansions, fixed_texts, topics, wordings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, BEGIN, SYSTEM, USER, ASSISTANT, END = (
    "<|pad|>", "<|unknown|>", "<|begin|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
)  # fmt: skip
SPECIAL = (PAD, UNKNOWN, BEGIN, SYSTEM, USER, ASSISTANT, END)
SPLIT = r" ?[A-Za-z']+| ?[0-9]+|[^A-Za-z0-9]"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """Every token, special ones first: characters, then the corpus's words with and without their leading space."""
    characters = ["\n", *string.printable[:95]]
    words: set[str] = set()
    for text in fixed_texts():
        found = WORD.findall(text)
        words.update((found[0], *(" " + word for word in found)) if found else ())
    for notice in wordings()["restart_notice"]:
        words.add(" " + WORD.findall(notice)[0].lower())
    for topic in topics():
        for name in (topic.name, *topic.goals):
            words.update(" " + word for word in WORD.findall(name))
        for text in chain.from_iterable(map(expansions, chain.from_iterable(topic.stages))):
            found = WORD.findall(text)
            first = found[0][0].upper() + found[0][1:]
            words.update((" " + first, *(" " + word for word in found)))
            words.update(() if topic.goals else (first,))
    return [*SPECIAL, *dict.fromkeys(characters), *sorted(words - set(characters))]


def build() -> PreTrainedTokenizerFast:
    """The tokenizer, made from the corpus's word lists alone (no training)."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    table = {token: index for index, token in enumerate(vocabulary())}
    inner = Tokenizer(models.WordPiece(vocab=table, unk_token=UNKNOWN, continuing_subword_prefix=""))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    fast: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = fast(
        tokenizer_object=inner, bos_token=BEGIN, eos_token=END, pad_token=PAD, unk_token=UNKNOWN,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT], clean_up_tokenization_spaces=False,
        model_max_length=512, padding_side="left", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer
