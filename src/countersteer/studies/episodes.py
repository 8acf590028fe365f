"""Episodes: responses of two attempts of which the second is better, with their three boundaries.

Off-topic start <= correction start <= on-topic start: the judge's attempts give characters, decoding gives tokens. Each
episode is matched with a single-attempt response of the same arm (same latent where there is one). ESR paper 1.7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from countersteer.core.trial import OK

BASELINE_SCORE = 50.0
"""Single-attempt responses of at least this score are the baseline."""


@dataclass(frozen=True)
class Episode:
    """A trial's text with characters: off topic from `off`, correction from `correction`, on topic from `on`."""

    trial: Any
    off: int
    correction: int
    on: int


def episodes(trials: Iterable[Any]) -> list[Episode]:
    """The episodes among graded trials: exactly two attempts, the second scored strictly higher."""
    found = []
    for trial in trials:
        if trial.status != OK or len(trial.scores) != 2 or not trial.scores[1] > trial.scores[0]:
            continue
        scored = [a for a in trial.grade["attempts"] if a["score"] is not None]
        first, second = scored
        text, phrase = trial.text, second.get("restart")
        start = int(second["start"])
        at = text.find(phrase, start, int(second["end"])) if phrase else -1
        on = at + len(phrase) if phrase and at >= 0 else start
        while on < int(second["end"]) and not text[on].isalnum():
            on += 1
        found.append(Episode(trial, int(first["start"]), start, min(on, len(text))))
    return found


def matched_single(chosen: Sequence[Episode], trials: Iterable[Any], draw: np.random.Generator) -> list[Any]:
    """Per episode one single-attempt response of the same arm, none twice: same latent first, else any."""
    left = [t for t in trials if t.status == OK and len(t.scores) == 1 and t.text]
    left = [left[i] for i in draw.permutation(len(left))]
    out = []
    for episode in chosen:
        same = [t for t in left if t.plan.latent == episode.trial.plan.latent]
        pick = same[0] if same else (left[0] if left else None)
        if pick is None:
            break
        left.remove(pick)
        out.append(pick)
    return out


def baseline(trials: Iterable[Any]) -> list[Any]:
    """Single-attempt responses that score at least 50."""
    return [t for t in trials if t.status == OK and len(t.scores) == 1 and t.scores[0] >= BASELINE_SCORE and t.text]


def token_starts(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """For each token the number of characters decoded before it, so that token t begins at character starts[t].

    Decoding a token beside its predecessor shows what it adds; a token that completes no character adds nothing, and
    the one that completes it adds it whole.
    """
    starts, done, base, known = [], 0, 0, ""
    for t in range(len(ids)):
        starts.append(done)
        whole = decode(ids[base : t + 1])
        if whole.endswith("\ufffd"):
            continue
        done += len(whole) - len(known)
        base, known = t, decode(ids[t : t + 1])
        if known.endswith("\ufffd"):  # the token alone is half a character: keep the piece it belongs to
            base, known = t + 1, ""
    return starts


def token_at(starts: Sequence[int], character: int) -> int:
    """The first token that begins at or after a character (the number of tokens if none does)."""
    return int(np.searchsorted(np.asarray(starts), character, side="left"))
