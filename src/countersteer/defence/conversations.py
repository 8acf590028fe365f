"""Conversations of several turns under a defence: trait, coherence and reused sentences by turn.

Two meanings of history. *Cached*: every position of the conversation is edited, as a server does that keeps its cache.
*Clean*: what was said before is read again without edits, and the intervention acts from the new user turn on. They
differ only for interventions that edit the prompt; one on `response` or `generation` knows the clean meaning only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from countersteer.core.request import Request
from countersteer.defence.data import Scenario, TraitData, plain
from countersteer.defence.judges import DefenceJudge
from countersteer.defence.responses import Answer, Ask, answer_all
from countersteer.defence.scoring import mean
from countersteer.defence.settings import Settings
from countersteer.edits.edit import Intervention

_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")


@dataclass(frozen=True)
class Mode:
    """A way to hold a conversation: system prompt, whether it is defended, and what history means then."""

    name: str
    system: str
    defended: bool = False
    clean: bool = False


MODES = (
    Mode("aligned", "aligned"),
    Mode("malicious", "malicious"),
    Mode("defended, history cached", "malicious", True),
    Mode("defended, history re-read clean", "malicious", True, True),
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
    """Every mode over the same scenarios of the report split: per turn the means with intervals."""
    section, seed = settings.scorecard, settings.defence.seed
    scenarios = list(data.split("report"))[:: max(1, len(data.split("report")) // section.conversations)]
    scenarios = scenarios[: section.conversations]
    turns = min(section.turns, 1 + len(data.follow_ups))
    users = [[s.user, *(_follow_up(data, i, t) for t in range(turns - 1))] for i, s in enumerate(scenarios)]
    judge.prepare([replace(s, user=u) for s, row in zip(scenarios, users, strict=True) for u in row])
    out: dict[str, Any] = {"turns": turns, "conversations": len(scenarios), "modes": {}}
    for mode in MODES:
        if mode.defended and not mode.clean and not cached_can_be_said(intervention):
            spans = sorted({str(e.span) for e in intervention.edits})
            out["modes"][mode.name] = {"status": f"not measured: span {spans[0]} leaves prompts unedited, so a cache "
                                       "that holds edited answers cannot be built again from their text"}  # fmt: skip
            continue
        rows = _one(engine, mode, intervention, scenarios, users, settings, judge)
        out["modes"][mode.name] = {"status": "ok", "by_turn": [
            {"turn": t + 1, **{k: mean(row[k], scenarios, seed, mode.name, k, str(t))
                               for k in ("trait", "coherence", "reuse")}, "failed": row["failed"]}
            for t, row in enumerate(rows)
        ]}  # fmt: skip
    return out


def cached_can_be_said(intervention: Intervention) -> bool:
    """Whether reading a conversation's text again with these edits builds the cache that they built while it grew."""
    return all(e.span.kind == "all" for e in intervention.edits)


def _follow_up(data: TraitData, conversation: int, turn: int) -> str:
    return data.follow_ups[(3 * conversation + turn) % len(data.follow_ups)]


def _one(
    engine: Any, mode: Mode, intervention: Intervention, scenarios: Sequence[Scenario], users: Sequence[Sequence[str]],
    settings: Settings, judge: DefenceJudge,
) -> list[dict[str, Any]]:  # fmt: skip
    histories: list[tuple[dict[str, str], ...]] = [() for _ in scenarios]
    said: list[list[str]] = [[] for _ in scenarios]
    rows = []
    for turn in range(len(users[0])):
        asks = []
        for scenario, row, history in zip(scenarios, users, histories, strict=True):
            topic = replace(scenario, user=row[turn])
            ask = Ask(topic, getattr(scenario, mode.system), row[turn], None, history, draw=1000 + turn)
            if mode.defended:
                ask = replace(ask, intervention=_spanned(engine, ask, intervention, mode.clean))
            asks.append(ask)
        answers = answer_all(engine, asks, settings.drawn(short=True), seed=settings.defence.seed)
        scores = judge.score(answers)
        reuse = [reused(a.text, before) if a.ok else None for a, before in zip(answers, said, strict=True)]
        rows.append({"trait": [s.trait for s in scores], "coherence": [s.coherence for s in scores], "reuse": reuse,
                     "failed": sum(not a.ok for a in answers)})  # fmt: skip
        for i, answer in enumerate(answers):
            said[i].append(answer.text)
            histories[i] = (*histories[i], {"role": "user", "content": users[i][turn]}, _spoken(answer))
    return rows


def _spoken(answer: Answer) -> dict[str, str]:
    return {"role": "assistant", "content": answer.text.strip() or "..."}


def _spanned(engine: Any, ask: Ask, intervention: Intervention, clean: bool) -> Intervention:
    """The intervention for one turn; clean: from the position at which the new user turn's text begins."""
    if not clean or not ask.history or not cached_can_be_said(intervention):
        return intervention
    system = [{"role": "system", "content": ask.system}] if ask.system else []
    both = [
        engine.encode(Request(messages=(*system, *ask.history, {"role": "user", "content": text})))
        for text in (ask.user, "0 " + ask.user)
    ]
    start = next(i for i, (a, b) in enumerate(zip(*both, strict=False)) if a != b)
    return intervention.span(f"from({start})")
