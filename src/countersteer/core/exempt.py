"""Stretches of a response that an intervention may leave alone: fenced JSON and tool calls, found as the text grows.

An exemption is a hole by design (whoever makes the model open a fence switches the edits off inside it), so it is off
unless asked for, and it errs towards acting: the marker that opens a stretch is still edited, an opening marker must be
complete, the first sign of a closing one ends the stretch, and so do `LONGEST` tokens. Only generated text counts: a
marker in the prompt opens nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from countersteer.core.errors import InputError, nearest

TAIL = 32
"""Tokens that are looked at: longer than every marker."""
LONGEST = 1024
"""Tokens after which a stretch ends although nothing closed it."""

_FENCE = (re.compile(r"(?:\A|\n)[ \t]*```(?:json|JSON)[ \t]*\n"), re.compile(r"(?:\A|\n)[ \t]*```"))
_CALL = (re.compile(r"<tool_call>"), re.compile(r"</tool_call>"))
EXEMPTIONS = {"json_fence": _FENCE, "tool_call": _CALL}
"""Name -> the markers that open and close a stretch."""


def check_exemptions(names: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple. Raises InputError for unknown ones."""
    if isinstance(names, str):
        raise InputError(f"exemptions are a list of names, got {names!r}")
    for name in names:
        if name not in EXEMPTIONS:
            known = ", ".join(EXEMPTIONS)
            raise InputError(f"unknown exemption {name!r}{nearest(str(name), EXEMPTIONS)}; known: {known}")
    return tuple(dict.fromkeys(names))


class Exempt:
    """Follows one response, token by token. `decode` turns token ids into text, special tokens included."""

    def __init__(self, names: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        self.names, self.decode = check_exemptions(names), decode
        self.inside: str | None = None
        """The exemption whose stretch the response is in."""
        self._since = 0
        self._rest = ""

    def push(self, generated: Sequence[int]) -> bool:
        """Look at the response with its newest token; whether a stretch has just opened or closed."""
        if self.inside is not None:
            return self._closes(generated)
        start = max(self._since, len(generated) - TAIL)
        # A text that is cut on the left must not look like the beginning of a line.
        text = ("" if start == 0 else "\0") + self.decode(generated[start:])
        for name in self.names:
            opened, closed = EXEMPTIONS[name]
            found = opened.search(text)
            if found and not closed.search(text[found.end() :]):
                self.inside, self._since, self._rest = name, len(generated), text[found.end() :]
                return True
        return False

    def _closes(self, generated: Sequence[int]) -> bool:
        assert self.inside is not None
        start = max(self._since, len(generated) - TAIL)
        text = (self._rest if start == self._since else "\0") + self.decode(generated[start:])
        if not EXEMPTIONS[self.inside][1].search(text) and len(generated) - self._since < LONGEST:
            return False
        self.inside, self._since, self._rest = None, len(generated), ""
        return True
