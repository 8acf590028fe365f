"""Running a study with a scripted engine: what is planned, what is counted, what survives.

The script's answers are a function of the request alone, so what a run must hold is computed here from the script and
the plan, not from the runner.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import studies_world as world
from countersteer.core.errors import EngineError, InputError
from countersteer.core.request import Request
from countersteer.engines.scripted import ScriptedEngine
from countersteer.store import Run, RunRefusedError, Trial, export
from countersteer.studies import runner, spec
from countersteer.studies.generate import bounded
from countersteer.studies.selection import choose, relevant
from countersteer.studies.setup import Tools

ARMS = """[arms.base]
[arms.unsteered]
strength = 0
[arms.self-monitor]
suffix = "If you are drifting, stop."
[arms.sweep]
strength_scale = [0.5, 1, 2]
[arms.clamped]
clamp = [3, 5]
strength = 0
"""


def run_in(folder: Path, *, out: str = "run", arms: str = ARMS, options: dict[str, Any] | None = None,
           **study: Any) -> tuple[Run, Tools]:  # fmt: skip
    """Run the world's study in `folder`; the run, and what it worked with."""
    loaded = spec.load(world.study(folder, arms=arms, **study))
    given = world.tools(folder / "sae", **(options or {}))
    return runner.run_study(loaded, folder / out, tools=lambda _: given), given


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Tools]:
    return run_in(tmp_path_factory.mktemp("done"))


def by_arm(run: Run) -> dict[str, list[Trial]]:
    return {arm: list(run.trials(arm)) for arm in run.arms()}


def test_every_arm_replays_the_base_trials(done: tuple[Run, Tools]) -> None:
    run, _ = done
    arms = by_arm(run)
    assert list(arms) == ["base", "unsteered", "self-monitor", "sweep@0.5", "sweep@1", "sweep@2", "clamped"]
    base = arms["base"]
    assert len(base) == 6 * 4
    for name, trials in arms.items():
        scale = {"sweep@0.5": 0.5, "sweep@2": 2.0, "unsteered": 0.0, "clamped": 0.0}.get(name, 1.0)
        for ours, theirs in zip(trials, base, strict=True):
            assert (ours.plan.latent, ours.plan.prompt, ours.plan.seed) == (
                theirs.plan.latent, theirs.plan.prompt, theirs.plan.seed
            )  # fmt: skip
            assert ours.plan.strength == scale * (theirs.plan.strength or 0)
    per_latent: dict[int, set[str]] = {}
    for trial in base:
        per_latent.setdefault(trial.plan.latent, set()).add(trial.plan.prompt)
    assert [len(prompts) for prompts in per_latent.values()] == [4] * 6, "prompts are drawn without replacement"
    assert len({t.plan.seed for t in base}) == len(base)


def test_stored_responses_are_what_the_script_says(done: tuple[Run, Tools]) -> None:
    run, given = done
    for arm in ("base", "self-monitor", "sweep@2", "unsteered"):
        for trial in run.trials(arm):
            import countersteer as cs

            plan = trial.plan
            steer = cs.add(given.sae.latent(plan.latent), plan.strength) if plan.strength else None
            request = Request(
                prompt=plan.user, intervention=steer, sampling=cs.Sampling(seed=plan.seed, max_tokens=512)
            )
            assert trial.text == world.answer(request)
            assert trial.status == "ok"
            restarts = world.RESTART.strip() in (trial.text or "")
            assert len(trial.scores) == (2 if restarts else 1)


def test_identical_trials_of_two_arms_are_generated_once(done: tuple[Run, Tools]) -> None:
    run, given = done
    arms = by_arm(run)
    assert [t.plan.key for t in arms["base"]] == [t.plan.key for t in arms["sweep@1"]]
    keys = {t.plan.key for t in run.trials()} | {r.key for r in run.resamples()} | {r.key for r in run.references()}
    assert given.engine.generated == len(keys) + len(run.answers()) + 1, "one to try the model before anything"
    assert run.missing() == 0


def test_calibration_hits_its_target_and_is_frozen(done: tuple[Run, Tools]) -> None:
    run, _ = done
    from countersteer.statistics.calibration import load

    artefact = run.calibration()
    assert artefact is not None
    loaded = load(artefact)
    for row in run.latents():
        estimate = loaded.estimates[row.latent]
        assert row.status == "ok" and row.strength == pytest.approx((estimate.strength or 0) * (row.unit or 0))
        assert (row.low or 0) < (row.strength or 0) < (row.high or 9e9)
    assert len(run.answers()) == 25 * 6
    scores = [t.scores[0] for t in run.trials("base")]
    assert 10 < np.mean(scores) < 60, "the world's curve falls from 100 to about 10"


def test_units_of_strength_are_residual_over_decoder_norm(done: tuple[Run, Tools]) -> None:
    run, given = done
    norms = []
    for prompt in world.TOPICS:
        (h,) = asyncio.run(given.engine.forward([prompt], capture=given.sae.site, template=True))
        norms += [float(np.linalg.norm(row)) for row in h.double().numpy()[1:]]
    for row in run.latents():
        length = float(np.linalg.norm(given.sae.latent(row.latent).write.double().numpy()))
        assert row.unit == pytest.approx(np.median(norms) / length, rel=1e-6)


def test_resamples_are_three_fresh_seeds_per_multi_attempt_trial_of_steered_arms(done: tuple[Run, Tools]) -> None:
    run, _ = done
    for arm, trials in by_arm(run).items():
        multi = [t.plan.ordinal for t in trials if len(t.scores) > 1]
        fresh = list(run.fresh_attempts(arm))
        expected = multi if arm not in ("unsteered", "clamped") else []
        assert [(f.ordinal, f.draw) for f in fresh] == [(o, d) for o in expected for d in range(3)]
        assert all(f.status == "ok" and f.first is not None for f in fresh)
    seeds = [r.seed for r in run.resamples("base")]
    assert len(set(seeds)) == len(seeds) > 0
    assert not set(seeds) & {t.plan.seed for t in run.trials("base")}


def test_the_header_says_where_the_numbers_come_from(done: tuple[Run, Tools]) -> None:
    run, given = done
    header = run.header
    assert header["inputs"]["model"] == given.engine.model_fingerprint
    assert header["inputs"]["sae"] == given.sae.fingerprint
    assert header["engine"]["engine"] == "scripted-1" and header["packages"]["numpy"] == np.__version__
    assert "sampling.top_p" in header["defaulted"] and "trials.per_latent" not in header["defaulted"]
    assert run.fact("median_norm") > 0 and run.fact("seconds") > 0 and run.fact("steer_layer") == world.LAYER


def test_two_runs_of_one_study_are_equal_whatever_the_concurrency(done: tuple[Run, Tools], tmp_path: Path) -> None:
    run, _ = done
    loaded = spec.load(world.study(tmp_path, arms=ARMS))
    given = world.tools(tmp_path / "sae", delay=0.0005)
    other = runner.run_study(loaded, tmp_path / "run", tools=lambda _: given, in_flight=3)
    assert exported(run, tmp_path / "a") == exported(other, tmp_path / "b")
    assert run.calibration()["estimates"] == other.calibration()["estimates"]  # type: ignore[index]


def exported(run: Run, path: Path) -> str:
    export(run, path)
    return path.read_text()


def test_a_finished_run_is_read_without_loading_anything(tmp_path: Path) -> None:
    run, _ = run_in(tmp_path, arms="[arms.base]\nstrength = 3\n", latents="ids = [1, 2]\n")
    before = exported(run, tmp_path / "a")
    run.close()

    def never(_: spec.Spec) -> Tools:
        raise AssertionError("tools were loaded for a finished run")

    again = runner.run_study(spec.load(tmp_path / "study.toml"), tmp_path / "run", tools=never)
    assert exported(again, tmp_path / "b") == before
    assert again.answers() == [] and again.calibration() is None, "fixed strengths need no calibration"
    assert {t.plan.strength for t in again.trials()} == {3.0}


def stopping(after: int, error: BaseException) -> Any:
    """A script that raises after some responses."""
    left = [after]

    def script(request: Request) -> str:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return world.answer(request)

    return script


@pytest.mark.parametrize("after", [1, 7, 60, 200, 260])
def test_interrupted_run_resumes_to_the_same_export(done: tuple[Run, Tools], tmp_path: Path, after: int) -> None:
    loaded = spec.load(world.study(tmp_path, arms=ARMS))
    broken = world.tools(tmp_path / "sae", script=stopping(after, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        runner.run_study(loaded, tmp_path / "run", tools=lambda _: broken)
    given = world.tools(tmp_path / "sae")
    resumed = runner.run_study(loaded, tmp_path / "run", tools=lambda _: given)
    assert exported(resumed, tmp_path / "a") == exported(done[0], tmp_path / "b")
    assert [(r.arm, r.key) for r in resumed.resamples()] == [(r.arm, r.key) for r in done[0].resamples()]
    assert given.engine.generated + after >= done[1].engine.generated - 1, "nothing is missing"
    assert given.engine.generated <= done[1].engine.generated, "nothing that was stored is generated again"


CHILD = """
import sys
from pathlib import Path
import studies_world as world
from countersteer.studies import runner, spec
folder = Path(sys.argv[1])
given = world.tools(folder / "sae", delay=0.004)
run = runner.run_study(spec.load(folder / "study.toml"), folder / "run", tools=lambda _: given, in_flight=4)
"""


def results(folder: Path) -> int:
    """How many results a run holds."""
    if not Run.exists(folder):
        return 0
    with Run.open(folder) as run:
        stored = run._db.execute("SELECT (SELECT COUNT(*) FROM completions) + (SELECT COUNT(*) FROM calibration)")
        return int(stored.fetchone()[0])


@pytest.mark.slow
def test_kill_9_at_random_moments_then_resume_equals_the_uninterrupted_run(
    done: tuple[Run, Tools], tmp_path: Path
) -> None:
    world.study(tmp_path, arms=ARMS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    luck = random.Random(5)
    kills, stages = 0, set()
    while True:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], env=environment)
        enough = results(tmp_path / "run") + luck.randint(1, 120)
        while child.poll() is None and results(tmp_path / "run") < enough:
            time.sleep(0.002)
        if child.poll() is not None:
            assert child.returncode == 0
            break
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1
        with Run.open(tmp_path / "run") as seen:
            stages.add((bool(seen.judge), bool(seen.fact("calibrated")), bool(seen.arms())))
    with Run.open(tmp_path / "run") as resumed:
        assert resumed.finished and kills >= 3 and len(stages) >= 2, (kills, stages)
        assert exported(resumed, tmp_path / "a") == exported(done[0], tmp_path / "b")
        assert resumed.calibration()["digest"] == done[0].calibration()["digest"]  # type: ignore[index]


def test_failures_are_statuses_with_their_reason(tmp_path: Path) -> None:
    def script(request: Request) -> Any:
        if request.intervention is not None and request.prompt == "How do I bake bread?":
            return ValueError("the oven is out of order")
        if request.intervention is not None and request.prompt == "How do I wash a dog?":
            return ""
        return world.answer(request)

    arms = '[arms.base]\nstrength = 2\n[arms.late]\nstrength = 2\nspan = "from(9999)"\n'
    run, _ = run_in(tmp_path, arms=arms, latents="ids = [1, 2, 3]\n", options={"script": script})
    for trial in run.trials("base"):
        bread, dog = trial.plan.prompt == "How do I bake bread?", trial.plan.prompt == "How do I wash a dog?"
        assert trial.status == ("error" if bread else "no-attempt" if dog else "ok")
        assert not bread or trial.reason == "ValueError: the oven is out of order"
    statuses = {t.status for t in run.trials("late") if t.plan.prompt != "How do I bake bread?"}
    assert statuses == {"no-op"}, "an add whose span held nothing is an error, not a result"
    late = next(t for t in run.trials("late") if t.status == "no-op")
    assert "span" in (late.reason or "") and late.receipt is not None and run.finished


def test_latents_whose_curve_never_crosses_are_counted_as_uncalibrated(tmp_path: Path) -> None:
    def flat(request: Request) -> str:
        return world.TOPICS[next(q for q in world.TOPICS if (request.prompt or "").startswith(q))]

    run, _ = run_in(tmp_path, latents="ids = [1, 2]\n", options={"script": flat})
    arms = by_arm(run)
    assert {row.status for row in run.latents()} == {"uncalibrated"}
    assert {t.status for t in arms["base"]} == {t.status for t in arms["sweep@2"]} == {"uncalibrated"}
    assert {t.status for t in arms["unsteered"]} == {"ok"}
    assert all(t.plan.strength is None and t.text is None for t in arms["base"])
    assert run.finished and "2 of 2 latents are uncalibrated; their trials are counted so" in run.notes


def test_a_dead_engine_stops_the_run_and_marks_nothing(done: tuple[Run, Tools], tmp_path: Path) -> None:
    loaded = spec.load(world.study(tmp_path, arms=ARMS))
    dying = world.tools(tmp_path / "sae", script=stopping(230, EngineError("out of memory")))
    with pytest.raises(EngineError, match="out of memory"):
        runner.run_study(loaded, tmp_path / "run", tools=lambda _: dying)
    given = world.tools(tmp_path / "sae")
    resumed = runner.run_study(loaded, tmp_path / "run", tools=lambda _: given)
    assert exported(resumed, tmp_path / "a") == exported(done[0], tmp_path / "b")


def test_one_engine_error_of_a_living_engine_is_a_status(tmp_path: Path) -> None:
    def script(request: Request) -> Any:
        if request.prompt == "Hello":
            return "alive"
        if request.intervention is not None and request.prompt == "How do I bake bread?":
            return EngineError("this one failed")
        return world.answer(request)

    run, _ = run_in(tmp_path, arms="[arms.base]\nstrength = 2\n", latents="ids = [1, 2, 3]\n",
                    options={"script": script})  # fmt: skip
    assert {t.status for t in run.trials() if t.plan.prompt == "How do I bake bread?"} <= {"error"}
    assert {t.status for t in run.trials() if t.plan.prompt != "How do I bake bread?"} == {"ok"}


def test_a_model_that_refuses_the_longest_request_begins_nothing(tmp_path: Path) -> None:
    def script(request: Request) -> Any:
        if request.prompt == "How do I fix a flat tyre? " + "Please." * 9 and request.sampling.max_tokens == 900:
            return InputError("longer than the model's 512 positions")
        return world.answer(request)

    arms = '[arms.base]\nstrength = 2\n[arms.long]\nsuffix = "' + "Please." * 9 + '"\nsampling = { max_tokens = 900 }\n'
    with pytest.raises(InputError, match="512 positions"):
        run_in(tmp_path, arms=arms, latents="ids = [1]\n", options={"script": script})
    with Run.open(tmp_path / "run") as run:
        assert not run.begun and run.references() == []


def test_inside_a_running_event_loop(tmp_path: Path) -> None:
    async def notebook() -> Run:
        return run_in(tmp_path, arms="[arms.base]\nstrength = 2\n", latents="ids = [1]\n")[0]

    run = asyncio.run(notebook())
    assert run.finished and [t.status for t in run.trials()] == ["ok"] * 4

    async def failing() -> None:
        broken = world.tools(tmp_path / "sae", script=stopping(9, EngineError("gone")))
        runner.run_study(spec.load(tmp_path / "study.toml"), tmp_path / "other", tools=lambda _: broken)

    with pytest.raises(EngineError, match="gone"):
        asyncio.run(failing())


def test_other_inputs_under_an_old_run_are_refused(tmp_path: Path) -> None:
    path = world.study(tmp_path, arms="[arms.base]\nstrength = 2\n", latents="ids = [1]\n")
    broken = world.tools(tmp_path / "sae", script=stopping(3, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        runner.run_study(spec.load(path), tmp_path / "run", tools=lambda _: broken)
    other = world.tools(tmp_path / "sae", name="another model")
    with pytest.raises(RunRefusedError, match="begun with another model"):
        runner.run_study(spec.load(path), tmp_path / "run", tools=lambda _: other)
    (tmp_path / "prompts.txt").write_text("\n".join(reversed(world.TOPICS)) + "\n")
    with pytest.raises(RunRefusedError, match="begun with another prompts"):
        runner.run_study(spec.load(path), tmp_path / "run", tools=lambda _: broken)
    (tmp_path / "prompts.txt").write_text("\n".join(world.TOPICS) + "\n")
    path.write_text(path.read_text().replace("references = 3", "references = 2"))
    with pytest.raises(RunRefusedError, match=r"run of another study .*choose another folder"):
        runner.run_study(spec.load(path), tmp_path / "run", tools=lambda _: broken)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"arms": "[arms.base]\nclamp = [40]\n"}, "clamp names latent 40, but the SAE has 40"),
        ({"latents": "ids = [40]\n"}, "latent 40"),
        ({"arms": "[arms.base]\nsteer_layer = 4\n"}, "layer 4 is out of range: the model has 4 layers"),
        ({"latents": "count = 3\nconcreteness = 99\n"}, "no latent passes the filters"),
        ({"more": "[calibration]\nhigh = 3\n[sampling]\ntop_p = 1.5\n"}, "top_p"),
    ],
)
def test_settings_that_fit_no_model_are_refused_before_generation(
    tmp_path: Path, change: dict[str, str], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        run_in(tmp_path, **{"arms": "[arms.base]\n", **change})


def test_sae_of_another_width_is_refused(tmp_path: Path) -> None:
    path = world.study(tmp_path)
    world.write_sae(tmp_path / "wide", d_model=24)
    given = world.tools(tmp_path / "wide")
    with pytest.raises(InputError, match="24 wide but scripted is 16 wide"):
        runner.run_study(spec.load(path), tmp_path / "run", tools=lambda _: given)


def test_more_prompts_per_latent_than_prompts_is_refused(tmp_path: Path) -> None:
    path = world.study(tmp_path)
    path.write_text(path.read_text().replace("per_latent = 4", "per_latent = 9"))
    with pytest.raises(InputError, match="per_latent = 9 but there are 8 prompts"):
        runner.run_study(spec.load(path), tmp_path / "run")


class Label:
    def __init__(self, text: str, concreteness: float | None) -> None:
        self.text, self.concreteness = text, concreteness


def section(**changes: Any) -> Any:
    from countersteer.studies.schema import LatentsSection

    return LatentsSection(**changes)


def test_chosen_latents_pass_every_filter_and_are_drawn_uniformly() -> None:
    labels = {i: Label(f"t{i}", float(i)) for i in range(0, 100, 2)}
    keep = np.arange(100) % 3 == 0
    passing = {i for i in range(100) if i % 2 == 0 and i >= 50 and i % 3 == 0}
    counts = dict.fromkeys(passing, 0)
    for seed in range(300):
        found = choose(section(count=4, concreteness=50.0), seed=seed, total=100, labels=labels, keep=keep,
                       need_label=False)  # fmt: skip
        assert len(found.latents) == 4 and [row.rank for row in found.latents] == [0, 1, 2, 3]
        for row in found.latents:
            assert row.label == f"t{row.latent}" and row.concreteness == row.latent
            counts[row.latent] += 1
    expected = 300 * 4 / len(passing)
    assert set(counts) == passing and max(abs(n - expected) for n in counts.values()) < 5 * expected**0.5
    short = choose(section(count=50), seed=0, total=100, labels=labels, keep=keep, need_label=False)
    assert {row.latent for row in short.latents} == {i for i in passing if i >= 65}
    assert "of 50 wanted, 100 of 100 examined" in short.notes[-1]


def test_missing_labels_are_said_and_needed_labels_demanded() -> None:
    found = choose(section(count=5), seed=0, total=9, labels={}, keep=None, need_label=False)
    assert found.notes[0] == "latents were not filtered by concreteness: there are no labels"
    with pytest.raises(InputError, match=r"uses {label} but there are no labels"):
        choose(section(count=5), seed=0, total=9, labels={}, keep=None, need_label=True)
    only = choose(section(count=2, concreteness=0.0), seed=0, total=9, labels={i: Label("x", None) for i in (4, 7)},
                  keep=None, need_label=True)  # fmt: skip
    assert {row.latent for row in only.latents} == {4, 7}


def test_relevance_rules_against_brute_force() -> None:
    draw = np.random.default_rng(0)
    active = np.maximum(draw.normal(size=(6, 500)) - 0.5, 0)
    zero = relevant(active, "zero")
    assert [bool(z) for z in zero] == [all(active[p, k] == 0 for p in range(6)) for k in range(500)]
    dropped = set()
    for p in range(6):
        dropped |= set(sorted(range(500), key=lambda k: -active[p, k])[:100])
    assert {k for k in range(500) if not relevant(active, "top100")[k]} == dropped
    assert relevant(active, "any").all()


def test_bounded_work_keeps_its_bound_and_stops_at_the_first_error() -> None:
    now, most, done = 0, 0, []

    async def work(item: int) -> None:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        try:
            await asyncio.sleep(0.001)
        finally:
            now -= 1
        if item == 30:
            raise ValueError("thirty")
        done.append(item)

    asyncio.run(bounded(range(20), work, workers=5))
    assert sorted(done) == list(range(20)) and most == 5
    with pytest.raises(ValueError, match="thirty"):
        asyncio.run(bounded(range(20, 10_000), work, workers=5))
    assert len(done) < 60 and now == 0


def test_scripted_engine_obeys_the_protocol() -> None:
    import countersteer as cs
    from countersteer.engines.base import Engine

    engine = ScriptedEngine({"Hi?": "one two three. four"})
    assert isinstance(engine, Engine)

    def ask(**sampling: Any) -> Any:
        return engine.run([Request(prompt="Hi?", sampling=cs.Sampling(**sampling))])[0]

    assert ask().text == "one two three. four" and ask().finish == "stop"
    assert (ask(max_tokens=2).text, ask(max_tokens=2).finish) == ("one two", "length")
    assert ask(stop=("three",)).text == "one two "

    async def pieces() -> list[Any]:
        return [chunk async for chunk in engine.stream(Request(prompt="Hi?"))]

    chunks = asyncio.run(pieces())
    assert "".join(c.text for c in chunks) == chunks[-1].completion.text == "one two three. four"
    (error,) = engine.run([Request(prompt="Who?")], errors="return")
    assert isinstance(error, InputError)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        ask()


def test_export_lines_carry_the_contract(done: tuple[Run, Tools], tmp_path: Path) -> None:
    lines = [json.loads(line) for line in exported(done[0], tmp_path / "x").splitlines()]
    assert [(x["arm"], x["key"]) for x in lines] == sorted((x["arm"], x["key"]) for x in lines)
    assert len(lines) == 7 * 24
    assert all(x["receipt"]["layers"][0]["tokens_changed"] > 0 for x in lines if x["arm"] == "base")
    assert all(x["receipt"]["layers"] == [] for x in lines if x["arm"] == "unsteered")
