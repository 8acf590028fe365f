"""Where a response abandons what it wrote and begins again: attempts, by explicit restart language.

A response is cut into pieces (`prose.py`), each piece is weighed (`evidence.py`), and neighbouring pieces with
evidence are taken together. Two points open a new attempt at the first character of the restart language, unless
nothing precedes it (a leading "I'll try again" opens no empty attempt) or nothing follows it. Elaboration, repetition
and drift without such language open none ("explicit" restarts: ESR, arXiv 2602.06941).
"""

from __future__ import annotations

import re

from countersteer.judging import setting, voice
from countersteer.judging.evidence import WORD, Evidence, weigh
from countersteer.judging.prose import Piece, mask, normal, pieces

VERSION = 1
"""Changes whenever the same text may be split differently."""

_ENOUGH = 2.0
_BEFORE = 180
_GAP = 60
_BREAK_WORD = re.compile(
    r"(?:wait|no|nope|sorry|hang|hold|oops|whoops|scratch|strike|scrap|apolog|pardon|stop|h+m+\b|"
    r"ugh|argh|forget|never)",
    re.IGNORECASE,
)
_META = re.compile(
    r"(?:(?:that|this)(?:'?s| is| was)|those (?:are|were)|bear with|looking back|on |hmm|ok|okay|"
    r"but|well|sorry|so|actually|hold|i see|"
    r"re-?reading|reading|none|you)\b",
    re.IGNORECASE,
)
_OPENER = re.compile(
    r"(?:that|this|those|these|i|i'm|i've|you|but|so|and|hm+|ok|okay|looking|on|well|bear|for|since|it|none|all|my|"
    r"reading|re-?reading|the (?:above|answer|paragraph)|now|actually|right|sorry|wait|oh|ah|because|what|here|as|"
    r"anyway)\b",
    re.IGNORECASE,
)

_Run = list[tuple[Piece, Evidence]]


def _leads(lead: str, body: str) -> bool:
    """Whether the words before a comma open the restart language after it ("bear with me, I've mixed up ...")."""
    words = len(WORD.findall(lead))
    if words <= 2 and voice.FILLER.match(lead):
        return True
    return words <= 10 and _BREAK_WORD.match(body) is None and _META.match(lead) is not None


def _start(text: str, run: _Run, lead: Piece | None) -> int:
    """Where the restart language of a run begins; `lead` is the piece before it."""
    piece, evidence = run[0]
    front = text[piece.start : evidence.first]
    if len(WORD.findall(front)) > 1 and not _OPENER.match(front):
        return evidence.first
    same = lead is not None and lead.sentence == piece.sentence
    if lead is not None and same and _leads(text[lead.start : piece.start], text[piece.start : piece.end]):
        return lead.start
    return piece.start


def _enough(response: str, run: _Run, prompt: str | None, *, inside: bool) -> bool:
    """Whether a run of pieces is a restart; `inside`: it lies in a letter or story written on request."""
    total = sum(evidence.weight for _, evidence in run)
    if inside and total < _ENOUGH + (0.0 if any(evidence.own for _, evidence in run) else 2.0):
        return False
    if total >= _ENOUGH:
        return True
    cued = any(evidence.cued for _, evidence in run)
    return cued and setting.turns(response, run[0][0].start, run[-1][1].last, prompt)


def _runs(response: str, text: str, prompt: str | None) -> list[tuple[_Run, Piece | None]]:
    """Neighbouring pieces with evidence, each run with the piece before it."""
    runs: list[tuple[_Run, Piece | None]] = []
    run: _Run = []
    lead = previous = None
    for piece in pieces(text):
        carried = bool(run) and run[-1][1].pure
        evidence = weigh(text, piece, text[max(0, piece.start - _BEFORE) : piece.start], carried=carried)
        if evidence.hint and prompt and evidence.weight < _ENOUGH:
            since = run[0][0].start if run else piece.start
            if setting.turns_sharply(response, since, piece.end, prompt):
                evidence = Evidence(_ENOUGH, first=piece.start, last=piece.end, cued=True)
        if evidence.weight > 0:
            lead = lead if run else previous
            run.append((piece, evidence))
        elif run and WORD.search(text, piece.start, piece.end):
            runs.append((run, lead))
            run = []
        previous = piece
    return [*runs, (run, lead)] if run else runs


def find_restarts(response: str, prompt: str | None = None) -> list[tuple[int, int]]:
    """Each restart as (its first character, the end of its language), in order; see `split_attempts`."""
    text = mask(normal(response))
    letters = setting.letters(text)
    composed = setting.composed(prompt)
    found: list[tuple[int, int]] = []
    for run, lead in _runs(response, text, prompt):
        at = run[0][0].start
        if not _enough(response, run, prompt, inside=composed or any(a <= at < b for a, b in letters)):
            continue
        start, stop = _start(text, run, lead), run[-1][1].last
        if setting.polite(response[: min(start, 500)]) or not WORD.search(response, 0, start):
            continue
        if found and _merges(text, found[-1][1], start, run):
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    last_word = max((m.end() for m in WORD.finditer(response, max(0, len(text) - 4000))), default=len(text))
    return [(a, b) for a, b in found if b < last_word]


def _merges(text: str, previous: int, start: int, run: _Run) -> bool:
    """Whether restart language so soon after the last belongs to the same restart."""
    between = text[previous:start]
    words = len(WORD.findall(between))
    if words <= 2:
        return True
    return all(evidence.resumes for _, evidence in run) and len(between) <= _GAP and "\n\n" not in between


def split_attempts(response: str, *, prompt: str | None = None) -> list[tuple[int, int, str | None]]:
    """Split a response into attempts: (start, end, restart phrase or None), which together cover all of it.

    `prompt`, where known, lets weak restart language count if the text takes up the prompt's words again after it.
    Offsets are in characters, end exclusive. The first attempt has no phrase. A response without a word has no
    attempt at all (an empty list). Linear in the length of the response.
    """
    if not WORD.search(response):
        return []
    restarts = find_restarts(response, prompt)
    starts = [0, *(start for start, _ in restarts)]
    ends = [*starts[1:], len(response)]
    phrases = [None, *(response[a:b].strip() for a, b in restarts)]
    return list(zip(starts, ends, phrases, strict=True))


def contents(response: str, parts: list[tuple[int, int, str | None]]) -> list[tuple[int, int, str | None, int]]:
    """The attempts with a fourth number: where the content after the restart language begins."""
    return [(start, end, restart, start + len(restart or "")) for start, end, restart in parts]
