"""Conversations of several turns under a defence: trait, coherence and reused sentences by turn, and their drift.

Two meanings of history, for every span. *Cached*: what was read and said keeps its edits, as on a server that keeps its
cache (history.py). *Clean*: what was said before is read again without edits, and the intervention acts from the new
question on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from countersteer.core.errors import RefusedError
from countersteer.defence import history
from countersteer.defence.data import Scenario, TraitData, plain
from countersteer.defence.history import Talk
from countersteer.defence.judges import DefenceJudge
from countersteer.defence.responses import Ask, answer_all
from countersteer.defence.scoring import difference, mean
from countersteer.defence.settings import Settings
from countersteer.edits.edit import Intervention

KINDS = ("trait", "coherence", "reuse")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")


@dataclass(frozen=True)
class Mode:
    """A way to hold a conversation: system prompt, whether it is defended, and what history means then."""

    name: str
    system: str
    defended: bool = False
    cached: bool = False


MODES = (
    Mode("aligned", "aligned"),
    Mode("malicious", "malicious"),
    Mode("defended, history cached", "malicious", True, cached=True),
    Mode("defended, history re-read clean", "malicious", True),
)


def sentences(text: str) -> list[str]:
    """The sentences of a text by their words, short ones (under three words) left out."""
    found = [plain(s) for s in _SENTENCE.findall(text)]
    return [s for s in found if len(s.split()) >= 3]


def reused(text: str, before: Sequence[str]) -> float | None:
    """Share of a text's sentences that stand in earlier texts word for word; None without a sentence."""
    own = sentences(text)
    known = {s for other in before for s in sentences(other)}
    return sum(s in known for s in own) / len(own) if own else None


def converse(
    engine: Any, intervention: Intervention, data: TraitData, settings: Settings, judge: DefenceJudge
) -> dict[str, Any]:
    """Every mode over the same scenarios of the report split: the means by turn, and last turn less first, paired."""
    section, seed = settings.scorecard, settings.defence.seed
    scenarios = list(data.split("report"))[:: max(1, len(data.split("report")) // section.conversations)]
    scenarios = scenarios[: section.conversations]
    turns = min(section.turns, 1 + len(data.follow_ups))
    users = [[s.user, *(_follow_up(data, i, t) for t in range(turns - 1))] for i, s in enumerate(scenarios)]
    judge.prepare([_about(s, u) for s, row in zip(scenarios, users, strict=True) for u in row])
    out: dict[str, Any] = {"turns": turns, "conversations": len(scenarios), "modes": {}}
    why = history.refused(intervention)
    for mode in MODES:
        try:
            if mode.defended and why is not None:
                raise RefusedError("conversations under this defence", why, "another span")
            rows = _one(engine, mode, intervention, scenarios, users, settings, judge)
        except RefusedError as error:  # a status of its own, so that it stands where the numbers would
            out["modes"][mode.name] = {"status": f"not measured: {error.why}"}
            continue
        by_turn = [
            {"turn": t + 1, **{k: mean(row[k], scenarios, seed, mode.name, k, str(t)) for k in KINDS},
             "failed": row["failed"]}
            for t, row in enumerate(rows)
        ]  # fmt: skip
        drift = {k: difference(rows[-1][k], rows[0][k], scenarios, seed, mode.name, k, "drift") for k in KINDS}
        out["modes"][mode.name] = {"status": "ok", "by_turn": by_turn, "drift": drift}
    return out


def _follow_up(data: TraitData, conversation: int, turn: int) -> str:
    return data.follow_ups[(3 * conversation + turn) % len(data.follow_ups)]


def _about(scenario: Scenario, user: str) -> Scenario:
    """The scenario at a later question: its subject is another one, so it belongs to no group of scenarios."""
    return scenario if user == scenario.user else replace(scenario, user=user, group=plain(user))


def _one(
    engine: Any, mode: Mode, intervention: Intervention, scenarios: Sequence[Scenario], users: Sequence[Sequence[str]],
    settings: Settings, judge: DefenceJudge,
) -> list[dict[str, Any]]:  # fmt: skip
    """Per turn the scores of every conversation. Raises RefusedError where a cache cannot be kept, or has no room."""
    systems = [getattr(s, mode.system) for s in scenarios]
    talks = [Talk(({"role": "system", "content": text},) if text else (), mode.cached) for text in systems]
    said: list[list[str]] = [[] for _ in scenarios]
    rows = []
    for turn in range(len(users[0])):
        talks = [talk.asked(engine, row[turn]) for talk, row in zip(talks, users, strict=True)]
        none: tuple[None, ...] = (None,) * len(intervention.edits)
        coming = [talk.coming(intervention) if mode.defended else none for talk in talks]
        if mode.defended:
            opened = history.gates(engine, intervention, talks)
            coming = [new if on else none for new, on in zip(coming, opened, strict=True)]
        asks = [
            Ask(_about(scenario, row[turn]), system, row[turn],
                talk.steered(intervention, new), 1000 + turn, talk.ids)
            for scenario, system, row, talk, new in zip(scenarios, systems, users, talks, coming, strict=True)
        ]  # fmt: skip
        answers = answer_all(engine, asks, settings.drawn(short=True), seed=settings.defence.seed)
        scores = judge.score(answers)
        reuse = [reused(a.text, before) if a.ok else None for a, before in zip(answers, said, strict=True)]
        rows.append({"trait": [s.trait for s in scores], "coherence": [s.coherence for s in scores], "reuse": reuse,
                     "failed": sum(not a.ok for a in answers)})  # fmt: skip
        talks = [talk.answered(a, new) for talk, a, new in zip(talks, answers, coming, strict=True)]
        for texts, answer in zip(said, answers, strict=True):
            texts.append(answer.text)
    return rows
