"""The trials of a run reduced to what the numbers are made of: one small frozen record per trial, no text.

A trial is valid iff it has no error and at least one scored attempt (ESR paper); `scores` is empty otherwise.
Everything the report computes starts from these records, so a run of 100,000 trials is read once, arm by arm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from countersteer.core.trial import OK
from countersteer.judging.degraded import TIMES, degraded
from countersteer.store.reading import RunReader
from countersteer.store.rows import PENDING, Trial


@dataclass(frozen=True, slots=True)
class Outcome:
    """One trial. `scores` of its scored attempts in order, 0-100, empty unless the trial is valid.

    `steered`: its receipt names an edited layer; `acted`: a token was changed there. `relative`: the largest layer's
    mean |h' - h| / |h|. `clamp_acted`, `clamp_relative`: the same of its clamps alone (None: the receipt does not tell
    edits apart, or there is no clamp). `fresh`: first score of each fresh draw (None: none) and whether that text is
    degraded. `whole`: whether the response recovers as a whole (None: not rated). `continuation`: first score of what
    the model wrote after a given prefix, judged by itself (None: not judged so). `turned`: the engine saw a restart,
    at which spans that follow the text turn. `text_hash` compares texts within one process.
    """

    ordinal: int
    latent: int
    prompt: str
    seed: int
    strength: float | None
    status: str
    scores: tuple[float, ...]
    degraded: bool
    steered: bool
    acted: bool
    relative: float | None
    text_hash: int
    fresh: tuple[tuple[float | None, bool], ...] = ()
    clamp_acted: bool | None = None
    clamp_relative: float | None = None
    whole: bool | None = None
    continuation: float | None = None
    turned: bool = False

    @property
    def valid(self) -> bool:
        """Whether the trial is in the denominator of the rates."""
        return bool(self.scores)

    @property
    def multi(self) -> bool:
        """Whether the response has more than one scored attempt."""
        return len(self.scores) > 1

    @property
    def improved(self) -> bool:
        """Whether the last attempt scores above the first, strictly."""
        return self.multi and self.scores[-1] > self.scores[0]

    @property
    def key(self) -> tuple[int, str, int]:
        """What pairs a trial with another arm's: latent, prompt, seed."""
        return (self.latent, self.prompt, self.seed)


TURNED = "restart complete"
"""How an engine's receipt notes that a span which follows the text has turned."""
Rater = Callable[[Trial], bool | None]
CLAMPS = ("clamp", "ablate")


def collect(run: RunReader, arm: str, whole: Rater | None = None) -> list[Outcome]:
    """The outcomes of one arm, by ordinal, with the scores of their fresh draws. Raises StoreError.

    `whole`: says of a multi-attempt trial whether it recovers as a whole response.
    """
    fresh: dict[int, list[tuple[float | None, bool]]] = {}
    for draw in run.fresh_attempts(arm):
        if draw.status != PENDING:
            first = draw.first if draw.status == OK else None
            fresh.setdefault(draw.ordinal, []).append((first, _degraded(draw.text)))
    alone = bool(run.arms().get(arm, {}).get("judged_alone"))
    return [
        outcome(
            trial,
            tuple(fresh.get(trial.plan.ordinal, ())),
            whole,
            continuation=_continuation(run, trial) if alone else None,
        )
        for trial in run.trials(arm)
    ]


def _continuation(run: RunReader, trial: Trial) -> float | None:
    """The first score of what the model wrote after its given prefix; None unless it was judged by itself."""
    if not trial.written.strip():
        return None
    grade = run.grade(trial.plan.prompt, trial.plan.label, trial.written)
    if grade is None or grade["status"] != OK:
        return None
    return next((float(a["score"]) for a in grade["attempts"] if a["score"] is not None), None)


def outcome(
    trial: Trial,
    fresh: tuple[tuple[float | None, bool], ...] = (),
    whole: Rater | None = None,
    *,
    continuation: float | None = None,
) -> Outcome:
    """What counts of a stored trial."""
    layers = (trial.receipt or {}).get("layers", ())
    relative = [layer["mean_relative"] for layer in layers if layer.get("mean_relative") is not None]
    clamps = [e for layer in layers for e in layer.get("edits", ()) if e["method"] in CLAMPS]
    moved = [e["mean_relative"] for e in clamps if e["mean_relative"] is not None]
    plan = trial.plan
    scores = tuple(float(s) for s in trial.scores) if trial.status == OK else ()
    return Outcome(
        ordinal=plan.ordinal,
        latent=plan.latent,
        prompt=plan.prompt,
        seed=plan.seed,
        strength=plan.strength,
        status=trial.status,
        scores=scores,
        degraded=_degraded(trial.text),
        steered=bool(layers),
        acted=any(layer["tokens_changed"] for layer in layers),
        relative=max(relative, default=None),
        text_hash=hash(trial.text),
        fresh=fresh,
        clamp_acted=any(e["tokens_changed"] for e in clamps) if clamps else None,
        clamp_relative=max(moved, default=None),
        whole=whole(trial) if whole is not None and len(scores) > 1 else None,
        continuation=continuation,
        turned=any(note.startswith(TURNED) for note in (trial.receipt or {}).get("notes", ())),
    )


def _degraded(text: str | None) -> bool:
    """Whether a text is degraded; most have too few repeated words for it, which a set tells faster."""
    words = (text or "").split()
    return len(words) - len(set(words)) >= TIMES - 1 and degraded(text or "")


def without_degraded(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes as if degraded responses had not been generated, among the fresh draws as well."""
    return [
        replace(o, fresh=tuple(draw for draw in o.fresh if not draw[1])) if o.fresh else o
        for o in outcomes
        if not o.degraded
    ]


def counts(values: Sequence[Any]) -> dict[str, int]:
    """How often each value occurs, by falling count, then by name."""
    found: dict[str, int] = {}
    for value in values:
        found[str(value)] = found.get(str(value), 0) + 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
