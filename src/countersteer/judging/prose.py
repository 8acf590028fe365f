"""The text of a response as prose: code, quotations and dialogue blanked out.

Restart language counts only where the response speaks in its own voice. `mask` replaces what does not (fenced and
inline code, quoted speech, block quotes, tables, lines of a script) by a blank of the same length, so that every
offset stays valid. Linear in the length of the text.
"""

from __future__ import annotations

import re
from collections import Counter

BLANK = "\ufffc"
_NORMAL = str.maketrans(
    {
        "\u2019": "'",
        "\u2018": "'",
        "\u02bc": "'",
        "\u00b4": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u201e": '"',
        "\u00ab": '"',
        "\u00bb": '"',
        "\u00a0": " ",
        "\u202f": " ",
        "\u2028": "\n",
        "\u2029": "\n",
        "\r": "\n",
        "\t": " ",
        "\u2010": "-",
        "\u2011": "-",
        "\u2212": "-",
        "\u2015": "—",
        "\u200b": " ",
        "\uff0c": ",",
        "\u3002": ".",
    }
)
_MAX_QUOTE = 1000
_LIST = re.compile(r"[ ]*(?:[-*•+]|\d{1,3}[.)]|[a-zA-Z][.)])[ ]+")
_SPEAKER = re.compile(r"[ *_]*([A-Z][\w .'-]{0,24}?)[*_ ]*:[*_]* +\S")
_CODE_LINE = re.compile(
    r"[ ]*(?:#|//|/\*|\*|@|\}|\{|<)|[ ]{2,}\S|.*[;{}]\s*$|.*\w\(.*\)\s*:?\s*$|.*\s[=+<>-]=?\s.*|"
    r"\w+ .*:\s*$"
)
_LABEL = re.compile(
    r"(?:correction|edit|mistake|error|oops|take|second|third|attempt|try|wait|no|sorry|redo)\b", re.IGNORECASE
)


def normal(text: str) -> str:
    """The text with one kind of apostrophe, quote, space and line end; the same length."""
    return text.translate(_NORMAL)


def _blank(chars: list[str], start: int, end: int) -> None:
    for i in range(start, end):
        if chars[i] != "\n":
            chars[i] = BLANK


def _blank_pairs(chars: list[str], text: str, opening: str, closing: str) -> None:
    """Blank from each opening to the next closing in the same paragraph."""
    marks = sorted(
        [(m.start(), 0) for m in re.finditer(opening, text)] + [(m.start(), 1) for m in re.finditer(closing, text)]
    )
    start = -1
    for at, closes in marks:
        if closes and start >= 0 and at > start:
            covers = start <= 2 and at >= len(text.rstrip()) - 2
            if at - start <= _MAX_QUOTE and not covers and "\n\n" not in text[start:at]:
                _blank(chars, start, at + 1)
            start = -1
        elif not closes and (start < 0 or at - start > _MAX_QUOTE or "\n\n" in text[start:at]):
            start = at


def mask(text: str) -> str:
    """`text` (already `normal`) with code, quotations, tables and scripts blanked; the same length."""
    chars = list(text)
    lines = []
    at = 0
    for line in text.split("\n"):
        lines.append((at, line))
        at += len(line) + 1
    fences = [i for i, (_, line) in enumerate(lines) if line.lstrip(" >").startswith(("```", "~~~"))]
    code: set[int] = set()
    for first, last in zip(fences[::2], fences[1::2], strict=False):
        code.update(range(first, last + 1))
    if len(fences) % 2:
        code.update(i for i in range(fences[-1], len(lines)) if i == fences[-1] or _CODE_LINE.match(lines[i][1][:200]))
    speakers = Counter(m[1] for _, line in lines if (m := _SPEAKER.match(line[:60])) and not _LABEL.match(m[1]))
    script = {name for name, count in speakers.items() if count > 1} if len(speakers) > 1 else set()
    for i, (start, line) in enumerate(lines):
        speaker = _SPEAKER.match(line[:60]) if script else None
        scripted = speaker is not None and speaker[1] in script and not _LIST.match(line)
        if i in code or scripted or line.lstrip().startswith(("> ", "|")):
            _blank(chars, start, start + len(line))
    masked = "".join(chars)
    for m in re.finditer(r"`[^`\n]{1,300}`", masked):
        _blank(chars, m.start(), m.end())
    masked = "".join(chars)
    _blank_pairs(chars, masked, r'(?<![\w"\ufffc])"(?=\S)', r'(?<=\S)"(?!\w)')
    masked = "".join(chars)
    _blank_pairs(chars, masked, r"(?<![\w'\ufffc.!?])'(?=\w)", r"(?<=[\w.!?,…])'(?!\w)")
    return "".join(chars)
