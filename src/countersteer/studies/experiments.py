"""What a run finds out for its arms before they are planned: detectors, random sets, prefixes, strengths, directions.

Everything found is kept in the run, so that a resumed run has the same arms. Arms that need other arms' responses wait
for them (`arms.order`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import rng
from countersteer.core.site import Site
from countersteer.core.trial import OK
from countersteer.sources.usage import Usage, usage
from countersteer.store import LatentRow, Run
from countersteer.store.arm_calibration import ArmCalibration
from countersteer.studies import detectors, directions, measure, randoms
from countersteer.studies.arms import Arm
from countersteer.studies.calibrate import calibrate
from countersteer.studies.generate import Generator, bounded
from countersteer.studies.inputs import Inputs
from countersteer.studies.perturbation import ablated, measured
from countersteer.studies.prefixes import prefix_of
from countersteer.studies.schema_arms import CONTRAST, DETECTORS, HELD_OUT, RandomClamp
from countersteer.studies.spec import Spec
from countersteer.studies.steering import Steering, sampling_seed
from countersteer.studies.teacher import forced

MEASURED = 200
"""Base responses on which the use of latents is measured."""
MOVED = 50
"""Of these, responses on which perturbations are measured."""
Key = tuple[int, str, int]


class Experiments:
    """Finds what the arms of one study need, over its open run."""

    def __init__(
        self, spec: Spec, run: Run, engine: Any, sae: Any, inputs: Inputs, *, layers: tuple[int, int],
        steering: Steering,
    ) -> None:  # fmt: skip
        self.spec, self.run, self.engine, self.sae = spec, run, engine, sae
        self.inputs, self.prompts, self.steering = inputs, inputs.prompts, steering
        self.layer, self.read_layer = layers
        self.seed = spec.settings.study.seed
        self._used: dict[int, tuple[Usage, list[Any]]] = {}

    async def detectors(self, generator: Generator, progress: Callable[[int, int], None]) -> dict[str, Any]:
        """The detector search, made once."""
        known = self.run.fact("detectors")
        if known is not None:
            return dict(known)
        texts: dict[str, str] = {}

        async def one(prompt: str) -> None:
            seed = sampling_seed(self.seed, "reference", prompt, 0)
            request = self.steering.plain(prompt, self.spec.sampling, seed)
            response = await generator.response(self.steering.key(request), lambda: request)
            if response.status == OK and response.text.strip():
                texts[prompt] = response.text
            progress(len(texts), len(self.prompts))

        await bounded(self.prompts, one, workers=generator.workers)
        found = await detectors.search(
            self.engine, self.sae, texts, layer=self.read_layer, section=self.spec.settings.detectors, seed=self.seed
        )
        self.run.set_facts(detectors=found)
        if not found["selected"]:
            self.run.note("the detector search chose no latent by its rule")
        return found

    async def steered(self) -> None:
        """Detectors in the base arm's responses with a restart against those without one, once."""
        found = self.run.fact("detectors")
        if found is None or self.run.fact("detectors_steered") is not None:
            return
        trials = [t for t in self.run.trials(self.spec.base) if t.status == OK and t.scores]
        compared = await detectors.compare_steered(
            self.engine, self.sae, trials, found["selected"], layer=self.read_layer, seed=self.seed
        )
        self.run.set_facts(detectors_steered=compared)

    async def resolve(self, arm: Arm, generator: Generator, progress: Callable[[int, int], None]) -> Arm | None:
        """The arm with its rules replaced by what was found; None if it is another arm over again."""
        if arm.adapter is not None:
            facts = self.engine.describe().get("adapters", {})
            arm = replace(arm, adapter_facts=facts.get(arm.adapter))
        if isinstance(arm.clamp_rule, str):
            arm = self._detected(arm)
        elif isinstance(arm.clamp_rule, RandomClamp):
            arm = replace(arm, clamp=tuple((await self._random(arm))["latents"]))
        if arm.sd is not None:
            return self._at_sd(arm)
        if arm.own_strengths or arm.directions is not None:
            await self._strengths(arm, generator, progress)
        return arm

    def _detected(self, arm: Arm) -> Arm:
        found = self.run.fact("detectors")
        if not found["selected"]:
            raise InputError(f"[arms.{arm.name}] clamps detectors, but the search chose none; change [detectors] rule")
        if arm.clamp_rule == DETECTORS:
            return replace(arm, clamp=tuple(found["selected"]))
        assert arm.clamp_rule == HELD_OUT
        one, other = found["halves"]
        if not one["selected"] or not other["selected"]:
            raise InputError(f"[arms.{arm.name}] clamps detectors, but a half of the prompts chose none; change rule")
        by_prompt = {prompt: tuple(other["selected"]) for prompt in one["prompts"]}
        by_prompt |= {prompt: tuple(one["selected"]) for prompt in other["prompts"]}
        return replace(arm, clamp=tuple(found["selected"]), clamp_by_prompt=by_prompt)

    async def _random(self, arm: Arm) -> dict[str, Any]:
        rule = arm.clamp_rule
        assert isinstance(rule, RandomClamp)
        root = arm.name.rsplit("@", 1)[0]
        known = self.run.fact("random_sets", {})
        if root not in known:
            found = self.run.fact("detectors") or {}
            targets = [int(i) for i in (found.get("selected", []) if rule.of == DETECTORS else rule.of)]
            count = rule.random if isinstance(rule.random, int) else len(targets)
            if not count:
                raise InputError(f"[arms.{arm.name}] wants as many random latents as detectors, but there are none")
            layer = self.layer if arm.layer is None else arm.layer
            used, residuals = await self._use(layer)
            exclude = {*targets, *(row.latent for row in self.run.latents())}
            if rule.matched == "perturbation":
                used = measured(
                    used, self.sae, residuals, targets, layer=layer, places=count * rule.sets, exclude=exclude
                )
            draw = rng(self.seed, "random latents", root)
            sets = randoms.draw_sets(
                used, targets, count=count, sets=rule.sets, matched=rule.matched, exclude=exclude, draw=draw
            )
            whole = ablated(self.sae, residuals, targets, layer=layer) if targets else None
            for one in sets:
                moved = ablated(self.sae, residuals, one["latents"], layer=layer)
                one["match"]["perturbation"] = {"set": moved, "targets": whole}
            known = {**known, root: sets}
            self.run.set_facts(random_sets=known)
        return dict(known[root][arm.random_set - 1])

    async def _use(self, layer: int) -> tuple[Usage, list[Any]]:
        """Use of every latent on the base arm's steered responses, and residuals of some to measure perturbations on.

        Before the write at `layer`, so an unsteered pass reads what the steered one read.
        """
        if layer not in self._used:
            trials = [t for t in self.run.trials(self.spec.base) if t.status == OK and t.text]
            order = rng(self.seed, "use of latents").permutation(len(trials))[:MEASURED]
            inputs = [
                forced(self.engine, trials[i].plan.user, trials[i].text or "", system=trials[i].plan.system)
                for i in sorted(order)
            ]
            if not inputs:
                raise InputError("the base arm has no response, so random latents cannot be matched on them")
            residuals = []
            for start in range(0, len(inputs), 32):
                residuals += await self.engine.forward(inputs[start : start + 32], capture=Site(layer))
            kept = [h.cpu() for h in residuals[:MOVED]]
            self._used = {layer: (usage(self.sae, residuals), kept)}  # of one layer: residuals are large
        return self._used[layer]

    def _at_sd(self, arm: Arm) -> Arm | None:
        """The arm at the same relative strength for every latent; levels clipped to 0 are one level.

        Mean and standard deviation are those of the first calibration: they do not move when latents are added.
        """
        known = self.run.arms()
        if arm.name in known:
            level = known[arm.name].get("relative")
            arm = replace(arm, relative=level)
            return replace(arm, strength=0.0) if level == 0 else arm
        first = {int(row["latent"]) for row in (self.run.calibration() or {}).get("estimates", ())}
        rows = [r for r in self.run.latents() if r.latent in first]
        values = [r.strength / r.unit for r in rows if r.status == "ok" and r.strength and r.unit]
        if len(values) < 2:
            self.run.note(f"arm {arm.name}: fewer than 2 latents are calibrated, so there is no standard deviation")
            return arm
        mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
        level = mean + (arm.sd or 0.0) * spread
        if level <= 0:
            root = arm.name.rsplit("@", 1)[0]
            alike = [a.name for a in self.spec.arms if a.sd is not None and a.name.rsplit("@", 1)[0] == root
                     and mean + a.sd * spread <= 0]  # fmt: skip
            kept = next((name for name in alike if name in known), alike[0])
            self.run.note(f"arm {arm.name}: {arm.sd:g} SD below the mean is no strength, clipped to 0")
            return replace(arm, strength=0.0, relative=0.0) if kept == arm.name else None
        return replace(arm, relative=level)

    async def _strengths(self, arm: Arm, generator: Generator, progress: Callable[[int, int], None]) -> None:
        """The arm's own latents or directions, calibrated under its own conditions."""
        own = ArmCalibration(self.run, arm.name)
        there = {row.latent for row in own.latents()}
        sources = await self._directions(arm) if arm.directions is not None else None
        if sources is None:
            base = [row for row in self.run.latents() if row.latent not in there]
            own.plan_latents(LatentRow(r.rank, r.latent, r.label, r.concreteness, r.unit) for r in base)
        elif not there:
            own.plan_latents(await self._direction_rows(arm, sources))
        if arm.own_strengths:
            await calibrate(
                self.spec, own, self.inputs.of(arm), steering=self.steering, generator=generator, progress=progress,
                arm=arm,
            )  # fmt: skip

    async def _directions(self, arm: Arm) -> list[Any]:
        """The arm's directions, kept beside the run; they take numbers beyond the SAE's latents."""
        import countersteer as cs

        layer = self.layer if arm.layer is None else arm.layer
        path = self.run.folder / f"directions-{arm.name}.safetensors"
        names = self.run.fact(f"directions:{arm.name}")
        if names is None or not path.is_file():
            assert arm.directions is not None
            if arm.directions == CONTRAST:
                found = await directions.contrast(self.engine, self.spec.settings.directions, layer=layer)
            else:
                found = directions.load(arm.directions, d_model=self.sae.d_model)
            directions.save(path, found)
            names = [name for name, _ in found]
            self.run.set_facts(**{f"directions:{arm.name}": names})
        vectors = [vector for _, vector in directions.load(path, d_model=self.sae.d_model)]
        made = [cs.direction(v, layer=layer, label=n) for n, v in zip(names, vectors, strict=True)]
        self.steering.adopt({self.sae.d_sae + i: source for i, source in enumerate(made)})
        return made

    async def _direction_rows(self, arm: Arm, sources: Sequence[Any]) -> list[LatentRow]:
        layer = self.layer if arm.layer is None else arm.layer
        relative = self.spec.settings.calibration.units == "relative"
        norm = await measure.median_norm(self.engine, self.prompts, layer=layer) if relative else None
        rows = []
        for i, source in enumerate(sources):
            length = float(source.vector.double().norm())
            if not length > 0:
                raise InputError(f"direction {source.label!r} is zero, which steers nothing; leave it out")
            unit = 1.0 if norm is None else norm / length
            rows.append(LatentRow(i, self.sae.d_sae + i, source.label, None, unit))
        return rows

    def rows_of(self, arm: Arm) -> list[LatentRow]:
        """The latents of an arm with their strengths."""
        own = ArmCalibration(self.run, arm.name).latents()
        return own or self.run.latents()

    def prefixes(self, arm: Arm) -> Mapping[Key, str] | None:
        """Per trial the prefix that the arm's rule takes from another arm's response; None without a rule."""
        rule = arm.prefix_rule
        if rule is None:
            return None
        lengths: dict[Key, int] = {}
        if rule.matched is not None:
            lengths = {_key(p): len(p.prefix or "") for p in self.run.planned(rule.matched)}
        found: dict[Key, str] = {}
        missing = 0
        for trial in self.run.trials(rule.of):
            text = prefix_of(rule, trial, length=lengths.get(_key(trial.plan)))
            if text is None:
                missing += 1
            else:
                found[_key(trial.plan)] = text
        if missing:
            total = missing + len(found)
            self.run.note(f"arm {arm.name}: {missing} of {total} trials of {rule.of} give no such prefix, left out")
        return found


def _key(plan: Any) -> Key:
    return (plan.latent, plan.prompt, plan.seed)
