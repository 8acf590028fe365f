"""Running a study: references, latents, calibration, trials of every arm with their grades, fresh resamples.

Each stage stores what it decides and is skipped when that is there, so running again resumes, and a study that holds
more than its run makes what is missing. Generation and grading overlap. What a trial gives depends on its key alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from countersteer.core.errors import RefusedError, StoreError
from countersteer.core.request import Request
from countersteer.core.trial import OK
from countersteer.store import Planned, Run, RunRefusedError
from countersteer.studies import latents, plan
from countersteer.studies.arms import Arm, order
from countersteer.studies.calibrate import calibrate
from countersteer.studies.drive import drive
from countersteer.studies.experiments import Experiments
from countersteer.studies.generate import Generator, bounded
from countersteer.studies.growth import Growth, compare
from countersteer.studies.inputs import Inputs, read_inputs
from countersteer.studies.judges import JudgeOptions, LanguageJudge, check, check_statuses, retry
from countersteer.studies.opening import adopt, grow, open_run, take_over, writable
from countersteer.studies.progress import Observer, Silent
from countersteer.studies.setup import Tools, layers, load_tools, make_judge
from countersteer.studies.spec import Spec
from countersteer.studies.steering import Steering

IN_FLIGHT = 64


def run_study(
    spec: Spec,
    out: str | Path,
    *,
    tools: Callable[[Spec], Tools] = load_tools,
    observer: Observer | None = None,
    in_flight: int = IN_FLIGHT,
    options: JudgeOptions | None = None,
    retry_status: Sequence[str] = (),
    shard: tuple[int, int] | None = None,
    calibration: str | Path | None = None,
    search_only: bool = False,
) -> Run:
    """Run a study into the folder `out`, or resume it, and return the finished run, open for reading.

    A run of a smaller study (fewer arms, latents, prompts per latent) grows: what is there stays as it is.

    `tools` gives the engine and the SAE and is called only when there is work to do. `options`: what a language-model
    judge may cost and how fast it may be asked. `retry_status`: statuses whose trials are tried again. `shard` (i, n):
    only every n-th trial, beginning with the i-th (1 to n); such a run is merged with its others. `calibration`:
    folder of a run with these base conditions whose references, latents, strengths and plan are taken over instead of
    being decided again. `search_only`: no further than the detector search.
    May be called inside a running event loop (a notebook), which it blocks.
    Raises CountersteerError; on KeyboardInterrupt what was finished is kept.
    """
    statuses = check_statuses(retry_status)
    check(spec.settings.judge, options or JudgeOptions())
    inputs = read_inputs(spec)
    if calibration is not None:
        take_over(spec, inputs, calibration, out)
    finished = open_run(spec, out, inputs)
    if finished is not None and not statuses:
        return finished
    if finished is not None:
        finished.close()
    observer = observer or Silent()
    with writable(spec, out) as run:
        began = time.monotonic()
        before = run.fact("seconds", 0.0)
        growth = compare(run, spec, inputs) if run.begun else Growth()
        observer.stage("loading", None)
        day = run.header.get("engine", {}).get("date")
        given = load_tools(spec, out=out, inputs=inputs, day=day) if tools is load_tools else tools(spec)
        try:
            begin = adopt(spec, run, given, inputs)
            study = _Study(spec, run, given, inputs, observer)
            study.options, study.statuses, study.shard = options or JudgeOptions(), statuses, shard
            study.search_only = search_only
            drive(study.go(begin, growth, in_flight))
        finally:
            if given.close:
                given.engine.close()
            with contextlib.suppress(StoreError):  # the error on its way says what went wrong
                run.set_facts(seconds=before + time.monotonic() - began)
    return Run.open(out)


class _Study:
    """The stages of one study over its open run."""

    def __init__(self, spec: Spec, run: Run, tools: Tools, inputs: Inputs, observer: Observer) -> None:
        self.spec, self.run, self.inputs, self.observer = spec, run, inputs, observer
        self.prompts = inputs.prompts
        self.engine, self.sae = tools.engine, tools.sae
        self.options = JudgeOptions()
        self.statuses: tuple[str, ...] = ()
        self.shard: tuple[int, int] | None = None
        self.judge: LanguageJudge | None = None
        self.layer, self.read_layer = layers(spec, self.sae)
        self.steering = Steering(
            self.sae,
            layer=self.layer,
            model=self.engine.model_fingerprint,
            family=self.engine.family,
            facts=self.engine.describe(),
            encode=getattr(self.engine, "encode", None),
        )
        self.arms: dict[str, Arm] = {}
        self.search_only = False
        self.found = Experiments(
            spec, run, self.engine, self.sae, inputs, layers=(self.layer, self.read_layer), steering=self.steering
        )

    async def go(self, begin: dict[str, Any], growth: Growth, in_flight: int) -> None:
        """All stages in order. `begin`, or what the study has more, is recorded once the model has given a response."""
        if not self.run.begun:
            await self._try()
            self.run.set_facts(header={**self.run.header, **begin}, notes=list(self.spec.notes))
        elif growth:
            await self._try()
            grow(self.spec, self.run, growth, begin)
        elif new := set(begin["inputs"]) - set(self.run.header["inputs"]):  # a run of an older version
            then = self.run.header
            more = {name: begin["inputs"][name] for name in new}
            self.run.set_facts(header={**then, "inputs": {**then["inputs"], **more}})
        generator = Generator(self.engine, self.run, in_flight=in_flight)
        try:
            if self.spec.settings.judge.offline:
                await self._references(generator)
            else:
                self.judge = LanguageJudge(self.spec.settings.judge, self.options, self.run, self.observer.spent)
                generator.make_room(self.judge.caller.settings.at_once)
                self._judged_by(generator, self.judge.judge, self.judge.known)
            retry(self.run, self.statuses, self.judge)
            if self.spec.needs_detectors or self.search_only:
                self.observer.stage("detectors", len(self.prompts))
                await self.found.detectors(generator, self.observer.progress)
            if self.search_only:
                return
            self.observer.stage("latents", None)
            source = latents.Source(
                self.engine, self.sae, (self.layer, self.read_layer), self.prompts, self.inputs.labels
            )
            await latents.prepare(self.spec, self.run, source, self.judge)
            self.steering.prepare([row.latent for row in self.run.latents()])
            self.observer.stage("calibration", None)
            await calibrate(
                self.spec,
                self.run,
                self.prompts,
                steering=self.steering,
                generator=generator,
                progress=self.observer.progress,
            )
            await self._arms(generator)
            self.run.set_facts(finished=self.shard is None)
        finally:
            generator.close()
            if self.judge is not None:
                await self.judge.close()

    async def _try(self) -> None:
        """Ask the model for the longest response of the study, unsteered: if it refuses, nothing was begun.

        Every arm's texts must fit its chat template, which is tried without generating where the engine can.
        """
        turns = [(arm.user_turn(prompt, None), arm) for arm in self.spec.arms for prompt in self.inputs.of(arm)]
        if (encode := getattr(self.engine, "encode", None)) is not None:
            for turn, arm in {arm.name: (turn, arm) for turn, arm in turns}.values():
                encode(Request(prompt=turn, system=arm.system, prefix=arm.prefix))
        turn, arm = max(turns, key=lambda pair: len(pair[0]) + len(pair[1].system or "") + len(pair[1].prefix or ""))
        sampling = max((arm.sampling for arm in self.spec.arms), key=lambda sampling: sampling.max_tokens)
        await self.engine.generate(Request(prompt=turn, system=arm.system, prefix=arm.prefix, sampling=sampling))

    async def _references(self, generator: Generator) -> None:
        """Generate the unsteered responses, freeze them as the judge's reference set."""
        planned = self.run.references()
        if not planned:
            planned = list(plan.references(self.spec, self.inputs.all_prompts, self.steering))
            self.run.plan_references(planned)
        texts: dict[int, str] = {}
        self.observer.stage("references", len(planned))

        async def one(reference: Any) -> None:
            request = self.steering.plain(reference.prompt, self.spec.sampling, reference.seed)
            response = await generator.response(reference.key, lambda: self.steering.checked(request, reference.key))
            if response.status == OK and response.text.strip():
                texts[reference.ordinal] = response.text
            self.observer.progress(len(texts), len(planned))

        await bounded(planned, one, workers=generator.workers)
        by_prompt: dict[str, list[str]] = {reference.prompt: [] for reference in planned}
        for reference in planned:
            if reference.ordinal in texts:
                by_prompt[reference.prompt].append(texts[reference.ordinal])
        judge = make_judge({prompt: given for prompt, given in by_prompt.items() if given})
        self._judged_by(generator, judge, {"name": judge.name, "key": judge.key, "references": judge.references.digest})

    def _judged_by(self, generator: Generator, judge: Any, known: dict[str, Any]) -> None:
        """Set the judge of this run, which must be the one that it began with."""
        before = self.run.fact("judge")
        if before is None:
            self.run.set_facts(judge=known)
        elif before != known:
            raise RunRefusedError(f"{self.run.folder} was graded by another version of its judge; start a new run")
        generator.judged_by(judge)

    async def _arms(self, generator: Generator) -> None:
        """Plan and run the arms, phase by phase: an arm that needs other arms' responses waits for them."""
        phases = order(self.spec.arms, self.spec.base)
        if self.shard is not None and len(phases) > 1:
            waiting = ", ".join(arm.name for phase in phases[1:] for arm in phase)
            raise RefusedError(
                "a shard of this study", f"{waiting} need the whole of other arms", "run it unsharded, or without them"
            )
        for phase in phases:
            await self._plan(phase, generator)
            await self._trials(generator, {arm.name for arm in phase})
            await self.found.steered()

    async def _plan(self, phase: Sequence[Arm], generator: Generator) -> None:
        """Plan every trial of a phase's arms, once, and what a study has more since."""
        missing = sum(row.status == "uncalibrated" for row in self.run.latents())
        if missing:
            said = "latents are uncalibrated; their trials are counted so"
            self.run.note(f"{missing} of {len(self.run.latents())} {said}", instead_of=said)
        sizes = self.run.fact("sizes")
        for arm in phase:
            made = await self.found.resolve(arm, generator, self.observer.progress)
            if made is None:
                continue
            self.arms[arm.name] = made
            steps = self.run.fact("planned_steps", {})
            known = self.run.arms()
            if arm.name in known and steps.get(arm.name, 1) >= len(sizes):
                continue
            rows = self.found.rows_of(arm)
            own = arm.directions is not None  # directions are the arm's own, and do not grow
            numbered = plan.numbers([(len(rows) if own else s["latents"], s["per_latent"]) for s in sizes])
            trials = plan.trials(
                self.spec, made, rows, self.inputs.of(arm), self.steering, prefixes=self.found.prefixes(arm),
                numbered=numbered,
            )  # fmt: skip
            self.run.plan_trials(
                plan.missing(self.run, arm, list(trials)), {arm.name: known.get(arm.name, made.describe())},
                self.spec.base, planned_steps={**steps, arm.name: len(sizes)},
            )  # fmt: skip
        known = self.run.arms()
        self.run.set_facts(arms={arm.name: known[arm.name] for arm in self.spec.arms if arm.name in known})

    async def _trials(self, generator: Generator, names: set[str]) -> None:
        """Generate and grade every planned trial of some arms, and the fresh draws of the multi-attempt ones."""
        arms = self.arms
        first, step = (0, 1) if self.shard is None else (self.shard[0] - 1, self.shard[1])
        counts = {name: count for name, count in self.run.trial_counts().items() if name in names}
        total = sum(len(range(first, count, step)) for count in counts.values())
        self.observer.stage("trials", total)
        done = 0

        async def one(planned: Planned) -> None:
            nonlocal done
            arm = arms[planned.arm]
            scores = await self._trial(generator, arm, planned) if planned.planned_status is None else []
            if scores and arm.judged_alone:
                await self._alone(generator, planned)
            done += 1
            self.observer.trial(planned.arm, scores)
            self.observer.progress(done, total)
            if len(scores) > 1 and arm.steered:
                draws = plan.fresh(self.spec, arm, planned, self.steering)
                self.run.add_resamples(resample for resample, _ in draws)
                self.observer.extra(len(draws))
                await asyncio.gather(*(self._trial(generator, arm, again) for _, again in draws))

        def planned() -> Iterator[Planned]:
            for arm in self.spec.arms:
                if arm.name not in names:
                    continue
                yield from (p for p in self.run.planned(arm.name) if p.ordinal % step == first)

        await bounded(planned(), one, workers=generator.workers)

    async def _alone(self, generator: Generator, planned: Planned) -> None:
        """Grade what the model wrote after a given prefix by itself: else the prefix decides most of the score."""
        response = self.run.response(planned.key)
        if response is not None and response.text.strip():
            await generator.grade(planned.prompt, planned.label, response.text)

    async def _trial(self, generator: Generator, arm: Any, planned: Planned) -> list[float]:
        """One response and its grade, made where missing; the scores of its attempts, empty if it is not valid."""
        response = await generator.response(
            planned.key, lambda: self.steering.checked(self.steering.request(arm, planned), planned.key)
        )
        if response.status != OK:
            return []
        grade = await generator.grade(planned.prompt, planned.label, (planned.prefix or "") + response.text)
        return [a.score for a in grade.attempts if a.score is not None] if grade.status == OK else []
