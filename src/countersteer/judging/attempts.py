"""Where a response abandons what it wrote and begins again: attempts, by explicit restart language.

A response is cut into pieces (`prose.py`), each piece is weighed by rules (`evidence.py`) and then by a small fitted
model that reads the words, the rules' evidence and the discourse (`observed.py`, `restart_model.py`). Neighbouring
pieces are taken together, and open a new attempt at the first character of the restart language, unless nothing
precedes it (a leading "I'll try again" opens no empty attempt) or nothing follows it. Elaboration, repetition and
drift without such language open none ("explicit" restarts: ESR, arXiv 2602.06941).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from countersteer.judging import setting, voice
from countersteer.judging.clause_features import LAID_OUT
from countersteer.judging.evidence import WORD
from countersteer.judging.observed import Observation, Observed, observe
from countersteer.judging.prose import Piece
from countersteer.judging.restart_model import shipped

VERSION = 4
"""Changes whenever the same text may be split differently."""

_GAP = 60
_LESS = 0.7
_LONG = 100
_UNPROMPTED = 2.0
"""Where no prompt is known, what the rules accept counts for more."""
_LABEL = re.compile(
    r"(?:(?:a )?correction|(?:second|new|next|another) (?:attempt|try)|take (?:two|2)|redo|retry)\s*[:—–-]",
    re.IGNORECASE,
)
_LABELLED = 5.0
"""What a label that the rules accept ("Correction:") adds: the words after it say little."""
_SHORT = 70
_INNER = 2
"""A restart begins inside a piece if its likeliest word has more than so many words of the piece before it."""
_PAUSE = re.compile(r"[,;:—–]\s")
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

_Run = list[Observed]


def _leads(lead: str, body: str) -> bool:
    """Whether the words before a comma open the restart language after it ("bear with me, I've mixed up ...")."""
    words = len(WORD.findall(lead))
    if words <= 2 and voice.FILLER.match(lead):
        return True
    return words <= 10 and _BREAK_WORD.match(body) is None and _META.match(lead) is not None


def _start(text: str, run: _Run, lead: Piece | None) -> int:
    """Where the restart language of a run begins; `lead` is the piece before it."""
    piece, evidence = run[0].piece, run[0].evidence
    if evidence.weight > 0:
        front = text[piece.start : evidence.first]
        if len(WORD.findall(front)) > 1 and not _OPENER.match(front):
            return evidence.first
    same = lead is not None and lead.sentence == piece.sentence
    if lead is not None and same and _leads(text[lead.start : piece.start], text[piece.start : piece.end]):
        return lead.start
    return piece.start


def _stop(text: str, place: Observed) -> int:
    """Where the restart language of a run ends whose last piece is `place`."""
    if place.evidence.weight > 0:
        return place.evidence.last
    piece = place.piece
    pause = _PAUSE.search(text, piece.start + 12, piece.end) if piece.end - piece.start > _LONG else None
    return pause.start() if pause else piece.end


def _runs(seen: Observation, logits: Sequence[tuple[float, int]], enough: float) -> list[tuple[_Run, Piece | None]]:
    """Neighbouring pieces that speak for a restart, where one of them is enough; each run with the piece before it.

    A piece that is likely but not enough by itself may open a run, never prolong one.
    """
    runs: list[tuple[_Run, Piece | None]] = []
    run: list[tuple[float, Observed]] = []
    likely = enough - _LESS
    lead: Piece | None = None
    previous: Piece | None = None

    def _may_lead(piece: Piece) -> bool:
        return piece.end - piece.start <= _SHORT and piece is not seen.places[0].piece

    def close() -> None:
        best = next((k for k, (logit, _) in enumerate(run) if logit >= enough), None)
        if best is None:
            return
        first, last = best, best + 1
        while first and run[first - 1][0] >= likely and _may_lead(run[first - 1][1].piece):
            first -= 1
        while last < len(run) and (run[last][1].evidence.weight > 0 or run[last][0] >= enough):
            last += 1
        runs.append(([place for _, place in run[first:last]], run[first - 1][1].piece if first else lead))

    for place, (logit, _) in zip(seen.places, logits, strict=True):
        if place.evidence.weight <= 0 and LAID_OUT in place.names:
            close()
            run, previous = [], place.piece
            continue
        if place.accepted and _LABEL.match(seen.text, place.piece.start):
            logit += _LABELLED
        elif place.accepted and not seen.prompt:
            logit += _UNPROMPTED
        if place.evidence.weight > 0 or logit >= likely:
            if not run:
                lead = previous
            run.append((logit, place))
        else:
            close()
            run = []
        previous = place.piece
    close()
    return runs


def restarts_among(
    response: str, seen: Observation, logits: Sequence[tuple[float, int]], threshold: float
) -> list[tuple[int, int]]:
    """Each restart of an observed response as (its first character, the end of its language), in order.

    `logits`: of each place with its likeliest offset (`RestartModel.logits`); one at or above `threshold` is enough.
    """
    text = seen.text
    likeliest = {place.piece.start: at for place, (_, at) in zip(seen.places, logits, strict=True)}
    found: list[tuple[int, int]] = []
    last_word = max((m.end() for m in WORD.finditer(response, max(0, len(text) - 4000))), default=len(text))
    for run, lead in _runs(seen, logits, threshold):
        start = _start(text, run, lead)
        inner = likeliest[run[0].piece.start]
        if len(WORD.findall(text, run[0].piece.start, inner)) > _INNER and inner > start:
            start = inner
        while len(run) > 1 and run[-1].evidence.weight <= 0 and _stop(text, run[-1]) >= last_word:
            run = run[:-1]
        stop = min(_stop(text, run[-1]), last_word)
        if stop == last_word or setting.polite(response[: min(start, 500)]) or not WORD.search(response, 0, start):
            continue
        if found and _merges(text, found[-1][1], start, run):
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found


def _merges(text: str, previous: int, start: int, run: _Run) -> bool:
    """Whether restart language so soon after the last belongs to the same restart."""
    between = text[previous:start]
    if len(WORD.findall(between)) <= 2:
        return True
    return all(place.evidence.resumes for place in run) and len(between) <= _GAP and "\n\n" not in between


def find_restarts(response: str, prompt: str | None = None) -> list[tuple[int, int]]:
    """Each restart as (its first character, the end of its language), in order; see `split_attempts`."""
    seen, model = observe(response, prompt), shipped()
    return restarts_among(response, seen, model.logits(seen), model.threshold)


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
