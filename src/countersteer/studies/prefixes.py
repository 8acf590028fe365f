"""Prefixes taken from another arm's responses: the prefill and the matched-prefix controls.

"start": the first characters, cut before the first restart, so that every restart in the arm is the arm's own.
"before-restart": everything before it. "corrective": the response's own text from its last restart on. A prefix ends
at a word's end. Trials whose source has no such part are not planned, and counted in a note. ESR paper version 2.
"""

from __future__ import annotations

from typing import Any

from countersteer.core.trial import OK
from countersteer.studies.schema_arms import CHARS, PrefixRule


def cut(text: str, chars: int) -> str:
    """At most `chars` characters of a text, ending at a word's end, without white space at the end."""
    if len(text) <= chars:
        return text.rstrip()
    kept = text[: chars + 1]
    at = max(kept.rfind(" "), kept.rfind("\n"))
    return (kept[:at] if at > 0 else text[:chars]).rstrip()


def prefix_of(rule: PrefixRule, source: Any, *, length: int | None = None) -> str | None:
    """The prefix that `rule` takes from a source trial, or None if the source has no such part.

    `length`: characters of the prefix to match (rule.matched).
    """
    if source is None or source.status != OK or not source.text:
        return None
    attempts = (source.grade or {}).get("attempts", ())
    restart = int(attempts[1]["start"]) if len(attempts) > 1 else None
    if rule.part == "corrective":
        if restart is None:
            return None
        own = source.text[int(attempts[-1]["start"]) :].lstrip()
        return (cut(own, rule.chars) if rule.chars else own.rstrip()) or None
    whole = source.text if restart is None else source.text[:restart]
    if rule.part == "before-restart":
        if restart is None:
            return None
        return (cut(whole, rule.chars) if rule.chars else whole.rstrip()) or None
    if rule.matched is not None:
        return None if not length else cut(source.text, length) or None
    chars = rule.chars or (CHARS if rule.fraction is None else max(int(rule.fraction * len(source.text)), 1))
    return cut(whole, chars) or None
