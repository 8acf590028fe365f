"""From a request to token ids, and from token ids back to text as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date as Date
from functools import lru_cache
from typing import Any

from countersteer.core.errors import InputError, RefusedError
from countersteer.core.request import Request

REFERENCE, THOUGHTLESS = "esr-reference", "no-thinking"
TEMPLATES = (REFERENCE, THOUGHTLESS)
"""Variations of a model's chat template, by name.

"esr-reference": after the template's generation prompt, BOS and the assistant header once more, as the ESR paper's
reference code does in its Llama runs. Not known: whether that was meant, and what it does to the paper's numbers.
"no-thinking": with `enable_thinking` false, by which Qwen3 and others are told to answer without thoughts.
"""

THINKING = "enable_thinking"
"""What a chat template asks whether the model shall think first."""

NOW = "strftime_now"
"""What a chat template calls to write today's date into every prompt (Llama 3.2 and gpt-oss do)."""


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a model's folder or id, None where there is none.

    For some model types transformers makes up a tokenizer of nothing but special tokens when the files are missing; its
    end token would end responses of a model that never heard of it. That is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tokenizer if set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) else None


def tells_date(tokenizer: Any) -> bool:
    """Whether the chat template writes the date into its prompts, so that they are other tokens tomorrow."""
    return NOW in str(getattr(tokenizer, "chat_template", None) or "")


@lru_cache(16)
def dated(template: str, date: str) -> str:
    """A chat template whose `strftime_now` tells `date` (ISO) instead of today.

    A macro of that name before the template hides the function: transformers lets nothing callable into a template.
    Exactly one line, which Jinja's trim_blocks takes away whole.
    """
    day = Date.fromisoformat(date)
    codes = [*(f"%-{c}" for c in "dmyjHIMS"), *(f"%{c}" for c in "aAbBdmyYjUWwuGVeFDxHIMSpTRXcZzf")]
    told = "".join(f" | replace({code!r}, {day.strftime(code)!r})" for code in codes)
    return f"{{% macro {NOW}(format) %}}{{{{ format{told} }}}}{{% endmacro %}}\n{template}"


def check_variation(tokenizer: Any, name: str | None) -> None:
    """Raise InputError or RefusedError if a model's chat template has no such variation."""
    if name is None:
        return
    chat = getattr(tokenizer, "chat_template", None)
    if not chat:
        raise InputError(f"template {name!r} varies a chat template, and this model has none; leave it out")
    if name == THOUGHTLESS and THINKING not in str(chat):
        raise RefusedError(
            f"template {name!r}", f"this model's chat template knows no {THINKING}", "the template itself: leave it out"
        )
    if name == REFERENCE:
        _again([{"role": "user", "content": "?"}], tokenizer, {})


def encode_request(
    request: Request, tokenizer: Any, *, template: str | None = None, date: str | None = None
) -> list[int]:
    """Token ids of a request: chat template, assistant prefix, or plain text (`template` False).

    `template`: one of TEMPLATES. `date` (ISO): what the chat template takes for today. Raises InputError when there is
    no tokenizer or template, or when the template drops the system prompt.
    """
    if request.tokens is not None:
        return list(request.tokens)
    for text in (request.prompt, request.system, request.prefix, *(m["content"] for m in request.messages or ())):
        _check_characters(text or "")
    if tokenizer is None:
        raise InputError("this model has no tokenizer: send token ids instead of text")
    if not request.template:
        if request.messages is not None or request.system is not None:
            raise InputError("messages and system prompts need the chat template: leave template on")
        return _nonempty(tokenizer(f"{request.prompt}{request.prefix or ''}")["input_ids"])
    chat = getattr(tokenizer, "chat_template", None)
    if not chat:
        raise InputError("this model's tokenizer has no chat template: send the prompt with template=False")
    messages = list(request.messages or ())
    if request.prompt is not None:
        messages = [{"role": "user", "content": request.prompt}]
        if request.system is not None:
            messages.insert(0, {"role": "system", "content": request.system})
    text = render(messages, tokenizer, template=template, date=date)
    for message in messages:
        if message.get("content", "").strip() not in text:
            raise RefusedError(
                f"a {message.get('role')} message",
                "this model's chat template drops it",
                "put its text into the user turn",
            )
    return _nonempty(tokenizer(text + (request.prefix or ""), add_special_tokens=False)["input_ids"])


def render(
    messages: list[dict[str, str]], tokenizer: Any, *, template: str | None = None, date: str | None = None,
    answered: bool = False,
) -> str:  # fmt: skip
    """The text that a conversation is sent as: the chat template, in its `template` variation, with generation prompt.

    `answered`: the conversation ends with an answer, so without generation prompt or variation. `date` as in
    `encode_request`. Raises InputError where the template cannot render it.
    """
    frozen: dict[str, Any] = {THINKING: False} if template == THOUGHTLESS else {}
    if date and tells_date(tokenizer):
        frozen["chat_template"] = dated(tokenizer.chat_template, date)
    try:
        text = str(
            tokenizer.apply_chat_template(messages, add_generation_prompt=not answered, tokenize=False, **frozen)
        )
    except Exception as error:  # Jinja raises whatever the template's author chose
        raise InputError(f"the chat template cannot render these messages: {' '.join(str(error).split())}") from error
    if template == REFERENCE and not answered:
        text += _again(messages, tokenizer, frozen)
    return text


def _again(messages: list[dict[str, str]], tokenizer: Any, frozen: dict[str, Any]) -> str:
    """BOS and the header that opens the assistant's turn. Raises InputError for a model without them."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **frozen)
    closed = tokenizer.apply_chat_template(messages, add_generation_prompt=False, tokenize=False, **frozen)
    header = text[len(closed) :] if text.startswith(closed) else ""
    if not header or not tokenizer.bos_token:
        lacks = "no beginning-of-sequence token" if header else "no header that opens the assistant's turn"
        raise InputError(
            f"template 'esr-reference' repeats BOS and the header, and this model has {lacks}; leave it out"
        )
    return f"{tokenizer.bos_token}{header}"


def _check_characters(text: str) -> None:
    """Raise InputError for half a surrogate pair, which no UTF-8 holds."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text holds half a character (a lone surrogate) at {error.start}: mend its source"
        ) from error


def _nonempty(ids: list[int]) -> list[int]:
    if not ids:
        raise InputError("the request has no tokens")
    return list(ids)


class TextStream:
    """Decodes a growing list of tokens piece by piece and watches for stop strings.

    A piece is held back while it ends in an incomplete character or could be the beginning of a stop string.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.tokens: list[int] = []
        self.text = ""
        self.sent = 0
        self.stopped = False
        self._from = self._to = 0

    def push(self, token: int) -> str:
        """Add a token; the text that is now certain and was not returned before."""
        self.tokens.append(token)
        if self.tokenizer is None:
            return ""
        known = self._decode(self.tokens[self._from : self._to])
        now = self._decode(self.tokens[self._from :])
        if len(now) > len(known) and not now.endswith("\ufffd"):
            self.text += now[len(known) :]
            self._from, self._to = self._to, len(self.tokens)
            self._watch(len(now) - len(known))
        hold = 0 if self.stopped else max((_overlap(self.text, s) for s in self.stop), default=0)
        return self._send(len(self.text) - hold)

    def finish(self) -> str:
        """The rest of the text, once no more tokens come."""
        if self.tokenizer is not None and not self.stopped:
            known = self._decode(self.tokens[self._from : self._to])
            rest = self._decode(self.tokens[self._from :])[len(known) :]
            self.text += rest
            self._watch(len(rest))
        return self._send(len(self.text))

    def _watch(self, added: int) -> None:
        found = [i for s in self.stop if (i := self.text.find(s, max(0, len(self.text) - added - len(s) + 1))) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _send(self, upto: int) -> str:
        piece = self.text[self.sent : upto]
        self.sent = max(self.sent, upto)
        return piece

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for n in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
