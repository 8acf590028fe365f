"""What a response is set in: letters and stories written on request, polite openings, and its return to its subject.

Restart words inside a letter or story are mostly part of it; after a mere "you're right!" they open no second attempt;
and weak ones count only where the text turns back to its prompt.
"""

from __future__ import annotations

import re

from countersteer.judging.affinity import content_words

_VIEW = 160
_LETTER = re.compile(
    r"^[ *_]*(?:subject:|dear |to whom |(?:hi|hello|hey)\b[^\n]{0,30},[ *_]*$)", re.IGNORECASE | re.MULTILINE
)
_LETTER_END = re.compile(
    r"^[ *_]*(?:(?:kind|best|warm|many|with)? ?(?:regards|wishes|thanks)|sincerely|yours|love|"
    r"cheers|-{3,}|\*{3,})",
    re.IGNORECASE | re.MULTILINE,
)
_POLITE = re.compile(
    r"\W*(?:(?:thanks|thank you|good (?:catch|point|question|eye)|great (?:catch|question|point)|"
    r"nice catch|you(?:'re| are) (?:\w+ )?(?:right|correct)|sure|of course|"
    r"certainly|absolutely|hi|hello|hey|yes|ok|okay|no problem|happy to help|well spotted|"
    r"fair (?:point|enough)|true|indeed|i see|right|ah|oh|good (?:morning|evening|"
    r"day))\b[^.!?\n]{0,80}[.!?\n]\s*){0,3}\W*$",
    re.IGNORECASE,
)
_COMPOSE = re.compile(
    r"^\W*(?:please |(?:can|could|would|will) you (?:please )?)?(?:write|draft|compose|tell|"
    r"invent|improvise|continue|make up|create|pen|role-?play|script|give me|"
    r"finish)\b[^.?!]*\b(?:letter|e-?mail|text|message|note|story|tale|"
    r"diary|journal|poem|song|lyrics|scene|dialogue|speech|script|monologue|jokes?|apology|toast|"
    r"play|haiku|limerick|tweet|post|sms|voicemail|conversation|anecdote|fable|essay|memoir|skit|"
    r"sketch|rap|verse|blog)\b",
    re.IGNORECASE,
)


def composed(prompt: str | None) -> bool:
    """Whether the prompt asks for a letter, story, poem or the like."""
    return prompt is not None and _COMPOSE.search(prompt[:400]) is not None


def polite(text: str) -> bool:
    """Whether a text is nothing but a greeting or an acknowledgement."""
    return len(text) <= 400 and _POLITE.match(text) is not None


def letters(text: str) -> list[tuple[int, int]]:
    """The stretches of letters and mails written on request, from salutation to closing."""
    spans, at = [], 0
    while m := _LETTER.search(text, at):
        close = _LETTER_END.search(text, m.end())
        at = close.end() if close else len(text)
        spans.append((m.start(), at))
    return spans


def turns(response: str, start: int, stop: int, prompt: str | None) -> bool:
    """Whether the text returns to its subject after [start, stop): it takes up words of the prompt that the text just
    before had left, or begins again with the words that the response began with."""
    after = content_words(response[stop : stop + _VIEW])
    if prompt:
        asked = content_words(prompt)
        back, before = len(after & asked), len(content_words(response[max(0, start - _VIEW) : start]) & asked)
        if back > before:
            return True
    opening = content_words(response[: min(start, 90)])
    return len(opening & content_words(response[stop : stop + 110])) >= 2


def turns_sharply(response: str, start: int, stop: int, prompt: str) -> bool:
    """Whether the text before a short aside had nothing of the prompt and the text after it takes the prompt up."""
    asked = content_words(prompt)
    before = content_words(response[max(0, start - 120) : start])
    after = content_words(response[stop : stop + 100])
    return len(before) >= 4 and not before & asked and bool(after & asked)
