"""Reading a judge's reply: JSON with or without prose around it, checked field by field, and mapped onto the text.

Whatever cannot be used raises `Unreadable` with a code and a reason in words; nothing is repaired by guessing. The
codes: empty, refusal, truncated, no-json, wrong-type, out-of-range, not-in-text, out-of-order.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from countersteer.core.trial import OK, Attempt, Grade
from countersteer.judging import attempts as patterns
from countersteer.judging.degraded import degraded
from countersteer.judging.parse_quotes import Quoted

VERSION = 2
"""Changes whenever the same reply may be read differently."""

MAX_RAW = 16_000
"""Longest stored reply, in characters."""
MAX_ATTEMPTS = 100
_REFUSAL = re.compile(
    r"\b(?:i(?:'|\u2019)?m (?:sorry|unable|not able)|"
    r"i (?:cannot|can(?:'|\u2019)t|won(?:'|\u2019)t|am unable|am not able|must decline)|"
    r"(?:sorry|apologies),? (?:but )?i|as an ai)\b",
    re.IGNORECASE,
)
_OPENS = re.compile(r"[{\[]")
_MAX_TRIES = 1_000
_NUMBER = re.compile(r"\s*(\d{1,4}(?:\.\d+)?)\s*(?:(/)\s*(\d{1,4})|(%))?\s*")
_SHOWN = ("refusal", "truncated", "no-json")
"""Codes of replies that are shown by their beginning: their reason does not say what stood there."""


class Unreadable(Exception):
    """A reply that gives no grade. `code` is one word, the message says what is wrong."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def reason(self) -> str:
        """Code and message, as a grade stores them."""
        return f"{self.code}: {self}"

    def about(self, reply: str) -> str:
        """The reason, with how the reply begins where that says more."""
        begins = " ".join(reply.split())[:120]
        return f"{self.reason}; it begins {begins!r}" if self.code in _SHOWN and begins else self.reason


@dataclass(frozen=True)
class Score:
    """One number for a whole response; `kind` where the rubric asks for one; `evidence` in the judge's words."""

    score: float
    evidence: str = ""
    kind: str | None = None


@dataclass(frozen=True)
class Episode:
    """Character offsets of the off-topic start, the correction and the return; None where there is no such place."""

    off_topic: int | None
    correction: int | None
    on_topic: int | None


@dataclass(frozen=True)
class Choice:
    """Which of two answers is better: first, second or tie; `evidence` in the judge's words."""

    better: str
    evidence: str = ""


def find_object(reply: str, need: str, *, stop: str = "stop") -> dict[str, Any]:
    """The last complete JSON object in a reply that has the key `need`. `stop` is why the model stopped writing.

    Raises Unreadable: empty, refusal, truncated, no-json, wrong-type.
    """
    limit = stop in ("max_tokens", "model_length")
    if stop == "content_filter":
        raise Unreadable("refusal", "the provider's filter stopped the reply")
    if not reply.strip():
        raise Unreadable("truncated" if limit else "empty", "the reply is empty")
    decoder = json.JSONDecoder(strict=False)
    found: dict[str, Any] | None = None
    complete: Any = None
    broken = False
    at = 0
    for _ in range(_MAX_TRIES):
        match = _OPENS.search(reply, at)
        if match is None:
            break
        try:
            value, at = decoder.raw_decode(reply, match.start())
        except (ValueError, RecursionError):
            broken = broken or match[0] == "{"
            at = match.start() + 1
            continue
        if isinstance(value, dict) and need in value:
            found = value
        else:
            complete = value
    if found is not None:
        return found
    if broken:
        raise Unreadable("truncated", "the JSON in the reply is cut off or broken")
    if complete is not None:
        what = f"an object without {need!r}" if isinstance(complete, dict) else f"a {type(complete).__name__}"
        raise Unreadable("wrong-type", f"the reply's JSON is {what}")
    if _REFUSAL.search(reply[:400]):
        raise Unreadable("refusal", "the judge declined to grade")
    if limit:
        raise Unreadable("truncated", "the reply reached its length limit before any JSON")
    raise Unreadable("no-json", "there is no JSON in the reply")


def number(value: Any, what: str, *, top: float = 100.0) -> float:
    """A score in [0, top] from a number, or a text that is nothing but one. Raises Unreadable.

    "85/100" and "85%" are 85 where the top is 100; "8/10" is not, since it would be another scale.
    """
    if isinstance(value, str) and (match := _NUMBER.fullmatch(value)):
        if (match[2] and float(match[3]) != top) or (match[4] and top != 100.0):
            raise Unreadable("out-of-range", f"{what} is {_short(value)}, which is on another scale than 0 to {top:g}")
        value = float(match[1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unreadable("wrong-type", f"{what} is {_short(value)}, not a number")
    if not 0 <= value <= top:  # not for NaN either; whole numbers have no bound
        shown = f"{value:g}" if isinstance(value, float) or abs(value) < 1e15 else _short(value)
        raise Unreadable("out-of-range", f"{what} is {shown}, not from 0 to {top:g}")
    return float(value)


def attempts_grade(data: dict[str, Any], response: str, *, judge: str) -> Grade:
    """The grade in a reply to the rubric `attempts`. Raises Unreadable.

    Attempts cover the response from each one's beginning to the next one's; what precedes the first belongs to it.
    Flags: "degraded"; "pattern-disagrees" if explicit restart language gives another number of attempts;
    "loose-quote" if a quotation agrees with the text in its beginning only.
    """
    listed = data.get("attempts")
    if not isinstance(listed, list):
        raise Unreadable("wrong-type", f"'attempts' is {_short(listed)}, not a list")
    if len(listed) > MAX_ATTEMPTS:
        raise Unreadable("out-of-range", f"{len(listed)} attempts are more than {MAX_ATTEMPTS}")
    flags = ["degraded"] if degraded(response) else []
    if not listed:
        return Grade("no-attempt", (), judge, "the judge found no attempt", tuple(flags))
    text = Quoted(response)
    starts: list[int] = []
    scores: list[float] = []
    restarts: list[str | None] = []
    after = 0
    for n, entry in enumerate(listed, 1):
        if not isinstance(entry, dict):
            raise Unreadable("wrong-type", f"attempt {n} is {_short(entry)}, not an object")
        quote = entry.get("quote")
        if not isinstance(quote, str):
            raise Unreadable("wrong-type", f"the quote of attempt {n} is {_short(quote)}, not a text")
        scores.append(number(entry.get("score"), f"the score of attempt {n}"))
        place = text.find(quote, after=after)
        if place is None:
            if text.find(quote) is not None:
                raise Unreadable("out-of-order", f"attempt {n} lies before attempt {n - 1} ends")
            raise Unreadable("not-in-text", f"attempt {n} is not in the response: {_short(quote)}")
        if not place.exact and "loose-quote" not in flags:
            flags.append("loose-quote")
        phrase = entry.get("restart")
        if phrase is not None and not isinstance(phrase, str):
            raise Unreadable("wrong-type", f"the restart of attempt {n} is {_short(phrase)}, not a text or null")
        starts.append(place.start)
        restarts.append(_phrase(phrase, text) if n > 1 else None)
        after = max(place.end, place.start + 1)
    starts[0] = 0
    ends = [*starts[1:], len(response)]
    made = tuple(Attempt(*row) for row in zip(starts, ends, scores, restarts, strict=True))
    if len(patterns.split_attempts(response)) != len(made):
        flags.append("pattern-disagrees")
    return Grade(OK, made, judge, None, tuple(flags))


def _phrase(phrase: str | None, text: Quoted) -> str | None:
    """The restart phrase as the response has it; as the judge gave it if it is not there to the letter."""
    if phrase is None or not phrase.strip():
        return None
    place = text.find(phrase)
    return phrase.strip()[:200] if place is None or not place.exact else text.text[place.start : place.end]


def score(data: dict[str, Any], *, top: float = 100.0) -> Score:
    """The number in a reply to the rubrics trait, coherence, concreteness (0-100) and recovery (top 10)."""
    value = number(data.get("score"), "the score", top=top)
    kind = data.get("kind")
    if top == 10.0 and kind not in ("explicit", "gradual", "none"):
        raise Unreadable("wrong-type", f"'kind' is {_short(kind)}, not explicit, gradual or none")
    evidence = data.get("evidence", "")
    return Score(value, evidence[:500] if isinstance(evidence, str) else "", kind if top == 10.0 else None)


def choice(data: dict[str, Any]) -> Choice:
    """The verdict in a reply to the rubric `pairwise`. Raises Unreadable."""
    better = data.get("better")
    word = better.strip().lower() if isinstance(better, str) else better
    if word not in ("first", "second", "tie"):
        raise Unreadable("wrong-type", f"'better' is {_short(better)}, not first, second or tie")
    evidence = data.get("evidence", "")
    return Choice(str(word), evidence[:500] if isinstance(evidence, str) else "")


def episode(data: dict[str, Any], response: str) -> Episode:
    """The three places in a reply to the rubric `episodes`, in order. Raises Unreadable."""
    text = Quoted(response)
    found: dict[str, int | None] = {}
    after = 0
    for name in ("off_topic", "correction", "on_topic"):
        if name not in data:
            raise Unreadable("wrong-type", f"{name!r} is missing")
        quote = data[name]
        if quote is None:
            found[name] = None
            continue
        if not isinstance(quote, str):
            raise Unreadable("wrong-type", f"{name!r} is {_short(quote)}, not a text or null")
        place = text.find(quote, after=after)
        if place is None:
            code = "not-in-text" if text.find(quote) is None else "out-of-order"
            raise Unreadable(code, f"{name!r} is not in the response where it should be: {_short(quote)}")
        found[name] = after = place.start
    return Episode(**found)


def bounded(raw: str) -> str:
    """A reply as it is stored: its beginning and its end if it is long."""
    if len(raw) <= MAX_RAW:
        return raw
    half = MAX_RAW // 2 - 20
    return f"{raw[:half]}\n[... {len(raw) - 2 * half} characters ...]\n{raw[-half:]}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
