"""Every place where a restart could begin in a response, with all that is known of it.

The rules weigh each piece (`evidence.py`), neighbouring pieces with evidence form a run whose points are added up, and
each piece gets its features (`clause_features.py`). `attempts.py` decides from these, and `bench/fit_restarts.py`
fits the model's weights to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from countersteer.judging import setting
from countersteer.judging.clause_features import Context, Reading, features
from countersteer.judging.evidence import WORD, Evidence, weigh
from countersteer.judging.prose import Piece, mask, normal, pieces

_ENOUGH = 2.0
_BEFORE = 180


@dataclass(frozen=True)
class Observed:
    """A piece with the rules' evidence, whether they take its run for a restart, and its features."""

    piece: Piece
    evidence: Evidence
    accepted: bool
    names: tuple[str, ...]


@dataclass(frozen=True)
class Observation:
    """A response as seen by the detector: its masked text and its pieces that have words, in order.

    `prompt` is empty where it is not known, so that no turn towards it can be seen.
    """

    text: str
    prompt: str
    reading: Reading
    places: tuple[Observed, ...]


def _weighed(response: str, text: str, prompt: str | None) -> list[tuple[Piece, Evidence, int]]:
    """Pieces that have words, with their evidence and the number of their run (-1: none)."""
    found: list[tuple[Piece, Evidence, int]] = []
    run: list[tuple[Piece, Evidence]] = []
    number = 0
    for piece in pieces(text):
        carried = bool(run) and run[-1][1].pure
        evidence = weigh(text, piece, text[max(0, piece.start - _BEFORE) : piece.start], carried=carried)
        if evidence.hint and prompt and evidence.weight < _ENOUGH:
            since = run[0][0].start if run else piece.start
            if setting.turns_sharply(response, since, piece.end, prompt):
                evidence = Evidence(_ENOUGH, first=piece.start, last=piece.end, cued=True)
        worded = WORD.search(text, piece.start, piece.end) is not None
        if evidence.weight > 0:
            run.append((piece, evidence))
            found.append((piece, evidence, number))
        elif worded:
            if run:
                run, number = [], number + 1
            found.append((piece, evidence, -1))
    return found


def _accepted(response: str, run: Sequence[tuple[Piece, Evidence]], prompt: str | None, *, inside: bool) -> bool:
    """Whether the rules take a run for a restart; `inside`: it lies in a letter or story written on request."""
    total = sum(evidence.weight for _, evidence in run)
    if inside and total < _ENOUGH + (0.0 if any(evidence.own for _, evidence in run) else 2.0):
        return False
    if total >= _ENOUGH:
        return True
    cued = any(evidence.cued for _, evidence in run)
    return cued and setting.turns(response, run[0][0].start, run[-1][1].last, prompt)


def observe(response: str, prompt: str | None = None) -> Observation:
    """All places of a response at which a restart could begin; linear in its length."""
    text = mask(normal(response))
    found = _weighed(response, text, prompt)
    runs: dict[int, list[tuple[Piece, Evidence]]] = {}
    for piece, evidence, number in found:
        if number >= 0:
            runs.setdefault(number, []).append((piece, evidence))
    letters = setting.letters(text)
    composed = setting.composed(prompt)
    within = [composed or any(a <= piece.start < b for a, b in letters) for piece, _, _ in found]
    starts = {run[0][0].start: number for number, run in runs.items()}
    inside = {
        starts[piece.start]: held for (piece, _, _), held in zip(found, within, strict=True) if piece.start in starts
    }
    accepted = {number: _accepted(response, run, prompt, inside=inside[number]) for number, run in runs.items()}
    totals = {number: sum(evidence.weight for _, evidence in run) for number, run in runs.items()}
    reading = Reading(text, prompt)
    places = []
    for k, (piece, evidence, number) in enumerate(found):
        context = Context(
            piece,
            evidence,
            found[k - 1][1] if k else None,
            found[k + 1][1] if k + 1 < len(found) else None,
            found[k + 1][0] if k + 1 < len(found) else None,
            totals.get(number, 0.0),
            accepted.get(number, False),
            within[k],
        )
        names = tuple(sorted(features(reading, context)))
        places.append(Observed(piece, evidence, context.run_accepted, names))
    return Observation(text, prompt or "", reading, tuple(places))
