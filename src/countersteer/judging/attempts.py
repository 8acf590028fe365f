"""Where a response abandons what it wrote and begins again: attempts, by explicit restart language.

A response is cut into pieces (`prose.py`), each piece is weighed by its cues (`cues.py`), and neighbouring pieces
with cues are taken together. Two points of evidence open a new attempt at the first character of the restart
language, unless nothing precedes it (a leading "I'll try again" opens no empty attempt) or nothing follows it.
Elaboration, repetition and drift without such language open none (ESR paper, section 1.1 of its protocol).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from countersteer.judging import cues
from countersteer.judging.affinity import content_words
from countersteer.judging.prose import BLANK, Piece, mask, normal, pieces

VERSION = 1
"""Changes whenever the same text may be split differently."""

_REACH = 260
_VIEW = 160
_ENOUGH = 2.0
_WORD = re.compile(r"[^\W_]+")
_DANGLING = re.compile(
    r"\b(?:the|a|an|and|or|of|to|in|on|for|with|at|by|as|from|into|will|its|their|your|each|every|then|so|that|which|who|is|are|be|but|between|about)\s*[,—–…(\[.-]*\s*$",
    re.IGNORECASE,
)
_LETTER = re.compile(r"^[ *_]*(?:subject:|dear |to whom |(?:hi|hello|hey)\b[^\n]{0,30},[ *_]*$)", re.IGNORECASE | re.MULTILINE)
_LETTER_END = re.compile(
    r"^[ *_]*(?:(?:kind|best|warm|many|with)? ?(?:regards|wishes|thanks)|sincerely|yours|love|cheers|-{3,}|\*{3,})", re.IGNORECASE | re.MULTILINE
)
_ANSWER = re.compile(r"(?:no|nope|nah|not|oh|ah|well|actually)\b(?! wait)", re.IGNORECASE)
_BREAK_WORD = re.compile(r"(?:wait|no|nope|sorry|hang|hold|oops|whoops|scratch|strike|scrap|apolog|pardon|stop|h+m+\b|ugh|argh|forget|never)", re.IGNORECASE)
_META = re.compile(
    r"(?:(?:that|this)(?:'?s| is| was)|those (?:are|were)|bear with|looking back|on |hmm|ok|okay|but|well|sorry|so|actually|hold|i see|"
    r"re-?reading|reading|none|you)\b",
    re.IGNORECASE,
)
_HEDGED = re.compile(r"it\b|(?:that|this) (?:sounds|looks|seems|may|feels)|this (?:is not|isn't) about", re.IGNORECASE)
_CLAUSE = re.compile(r"[^.!?:;\n—]{3,160}")
_REPORTED = re.compile(
    r"\b(?:(?:say|says|said|saying|write|writes|wrote|reply|replies|replied|tell|tells|ask|asks|type|types|shout|shouts|cry|cries|cried|answers|admit|admits|"
    r"phrases?|such as|for example|for instance|e\.g\.|reads|sounds like|script)\b[^.!?\n]{0,60}:|(?:say|says|said|reply|replies|shout|cry|cries|type),)[ \"'(*_]*$",
    re.IGNORECASE,
)
_POLITE = re.compile(
    r"\W*(?:(?:thanks|thank you|good (?:catch|point|question|eye)|great (?:catch|question|point)|nice catch|you(?:'re| are) (?:\w+ )?(?:right|correct)|sure|of course|"
    r"certainly|absolutely|hi|hello|hey|yes|ok|okay|no problem|happy to help|well spotted|fair (?:point|enough)|true|indeed|i see|right|ah|oh|good (?:morning|evening|day))\b[^.!?\n]{0,80}[.!?\n]\s*){0,3}\W*$",
    re.IGNORECASE,
)
_COMPOSE = re.compile(
    r"^\W*(?:please |(?:can|could|would|will) you (?:please )?)?(?:write|draft|compose|tell|invent|improvise|continue|make up|create|pen|role-?play|script|give me|finish)\b[^.?!]*\b(?:letter|e-?mail|text|message|note|story|tale|"
    r"diary|journal|poem|song|lyrics|scene|dialogue|speech|script|monologue|jokes?|apology|toast|play|haiku|limerick|tweet|post|sms|voicemail|conversation|anecdote|fable|essay|memoir|skit|sketch|rap|verse|blog)\b",
    re.IGNORECASE,
)
_GAP = 60


@dataclass(frozen=True)
class _Evidence:
    """What a piece says: `weight`, whether it speaks of this very answer, and where its first and last cue lie."""

    weight: float
    own: bool = False
    interruption: bool = False
    first: int = 0
    last: int = 0
    resumes: bool = False
    pure: bool = False
    cued: bool = False


_NOTHING = _Evidence(0.0)
_RESUMING = frozenset({"new-start", "starting-again", "gerund-again", "here-is-real", "better-one", "back-to", "answer-question", "label", "from-top", "label-comma", "imperative-again", "as-for-question", "you-meant"})


def _opening(text: str, at: int, end: int, *, after_question: bool) -> tuple[int, float, int]:
    """Skip interruptions and fillers: (where the rest starts, weight of the interruptions, end of the last one)."""
    weight, last = 0.0, at
    for _ in range(6):
        while at < end and (text[at] in " ,.!?…:;—–-*_~(" or text[at] == BLANK):
            at += 1
        m = cues.STRONG_INTERRUPTION.match(text, at, end)
        if m and m.end() > at:
            word = m[0].lower()
            if not (after_question and word in ("no", "nope", "not")):
                weight += 0.5 if cues.MILD_INTERRUPTION.match(word) else 1.0
            at = last = m.end()
            continue
        m = cues.FILLER.match(text, at, end)
        if not m or m.end() == at:
            break
        at = m.end()
    return at, weight, last


def _weigh(text: str, piece: Piece, before: str, *, carried: bool) -> _Evidence:
    """The evidence in one piece.

    `before` is the text just before it, for what the judgements may refer to; `carried`: the piece before it was an
    interruption and nothing else.
    """
    end = min(piece.end, piece.start + _REACH)
    body = text[piece.start : end]
    if cues.CONDITIONAL.match(body):
        return _NOTHING
    after_question = before.rstrip().endswith("?")
    rest, interruption, last = _opening(text, piece.start, end, after_question=after_question)
    breaks = (interruption > 0 and not _ANSWER.match(body)) or carried
    hits: list[tuple[float, cues.Cue, int, int]] = []
    personal = cues.FIRST_PERSON.search(text, piece.start, end) is not None
    for cue in cues.CUES:
        if cue.first_person and not personal:
            continue
        m = (cue.pattern.match(text, rest, end) or (cue.pattern.match(text, piece.start, end) if rest > piece.start else None)) if cue.anchored else cue.pattern.search(text, piece.start, end)
        if m:
            hits.append((cue.weight, cue, m.start(), m.end()))
    voiced = personal or cues.OWN_VOICE.match(text, rest, end) is not None
    if not hits and not interruption and not carried and not piece.broken and not voiced:
        return _NOTHING
    if _REPORTED.search(before):
        return _NOTHING
    believed = cues.BELIEF.search(before) is not None
    habit = cues.HABIT.search(body) is not None
    kept = []
    for weight, cue, start, stop in hits:
        if cue.name in ("that-bad", "that-not", "that-has", "that-weak", "bare-bad"):
            if (believed or after_question) and not (breaks or piece.broken):
                continue
        if habit and not cue.own:
            continue
        if piece.listed and cue.name in ("label", "scratch", "that-weak", "imperative-again", "from-top"):
            continue
        if cue.name.startswith("that-") and _HEDGED.match(text, start, stop) and not (breaks or piece.broken):
            weight /= 2
        kept.append((weight, cue, start, stop))
    kept.sort(key=lambda hit: -hit[0])
    weight = kept[0][0] + sum(0.5 * hit[0] for hit in kept[1:2]) if kept else 0.0
    own = any(hit[1].own for hit in kept)
    first = min((hit[2] for hit in kept), default=piece.start)
    last = max([last, *(hit[3] for hit in kept)])
    if (interruption or carried) and not kept and (not believed or breaks or piece.broken):
        tail = text[rest:end].rstrip(" .,;!)]*_\n")
        words = _WORD.findall(tail)
        if cues.SHORT_THAT.match(tail) and not cues.HARMLESS_THAT.match(tail) and len(words) <= 9:
            weight, last = 1.0, end
        elif 0 < len(words) <= 4 and text[rest:end].rstrip().endswith(("?", "!")) and last > piece.start:
            weight, last = 1.0, end
        elif breaks and re.match(r"(?:disregard|ignore|forget) (?:the|that) \w+$", tail):
            weight, last = 1.0, end
        elif re.match(r"not \w+", tail) and len(words) <= 8:
            weight, last = 1.0, end
        elif re.search(r"\b(?:(?:has|have) no place|don'?t belong|doesn'?t belong|nothing to do with|\w+ again$|different (?:subject|topic)|is over|still \w+ing)", tail):
            weight, last = 1.0, end
    if not weight and not believed and not habit and not piece.listed:
        clause = _CLAUSE.match(text, rest, end)
        if clause and len(_WORD.findall(clause[0])) <= 16 and all(
            pattern.search(clause[0]) for pattern in (cues.OWN_VOICE, cues.FAULT, cues.ABOUT_ANSWER)
        ):
            weight, last, own = 1.5, max(last, clause.end()), True
    if not weight and piece.broken and _DANGLING.search(before[-40:]) and re.match(r"[\w' ]{2,30}\?", text[rest:end]):
        weight, last = 1.0, end
    total = weight + min(interruption, 2.0)
    if total and piece.broken and (interruption >= 1 or weight >= 1) and _DANGLING.search(before[-40:]):
        total += 1.0
    resumes = bool(kept) and all(hit[1].name in _RESUMING for hit in kept) and not interruption
    pure = interruption >= 1 and not kept and not _WORD.search(text, rest, end)
    return _Evidence(total, own, interruption >= 1, piece.start if interruption else first, last, resumes, pure, weight >= 1.0)


def _letters(text: str) -> list[tuple[int, int]]:
    """The stretches of letters and mails written on request, from salutation to closing."""
    spans, at = [], 0
    while m := _LETTER.search(text, at):
        close = _LETTER_END.search(text, m.end())
        at = close.end() if close else len(text)
        spans.append((m.start(), at))
    return spans


def _opens_meta(text: str, start: int, first: int) -> bool:
    """Whether the words between a piece's start and its first cue belong to the restart language."""
    lead = text[start:first]
    return len(_WORD.findall(lead)) <= 1 or re.match(
        r"(?:that|this|those|these|i|i'm|i've|you|but|so|and|hm+|ok|okay|looking|on|well|bear|for|since|it|none|all|my|reading|re-?reading|the (?:above|answer|paragraph)|now|actually|right|sorry|wait|oh|ah|because|what|here|as|anyway)\b",
        lead, re.IGNORECASE) is not None


def _leads(lead: str, body: str) -> bool:
    """Whether the words before a comma open the restart language after it ("bear with me, I've mixed up ...")."""
    words = len(_WORD.findall(lead))
    if words <= 2 and cues.FILLER.match(lead):
        return True
    return words <= 10 and _BREAK_WORD.match(body) is None and _META.match(lead) is not None


def _turns(response: str, start: int, stop: int, prompt: str | None) -> bool:
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


def find_restarts(response: str, prompt: str | None = None) -> list[tuple[int, int]]:
    """Each restart as (its first character, the end of its language), in order; see `split_attempts`."""
    text = mask(normal(response))
    cut = pieces(text)
    letters = _letters(text)
    composed = prompt is not None and _COMPOSE.search(prompt[:400]) is not None
    found: list[tuple[int, int]] = []
    run: list[tuple[Piece, _Evidence]] = []

    def close() -> None:
        if not run:
            return
        total = sum(evidence.weight for _, evidence in run)
        own = any(evidence.own for _, evidence in run)
        piece, evidence = run[0]
        inside = any(a <= piece.start < b for a, b in letters)
        if (inside or composed) and total < _ENOUGH + (0.0 if own else 1.0):
            return
        if total < _ENOUGH and (not any(evidence.cued for _, evidence in run) or not _turns(response, piece.start, run[-1][1].last, prompt)):
            return
        start = piece.start if _opens_meta(text, piece.start, evidence.first) else evidence.first
        if start == piece.start and lead is not None:
            if lead.sentence == piece.sentence and _leads(text[lead.start : piece.start], text[piece.start : piece.end]):
                start = lead.start
        stop = run[-1][1].last
        if _POLITE.match(response[:start]) or not _WORD.search(response, 0, start):
            return
        if found and _merges(text, found[-1][1], start, run):
            found[-1] = (found[-1][0], stop)
            return
        found.append((start, stop))

    lead: Piece | None = None
    previous: Piece | None = None
    for piece in cut:
        carried = bool(run) and run[-1][1].pure
        evidence = _weigh(text, piece, text[max(0, piece.start - 180) : piece.start], carried=carried)
        if evidence.weight > 0:
            lead = previous if not run else lead
            run.append((piece, evidence))
        elif _WORD.search(text, piece.start, piece.end):
            close()
            run = []
        previous = piece
    close()
    last_word = max((m.end() for m in _WORD.finditer(response, max(0, len(text) - 4000))), default=len(text))
    return [(a, b) for a, b in found if b < last_word]


def _merges(text: str, previous: int, start: int, run: list[tuple[Piece, _Evidence]]) -> bool:
    """Whether restart language so soon after the last belongs to the same restart."""
    between = text[previous:start]
    words = len(_WORD.findall(between))
    if words <= 2:
        return True
    return all(evidence.resumes for _, evidence in run) and len(between) <= _GAP and "\n\n" not in between


def split_attempts(response: str, *, prompt: str | None = None) -> list[tuple[int, int, str | None]]:
    """Split a response into attempts: (start, end, restart phrase or None), which together cover all of it.

    `prompt`, where known, lets weak restart language count if the text takes up the prompt's words again after it.
    Offsets are in characters, end exclusive. The first attempt has no phrase. A response without a word has no
    attempt at all (an empty list). Linear in the length of the response.
    """
    if not _WORD.search(response):
        return []
    restarts = find_restarts(response, prompt)
    starts = [0, *(start for start, _ in restarts)]
    ends = [*starts[1:], len(response)]
    phrases = [None, *(response[a:b].strip() for a, b in restarts)]
    return list(zip(starts, ends, phrases, strict=True))


def contents(
    response: str, parts: list[tuple[int, int, str | None]]
) -> list[tuple[int, int, str | None, int]]:
    """The attempts with a fourth number: where the content after the restart language begins."""
    return [(start, end, restart, start + len(restart or "")) for start, end, restart in parts]
