"""A run that its study outgrows, files that change or move under it, and files that are missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import studies_world as world
from countersteer.core.errors import InputError
from countersteer.core.request import Request
from countersteer.store import Run, RunRefusedError, Trial
from countersteer.studies import runner, spec
from countersteer.studies.setup import Tools


def go(path: Path, out: str = "run", *, script: Any = world.answer, **more: Any) -> tuple[Run, Tools]:
    """Run the study in `path` beside it; the run, and what it worked with."""
    given = world.tools(path.parent / "sae", script=script)
    return runner.run_study(spec.load(path), path.parent / out, tools=lambda _: given, **more), given


def told(run: Run, arm: str) -> dict[tuple[int, str, int], tuple[Any, ...]]:
    """All that decides an arm's trials and what came of them, by (latent, prompt, seed)."""

    def of(t: Trial) -> tuple[Any, ...]:
        return t.plan.ordinal, t.plan.key, t.plan.strength, t.text, tuple(t.scores)

    return {(t.plan.latent, t.plan.prompt, t.plan.seed): of(t) for t in run.trials(arm)}


def stopping(after: int) -> Any:
    """The world's answers, interrupted after so many."""
    seen = iter(range(10**9))

    def script(request: Request) -> Any:
        return world.answer(request) if next(seen) < after else KeyboardInterrupt()

    return script


def test_an_arm_a_latent_and_prompts_are_added_without_moving_what_is_there(tmp_path: Path) -> None:
    path = world.study(tmp_path, latents="ids = [3, 5, 8]\n")
    first, used = go(path)
    before, strengths, made = (
        told(first, "base"),
        {r.latent: r.strength for r in first.latents()},
        used.engine.generated,
    )
    first.close()
    text = (
        path.read_text().replace("ids = [3, 5, 8]", "ids = [3, 5, 8, 11]").replace("per_latent = 4", "per_latent = 5")
    )
    path.write_text(f"{text}[arms.unsteered]\nstrength = 0\n")
    grown, again = go(path)
    after = told(grown, "base")
    assert {key: after[key] for key in before} == before, "nothing that was there has moved"
    assert len(after) == 4 * 5 and len(told(grown, "unsteered")) == 4 * 5
    now = {r.latent: r.strength for r in grown.latents()}
    assert {latent: now[latent] for latent in strengths} == strengths and now[11] is not None
    calibrated = [a.latent for a in grown.answers()]
    assert calibrated.count(11) == 25 and len(calibrated) == 25 * 4
    assert again.engine.generated < made + 25 + 4 * 5 + 8, "only what is new is generated"
    assert grown.finished and grown.missing() == 0
    grown.close()
    whole, _ = go(path)
    assert told(whole, "base") == after


def test_a_run_does_not_shrink_and_a_changed_arm_is_another_study(tmp_path: Path) -> None:
    path = world.study(tmp_path, latents="ids = [3, 5]\n", arms="[arms.base]\n[arms.asked]\nsuffix = 'Stay.'\n")
    go(path)[0].close()
    text = path.read_text()
    for old, new, said in (
        ("per_latent = 4", "per_latent = 3", "does not shrink"),
        ("ids = [3, 5]", "ids = [3]", "holds latent 5"),
        ("'Stay.'", "'Stop.'", "'Stay.' there, 'Stop.' here"),
        ("[arms.asked]\nsuffix = 'Stay.'\n", "", "arm 'asked' is in it"),
        ("references = 3", "references = 4", "references = 3 there, 4 here"),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(RunRefusedError, match=said) as caught:
            go(path)
        assert "choose another folder" in str(caught.value) and "\n" not in str(caught.value)


def test_a_calibration_is_taken_over_by_a_study_with_other_arms(tmp_path: Path) -> None:
    path = world.study(tmp_path, latents="ids = [3, 5]\n")
    origin, used = go(path, "origin")
    path.write_text(path.read_text() + "[arms.asked]\nsuffix = 'Stay.'\n")
    other, again = go(path, "other", calibration=tmp_path / "origin")
    assert other.calibration() == origin.calibration()
    assert told(other, "base") == told(origin, "base") and len(told(other, "asked")) == 8
    assert again.engine.generated < used.engine.generated, "references and calibration are not made again"
    path.write_text(path.read_text().replace("references = 3", "references = 2"))
    with pytest.raises(RunRefusedError, match="references"):
        go(path, "third", calibration=tmp_path / "origin")


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_clamp_file_that_changed_under_a_run_is_refused(tmp_path: Path, interrupted: bool) -> None:
    (tmp_path / "ids.txt").write_text("3\n5\n")
    arms = '[arms.base]\n[arms.clamped]\nclamp = "ids.txt"\n'
    path = world.study(tmp_path, latents="ids = [1, 2]\n", arms=arms)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            go(path, script=stopping(90))
    else:
        go(path)[0].close()
    (tmp_path / "ids.txt").write_text("3\n5\n8\n")
    with pytest.raises(RunRefusedError, match=r"begun with another \[arms.clamped\] clamp"):
        go(path)
    (tmp_path / "ids.txt").write_text("3\n5\n")
    run, _ = go(path)
    assert run.finished and run.arms()["clamped"]["clamp"] == [3, 5]


def test_arm_prompts_that_changed_are_refused_in_one_line(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("\n".join(list(world.TOPICS)[:5]) + "\n")
    arms = '[arms.base]\n[arms.held-out]\nprompts = "own.txt"\n'
    path = world.study(tmp_path, latents="ids = [1, 2]\n", arms=arms)
    with pytest.raises(KeyboardInterrupt):
        go(path, script=stopping(60))
    own.write_text("\n".join(list(world.TOPICS)[2:7]) + "\n")
    with pytest.raises(RunRefusedError, match=r"begun with another \[arms.held-out\] prompts"):
        go(path)


def test_a_study_folder_that_moved_goes_on(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    with pytest.raises(KeyboardInterrupt):
        go(world.study(here, latents="ids = [1, 2]\n"), script=stopping(60))
    shutil.copytree(here, tmp_path / "there")
    shutil.rmtree(here)
    run, _ = go(tmp_path / "there" / "study.toml")
    assert run.finished and len(told(run, "base")) == 8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"latents": 'count = 2\nlabels = "none.csv"\n'}, r"none\.csv"),
        ({"arms": '[arms.base]\n[arms.c]\ndirections = "none.safetensors"\n'}, r"\[arms\.c\] directions"),
        ({"arms": '[arms.base]\n[arms.p]\nprompts = "none.txt"\n'}, r"\[arms\.p\] prompts"),
        ({"arms": "[arms.base]\n[arms.r]\nclamp = { random = 3, of = [9999] }\n"}, "clamp names latent 9999"),
        ({"arms": "[arms.base]\n[arms.r]\nclamp = { random = 3, of = [-4] }\n"}, "-4"),
    ],
)
def test_missing_and_impossible_files_are_found_before_anything_is_generated(
    tmp_path: Path, change: dict[str, str], said: str
) -> None:
    path = world.study(tmp_path, **change)
    given = world.tools(tmp_path / "sae")
    with pytest.raises(InputError, match=said) as caught:
        runner.run_study(spec.load(path), tmp_path / "run", tools=lambda _: given)
    assert given.engine.generated == 0 and "\n" not in str(caught.value)
    fixed = world.study(tmp_path, latents="ids = [1]\n", arms="[arms.base]\nstrength = 2\n")
    assert go(fixed)[0].finished, "a mended study may use the same folder"


def test_a_trial_whose_request_is_no_longer_what_was_planned_is_refused(tmp_path: Path) -> None:
    path = world.study(tmp_path, latents="ids = [1, 2]\n", arms="[arms.base]\nstrength = 2\n")
    with pytest.raises(KeyboardInterrupt):
        go(path, script=stopping(30))
    with Run.open(tmp_path / "run", write=True) as run:
        assert list(run.planned("base")), "the plan is stored"
        run._db.execute("UPDATE trials SET key = 'x' || substr(key, 2) WHERE ordinal = 7")
    with pytest.raises(RunRefusedError):
        go(path)
