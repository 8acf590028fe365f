"""Where a response abandons what it wrote and begins again: attempts, by explicit restart language.

`restart_model.py` reads the response word by word; a word at which a restart begins, with the restart language that
follows it, opens a new attempt, unless nothing precedes it (a leading "I'll try again" opens no empty attempt), nothing
follows it, or it is not the response's own voice (code, quotations, scripts: `prose.py`). Elaboration, repetition and
drift without such language open none ("explicit" restarts: ESR, arXiv 2602.06941).
"""

from __future__ import annotations

import re

import numpy as np

from countersteer.judging import prose
from countersteer.judging.restart_model import Reading, shipped

VERSION = 7
"""Changes whenever the same text may be split differently."""

_WORD = re.compile(r"\w")
_BARE = re.compile(r"[^.!?:;\n\w]*+(?:\w[\w'’-]*+[^.!?:;\n\w]*+){1,8}+\W*+$")
"""A few words in one sentence at the end of a response: they announce an attempt and bring none."""
_ANNOUNCED = re.compile(
    r"\W*(?:so\W+)?(?:let me|let us|let['’]s|i['’]ll|i will|allow me to)\W(?:\w+\W+){0,4}"
    r"(?:again|over|afresh|anew|redo|restart|retry|rephrase)\W*$",
    re.IGNORECASE,
)
"""A sentence at the end of a response that says no more than that an attempt will come."""
_PLAIN = re.compile(
    r"(?:(?<=[.!?:…\n]\s)|(?<=[.!?:…\n])|(?<=[-–—]\s))"
    r"(?:(?:oh|ah|hm+|no|wait|hold on|hang on|stop|sorry|oops|whoops|actually|okay|ok|apologies)\b[\s,.!…–—-]*){0,3}"
    r"(?:let me|let['’]s|i['’]ll|i will|i (?:need|have|want) to|i should|i must|i['’]m going to|i am going to)\s+"
    r"(?:(?:start|begin)(?:\s+(?:this|that|it))?\s+(?:over|again|afresh|anew)|restart|"
    r"try(?:\s+(?:this|that|it))?\s+(?:again|anew|once more)|(?:redo|retry)\s+(?:this|that|it)|"
    r"do\s+(?:this|that|it)\s+(?:over|again))"
    r"(?:\s+from (?:scratch|the (?:start|beginning|top)))?\s*[.!:…]",
    re.IGNORECASE,
)
"""A sentence in which the writer says no more than that it begins again. The network is unsure of it among the steps of
instructions, whose "wait" and "start again" are the reader's."""
_DOUBT, _RETOLD = 6.0, 160
"""Such a sentence begins an attempt though the network's log odds lie so far below its threshold, unless a restart
began so few characters before: then it is that restart's end."""
_BRIDGED = 3
"""So many word pieces that are not restart language may lie inside it."""
_APART = 4
"""A restart that begins so few word pieces after the last one's language belongs to it."""
_POLITE = re.compile(
    r"\W*(?:(?:thanks|thank you|good (?:catch|point|question|eye)|great (?:catch|question|point)|"
    r"nice catch|you(?:'re| are) (?:\w+ )?(?:right|correct)|sure|of course|"
    r"certainly|absolutely|hi|hello|hey|yes|ok|okay|no problem|happy to help|well spotted|"
    r"fair (?:point|enough)|true|indeed|i see|right|ah|oh|good (?:morning|evening|"
    r"day))\b[^.!?\n]{0,80}[.!?\n]\s*){0,3}\W*$",
    re.IGNORECASE,
)


def polite(text: str) -> bool:
    """Whether a text is nothing but a greeting or an acknowledgement."""
    return len(text) <= 400 and _POLITE.match(text) is not None


def _language_end(reading: Reading, first: int) -> int:
    """The last word piece of the restart language that begins at `first`."""
    last, at = first, first + 1
    while at < len(reading.starts) and at - last <= _BRIDGED + 1:
        if reading.language[at] > 0:
            last = at
        at += 1
    while last + 1 < len(reading.starts) and not reading.opens[last + 1]:
        last += 1
    return last


def _plainly(response: str, reading: Reading, threshold: float) -> dict[int, int]:
    """First and last word piece of each sentence that plainly says it, and that the network does not exclude."""
    found = {}
    for match in _PLAIN.finditer(response):
        end = match.start() + len(match[0].rstrip(" .!:…"))
        first, last = (int(np.searchsorted(reading.starts, at)) for at in (match.start(), end))
        if first < last and reading.begins[first:last].max() >= threshold - _DOUBT:
            found[first] = last - 1
    return found


def restarts_in(response: str, reading: Reading, threshold: float) -> list[tuple[int, int]]:
    """Each restart of a response as read, as (its first character, the end of its language), in order."""
    masked = prose.mask(prose.normal(response))
    own = np.array([masked[at] != prose.BLANK for at in reading.starts.tolist()], np.bool_)
    last_word = max((m.end() for m in _WORD.finditer(response)), default=0)
    worded = np.array([_WORD.match(response, at) is not None for at in reading.starts.tolist()], np.bool_)
    found: list[tuple[int, int]] = []
    until = -_APART - 1
    plain = _plainly(response, reading, threshold)
    begins = reading.begins >= threshold
    begins[list(plain)] = True
    for first in np.flatnonzero(begins & reading.opens & own & worded).tolist():
        doubted = reading.begins[first] < threshold and found and reading.starts[first] < found[-1][0] + _RETOLD
        if found and (first <= until + _APART or doubted):
            until = max(until, _language_end(reading, first))
            found[-1] = (found[-1][0], int(reading.ends[until]))
            continue
        start = int(reading.starts[first])
        if not _WORD.search(response, 0, start) or polite(response[: min(start, 500)]):
            continue
        until = max(_language_end(reading, first), plain.get(first, first))
        found.append((start, int(reading.ends[until])))
    return [
        (start, end)
        for start, end in found
        if end < last_word and not _BARE.match(response, start) and not _ANNOUNCED.match(response, end)
    ]


def find_restarts(response: str, prompt: str | None = None) -> list[tuple[int, int]]:
    """Each restart as (its first character, the end of its language), in order; see `split_attempts`."""
    model = shipped()
    return restarts_in(response, model.read(response, prompt), model.threshold)


def split_attempts(response: str, *, prompt: str | None = None) -> list[tuple[int, int, str | None]]:
    """Split a response into attempts: (start, end, restart phrase or None), which together cover all of it.

    `prompt`, where known, lets the model see whether the text returns to it. Offsets are in characters, end exclusive.
    The first attempt has no phrase. A response without a word has no attempt at all (an empty list). Linear in the
    length of the response.
    """
    if not _WORD.search(response):
        return []
    restarts = find_restarts(response, prompt)
    starts = [0, *(start for start, _ in restarts)]
    ends = [*starts[1:], len(response)]
    phrases = [None, *(response[a:b].strip() for a, b in restarts)]
    return list(zip(starts, ends, phrases, strict=True))


def contents(response: str, parts: list[tuple[int, int, str | None]]) -> list[tuple[int, int, str | None, int]]:
    """The attempts with a fourth number: where the content after the restart language begins."""
    return [(start, end, restart, start + len(restart or "")) for start, end, restart in parts]
