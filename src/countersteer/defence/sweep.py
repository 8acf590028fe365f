"""The sweep: which layer, strength, span and method, chosen on the `choose` split under the coherence floor.

Chosen is the highest trait whose coherence is at least 90% of the aligned baseline's (coherence paper). Random and
flipped directions go through the same sweep, so that what choosing alone can gain is seen. Scenarios that the fit has
seen, or that the scorecard will report, are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from countersteer.core.errors import EngineError, InputError, RefusedError
from countersteer.core.fingerprint import rng
from countersteer.defence import halving
from countersteer.defence.candidates import Candidate, build, grid
from countersteer.defence.crew import Crew
from countersteer.defence.data import Scenario, TraitData
from countersteer.defence.fit import Fit
from countersteer.defence.judges import DefenceJudge
from countersteer.defence.leakage import refuse_leaks, refuse_seen
from countersteer.defence.responses import Ask, ask_all
from countersteer.defence.scoring import answered, mean, summary
from countersteer.defence.settings import Settings
from countersteer.edits.bundle import weights_of


@dataclass(frozen=True, eq=False)
class Swept:
    """`facts`: everything as plain JSON data. `chosen`: by arm ("fitted", "flipped", "random-N"), by method."""

    facts: Mapping[str, Any]
    chosen: Mapping[str, Mapping[str, Candidate]]

    def best(self, arm: str = "fitted") -> Candidate | None:
        """The chosen point of an arm over all steering methods; None where nothing keeps the floor."""
        name = self.facts["arms"][arm]["chosen"]
        return next((c for c in self.chosen[arm].values() if c.name == name), None)


def sweep(
    engine: Any, fit: Fit, data: TraitData, settings: Settings, judge: DefenceJudge, *,
    scenarios: Sequence[Scenario] | None = None, observer: Any = None, crew: Crew | None = None,
) -> Swept:  # fmt: skip
    """Sweep the grid of the settings. `scenarios`: others than the data's `choose` split; `crew`: who answers them.

    Raises RefusedError for another model, InputError for scenarios that were fitted on or will be reported.
    """
    if fit.facts["model_fingerprint"] != weights_of(engine.describe()):
        raise RefusedError("sweeping with this model", "the fit was made on other weights", "fit again on this model")
    refuse_leaks(data)
    asked = list(data.split("choose") if scenarios is None else scenarios)
    refuse_seen(asked, fit.facts["scenarios"]["digests"], where="fit")
    refuse_seen(asked, [s.digest for s in data.split("report")], where="scorecard, which reports them")
    if wrong := [s for s in asked if s.split != "choose"]:
        raise InputError(f"scenario {wrong[0].id} is of split {wrong[0].split!r}: a sweep takes split 'choose' only")
    order = rng(settings.defence.seed, "order").permutation(len(asked))
    asked = [asked[int(i)] for i in order]
    judge.prepare(asked)
    seed = settings.defence.seed
    base = {
        name: answered(engine, judge, ask_all(asked, name), settings, short=True) for name in ("aligned", "malicious")
    }
    baselines = {name: summary(condition, seed, name) for name, condition in base.items()}
    top = baselines["aligned"]["coherence"]["value"]
    if top is None:
        raise EngineError("no answer of the aligned baseline could be scored: check the judge and the model")
    worker = _Worker(engine, judge, settings, fit, data, asked, settings.sweep.floor * top, observer, crew)
    arms = ["fitted", *(["flipped"] if settings.sweep.flipped else []),
            *(f"random-{i}" for i in range(settings.sweep.random))]  # fmt: skip
    found = {arm: worker.arm(arm) for arm in arms}
    facts = {
        "judge": {"name": judge.name, "key": judge.key},
        "scenarios": {"n": len(asked), "digests": sorted({s.digest for s in asked})},
        "baselines": baselines,
        "floor": worker.floor,
        "arms": {arm: one for arm, (one, _) in found.items()},
        "settings": settings.model_dump(mode="json"),
    }
    return Swept(facts, {arm: chosen for arm, (_, chosen) in found.items()})


@dataclass(frozen=True, eq=False)
class _Worker:
    engine: Any
    judge: DefenceJudge
    settings: Settings
    fit: Fit
    data: TraitData
    scenarios: Sequence[Scenario]
    floor: float
    observer: Any
    crew: Crew | None

    def arm(self, arm: str) -> tuple[dict[str, Any], dict[str, Candidate]]:
        """The search of every method of an arm: facts, and the chosen candidates by method."""
        methods: dict[str, Any] = {}
        chosen: dict[str, Candidate] = {}
        for method, points in grid(self.fit, self.settings, control="" if arm == "fitted" else arm).items():
            # A control has it easier: what choosing alone can gain must not be made small by the rule.
            strict = arm == "fitted" and method != "prompt"
            rule = halving.Rule(self.floor, self.settings.sweep.margin if strict else 0.0, self.groups)
            found = self._search(points, f"{arm} {method}", rule)
            if found.chosen is not None:
                chosen[method] = points[found.chosen]
            methods[method] = self._facts(points, found, arm, rule)
        steering = [m for m in chosen if m != "prompt"]
        best = max(steering, key=lambda m: methods[m]["chosen"]["trait"]["value"], default=None)
        cost = sum(len(methods[m]["points"]) * methods[m]["cost"] for m in methods)
        many = sum(len(methods[m]["points"]) for m in methods)
        facts = {
            "methods": methods,
            "method": best,
            "chosen": None if best is None else chosen[best].name,
            "points": many,
            "cost": cost / many if many else None,
            "frontier": self._frontier(methods),
        }
        return facts, chosen

    def _search(self, points: list[Candidate], name: str, rule: halving.Rule) -> halving.Searched:
        built = [build(point, self.fit, self.settings) for point in points]

        def evaluate(alive: Sequence[int], start: int, stop: int) -> np.ndarray:
            part = self.scenarios[start:stop]
            asks: list[Ask] = []
            for i in alive:
                reminder = self.data.reminder if points[i].method == "prompt" else None
                asks += ask_all(part, "malicious", built[i], reminder=reminder or None)
            progress = None
            if self.observer is not None:
                self.observer.stage(f"{name}, {len(alive)} points", len(asks))
                progress = self.observer.progress
            if self.crew is not None:
                scored = self.crew.answered(self.judge, asks, short=True, progress=progress)
            else:
                scored = answered(self.engine, self.judge, asks, self.settings, short=True, progress=progress)
            return scored.array().reshape(len(alive), len(part), 2)

        if self.settings.sweep.halving:
            return halving.search(len(points), len(self.scenarios), evaluate, rule, keep=self.settings.sweep.keep)
        return halving.full(len(points), len(self.scenarios), evaluate, rule)

    def _facts(self, points: list[Candidate], found: halving.Searched, arm: str, rule: halving.Rule) -> dict[str, Any]:
        rows = [self._row(point, found, i, arm, rule) for i, point in enumerate(points)]
        chosen = None if found.chosen is None else rows[found.chosen]
        return {"points": rows, "chosen": chosen, "cost": found.cost}

    def _row(
        self, point: Candidate, found: halving.Searched, i: int, arm: str, rule: halving.Rule
    ) -> dict[str, Any]:  # fmt: skip
        tried, whole = int(found.tried[i]), int(found.tried[i]) == len(self.scenarios)
        seen = found.scores[i, :tried]
        row: dict[str, Any] = {
            "name": point.name, "method": point.method, "layer": point.layer, "strength": point.strength,
            "span": point.span, "tried": tried, "keeps_floor": rule.kept(found.scores[i]) if whole
            else None,
        }  # fmt: skip
        for k, name in enumerate(("trait", "coherence")):
            values = [None if np.isnan(v) else float(v) for v in seen[:, k]]
            if whole:
                row[name] = mean(values, self.scenarios, self.settings.defence.seed, arm, point.name, name)
            else:
                known = [v for v in values if v is not None]
                row[name] = {"value": float(np.mean(known)) if known else None, "interval": None, "n": len(known)}
        return row

    @property
    def groups(self) -> tuple[str, ...]:
        """The group of each scenario."""
        return tuple(s.group for s in self.scenarios)

    def _frontier(self, methods: Mapping[str, Any]) -> list[str]:
        """Points tried on everything that no other beats in both trait and coherence."""
        rows = [r for m in methods.values() for r in m["points"] if r["tried"] == len(self.scenarios)]
        known = [r for r in rows if r["trait"]["value"] is not None and r["coherence"]["value"] is not None]
        points = [(r["name"], r["trait"]["value"], r["coherence"]["value"]) for r in known]
        return [str(name) for name in halving.frontier(points)]
