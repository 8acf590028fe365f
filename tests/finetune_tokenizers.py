"""Tokenizers of four kinds with the chat templates of their models, and the bytes that each token stands for.

Llama 3 and Qwen3: byte-level BPE. Gemma 2: BPE over "▁" with bytes as fallback. The organism: whole words. Templates
are those of the models with what concerns tools left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from countersteer import organism

LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN3 = """
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" %}
        {%- set ns.searching = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n') %}
            {%- set reasoning_content = reasoning_content.split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') }}
            {{- '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
QWEN3_PLAIN = "{%- set enable_thinking = false %}" + QWEN3
"""As the model's card says to switch thinking off for good: the prompt ends with an empty block of thoughts."""
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim"
    " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MERGES = ["Ġ t", "h e", "Ġt he", "i n", "o n", "Ġ w", "Ġw as", "a s", ". Ġ", "Ċ Ċ", "Ġ W", "a i", "Ġ a", "e r"]


def _fast(inner: Tokenizer, special: list[str], template: str, **named: str) -> Any:
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **named)
    made.chat_template = template
    return made


def _byte_level(special: list[str], template: str, **named: str) -> Any:
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for pair in MERGES:
        one, _, other = pair.partition(" ")
        if one in vocab and other in vocab:
            merges.append((one, other))
            vocab[one + other] = len(vocab)
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return _fast(inner, special, template, **named)


def llama3() -> Any:
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<pad>"]
    return _byte_level(special, LLAMA3, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<pad>")


def joined_stops() -> Any:
    """Llama 3's, with its token for a full stop and the newlines after it."""
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {"ĊĊ": len(vocab), ".ĊĊ": len(vocab) + 1}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[("Ċ", "Ċ"), (".", "ĊĊ")]))
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
    inner.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<pad>"]
    return _fast(inner, special, LLAMA3, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<pad>")


def qwen3(template: str = QWEN3) -> Any:
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    made = _byte_level(special, template, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return made


def qwen3_plain() -> Any:
    return qwen3(QWEN3_PLAIN)


def gemma2() -> Any:
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    vocab = {token: i for i, token in enumerate([*special, "<unk>", *(f"<0x{b:02X}>" for b in range(256))])}
    for character in "▁\n" + "".join(chr(c) for c in range(33, 127)):
        vocab.setdefault(character, len(vocab))
    merges = []
    for one, other in (("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "W"), ("a", "i"), ("i", "n"), ("o", "n")):
        merges.append((one, other))
        vocab[one + other] = len(vocab)
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _fast(inner, special, GEMMA2, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


def words() -> Any:
    return AutoTokenizer.from_pretrained(organism.path())


MADE: dict[str, Callable[[], Any]] = {
    "llama3": llama3, "qwen3": qwen3, "qwen3 without thinking": qwen3_plain, "gemma2": gemma2, "organism": words,
}  # fmt: skip
END = {
    "llama3": "<|eot_id|>",
    "qwen3": "<|im_end|>",
    "qwen3 without thinking": "<|im_end|>",
    "gemma2": "<end_of_turn>",
    "organism": "<|end|>",
}


def token_bytes(name: str, tokenizer: Any, token: int) -> bytes:
    """The bytes of the text that one token stands for, from its entry in the vocabulary alone."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if token in tokenizer.added_tokens_decoder or name == "organism":
        return str(piece).encode()
    if name == "gemma2":
        if piece.startswith("<0x") and len(piece) == 6:
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace("▁", " ").encode()
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in visible}  # GPT-2's table: visible bytes stand for themselves, the rest from 256 on
    table |= {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in visible)}
    return bytes(table[character] for character in piece)
