"""Example responses for the page: which ones are shown, and their text cut into attempts to be coloured.

The choice follows a stated rule and the order of the plan, not how good the examples look. Text is untrusted: it
stays plain text here and is escaped by the template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from countersteer.core.trial import OK
from countersteer.store.reading import RunReader
from countersteer.store.rows import Trial

RULE = (
    "Chosen by rule, in the order of the plan: of the base arm the first five responses that began again and ended"
    " better, the first three that did not end better, the first two with one attempt; of other arms the first two that"
    " began again."
)
MAX_TEXT = 4000
MAX_SCANNED = 5000
_WANTED = {"better": 5, "not better": 3, "one attempt": 2}


@dataclass(frozen=True)
class Piece:
    """A stretch of text. `attempt` counts from 1 (0: before the first); `restart` marks the restart phrase."""

    text: str
    attempt: int
    restart: bool = False


@dataclass(frozen=True)
class Example:
    """One response to show, with the facts of its trial."""

    arm: str
    kind: str
    latent: int
    label: str | None
    strength: float | None
    prompt: str
    user: str
    seed: int
    scores: tuple[float, ...]
    pieces: tuple[Piece, ...]
    left_out: int
    receipt: tuple[Mapping[str, Any], ...]
    key: str


def examples(run: RunReader, *, max_arms: int = 8) -> list[Example]:
    """The examples of a run, base arm first, by `RULE`. Raises StoreError."""
    base = run.base_arm
    others = [name for name in run.arms() if name != base]
    found = _of_base(run, base) if base in run.arms() else []
    for arm in others[:max_arms]:
        several = (t for t in _graded(run, arm) if len(t.scores) > 1)
        found += [_example(trial, _kind(trial)) for trial in islice(several, 2)]
    return found


def _graded(run: RunReader, arm: str) -> Iterator[Trial]:
    return (t for t in islice(run.trials(arm), MAX_SCANNED) if t.status == OK and t.text and t.scores)


def _kind(trial: Trial) -> str:
    scores = trial.scores
    return "one attempt" if len(scores) < 2 else "better" if scores[-1] > scores[0] else "not better"


def _of_base(run: RunReader, arm: str) -> list[Example]:
    kept: dict[str, list[Example]] = {kind: [] for kind in _WANTED}
    for trial in _graded(run, arm):
        kind = _kind(trial)
        if len(kept[kind]) < _WANTED[kind]:
            kept[kind].append(_example(trial, kind))
            if all(len(kept[k]) == n for k, n in _WANTED.items()):
                break
    return [example for chosen in kept.values() for example in chosen]


def _example(trial: Trial, kind: str) -> Example:
    plan, text = trial.plan, trial.text or ""
    shown = text[:MAX_TEXT]
    return Example(
        arm=plan.arm,
        kind=kind,
        latent=plan.latent,
        label=plan.label,
        strength=plan.strength,
        prompt=plan.prompt,
        user=plan.user,
        seed=plan.seed,
        scores=tuple(trial.scores),
        pieces=cut(shown, (trial.grade or {}).get("attempts", ())),
        left_out=len(text) - len(shown),
        receipt=tuple((trial.receipt or {}).get("layers", ())),
        key=plan.key,
    )


def cut(text: str, attempts: Any) -> tuple[Piece, ...]:
    """A text in pieces that join to it again: what lies in which attempt, restart phrases apart.

    Offsets beyond the text are cut to it; attempts that overlap begin where the one before ends.
    """
    pieces, at = [], 0
    for number, attempt in enumerate(attempts, 1):
        start = min(max(int(attempt["start"]), at), len(text))
        end = min(max(int(attempt["end"]), start), len(text))
        pieces.append(Piece(text[at:start], number - 1))
        body, phrase = text[start:end], attempt.get("restart")
        where = body.find(phrase) if phrase and number > 1 else -1
        if where >= 0 and phrase:
            pieces.append(Piece(body[:where], number))
            pieces.append(Piece(phrase, number, restart=True))
            body = body[where + len(phrase) :]
        pieces.append(Piece(body, number))
        at = end
    pieces.append(Piece(text[at:], len(attempts)))
    return tuple(piece for piece in pieces if piece.text)
