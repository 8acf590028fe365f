"""From an example to token ids and labels: loss on the tokens of the trained spans and on no other, checked one by one.

The text is what a study sends (the chat template with its generation prompt), then the answer, then the template's end
of turn. A template that drops or rewrites a message, a token that straddles the border of a span, a tokenizer without
character offsets: all are refused, since each would train other tokens than those asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from countersteer.core.errors import CountersteerError, InputError, RefusedError
from countersteer.engines.embedded.text import check_variation, render
from countersteer.finetune.examples import Example

IGNORED = -100
_MARKS = ("\ue000stand-in\ue001", "\ue002another one\ue003")


@dataclass(frozen=True)
class Encoded:
    """Token ids, labels (-100 where there is no loss), and how many tokens come before the answer."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    prompt_tokens: int

    @property
    def trained(self) -> int:
        """Number of tokens with a loss."""
        return sum(label != IGNORED for label in self.labels)


class Encoder:
    """Encodes examples with one tokenizer and its chat template. Raises InputError if it has neither, or not the
    variation.

    template, date: the variation of the chat template and the day it takes for today, as the engine has them
    (`engines.embedded.text`), so that what is trained on is what a study sends.
    """

    def __init__(self, tokenizer: Any, *, template: str | None = None, date: str | None = None) -> None:
        if tokenizer is None or not getattr(tokenizer, "chat_template", None):
            raise InputError("this model's tokenizer has no chat template; fine-tuning needs one")
        if not getattr(tokenizer, "is_fast", False):
            raise RefusedError(
                "a tokenizer without character offsets",
                "the trained tokens could not be checked against the text",
                "the model's fast tokenizer (tokenizer.json)",
            )
        check_variation(tokenizer, template)
        self.tokenizer, self.template, self.date = tokenizer, template, date
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._special = {int(i) for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)

    def __call__(self, example: Example) -> Encoded:
        """Ids and labels of one example. Raises RefusedError."""
        front, back = self._around(example)
        text = front + example.answer + back
        ids, offsets = self._tokens(front, example.answer + back)
        stop = len(front) + len(example.answer)
        cut = self._end(ids, offsets, stop)
        ids, offsets = ids[:cut], offsets[:cut]
        spans = [(len(front) + a, len(front) + b) for a, b in example.spans]
        wanted = [self._inside(text, offset, spans) for offset in offsets]
        if example.end:
            after = [i for i, (a, b) in enumerate(offsets) if a >= stop and b > a]
            if not after:
                raise RefusedError(
                    "training the end of the turn",
                    "the chat template writes no end-of-turn token after an answer",
                    "end = false",
                )
            for i in after:
                wanted[i] = True
        self._check(text, ids, offsets, wanted, spans, stop if example.end else None)
        before = sum(b <= len(front) for _, b in offsets)
        labels = [token if on else IGNORED for token, on in zip(ids, wanted, strict=True)]
        return Encoded(tuple(ids), tuple(labels), before)

    def _tokens(self, front: str, rest: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of the text with their characters: first those that a study sends, so that none reaches over."""
        sent, before = self._plain(front)
        ids, offsets = self._plain(front + rest)
        if ids[: len(sent)] == sent:
            return ids, offsets
        after, places = self._plain(rest)
        said = self.tokenizer.decode(after, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if said != rest:
            raise RefusedError(
                "this tokenizer",
                "it joins the end of the prompt with the beginning of the answer, as no generation would",
                "another tokenizer of the model",
            )
        return sent + after, before + [(a + len(front), b + len(front)) for a, b in places]

    def _plain(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(found["input_ids"]), [(int(a), int(b)) for a, b in found["offset_mapping"]]

    def _around(self, example: Example) -> tuple[str, str]:
        """What a study sends before the answer, and what the template writes after one."""
        given = example.messages[:-1]
        front = self._render(given, False)
        sides = []
        for mark in _MARKS:
            text = self._render([*given, {"role": "assistant", "content": mark}], True)
            before, found, after = text.partition(mark)
            if not found:
                raise self._dropped("the assistant's message")
            sides.append((before, after))
        if sides[0] != sides[1]:
            raise self._dropped("nothing, but writes other text around each answer,")
        whole = self._render(example.messages, True)
        if whole != sides[0][0] + example.answer + sides[0][1]:
            raise self._dropped(f"part of the answer {_short(example.answer)}")
        for message in given:
            if message["content"].strip() not in front:
                raise self._dropped(f"the {message['role']} message {_short(message['content'])}")
        return front, sides[0][1]

    def _render(self, messages: list[dict[str, str]], answered: bool) -> str:
        return render(messages, self.tokenizer, template=self.template, date=self.date, answered=answered)

    @staticmethod
    def _dropped(what: str) -> RefusedError:
        return RefusedError(
            "this conversation",
            f"the chat template drops or rewrites {what}, so the trained characters cannot be placed",
            "text that the template keeps (no outer spaces, no reasoning tags), or template 'no-thinking' for a model"
            " that thinks first",
        )

    def _end(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]], stop: int) -> int:
        """Number of tokens up to and with the template's end-of-turn token (what a model stops at)."""
        for i, (token, (start, _)) in enumerate(zip(ids, offsets, strict=True)):
            if start >= stop and token in self._special:
                return i + 1
        return sum(b <= stop for _, b in offsets)

    @staticmethod
    def _inside(text: str, offset: tuple[int, int], spans: Sequence[tuple[int, int]]) -> bool:
        """Whether a token lies in a span; one that straddles a border is refused."""
        start, stop = offset
        for first, last in spans:
            if start < last and stop > first:
                if start < first or stop > last:
                    raise RefusedError(
                        f"the span {_short(text[first:last])}",
                        f"the token {text[start:stop]!r} straddles its border",
                        "a border between two words, with the space inside the later part",
                    )
                return stop > start
        return False

    def _check(
        self, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], wanted: Sequence[bool],
        spans: Sequence[tuple[int, int]], end: int | None,
    ) -> None:  # fmt: skip
        """Every character of a span is in a trained token and none outside, and the trained tokens read as the span."""
        covered = [False] * len(text)
        for (start, stop), on in zip(offsets, wanted, strict=True):
            if on:
                covered[start:stop] = [True] * (stop - start)
        inside = [False] * len(text)
        for first, last in spans:
            inside[first:last] = [True] * (last - first)
        for at, character in enumerate(text):
            if end is not None and at >= end:
                break
            if covered[at] != inside[at] and not (inside[at] and character.isspace()):
                raise RefusedError(
                    "this tokenizer",
                    f"its offsets do not map: character {at} ({character!r}) is in no trained token or one too many",
                    "another tokenizer of the model",
                )
        for first, last in spans:
            mine = [t for t, (a, b), on in zip(ids, offsets, wanted, strict=True) if on and a >= first and b <= last]
            said = self.tokenizer.decode(mine, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if "".join(said.split()) != "".join(text[first:last].split()):
                raise RefusedError(
                    "this tokenizer",
                    f"the trained tokens read {_short(said)}, not {_short(text[first:last])}",
                    "another tokenizer of the model",
                )


def encode_all(
    examples: Iterable[Example], tokenizer: Any, *, max_length: int | None = None, template: str | None = None,
    date: str | None = None,
) -> list[Encoded]:  # fmt: skip
    """Every example encoded. Raises InputError with its number, also for one longer than `max_length` tokens."""
    encode, out = Encoder(tokenizer, template=template, date=date), []
    for number, example in enumerate(examples, 1):
        try:
            encoded = encode(example)
        except CountersteerError as error:
            raise InputError(f"example {number} ({example.prompt!r}): {error}") from error
        if max_length is not None and len(encoded.ids) > max_length:
            raise InputError(
                f"example {number} is {len(encoded.ids)} tokens long, more than max_length = {max_length};"
                " raise it, or shorten the answer (a cut would drop trained tokens)"
            )
        out.append(encoded)
    return out


def shown(example: Example, encoded: Encoded, tokenizer: Any) -> str:
    """The example's tokens as text, the trained ones between brackets: for reading masks with one's own eyes."""
    parts: list[tuple[bool, list[int]]] = []
    for token, label in zip(encoded.ids, encoded.labels, strict=True):
        on = label != IGNORED
        if not parts or parts[-1][0] != on:
            parts.append((on, []))
        parts[-1][1].append(token)
    texts = [(on, tokenizer.decode(ids, clean_up_tokenization_spaces=False)) for on, ids in parts]
    return "".join(f"[[{text}]]" if on else text for on, text in texts)


def _short(text: str) -> str:
    return repr(text if len(text) <= 50 else text[:47] + "...")
