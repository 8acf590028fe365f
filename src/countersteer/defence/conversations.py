"""Conversations of several turns under a defence: trait, coherence and reused sentences by turn, and their drift.

Two meanings of history, for every span. *Cached*: what was read and said keeps its edits, as on a server that keeps its
cache (history.py). *Clean*: what was said before is read again without edits, and the intervention acts from the new
question on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from countersteer.core.errors import RefusedError
from countersteer.defence import history
from countersteer.defence.data import Scenario, TraitData, plain
from countersteer.defence.history import Talk
from countersteer.defence.judges import DefenceJudge, Scores
from countersteer.defence.responses import Answer, Ask
from countersteer.defence.scoring import Condition, answered, difference, mean
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
    engine: Any, intervention: Intervention, data: TraitData, settings: Settings, judge: DefenceJudge, *,
    answer: Callable[..., Condition] | None = None, observer: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """Every mode over the same scenarios of the report split: the means by turn, and last turn less first, paired.

    The turns of all modes are answered together. `answer`: who answers and scores (a crew); else engine and judge do.
    """
    section, seed = settings.scorecard, settings.defence.seed
    most = settings.drawn(short=True).max_tokens
    scenarios = list(data.split("report"))[:: max(1, len(data.split("report")) // section.conversations)]
    scenarios = scenarios[: section.conversations]
    turns = min(section.turns, 1 + len(data.follow_ups))
    users = [[s.user, *(_follow_up(data, i, t) for t in range(turns - 1))] for i, s in enumerate(scenarios)]
    if observer is not None:
        observer.stage("conversations", turns)
    judge.prepare([_about(s, u) for s, row in zip(scenarios, users, strict=True) for u in row])
    why = history.refused(intervention)
    held = [_Held(engine, mode, intervention, scenarios, users, most) for mode in MODES]
    for one in held:
        if one.mode.defended and why is not None:
            one.refused = why
    for turn in range(turns):
        asks = [one.asks(turn) for one in held]
        together = [a for group in asks for a in group]
        if answer is not None:
            found = answer(together)
        else:
            found = answered(engine, judge, together, settings, short=True)
        start = 0
        for one, group in zip(held, asks, strict=True):
            part = slice(start, start + len(group))
            one.answered(found.answers[part], found.scores[part])
            start += len(group)
        if observer is not None:
            observer.progress(turn + 1, turns)
    out: dict[str, Any] = {"turns": turns, "conversations": len(scenarios), "modes": {}}
    for one in held:
        name, rows = one.mode.name, one.rows
        if one.refused is not None:  # a status of its own, so that it stands where the numbers would
            out["modes"][name] = {"status": f"not measured: {one.refused}"}
            continue
        by_turn = [
            {"turn": t + 1, **{k: mean(row[k], scenarios, seed, name, k, str(t)) for k in KINDS},
             "failed": row["failed"]}
            for t, row in enumerate(rows)
        ]  # fmt: skip
        drift = {k: difference(rows[-1][k], rows[0][k], scenarios, seed, name, k, "drift") for k in KINDS}
        out["modes"][name] = {"status": "ok", "by_turn": by_turn, "drift": drift}
    return out


def _follow_up(data: TraitData, conversation: int, turn: int) -> str:
    return data.follow_ups[(3 * conversation + turn) % len(data.follow_ups)]


def _about(scenario: Scenario, user: str) -> Scenario:
    """The scenario at a later question: its subject is another one, so it belongs to no group of scenarios."""
    return scenario if user == scenario.user else replace(scenario, user=user, group=plain(user))


class _Held:
    """The conversations of one mode as they go on; `refused` says why they cannot be held, and ends them."""

    def __init__(
        self, engine: Any, mode: Mode, intervention: Intervention, scenarios: Sequence[Scenario],
        users: Sequence[Sequence[str]], max_tokens: int,
    ) -> None:  # fmt: skip
        self.engine, self.mode, self.intervention = engine, mode, intervention
        self.scenarios, self.users, self.max_tokens = scenarios, users, max_tokens
        self.systems = [getattr(s, mode.system) for s in scenarios]
        self.talks = [Talk(({"role": "system", "content": t},) if t else (), mode.cached) for t in self.systems]
        self.said: list[list[str]] = [[] for _ in scenarios]
        self.coming: list[tuple[Any, ...]] = []
        self.rows: list[dict[str, Any]] = []
        self.refused: str | None = None

    def asks(self, turn: int) -> list[Ask]:
        """The next question of every conversation; none where a cache cannot be kept, or has no room."""
        if self.refused is not None:
            return []
        steer, users = self.intervention, [row[turn] for row in self.users]
        try:
            self.talks = [talk.asked(self.engine, user) for talk, user in zip(self.talks, users, strict=True)]
            self._refuse_too_long()
            none: tuple[None, ...] = (None,) * len(steer.edits)
            self.coming = [talk.coming(steer) if self.mode.defended else none for talk in self.talks]
            if self.mode.defended:
                opened = history.gates(self.engine, steer, self.talks)
                self.coming = [new if on else none for new, on in zip(self.coming, opened, strict=True)]
        except RefusedError as error:
            self.refused = error.why
            return []
        return [
            Ask(_about(scenario, user), system, user, talk.steered(steer, new), 1000 + turn, talk.ids)
            for scenario, system, user, talk, new in zip(
                self.scenarios, self.systems, users, self.talks, self.coming, strict=True
            )
        ]

    def _refuse_too_long(self) -> None:
        limit = getattr(getattr(self.engine, "model", None), "max_positions", None)
        longest = max(len(talk.ids) for talk in self.talks)
        if limit is not None and longest + self.max_tokens - 1 > limit:
            raise RefusedError(f"a conversation of {longest} tokens and an answer of up to {self.max_tokens}",
                               f"the model has {limit} positions", "fewer scorecard.turns")  # fmt: skip

    def answered(self, answers: Sequence[Answer], scores: Sequence[Scores]) -> None:
        """Take the answers to the last questions over."""
        if self.refused is not None:
            return
        reuse = [reused(a.text, before) if a.ok else None for a, before in zip(answers, self.said, strict=True)]
        self.rows.append({"trait": [s.trait for s in scores], "coherence": [s.coherence for s in scores],
                          "reuse": reuse, "failed": sum(not a.ok for a in answers)})  # fmt: skip
        self.talks = [talk.answered(a, new) for talk, a, new in zip(self.talks, answers, self.coming, strict=True)]
        for texts, answer in zip(self.said, answers, strict=True):
            texts.append(answer.text)
