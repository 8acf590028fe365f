"""What a piece of a response looks like to the fitted model: classes of words, the rules' evidence, and discourse.

A `Reading` holds one response: its words with their classes and how each stretch of it touches the prompt. `features`
names what is seen at one piece: sequences of word classes, words, what the rules of `evidence.py` found there and
around it, where it stands, and whether the text turns towards its prompt, or back to its own opening, after it. All
features are either there or not; their names are the keys of the model's weights. Linear in the length of the text.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from countersteer.judging import voice
from countersteer.judging.evidence import Evidence
from countersteer.judging.lexicon import CLASS_OF, FUNCTION, OPENING, TELLING, VOICED
from countersteer.judging.prose import Piece

_TOKEN = re.compile(r"n't\b|'(?:s|m|ve|re|ll|d)\b|[^\W\d_]+?(?=n't\b)|[^\W_]+(?:-[^\W_]+)*")
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
        for m in _TOKEN.finditer(lower):
            self.words.append(m[0])
            self.starts.append(m.start())
        self.classes = [CLASS_OF.get(word) for word in self.words]
        asked = {_stem(w) for w in _TOKEN.findall((prompt or "").lower()) if _is_content(w)}
        self.has_prompt = bool(asked)
        self.marked = text.count("**") >= 6 or text.startswith("#") or "\n#" in text
        stems = [_stem(w) if _is_content(w) else None for w in self.words]
        self._first: dict[str, int] = {}
        for i, stem in enumerate(stems):
            if stem is not None:
                self._first.setdefault(stem, i)
        self._stems = stems
        self._asked = [stem is not None and stem in asked for stem in stems]
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

    def symbols(self, i: int, j: int) -> list[str]:
        """Words i..j as classes, function words, or what they refer to: prompt (PW), text before (BW), neither (OW)."""
        made = []
        for k in range(i, j):
            word, name, stem = self.words[k], self.classes[k], self._stems[k]
            if name:
                made.append(name)
            elif word in FUNCTION:
                made.append(word)
            elif self._asked[k]:
                made.append("PW")
            elif word.isdigit():
                made.append("NUM")
            else:
                made.append("BW" if stem is not None and self._first.get(stem, k) < i else "OW")
        return made

    def turning(self, i: int, j: int) -> list[str]:
        """How the text before word i and after word j touches the prompt and the response's own opening."""
        before = self._stems[max(0, i - _WINDOW) : i]
        asked_before = len({s for s, a in zip(before, self._asked[max(0, i - _WINDOW) : i], strict=True) if a})
        after = self._asked[j : j + _WINDOW]
        asked_after = len({s for s, a in zip(self._stems[j : j + _WINDOW], after, strict=True) if a})
        held = self._asked[i:j]
        again = len({s for s, a in zip(self._stems[j : j + 14], self._opening[j : j + 14], strict=True) if a})
        made = [f"again={min(again, 3)}"] if i >= 8 else []
        kept = {s for s in before if s} & {s for s in self._stems[j : j + _WINDOW] if s}
        made.append(f"kept={min(len(kept), 3)}")
        if self.has_prompt:
            made += [
                f"asked={min(asked_before, 2)}>{min(asked_after, 2)}",
                f"turn={max(-2, min(2, asked_after - asked_before))}",
                f"holds={min(sum(held), 2)}",
            ]
        return made


def _is_content(word: str) -> bool:
    return len(word) > 2 and word not in FUNCTION and word not in CLASS_OF and not word.startswith("'")


def features(reading: Reading, context: Context) -> list[str]:
    """The names of the features of one piece; empty if nothing in it could be restart language."""
    piece, evidence = context.piece, context.evidence
    i, full = reading.span(piece.start, piece.end)
    j = min(full, i + _REACH)
    ruled = evidence.weight > 0 or context.run_total > 0
    told = context.run_accepted or reading.telling(i, min(j, i + 9), long=full - i > 12)
    if not told or (not ruled and _structured(reading.text, piece)):
        return []
    symbols = reading.symbols(i, j)
    made = {"bias"}
    made.update(_sequences(symbols, "t"))
    words = reading.words[i:j]
    made.update(f"w:{w}" for w in words)
    made.update(f"w:{a} {b}" for a, b in itertools.pairwise(words))
    made.update(f"w^:{w}" for w in words[:1])
    made.update(f"w^:{a} {b}" for a, b in itertools.pairwise(words))
    made.update(f"w$:{w}" for w in words[-1:] if full == j)
    turning = reading.turning(i, j)
    placed = _placed(reading, context, i, full)
    made.update(turning)
    made.update(placed)
    made.update(_ruled(context))
    made.update(_together(context, turning, placed, symbols))
    if context.following is not None:
        a, b = reading.span(context.following.start, context.following.end)
        nearby = reading.symbols(a, min(b, a + 8))
        made.update(f"n:{s}" for s in nearby if s.isupper())
        made.update(f"n^:{x} {y}" for x, y in itertools.pairwise(nearby))
    return list(made)


def _structured(text: str, piece: Piece) -> bool:
    """Whether a piece stands in a list, a heading, a bold label or a formula, where only the rules find a restart."""
    line = text[max(text.rfind("\n", max(0, piece.start - 200), piece.start) + 1, piece.start - 200) : piece.end]
    label = _LABELLED.match(line) is not None and "**" in text[piece.start : piece.end + 3]
    return piece.listed or label or line.lstrip().startswith("#") or _FORMULA.search(line) is not None


def _together(context: Context, turning: Sequence[str], placed: set[str], symbols: Sequence[str]) -> set[str]:
    """Pairs of what is seen that mean more together than apart."""
    turn = next((name for name in turning if name.startswith("turn=")), "turn=?")
    kept = next((name for name in turning if name.startswith("kept=")), "kept=?")
    short = "short" if len(symbols) < 5 else "middling" if len(symbols) < 10 else "long"
    rule = _bucket(max(context.evidence.weight, context.run_total))
    broken = "broken" if "is:broken" in placed or "is:dangling" in placed else "whole"
    made = {f"{turn}&{kept}", f"{turn}&{short}", f"{turn}&{broken}", f"{turn}&rule{rule}", f"{short}&{broken}&{kept}"}
    for name in ("is:inside", "is:belief", "is:asked", "is:listed", "is:if", "is:habit", "is:quoted"):
        if name in placed:
            made.add(f"{name}&rule{rule}")
            made.update(f"{name}&{symbol}" for symbol in symbols[:3])
    if "is:asks" in placed:
        made.update(f"asks&{symbol}" for symbol in symbols)
    if {"ME", "WE"} & set(symbols):
        made.update(f"me&{symbol}" for symbol in symbols if symbol.isupper())
    if "DEM" in symbols[:3]:
        made.update(f"dem&{symbol}" for symbol in symbols if symbol.isupper())
    return made


def _sequences(symbols: Sequence[str], prefix: str) -> set[str]:
    """Runs of one to three symbols, pairs at a distance, and the opening of the piece."""
    made = {f"{prefix}:{s}" for s in symbols}
    made.update(f"{prefix}:{a} {b}" for a, b in itertools.pairwise(symbols))
    made.update(f"{prefix}:{a} {b} {c}" for a, b, c in zip(symbols, symbols[1:], symbols[2:], strict=False))
    named = [s for s in symbols if s.isupper() and s not in ("OW", "BW", "PW")]
    made.update(f"{prefix}~{a}~{b}" for a, b in itertools.pairwise(named))
    made.update(f"{prefix}~{a}~~{b}" for a, b in zip(named, named[2:], strict=False))
    for size in (1, 2, 3):
        if len(symbols) >= size:
            made.add(f"{prefix}^{' '.join(symbols[:size])}")
    return made


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
