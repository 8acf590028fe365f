"""What a finished run is asked for later: a trace of its episodes, another judge's grades."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError
from countersteer.store import Run
from countersteer.studies import spec as studies
from countersteer.studies.boundaries import mark_episodes
from countersteer.studies.drive import drive
from countersteer.studies.growth import check_inputs
from countersteer.studies.judges import OFFLINE, JudgeOptions, Spent
from countersteer.studies.rejudge import human, rate_whole, rejudge
from countersteer.studies.setup import Tools, layers, load_tools
from countersteer.studies.spec import Spec

Progress = Callable[[int, int], None]
RUBRICS = ("attempts", "recovery", "episodes")


def trace_run(
    folder: str | Path, *, latents: str = "detectors", arm: str | None = None, most: int = 1000,
    tools: Callable[[Spec], Tools] = load_tools, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The trace of a run's episodes, kept in the run (fact "trace"). `arm` None: all steered arms. InputError.

    `progress(done, total)`: texts read.
    """
    from countersteer.studies.trace import trace

    with Run.open(folder, write=True) as run:
        if arm is not None and arm not in run.arms():  # before a model is loaded
            raise InputError(f"there is no arm {arm!r} in {folder}; it has {', '.join(run.arms())}")
        loaded = studies.parse(run.study, name=str(folder))
        day = run.header.get("engine", {}).get("date")
        given = load_tools(loaded, out=folder, day=day) if tools is load_tools else tools(loaded)
        try:
            check_inputs(run, model=given.engine.model_fingerprint, sae=given.sae.fingerprint)
            _, read_layer = layers(loaded, given.sae)
            chosen = _chosen(run, latents, given.sae)
            adapter = (run.arms().get(arm or run.base_arm) or {}).get("adapter")
            engine: Any = given.engine
            engine = engine if adapter is None else engine.adapters.engine(adapter["name"])
            found: dict[str, Any] = {}

            async def go() -> None:
                found.update(await trace(run, engine, given.sae, chosen, layer=read_layer, arm=arm, most=most,
                                         progress=progress))  # fmt: skip

            drive(go())
        finally:
            if given.close:
                given.engine.close()
        run.set_facts(trace={"asked": latents, **found})
    return found


def _chosen(run: Run, latents: str, sae: Any) -> list[int]:
    """The latents that a trace is asked for. Raises InputError."""
    if latents == "detectors":
        found = run.fact("detectors")
        if not found or not found["selected"]:
            raise InputError('the run has no detectors; run its study with clamp = "detectors", or give --latents ids')
        return [int(i) for i in found["selected"]]
    if latents == "backtracking":
        from countersteer.studies.trace import backtracking

        chosen = backtracking(sae.labels)
        if not chosen:
            raise InputError("no label speaks of correcting oneself; give --latents ids")
        return chosen
    words = latents.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise InputError(f'--latents must be "detectors", "backtracking" or ids such as 3,9; got {latents!r}')
    return list(dict.fromkeys(int(word) for word in words))


def judge_run(
    folder: str | Path, by: str, *, sample: int = 1000, labels: Path | None = None, options: JudgeOptions | None = None,
    base_url: str | None = None, rubric: str = "attempts", progress: Progress | None = None, spent: Spent | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Grades by another judge, or people's labels, stored beside the first: {"judge", "key", "sampled"}.

    `rubric` "recovery" rates whole responses instead, "episodes" marks where episodes leave the subject and return.
    `options`: what a language model may cost, all of the run's requests together, and how fast it may be asked; `spent`
    is told (USD, cap) after each request. Raises InputError, StoreError.
    """
    if rubric not in RUBRICS:
        raise InputError(f"--rubric {rubric!r} is not one of {', '.join(RUBRICS)}")
    if labels is not None and rubric != "attempts":
        raise InputError("labels of people are attempts; leave --rubric out")
    if options is not None and (labels is not None or by == "offline"):
        options.require_offline("labels of people ask nobody" if labels is not None else OFFLINE)
    made: dict[str, Any] = {}
    with Run.open(folder, write=True) as run:
        seed = int(run.header.get("settings", {}).get("study", {}).get("seed", 0))
        if labels is not None:
            made = human(run, labels, name=by)
        else:

            async def go() -> None:
                ask = {"attempts": rejudge, "recovery": rate_whole, "episodes": mark_episodes}[rubric]
                made.update(
                    await ask(run, by, size=sample, options=options, seed=seed, base_url=base_url,
                              progress=progress, spent=spent)
                )  # fmt: skip

            drive(go())
    return made
