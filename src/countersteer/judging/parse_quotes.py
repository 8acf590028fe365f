"""From a judge's quotation to character offsets in the text it quotes.

Judges copy with small changes: other white space, curly quotes, dropped markdown, dashes, letter case, accents
composed or not, and a long passage shortened by an ellipsis. Both texts are brought to one plain form with a map back
to the original characters. If a quotation is not found whole, its beginning is looked for; what cannot be found is
reported, never guessed.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property, lru_cache

_SAME = {
    "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u02bc": "'", "\u00b4": "'", "`": "", "\u201c": '"', "\u201d": '"',
    "\u201e": '"', "\u00ab": '"', "\u00bb": '"', "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-",
    "\u2014": "-", "\u2015": "-", "\u2212": "-", "\u2026": "...", "*": "", "_": "", "#": "", "\u200b": "",
    "\u200c": "", "\u200d": "", "\ufeff": "", "\u00ad": "",
}  # fmt: skip
_ELLIPSIS = re.compile(r"\s*(?:\[\s*\.{3,}\s*\]|\(\s*\.{3,}\s*\)|\.{3,})\s*")
_LEAST_WORDS, _LEAST_CHARACTERS = 4, 16
"""A quotation of which only the beginning agrees must agree in this much at least."""


@lru_cache(4096)
def _folded(char: str) -> str:
    """A character without case, taken apart: an accent is a character of its own, a ligature is its letters."""
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())


def _plain(text: str) -> tuple[str, list[int]]:
    """The plain form of a text, and for each of its characters the index of the original one."""
    out: list[str] = []
    index: list[int] = []
    blank = True
    for at, char in enumerate(text):
        basic = char < "\x7f"
        if char.isspace() or (char < " " if basic else unicodedata.category(char) == "Cc"):
            if not blank:
                out.append(" ")
                index.append(at)
                blank = True
            continue
        made_of = _SAME.get(char)
        for made in (char.lower() if basic else _folded(char)) if made_of is None else made_of:
            out.append(made)
            index.append(at)
            blank = False
    return "".join(out), index


@dataclass(frozen=True)
class Found:
    """Where a quotation lies: [start, end) in characters. `exact`: all of it was found, not only its beginning."""

    start: int
    end: int
    exact: bool


@dataclass(frozen=True)
class Quoted:
    """A text that quotations are looked up in."""

    text: str

    @cached_property
    def _form(self) -> tuple[str, list[int]]:
        return _plain(self.text)

    def find(self, quote: str, *, after: int = 0) -> Found | None:
        """Where `quote` lies at or after character `after`, or None."""
        whole = _plain(quote)[0].strip()
        found = self._find(whole, after)
        bare = whole.strip("\"'").strip()  # marks that the judge put around its quotation
        if bare == whole or (found is not None and found.exact):
            return found
        return self._find(bare, after) or found

    def _find(self, whole: str, after: int) -> Found | None:
        """Where a quotation in plain form lies."""
        parts = [part for part in _ELLIPSIS.split(whole) if part.strip(" .\"'")]
        if not parts:
            return None
        plain, index = self._form
        begin = next((i for i, original in enumerate(index) if original >= after), len(index))
        exact = True
        at = plain.find(whole, begin)  # an ellipsis may be the text's own
        if at >= 0:
            stop = at + len(whole)
        else:
            first = self._piece(parts[0], begin)
            if first is None:
                return None
            at, stop, exact = first
            for part in parts[1:]:
                following = self._piece(part, stop)
                if following is None:
                    exact = False
                    continue
                stop = following[1]
                exact = exact and following[2]
        return Found(index[at], index[stop - 1] + 1, exact)

    def _piece(self, part: str, begin: int) -> tuple[int, int, bool] | None:
        """(start, end, exact) in the plain text of one unbroken part, or of its beginning if only that is there."""
        plain = self._form[0]
        at = plain.find(part, begin)
        if at >= 0:
            return at, at + len(part), True
        bare = part.rstrip(" .,;:!?\"'-")
        at = plain.find(bare, begin) if bare else -1
        if at >= 0:
            return at, at + len(bare), True
        words = part.split(" ")
        low, high = 0, len(words)  # the longest beginning that is found: finding is monotone in its length
        while low < high:
            middle = (low + high + 1) // 2
            if plain.find(" ".join(words[:middle]), begin) >= 0:
                low = middle
            else:
                high = middle - 1
        agreed = " ".join(words[:low])
        if low < _LEAST_WORDS or len(agreed) < _LEAST_CHARACTERS:
            return None
        at = plain.find(agreed, begin)
        return at, at + len(agreed), False
