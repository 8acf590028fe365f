"""What stands around a piece of a response: the rules' evidence, its place in the text, and where the text turns.

A `Reading` holds one response: its words with their classes and how each stretch of it touches the prompt. `features`
names what is seen at one piece: what the rules of `evidence.py` found there and around it, where it stands, and whether
the text turns towards its prompt, or back to its own opening, after it. The names are inputs of the restart model
(`restart_input.py`), which reads the words themselves besides. Linear in the length of the text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass

from countersteer.judging import voice
from countersteer.judging.evidence import Evidence
from countersteer.judging.lexicon import CLASS_OF, FUNCTION, OPENING, TELLING, VOICED
from countersteer.judging.prose import Piece

TOKEN = re.compile(r"n't\b|'(?:s|m|ve|re|ll|d)\b|[^\W\d_]+?(?=n't\b)|[^\W_]+(?:-[^\W_]+)*")
_DANGLING = frozenset(
    [
        "the",
        "a",
        "an",
        "and",
        "or",
        "of",
        "to",
        "in",
        "on",
        "for",
        "with",
        "at",
        "by",
        "as",
        "from",
        "into",
        "will",
        "its",
        "their",
        "your",
        "each",
        "every",
        "then",
        "so",
        "that",
        "which",
        "who",
        "is",
        "are",
        "was",
        "were",
        "be",
        "but",
        "between",
        "about",
        "until",
        "because",
        "than",
        "through",
        "around",
        "under",
        "over",
        "after",
        "before",
        "it",
        "they",
        "you",
    ]
)
_BEING = frozenset(["'s", "is", "was", "were", "are", "has", "had", "does", "did", "belongs", "came", "went"])
_LABELLED = re.compile(r"\s*(?:\d+[.)]\s*)?\*\*")
_FORMULA = re.compile(r"[=×÷√∑²±≤≥]|\s[+*/]\s")
LAID_OUT = "is:laid-out"
"""A piece of a text with headings and labels, where only the rules find a restart unless it has the writer's voice."""
_REACH = 16
_WINDOW = 24


@dataclass(frozen=True)
class Context:
    """What is known of a piece beyond its words: the rules' evidence at it and around it, and its setting."""

    piece: Piece
    evidence: Evidence
    before: Evidence | None
    after: Evidence | None
    following: Piece | None
    run_total: float
    run_accepted: bool
    inside: bool


def _stem(word: str) -> str:
    """A crude stem: enough to see that "ironing" is "iron" and "bees" are "bee"."""
    for ending in ("ing", "ies", "ed", "es", "s", "y", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    return word[:6]


def _bucket(value: float) -> str:
    return "0" if value <= 0 else "1" if value < 2 else "2" if value < 2.5 else "3"


class Reading:
    """The words of one masked response, and where it touches its prompt."""

    def __init__(self, text: str, prompt: str | None) -> None:
        self.text = text
        lower = text.lower()
        self.words: list[str] = []
        self.starts: list[int] = []
        self.ends: list[int] = []
        for m in TOKEN.finditer(lower):
            self.words.append(m[0])
            self.starts.append(m.start())
            self.ends.append(m.end())
        self.classes = [CLASS_OF.get(word) for word in self.words]
        asked = {_stem(w) for w in TOKEN.findall((prompt or "").lower()) if is_content(w)}
        self.has_prompt = bool(asked)
        self.marked = text.count("**") >= 6 or text.startswith("#") or "\n#" in text
        stems = [_stem(w) if is_content(w) else None for w in self.words]
        self.first: dict[str, int] = {}
        for i, stem in enumerate(stems):
            if stem is not None:
                self.first.setdefault(stem, i)
        self.stems = stems
        self.asked = [stem is not None and stem in asked for stem in stems]
        opening = {stem for stem in stems[:14] if stem is not None}
        self._opening = [stem is not None and stem in opening for stem in stems]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The words [i, j) that begin within [start, end)."""
        return bisect_left(self.starts, start), bisect_left(self.starts, end)

    def telling(self, i: int, j: int, *, long: bool) -> bool:
        """Whether words i..j hold any that restart language is made of; `long`: they open a long sentence."""
        classes = self.classes[i:j]
        if self.marked or long:
            return not VOICED.isdisjoint(classes)
        first = classes[0] if classes else None
        judges = first == "DEM" and not _BEING.isdisjoint(self.words[i + 1 : i + 2])
        return judges or first in OPENING or not TELLING.isdisjoint(classes)

    def turning(self, i: int, j: int) -> list[str]:
        """How the text before word i and after word j touches the prompt and the response's own opening."""
        before = self.stems[max(0, i - _WINDOW) : i]
        asked_before = len({s for s, a in zip(before, self.asked[max(0, i - _WINDOW) : i], strict=True) if a})
        after = self.asked[j : j + _WINDOW]
        asked_after = len({s for s, a in zip(self.stems[j : j + _WINDOW], after, strict=True) if a})
        held = self.asked[i:j]
        again = len({s for s, a in zip(self.stems[j : j + 14], self._opening[j : j + 14], strict=True) if a})
        made = [f"again={min(again, 3)}"] if i >= 8 else []
        kept = {s for s in before if s} & {s for s in self.stems[j : j + _WINDOW] if s}
        made.append(f"kept={min(len(kept), 3)}")
        if self.has_prompt:
            made += [
                f"asked={min(asked_before, 2)}>{min(asked_after, 2)}",
                f"turn={max(-2, min(2, asked_after - asked_before))}",
                f"holds={min(sum(held), 2)}",
            ]
        return made


def is_content(word: str) -> bool:
    return len(word) > 2 and word not in FUNCTION and word not in CLASS_OF and not word.startswith("'")


def features(reading: Reading, context: Context) -> set[str]:
    """The names of what is seen around one piece."""
    piece = context.piece
    i, full = reading.span(piece.start, piece.end)
    made = {*reading.turning(i, min(full, i + _REACH)), *_placed(reading, context, i, full), *_ruled(context)}
    telling = reading.telling(i, min(full, i + 9), long=full - i > 12)
    structured = _structured(reading.text, piece)
    if structured:
        made.add("is:structured")
    if telling:
        made.add("is:telling")
    if reading.marked and (structured or not telling):
        made.add(LAID_OUT)
    return made


def _structured(text: str, piece: Piece) -> bool:
    """Whether a piece stands in a list, a heading, a bold label or a formula, where only the rules find a restart."""
    line = text[max(text.rfind("\n", max(0, piece.start - 200), piece.start) + 1, piece.start - 200) : piece.end]
    label = _LABELLED.match(line) is not None and "**" in text[piece.start : piece.end + 3]
    return piece.listed or label or line.lstrip().startswith("#") or _FORMULA.search(line) is not None


def _placed(reading: Reading, context: Context, i: int, j: int) -> set[str]:
    """Where the piece stands and what surrounds it."""
    piece, text = context.piece, reading.text
    before = text[max(0, piece.start - 180) : piece.start]
    body = text[piece.start : piece.end]
    made = {f"length={min(j - i, 4) if j - i < 5 else 6 if j - i < 8 else 10 if j - i < 14 else 20}"}
    flags = {
        "broken": piece.broken,
        "dangling": i > 0 and reading.words[i - 1] in _DANGLING,
        "unfinished": not re.search(r"[.!?:;,)\]]\W*$", before[-8:]) and "\n" not in before[-3:],
        "listed": piece.listed,
        "bullet": piece.at_bullet,
        "inner": not piece.opens,
        "front": i < 4,
        "early": i < 9,
        "inside": context.inside,
        "asked": before.rstrip().endswith("?"),
        "quoted": before.rstrip().endswith(":"),
        "asks": body.rstrip().endswith("?") or text[piece.end - 1 : piece.end + 1].rstrip().endswith("?"),
        "ending": len(reading.words) - j < 4,
        "if": voice.CONDITIONAL.match(body) is not None,
        "habit": voice.HABIT.search(body) is not None,
        "belief": voice.BELIEF.search(before) is not None,
        "line": "\n" in text[max(0, piece.start - 2) : piece.start],
        "bracket": text[max(0, piece.start - 1) : piece.start] in ("(", "["),
        "dash": before.rstrip().endswith(("-", "—", "–")),
        "dots": before.rstrip().endswith(("...", "…")),
        "colon": text[piece.end - 1 : piece.end + 1].rstrip().endswith(":"),
    }
    made.update(f"is:{name}" for name, value in flags.items() if value)
    return made


def _ruled(context: Context) -> set[str]:
    """What the rules found here and around."""
    evidence = context.evidence
    made = {f"rule={_bucket(evidence.weight)}", f"run={_bucket(context.run_total)}"}
    for name in ("own", "pure", "cued", "hint", "resumes"):
        if getattr(evidence, name):
            made.add(f"rule:{name}")
    if context.run_accepted:
        made.add("run:accepted")
    if context.before is not None and context.before.weight > 0:
        made.add(f"rule<{_bucket(context.before.weight)}")
    if context.after is not None and context.after.weight > 0:
        made.add(f"rule>{_bucket(context.after.weight)}")
    return made
