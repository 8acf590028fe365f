"""What an arm's trials are counted into beside its metrics: statuses, receipts, scores; and its note.

A note says what a reader must know before reading an arm's numbers: that nothing acted, or hardly ever, or that every
response equals base's, where "no difference" would otherwise read like a finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from countersteer.core.trial import OK
from countersteer.report.outcomes import Outcome, counts
from countersteer.store.rows import PENDING

BINS = 20
SELDOM = 0.05
"""An arm whose edits changed a token in a smaller share of its responses says so."""


def counted(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts of an arm: trials, statuses, receipts, attempts, scores."""
    valid = [o for o in outcomes if o.valid]
    relative = [o.relative for o in outcomes if o.acted and o.relative is not None]
    strengths = [o.strength for o in outcomes if o.strength is not None]
    first = [o.scores[0] for o in valid]
    change = [o.scores[-1] - o.scores[0] for o in valid if o.multi]
    return {
        "trials": len(outcomes),
        "valid": len(valid),
        "statuses": counts([o.status for o in outcomes]),
        "acted": sum(o.acted for o in outcomes),
        "degraded": sum(o.degraded for o in outcomes),
        "latents": len({o.latent for o in valid}),
        "prompts": len({o.prompt for o in valid}),
        "attempts": {str(k): sum(len(o.scores) == k for o in valid) for k in sorted({len(o.scores) for o in valid})},
        "first_scores": [int(n) for n in np.histogram(first, bins=BINS, range=(0.0, 100.0))[0]],
        "changes": [int(n) for n in np.histogram(change, bins=BINS, range=(-100.0, 100.0))[0]],
        "mean_strength": float(np.mean(strengths)) if strengths else None,
        "perturbation": float(np.mean(relative)) if relative else None,
        "clamp": clamp_of(outcomes),
    }


def clamp_of(outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """What the clamps of an arm did by themselves, as measured; None without clamps or without their receipts."""
    told = [o for o in outcomes if o.clamp_acted is not None]
    if not told:
        return None
    moved = [o.clamp_relative for o in told if o.clamp_relative is not None]
    return {
        "responses": len(told),
        "acted": sum(bool(o.clamp_acted) for o in told),
        "perturbation": float(np.mean(moved)) if moved else None,
    }


def turned(settings: Mapping[str, Any], outcomes: Sequence[Outcome]) -> dict[str, int] | None:
    """In how many responses the engine saw the restart at which the arm's span turns; None for other spans.

    The engine knows the usual phrases only, the judge knows many more: what did not turn was steered as in base.
    """
    if "(restart)" not in str(settings.get("span")):
        return None
    valid = [o for o in outcomes if o.valid]
    several = [o for o in valid if o.multi]
    return {"responses": len(valid), "turned": sum(o.turned for o in valid), "restarts": len(several),
            "turned_restarts": sum(o.turned for o in several)}  # fmt: skip


def note_of(settings: Mapping[str, Any], outcomes: Sequence[Outcome], base: Sequence[Outcome]) -> str | None:
    """What a reader must know of an arm before reading its numbers, in words, or None."""
    notes = []
    done = [o for o in outcomes if o.status not in (PENDING, "uncalibrated")]
    waiting = sum(o.status == PENDING for o in outcomes)
    if waiting:
        notes.append(f"{waiting} of {len(outcomes)} trials are still to be run")
    if done and not any(o.valid for o in outcomes):
        notes.append("no trial is valid, so there is nothing to compute rates from")
    intended = settings.get("steered") or settings.get("clamp")
    acted = sum(o.acted for o in outcomes)
    if done and intended and not acted:
        notes.append("nothing ever acted: no edit of this arm changed a token of any response")
    elif done and intended and acted < SELDOM * len(done):
        notes.append(
            f"its edits changed a token in only {acted} of {len(done)} responses ({100 * acted / len(done):.1f}%)"
        )
    followed = turned(settings, outcomes)
    if followed and followed["turned_restarts"] < followed["restarts"]:
        share = (
            f"{followed['turned_restarts']} of the {followed['restarts']} responses in which the judge finds a restart"
        )
        notes.append(f"its span turned in {share}; in the others it steers as if there had been none")
    held = clamp_of(outcomes)
    if held and not held["acted"] and any(o.acted for o in outcomes):
        notes.append("the clamp never acted: it changed no token of any response, only the steering did")
    elif held and 0 < held["acted"] < SELDOM * held["responses"]:
        notes.append(f"the clamp changed a token in only {held['acted']} of {held['responses']} responses")
    alike = same_text(outcomes, base)
    if alike and len(alike) == sum(o.status == OK for o in outcomes):
        notes.append("every response equals that of base: what this arm changes had no effect on the text")
    return "; ".join(notes) or None


def same_text(outcomes: Sequence[Outcome], base: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes whose text equals that of base's trial of the same latent, prompt and seed."""
    theirs = {o.key: o.text_hash for o in base if o.status == OK}
    return [o for o in outcomes if o.status == OK and theirs.get(o.key) == o.text_hash]
