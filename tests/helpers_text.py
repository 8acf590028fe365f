"""A small byte-level tokenizer with a chat template, built on the spot, and a model that goes with it."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers_models import tiny

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = "{% for m in messages %}{% if m['role'] == 'user' %}[{{ m['content'] }}]{% endif %}{% endfor %}"
SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")


def byte_tokenizer(*, template: str | None = TEMPLATE) -> Any:
    """Every byte is a token (so characters may take several), plus a few merges and the special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((*SPECIAL, *letters))}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("o", "n"), ("e", "r"), ("a", "n"), ("an", "d")]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
    )
    if template is not None:
        made.chat_template = template
    return made


def talking(seed: int = 0, *, dtype: torch.dtype = torch.float64, template: str | None = TEMPLATE) -> tuple[Any, Any]:
    """A random-weight Llama and its byte tokenizer."""
    tokenizer = byte_tokenizer(template=template)
    return tiny("llama", seed=seed, dtype=dtype, vocab_size=len(tokenizer), num_hidden_layers=2), tokenizer
