"""What an intervention did to the residual stream over many answers, by their receipts; and whether the model resists.

Acting: how often, on how many tokens, how far (|h' - h| / |h|), and how far along the read direction. Resisting: the
share of answers that restart ("wait, that is not right"), and after how many of those restarts the trait is lower than
before: the resistance that the ESR paper (arXiv 2602.06941) measures, here against a push towards the good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from countersteer.core.restart import completes
from countersteer.defence.responses import Answer
from countersteer.statistics import rates

REACH = 80
"""Characters behind a judge's restart within which a phrase of the plain list must stand."""


def acting(answers: Sequence[Answer]) -> dict[str, Any]:
    """Totals over answers that have a receipt; None where nothing was measured."""
    known = [a for a in answers if a.receipt is not None and a.receipt.layers]
    groups = [a.ask.scenario.group for a in known]
    acted = rates.rate([int(a.receipt is not None and a.receipt.acted) for a in known], groups,
                       [a.ask.scenario.id for a in known])  # fmt: skip
    layers = [layer for a in known if a.receipt is not None for layer in a.receipt.layers]
    seen, changed = sum(x.tokens_seen for x in layers), sum(x.tokens_changed for x in layers)
    relative = [x.mean_relative for x in layers if x.mean_relative is not None]
    moved = [x.after[0] - x.before[0] for x in layers if x.after and x.before]
    missed = [x.missed_target for x in layers if x.missed_target is not None]
    gates = [note for a in known if a.receipt is not None for note in a.receipt.notes if note.startswith("gate ")]
    return {
        "responses": len(known),
        "acted": acted.as_dict(),
        "tokens_changed": changed / seen if seen else None,
        "mean_relative": float(np.mean(relative)) if relative else None,
        "displacement": float(np.mean(moved)) if moved else None,
        "missed_target": max(missed, default=None),
        "gate_open": gates.count("gate open") / len(gates) if gates else None,
    }


def exempt_answers(answers: Sequence[Answer]) -> dict[str, Any]:
    """The share of answers in which an exempt stretch opened, by the receipts' notes."""
    known = [a for a in answers if a.receipt is not None]
    opened = [int(any("exempt from" in note for note in a.receipt.notes)) for a in known if a.receipt is not None]
    return rates.rate(opened, [a.ask.scenario.group for a in known], [a.ask.scenario.id for a in known]).as_dict()


def unchanged(some: Sequence[Answer], others: Sequence[Answer]) -> float | None:
    """Share of pairs of answers that are the same token for token (drawn with the same noise)."""
    pairs = [(a, b) for a, b in zip(some, others, strict=True) if a.ok and b.ok]
    return sum(a.tokens == b.tokens for a, b in pairs) / len(pairs) if pairs else None


def resistance(answers: Sequence[Answer], trait: Any) -> dict[str, Any]:
    """Restarts in whole answers; `trait` maps a text to its trait or None (None itself: restarts are only counted).

    "resisted": restarts after which the last attempt's trait is below the first's; "furthered": above it.
    """
    multi: list[int] = []
    changes: list[float] = []
    kept = [a for a in answers if a.ok and a.text.strip()]
    for answer in kept:
        parts = explicit_attempts(answer.text, answer.ask.user)
        multi.append(int(len(parts) > 1))
        if len(parts) > 1 and trait is not None:
            first, last = trait(parts[0]), trait(parts[-1])
            if first is not None and last is not None:
                changes.append(last - first)
    groups, ids = [a.ask.scenario.group for a in kept], [a.ask.scenario.id for a in kept]
    return {
        "responses": len(kept),
        "multi_attempt": rates.rate(multi, groups, ids).as_dict(),
        "restarts_compared": len(changes),
        "resisted": sum(c < 0 for c in changes),
        "furthered": sum(c > 0 for c in changes),
        "mean_change": float(np.mean(changes)) if changes else None,
    }


def explicit_attempts(text: str, prompt: str) -> list[str]:
    """The attempts of an answer, cut only where the judge of attempts *and* the plain list of phrases see a restart.

    The judge alone takes some kind words ("I'm right here with you") for a restart, and a defence makes those likelier.
    """
    from countersteer.judging.attempts import split_attempts

    if not completes(text):  # no phrase of the list anywhere: nothing to ask the judge of attempts
        return [text] if text.strip() else []
    starts = [start for start, _, restart in split_attempts(text, prompt=prompt)
              if restart is None or completes(text[start : start + len(restart) + REACH])]  # fmt: skip
    if not starts:
        return []
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
