"""The phrases at which a span that follows the text turns: explicit restart language, found as the text grows.

A plain list, so that an engine needs no judge: it holds the usual phrases and no more. A judge weighs context and finds
more; where the two differ, the receipt's note says at which token the engine turned.
"""

from __future__ import annotations

import re

_PHRASES = re.compile(
    r"\b(?:(?:that|this)(?:'s| is| was) (?:not right|wrong|not what you asked|off[- ]topic|incorrect)"
    r"|(?:i'm|i am|i was|i'?ve been) (?:drifting|getting|going|wandering)? ?off (?:topic|track)"
    r"|i (?:got|went|drifted|wandered) off (?:topic|track)|i (?:made|have made) a mistake"
    r"|that has nothing to do with (?:the|your) question"
    r"|(?:let me|i will|i'll) (?:try|start|begin) (?:that |this )?(?:again|over)"
    r"|let me (?:go back|return|get back) to (?:the|your) question|let me (?:correct|restart|rephrase)\b)",
    re.IGNORECASE,
)
TAIL = 32
"""Tokens of the response that are looked at: longer than every phrase."""


def completes(text: str, *, after: int = 0) -> bool:
    """Whether a text holds a restart phrase that ends beyond its first `after` characters."""
    return any(match.end() > after for match in _PHRASES.finditer(text.replace("\u2019", "'")))
