"""Episodes: responses of two attempts of which the second is better, with their three boundaries.

Off-topic start <= correction start <= on-topic start: the judge's attempts give characters, decoding gives tokens. Each
episode is matched with a single-attempt response (of the same arm and latent where there is one). Improving episodes
are rare, so the arms that are steered as base is are pooled unless one is named. ESR paper 1.7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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


@dataclass(frozen=True)
class Pool:
    """The responses of some arms: `episodes`, single-attempt ones, and how many episodes each arm of the run has.

    `read` names the arms that were pooled. A text that several of them gave counts once.
    """

    read: tuple[str, ...]
    episodes: list[Episode]
    single: list[Any]
    counts: dict[str, int]


def steered(settings: Mapping[str, Any]) -> bool:
    """Whether an arm's responses were steered from their first word to their last, by a model like base's.

    So that they may be pooled: arms with a given prefix, clamps, an adapter or a span that follows the text may not.
    """
    changed = any(settings.get(key) for key in ("adapter", "prefix", "clamp", "clamp_rule"))
    return bool(settings.get("steered")) and not changed and "(restart)" not in str(settings.get("span"))


def pool(run: Any, arm: str | None = None) -> Pool:
    """The episodes of one arm, or of base and every arm steered as base is (`steered`), in the study's order."""
    arms = run.arms()
    read = (arm,) if arm is not None else tuple(n for n, s in arms.items() if n == run.base_arm or steered(s))
    found: list[Episode] = []
    single: list[Any] = []
    seen: set[tuple[str, str]] = set()
    counts = {}
    for name in arms:
        here = []
        for trial in run.trials(name):
            if trial.status != OK or not trial.text:
                continue
            one = episodes([trial])
            here += one
            if name not in read or (trial.plan.user, trial.text) in seen:
                continue
            seen.add((trial.plan.user, trial.text))
            found += one
            if len(trial.scores) == 1:
                single.append(trial)
        counts[name] = len(here)
    return Pool(read, found, single, counts)


def matched_single(chosen: Sequence[Episode], trials: Iterable[Any], draw: np.random.Generator) -> list[Any]:
    """Per episode one single-attempt response, none twice: of its arm and latent, else latent, else arm, else any."""
    left = [t for t in trials if t.status == OK and len(t.scores) == 1 and t.text]
    left = [left[i] for i in draw.permutation(len(left))]
    by: dict[tuple[Any, ...], list[int]] = {}
    for i, trial in enumerate(left):
        arm, latent = trial.plan.arm, trial.plan.latent
        for key in ((arm, latent), ("latent", latent, None), ("arm", arm, None), ()):
            by.setdefault(key, []).append(i)
    used: set[int] = set()
    out = []
    for episode in chosen:
        arm, latent = episode.trial.plan.arm, episode.trial.plan.latent
        for key in ((arm, latent), ("latent", latent, None), ("arm", arm, None), ()):
            places = by.get(key, [])
            while places and places[0] in used:
                places.pop(0)
            if places:
                used.add(places[0])
                out.append(left[places[0]])
                break
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
