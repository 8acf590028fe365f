"""The evidence that a piece of a response is restart language.

Cues, interruptions and the break of a sentence add up; conditions, habits, reported speech and the beliefs of others
take away. A restart needs two points within neighbouring pieces (`attempts.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from countersteer.judging import voice
from countersteer.judging.cue import FIRST_PERSON, Cue
from countersteer.judging.cues import CUES
from countersteer.judging.prose import BLANK, Piece

_REACH = 260
"""A cue lies within so many characters of the start of its piece."""
WORD = re.compile(r"[^\W_]+")
_DANGLING = re.compile(
    r"\b(?:the|a|an|and|or|of|to|in|on|for|with|at|by|as|from|into|will|its|their|your|each|every|"
    r"then|so|that|which|who|is|are|be|but|between|about)\s*[,—–…(\[.-]+\s*$",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"(?:no|nope|nah|not|oh|ah|well|actually)\b(?! wait)", re.IGNORECASE)
_HEDGED = re.compile(r"it\b|(?:that|this) (?:sounds|looks|seems|may|feels)|this (?:is not|isn't) about", re.IGNORECASE)
_NARRATED = re.compile(
    r"\b[A-Z][a-z]+ (?:first |then |also )?(?:tried|thought|held|believed|set|proposed|argued|"
    r"claimed|taught|assumed)\b"
)
_CLAUSE = re.compile(r"[^.!?:;\n—]{3,160}")
_REPORTED = re.compile(
    r"\b(?:(?:say|says|said|saying|write|writes|wrote|reply|replies|replied|tell|tells|ask|asks|"
    r"type|types|shout|shouts|cry|cries|cried|answers|admit|admits|"
    r"phrases?|such as|for example|for instance|e\.g\.|reads|sounds like|"
    r"script)\b[^.!?\n]{0,60}:[^.!?\n]{0,40}|\bto|(?:say|says|said|reply|replies|shout|cry|cries|"
    r"type),)[ \"'(*_]*$",
    re.IGNORECASE,
)
_JUDGEMENTS = frozenset({"that-bad", "that-not", "that-has", "that-weak", "bare-bad"})
_NOT_IN_LISTS = frozenset({"label", "scratch", "that-weak", "imperative-again", "from-top"})
_RESUMING = frozenset(
    {
        "new-start",
        "starting-again",
        "gerund-again",
        "here-is-real",
        "better-one",
        "back-to",
        "answer-question",
        "label",
        "from-top",
        "label-comma",
        "imperative-again",
        "as-for-question",
        "you-meant",
    }
)
_DENIAL = re.compile(
    r"(?:wrong|no|nope|that'?s not|that'?s wrong)\b(?! (?:need|one|problem|matter|idea))", re.IGNORECASE
)
_DROPPED = re.compile(r"(?:(?:disregard|ignore|forget) (?:the|that)|the) \w+$", re.IGNORECASE)
_MISFIT = re.compile(
    r"\b(?:(?:has|have) no place|don'?t belong|doesn'?t belong|nothing to do with|\w+ again$|"
    r"different (?:subject|topic)|is over|still \w+ing)",
    re.IGNORECASE,
)
_DOUBT = re.compile(r"[\w' ]{2,30}\?")


@dataclass(frozen=True)
class Evidence:
    """What a piece says.

    `weight`: points; `own`: it speaks of this very answer; `first`, `last`: where its first cue begins and its last
    ends; `resumes`: it only announces a new start; `pure`: an interruption and nothing else; `cued`: more than
    interruptions; `hint`: too little by itself, but enough where the text turns to its prompt.
    """

    weight: float
    own: bool = False
    first: int = 0
    last: int = 0
    resumes: bool = False
    pure: bool = False
    cued: bool = False
    hint: bool = False


_NOTHING = Evidence(0.0)


@dataclass(frozen=True)
class _Hit:
    """A cue found at [start, stop) with its weight there."""

    weight: float
    cue: Cue
    start: int
    stop: int


@dataclass(frozen=True)
class _Context:
    """What stands before and at the front of a piece."""

    rest: int
    end: int
    interruption: float
    carried: bool
    breaks: bool
    dangling: bool
    believed: bool
    habit: bool
    after_question: bool


def _opening(text: str, at: int, end: int, *, after_question: bool) -> tuple[int, float, int]:
    """Skip interruptions and fillers: (where the rest starts, weight of the interruptions, end of the last one)."""
    weight, last = 0.0, at
    for _ in range(6):
        while at < end and (text[at] in " ,.!?…:;—–-*_~(" or text[at] == BLANK):
            at += 1
        m = voice.STRONG_INTERRUPTION.match(text, at, end)
        if m and m.end() > at:
            word = m[0].lower()
            if not (after_question and word in ("no", "nope", "not")):
                weight += 0.5 if voice.MILD_INTERRUPTION.match(word) else 1.0
            at = last = m.end()
            continue
        m = voice.FILLER.match(text, at, end)
        if not m or m.end() == at:
            break
        at = m.end()
    return at, weight, last


def _hits(text: str, start: int, rest: int, end: int) -> list[_Hit]:
    """Every cue of the piece [start, end), whose words after interruptions and fillers begin at `rest`."""
    found = []
    body = text[start:end]  # a slice, so that ^ is the start of the piece
    personal = FIRST_PERSON.search(body) is not None
    for cue in CUES:
        if cue.first_person and not personal:
            continue
        if cue.anchored:
            m = cue.pattern.match(body, rest - start)
            if m is None and rest > start:
                m = cue.pattern.match(body)
        else:
            m = cue.pattern.search(body)
        if m:
            found.append(_Hit(cue.weight, cue, start + m.start(), start + m.end()))
    return found


def _credible(hits: list[_Hit], text: str, piece: Piece, context: _Context) -> list[_Hit]:
    """The cues that nothing explains away, heaviest first."""
    kept = []
    breaking = context.breaks or context.dangling
    for hit in hits:
        name = hit.cue.name
        if name in _JUDGEMENTS and (context.believed or context.after_question) and not breaking:
            continue
        if context.habit and not hit.cue.own:
            continue
        if piece.listed and (piece.at_bullet or name in _NOT_IN_LISTS):
            continue
        hedged = name.startswith("that-") and not (context.breaks or piece.broken)
        if hedged and _HEDGED.match(text, hit.start, hit.stop):
            hit = _Hit(hit.weight / 2, hit.cue, hit.start, hit.stop)
        kept.append(hit)
    kept.sort(key=lambda hit: -hit.weight)
    return kept


def _after_interruption(text: str, context: _Context) -> int | None:
    """Where the remark ends that follows an interruption ("wait, *that's soccer*"), or None if it is none."""
    tail = text[context.rest : context.end].rstrip(" .,;!)]*_\n")
    count = len(WORD.findall(tail))
    asks = text[context.rest : context.end].rstrip().endswith(("?", "!"))
    if voice.SHORT_THAT.match(tail) and not voice.HARMLESS_THAT.match(tail) and count <= 9:
        return context.end
    if 0 < count <= 4 and asks:
        return context.end
    if context.interruption >= 1 and _DENIAL.match(tail):
        return min(context.end, context.rest + 5)
    if context.breaks and _DROPPED.match(tail):
        return context.end
    if (re.match(r"not \w+", tail) and count <= 8) or _MISFIT.search(tail):
        return context.end
    return None


def _bag(text: str, context: _Context) -> int | None:
    """Where a short clause ends that has words of one's own voice, of fault or return, and of the answer, or None."""
    clause = _CLAUSE.match(text, context.rest, context.end)
    if clause is None or len(WORD.findall(clause[0])) > 16:
        return None
    if all(pattern.search(clause[0]) for pattern in (voice.OWN_VOICE, voice.FAULT, voice.ABOUT_ANSWER)):
        return clause.end()
    return None


def weigh(text: str, piece: Piece, before: str, *, carried: bool) -> Evidence:
    """The evidence in one piece of the masked `text`.

    `before` is the text just before it, for what its judgements may refer to; `carried`: the piece before it was an
    interruption and nothing else.
    """
    end = min(piece.end, piece.start + _REACH)
    body = text[piece.start : end]
    if voice.CONDITIONAL.match(body):
        return _NOTHING
    after_question = before.rstrip().endswith("?")
    rest, interruption, last = _opening(text, piece.start, end, after_question=after_question)
    hits = _hits(text, piece.start, rest, end)
    dangling = piece.broken and _DANGLING.search(before[-40:]) is not None
    voiced = FIRST_PERSON.search(body) or voice.HINT.search(body) or voice.OWN_VOICE.match(text[rest:end])
    if not hits and not interruption and not carried and not dangling and not voiced:
        return _NOTHING
    if _REPORTED.search(before):
        return _NOTHING
    context = _Context(
        rest,
        end,
        interruption,
        carried,
        breaks=(interruption > 0 and not _ANSWER.match(body)) or carried,
        dangling=dangling,
        believed=voice.BELIEF.search(before) is not None,
        habit=voice.HABIT.search(body) is not None,
        after_question=after_question,
    )
    kept = _credible(hits, text, piece, context)
    narrated = not after_question and not interruption and _NARRATED.search(before) is not None
    if kept and narrated and all(hit.cue.name == "that-bad" for hit in kept):
        return _NOTHING
    weight = kept[0].weight + sum(0.5 * hit.weight for hit in kept[1:2]) if kept else 0.0
    own = any(hit.cue.own for hit in kept)
    last = max([last, *(hit.stop for hit in kept)])
    if (interruption or carried) and not kept and (not context.believed or context.breaks or piece.broken):
        stop = _after_interruption(text, context)
        if stop is not None:
            weight, last = 1.0, max(last, stop)
    plain = not weight and not context.believed and not context.habit and not piece.listed
    if plain and (stop := _bag(text, context)) is not None:
        weight, last, own = 1.5, max(last, stop), True
    short = len(WORD.findall(body)) <= 14
    hint = plain and not weight and piece.opens and short and voice.HINT.search(body) is not None
    if not weight and dangling and _DOUBT.match(text, rest, end):
        weight, last = 1.0, end
    total = weight + min(interruption, 2.0)
    if dangling and (interruption >= 1 or weight >= 1):
        total += 1.0
    return Evidence(
        total,
        own,
        first=piece.start if interruption else min((hit.start for hit in kept), default=piece.start),
        last=last,
        resumes=bool(kept) and all(hit.cue.name in _RESUMING for hit in kept) and not interruption,
        pure=interruption >= 1 and not kept and not WORD.search(text, rest, end),
        cued=weight >= 1.0,
        hint=hint,
    )
