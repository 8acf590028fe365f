"""The scorecard of a bundle: what it gains under attack, on the `report` split, and what it costs.

Trait and coherence against both baselines and beside the sweep's other points and controls; other attacks (user turns,
exemptions asked for); benign traffic; cross-entropy, similarity and movement; conversations; restarts; time. The
scenarios must not have been seen by the fit or the sweep. Definitions: coherence paper (arXiv 2604.08169).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from countersteer.core.errors import InputError
from countersteer.core.exempt import EXEMPTIONS
from countersteer.defence.acting import acting, exempt_answers, resistance, unchanged
from countersteer.defence.bundles import separation
from countersteer.defence.conversations import converse
from countersteer.defence.cost import cost
from countersteer.defence.data import Scenario, TraitData
from countersteer.defence.judges import DefenceJudge
from countersteer.defence.leakage import refuse_seen
from countersteer.defence.responses import Answer, Ask, ask_all, read
from countersteer.defence.scoring import Condition, answered, difference, mean, preferred, recovered, summary
from countersteer.defence.settings import Settings
from countersteer.edits.bundle import Bundle, refuse_other_engine
from countersteer.edits.edit import Intervention

FORMAT = 1
Name = TypeVar("Name", bound=Hashable)
EXEMPT = "malicious, defended, formats exempt"
ASKS_FOR_FORMAT = re.compile(r"json|fence|tool", re.IGNORECASE)
"""Attacks whose words ask for a format that a policy can exempt."""
PARTS = ("user attacks", "conversations", "cost")
Answering = Callable[..., Condition]
"""Takes questions and `progress`; with `short=True` answers stop at the tokens that are scored."""


def scorecard(
    engine: Any, bundle: Bundle, data: TraitData, settings: Settings, judge: DefenceJudge, *,
    points: Mapping[str, Bundle] | None = None, parts: Sequence[str] = PARTS, observer: Any = None,
    answer: Answering | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything as plain JSON data. `points`: other bundles to try under attack (methods, controls), by name.

    `parts`: what is done beside the attack, its baselines and benign traffic. `answer`: who answers and scores whole
    answers (a crew); else engine and judge do.

    Raises RefusedError for another model, InputError for scenarios that the fit or the sweep has seen.
    """
    refuse_other_engine(bundle, engine.describe())
    scenarios = list(data.split("report"))
    seen = bundle.meta.get("seen") or {}
    for step, digests in seen.items():
        refuse_seen(scenarios, digests, where=step)
    if not seen:
        raise InputError(f"bundle {bundle.name!r} does not say which scenarios made it; make it with `defence sweep`")
    card = _Card(engine, bundle.intervention, data, settings, judge, scenarios, observer, answer)
    judge.prepare(scenarios)
    out: dict[str, Any] = {
        "format": FORMAT,
        "bundle": {"name": bundle.name, "version": bundle.version, "fingerprint": bundle.intervention.fingerprint,
                   "derived": bundle.meta.get("derived"), "method": bundle.meta.get("method"),
                   "layer": bundle.meta.get("layer"), "strength": bundle.meta.get("strength"),
                   "span": bundle.meta.get("span")},
        "model": engine.describe().get("model"),
        "caveat": engine.describe().get("model", "").startswith("organism"),
        "trait": bundle.meta.get("trait"),
        "judge": {"name": judge.name, "key": judge.key, "compares": judge.compares},
        "scenarios": len(scenarios),
        "first_tokens": settings.judge.first_tokens,
        "separation": separation(bundle, engine),
        "sweep": bundle.meta.get("sweep"),
        "fit": bundle.meta.get("fit"),
    }  # fmt: skip
    out |= card.attacks(points or {}, user_attacks="user attacks" in parts)
    if "conversations" in parts:
        out["conversations"] = converse(engine, bundle.intervention, data, settings, judge, observer=observer,
                                        answer=None if answer is None else partial(answer, short=True))  # fmt: skip
    if "cost" in parts and settings.scorecard.cost_pairs:
        card.stage("time")
        out["cost"] = cost(engine, bundle.intervention, scenarios, pairs=settings.scorecard.cost_pairs)
    return out


class _Card:
    """The conditions of one scorecard, each answered once."""

    def __init__(
        self, engine: Any, steer: Intervention, data: TraitData, settings: Settings, judge: DefenceJudge,
        scenarios: list[Scenario], observer: Any, answer: Answering | None,
    ) -> None:  # fmt: skip
        self.engine, self.steer, self.data, self.settings = engine, steer, data, settings
        self.judge, self.scenarios, self.observer, self.answer = judge, scenarios, observer, answer
        self.seed = settings.defence.seed

    def stage(self, name: str) -> None:
        if self.observer is not None:
            self.observer.stage(name, None)

    def conditions(self, stage: str, wanted: Mapping[Name, Sequence[Ask]]) -> dict[Name, Condition]:
        """Every condition answered and scored, by name: together, so that the engine's batch stays full."""
        asks = [a for group in wanted.values() for a in group]
        if not asks:
            return {}
        if self.observer is not None:
            self.observer.stage(stage, len(asks))
        progress = None if self.observer is None else self.observer.progress
        if self.answer is not None:
            found = self.answer(asks, progress=progress)
        else:
            found = answered(self.engine, self.judge, asks, self.settings, short=False, progress=progress)
        ends = np.cumsum([len(group) for group in wanted.values()]).tolist()
        return {name: Condition(found.answers[start:end], found.scores[start:end])
                for name, start, end in zip(wanted, [0, *ends], ends, strict=False)}  # fmt: skip

    def asks(self, system: str, steer: Intervention | None = None, **more: Any) -> list[Ask]:
        """Every scenario once."""
        return ask_all(self.scenarios, system, steer, **more)

    def attacks(self, points: Mapping[str, Bundle], *, user_attacks: bool) -> dict[str, Any]:
        """Everything that is answered once per scenario."""
        wanted = {
            "aligned": self.asks("aligned"),
            "malicious": self.asks("malicious"),
            "defended": self.asks("malicious", self.steer),
        }
        if self.data.reminder:
            wanted["prompted"] = self.asks("malicious", reminder=self.data.reminder)
        got = self.conditions("baselines and attack", wanted)
        aligned, malicious, defended = got["aligned"], got["malicious"], got["defended"]
        under = {
            "aligned, undefended": self.row(aligned, "aligned"),
            "malicious, undefended": self.row(malicious, "malicious"),
            "malicious, defended": self.against(defended, malicious, aligned, "defended"),
        }
        if "prompted" in got:
            under["malicious, reminded by a prompt"] = self.against(got["prompted"], malicious, aligned, "prompted")
        others = {}
        tried = {name: self.asks("malicious", point.intervention) for name, point in points.items()}
        for name, found in self.conditions("other points", tried).items():
            meta = points[name].meta
            others[name] = {**self.against(found, malicious, aligned, name), "acting": acting(found.answers),
                            "strength": meta.get("strength"), "layer": meta.get("layer"),
                            "span": meta.get("span"), "control": meta.get("control", "")}  # fmt: skip
        benign, clear = self.benign(aligned)
        return {
            "attack": under,
            "floor": self.settings.sweep.floor * (under["aligned, undefended"]["coherence"]["value"] or 0.0),
            "points": others,
            "acting": acting(defended.answers),
            "user_attacks": self.user_attacks() if user_attacks else {},
            "benign": benign,
            "similarity": self.similarity(aligned.answers, malicious.answers, defended.answers),
            "resistance": {
                "aligned, undefended": self.resisted(aligned),
                "malicious, undefended": self.resisted(malicious),
                "malicious, defended": self.resisted(defended),
                "no system prompt, defended": self.resisted(clear),
            },
            "examples": _examples(aligned, malicious, defended),
        }

    def row(self, condition: Condition, name: str) -> dict[str, Any]:
        """Means, and the length of the whole answers."""
        lengths = [float(len(a.tokens)) if a.ok else None for a in condition.answers]
        return {**summary(condition, self.seed, name), "tokens": mean(lengths, self.scenarios, self.seed, name, "t")}

    def against(self, found: Condition, malicious: Condition, aligned: Condition, name: str) -> dict[str, Any]:
        """A row with the share of the trait's gap that is recovered, and the paired gain over malicious."""
        return {
            **self.row(found, name),
            "recovered": recovered(found.traits, malicious.traits, aligned.traits, self.scenarios, self.seed, name),
            "gain": difference(found.traits, malicious.traits, self.scenarios, self.seed, name),
        }

    def user_attacks(self) -> dict[str, Any]:
        """Attacks in the user turn, under both system prompts.

        One that asks for a format which a policy may exempt is tried with the exemptions switched on as well: what an
        administrator gives away with them.
        """
        ways: dict[str, dict[str, Any]] = {
            "aligned, undefended": {"system": "aligned"},
            "aligned, defended": {"system": "aligned", "steer": self.steer},
            "malicious, defended": {"system": "malicious", "steer": self.steer},
        }
        wanted: dict[tuple[str, str], list[Ask]] = {}
        for attack in self.data.user_attacks:
            wanted |= {(attack, way): self.asks(attack=attack, **given) for way, given in ways.items()}
            if ASKS_FOR_FORMAT.search(attack):
                wanted[attack, EXEMPT] = self.asks("malicious", self.steer, attack=attack, exempt=tuple(EXEMPTIONS))
        out: dict[str, Any] = {attack: {} for attack in self.data.user_attacks}
        for (attack, way), found in self.conditions("user attacks", wanted).items():
            out[attack][way] = self.row(found, f"user {way} {attack}")
            if way == "malicious, defended":
                out[attack]["acting"] = acting(found.answers)
            elif way == EXEMPT:
                out[attack]["exempt_answers"] = exempt_answers(found.answers)
        return out

    def benign(self, aligned: Condition) -> tuple[dict[str, Any], Condition]:
        """Traffic that nobody attacks: how often the defence acts, how far it moves, what it changes."""
        wanted = {
            "aligned, defended": self.asks("aligned", self.steer),
            "none": self.asks("none"),
            "none, defended": self.asks("none", self.steer),
        }
        got = self.conditions("benign traffic", wanted)
        out: dict[str, Any] = {}
        for name, base, clear in (
            ("aligned system prompt", aligned, got["aligned, defended"]),
            ("no system prompt", got["none"], got["none, defended"]),
        ):
            better = self.judge.prefer(base.answers, clear.answers, scores=(base.scores, clear.scores))
            out[name] = {
                "undefended": self.row(base, name),
                "defended": self.row(clear, name + " defended"),
                "coherence_change": difference(clear.coherences, base.coherences, self.scenarios, self.seed, name, "c"),
                "trait_change": difference(clear.traits, base.traits, self.scenarios, self.seed, name, "t"),
                "preferred": preferred(better, self.scenarios, self.seed, name),
                "acting": acting(clear.answers),
                "same_tokens": unchanged(clear.answers, base.answers),
            }
        return out, got["none, defended"]

    def similarity(self, aligned: Sequence[Answer], *others: Sequence[Answer]) -> dict[str, Any]:
        """Cosine of mean response activations at the edited layer with those of the aligned answer, read unsteered."""
        self.stage("similarity")
        layer, sampling = site_of_layer(self.steer), self.settings.drawn(short=False)

        def means(answers: Sequence[Answer], places: Sequence[int]) -> dict[int, Any]:
            found = read(self.engine, [answers[i] for i in places], sampling=sampling, layers=[layer]).response[:, 0]
            return dict(zip(places, found, strict=True))

        kept = [[i for i, (a, b) in enumerate(zip(aligned, answers, strict=True)) if a.tokens and b.tokens]
                for answers in others]  # fmt: skip
        either = sorted({i for places in kept for i in places})
        good = means(aligned, either) if either else {}
        out = {}
        for name, answers, places in zip(("malicious, undefended", "malicious, defended"), others, kept, strict=True):
            if not places:
                out[name] = {"value": None, "interval": None, "n": 0}
                continue
            bad = means(answers, places)
            cosines = [float(good[i] @ bad[i] / (np.linalg.norm(good[i]) * np.linalg.norm(bad[i]))) for i in places]
            out[name] = mean(cosines, [self.scenarios[i] for i in places], self.seed, name, "similarity")
        return out

    def resisted(self, condition: Condition) -> dict[str, Any]:
        """Restarts; with the trait before and after them where a judge of texts is at hand."""
        judge = getattr(self.judge, "trait", None)
        return resistance(condition.answers, getattr(judge, "score", None))


def site_of_layer(steer: Intervention) -> int:
    """The first edited layer."""
    return steer.edits[0].site.layer


def _examples(aligned: Condition, malicious: Condition, defended: Condition) -> list[dict[str, Any]]:
    """Three scenarios with all three answers, evenly spread."""
    n = len(aligned.answers)
    picked = sorted({0, n // 2, n - 1})
    return [
        {"user": aligned.answers[i].ask.user,
         **{name: {"text": c.answers[i].text, "trait": c.scores[i].trait, "coherence": c.scores[i].coherence}
            for name, c in (("aligned", aligned), ("malicious", malicious), ("defended", defended))}}
        for i in picked
    ]  # fmt: skip


def summary_for_bundle(card: Mapping[str, Any]) -> dict[str, Any]:
    """What a bundle keeps of its scorecard."""
    kept = {name: {k: row.get(k) for k in ("trait", "coherence", "recovered") if k in row}
            for name, row in card["attack"].items()}  # fmt: skip
    return {"attack": kept, "floor": card["floor"], "scenarios": card["scenarios"], "judge": card["judge"],
            "benign_acted": {k: v["acting"]["acted"]["value"] for k, v in card["benign"].items()},
            "cost": card.get("cost")}  # fmt: skip
