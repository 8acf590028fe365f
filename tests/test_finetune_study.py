"""The [finetune] section of a study: its data is kept for what decided it, alone, whole, and not outgrown."""

from __future__ import annotations

import datetime
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import countersteer as cs
from countersteer import organism
from countersteer.cli import call
from countersteer.core.errors import InputError
from countersteer.finetune import compose, examples, keys, recipe, training
from countersteer.finetune import data as making
from countersteer.finetune.steering import steering_of
from countersteer.organism import prompts
from countersteer.store import Run, RunRefusedError
from countersteer.store.lock import FolderLock
from countersteer.studies import growth, opening, spec
from countersteer.studies.inputs import read_inputs

ASKED = [row["prompt"] for row in prompts("howto")][:4]
STUDY = """
[study]
model = "organism-plain"
sae = "organism-plain"
[latents]
count = 2
[calibration]
method = "bisection"
rounds = 1
per_round = 2
[trials]
prompts = "held-out"
per_latent = 2
[sampling]
max_tokens = 60
[judge]
references = 1
[finetune]
prompts = "few.txt"
templates = "organism"
episodes = true
steering = true
corrections = 8
normals = 8
ratios = [0.5]
total = 8
epochs = 1
rank = 2
[arms.base]
[arms.tuned]
adapter = "finetune"
"""


def study(place: Path, *changes: tuple[str, str]) -> Any:
    """The study with some of its text replaced."""
    text = STUDY.replace("few.txt", str(place / "few.txt"))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return spec.parse(text, name="small")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the prompts, and a run with its episodes, data and adapter in it."""
    place = tmp_path_factory.mktemp("made")
    (place / "few.txt").write_text("\n".join(ASKED) + "\n")
    recipe.prepare(study(place), place / "run")
    return place


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither answers nor training nor a larger run of episodes are allowed."""
    for module, name in ((making, "own_answers"), (training, "load_base"), (recipe, "run_study")):
        monkeypatch.setattr(module, name, lambda *a, n=name, **k: pytest.fail(f"{n} was called"))


def test_the_datas_header_says_what_decided_it(made: Path) -> None:
    facts = examples.load(made / "run" / recipe.DATA).facts
    with cs.load_engine("organism-plain") as engine:
        told = engine.describe()
    assert facts["template"] is None and facts["template_hash"] == told["template_hash"]
    assert facts["tokenizer_hash"] == told["tokenizer"] and facts["model_fingerprint"] == told["model_fingerprint"]
    assert facts["sampling"]["repetition_penalty"] == 1.1 and facts["sampling"]["max_tokens"] == 60
    assert keys.identity_of("organism-plain", None) == keys.identity_in(told)
    assert not (made / "run" / recipe.ANSWERS).exists() and not list(made.glob("run/*.part"))
    assert not list(made.glob("run/*.lock/*"))


@pytest.mark.parametrize("template", [None, "esr-reference"])
def test_the_identity_of_a_model_is_known_before_it_is_loaded(template: str | None, tmp_path: Path) -> None:
    from dataclasses import replace

    from countersteer.engines.embedded.model import load_model

    loaded = replace(load_model("organism-plain"), template=template)
    found = keys.identity_of("organism-plain", template)
    assert found["template_hash"] == loaded.template_hash and found["tokenizer"] == loaded.tokenizer_hash
    folder = tmp_path / "other"
    shutil.copytree(organism.path("organism-plain"), folder)
    chat = folder / "chat_template.jinja"
    chat.write_text(chat.read_text() + "{# another #}")
    other = keys.identity_of(str(folder), template)
    assert other["template_hash"] != found["template_hash"] and other["model"] == found["model"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('model = "organism-plain"', 'model = "organism"', "another model"),
        ("corrections = 8", "corrections = 60", "another number of corrections"),
        ("normals = 8", "normals = 9", "another number of normal examples"),
        ("max_tokens = 60", "max_tokens = 60\nrepetition_penalty = 1.3", "another sampling"),
        ("max_tokens = 60", "max_tokens = 60\ntop_p = 0.9", "another sampling"),
        ("max_tokens = 60", "max_tokens = 60\ntop_k = 5", "another sampling"),
        ("[latents]", 'template = "esr-reference"\n[latents]', "another chat template"),
        ("rank = 2", "rank = 2\noverlap = true", "another overlap"),
        ('sae = "organism-plain"', 'sae = "organism"', "another SAE"),
        ("[finetune]", '[engine]\ndtype = "bfloat16"\n[finetune]', r"another \[engine\] dtype"),
        ('templates = "organism"', 'templates = "general"', "other templates"),
        ("episodes = true", "episodes = false", "other episodes"),
    ],
)
def test_data_of_anything_else_is_not_taken_over(old: str, new: str, said: str, made: Path, forbidden: None) -> None:
    with pytest.raises(InputError, match=f"finetune-data was made for {said}; choose another folder"):
        recipe.prepare(study(made, (old, new)), made / "run")


def test_data_of_an_older_version_is_compared_as_it_was(made: Path, tmp_path: Path, forbidden: None) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    place = tmp_path / "run" / recipe.DATA / examples.HEADER
    header = json.loads(place.read_text())
    del header[keys.MADE_FOR]
    header["sampling"] = {"temperature": header["sampling"]["temperature"], "max_tokens": 60}
    place.write_text(json.dumps(header))
    kept = recipe._kept(study(made), tmp_path / "run", ASKED, [*prompts_of("held-out")])
    assert kept is not None and kept == examples.load(tmp_path / "run" / recipe.DATA)
    for old, new, said in (
        ("max_tokens = 60", "max_tokens = 61", "another sampling"),
        ('model = "organism-plain"', 'model = "organism"', "another model"),
        ("normals = 8", "normals = 9", "another number of normal"),
    ):
        with pytest.raises(InputError, match=said):
            recipe.prepare(study(made, (old, new)), tmp_path / "run")


def prompts_of(name: str) -> list[str]:
    """The prompts of a set."""
    return [row["prompt"] for row in prompts(name)]


def test_a_grown_study_keeps_the_episodes_that_were_trained_on(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    monkeypatch.setattr(training, "load_base", lambda *a: pytest.fail("trained again"))
    larger = study(made, ("count = 2", "count = 3"), ("per_latent = 2", "per_latent = 3"))
    for asked in (larger, study(made), larger):
        (adapter,) = recipe.prepare(asked, tmp_path / "run")
        assert adapter.is_dir()
    with Run.open(tmp_path / "run" / recipe.EPISODES) as run:
        assert len(run.latents()) == 2
    with pytest.raises(RunRefusedError, match="another study"):
        recipe.prepare(study(made, ("rounds = 1", "rounds = 2")), tmp_path / "run")


def test_two_processes_do_not_prepare_one_run(made: Path, forbidden: None) -> None:
    lock = FolderLock(made / "run")
    try:
        with pytest.raises(RunRefusedError, match="run is in use by process"):
            recipe.prepare(study(made), made / "run")
    finally:
        lock.release()


def scripted(said: Callable[[cs.Request], Any]) -> dict[str, Any]:
    """What `data.make` is given for two prompts."""
    return {"engine": cs.ScriptedEngine(said), "train": ASKED[:2], "held_out": ASKED[2:], "corrections": 2,
            "normals": 2, "sources": making.Sources("general")}  # fmt: skip


def test_two_calls_do_not_share_kept_answers(tmp_path: Path) -> None:
    kept, refused = tmp_path / "data-answers.jsonl", []

    def said(request: cs.Request) -> str:
        if not refused:
            with pytest.raises(RunRefusedError, match="in use by process") as error:
                making.make(**scripted(lambda r: "Other."), keep=kept)
            refused.append(error.value)
        return f"First this, {request.prompt}."

    making.make(**scripted(said), keep=kept)
    assert refused and not list(tmp_path.iterdir())


def test_answers_are_kept_until_the_data_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, out = tmp_path / "answers.jsonl", tmp_path / "data"
    whole = Path.write_text

    def full(self: Path, text: str, **given: Any) -> int:
        if self.name == examples.EVAL:
            whole(self, text[:3], **given)
            raise OSError(28, "No space left on device")
        return whole(self, text, **given)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(InputError, match=r"cannot write the data to .*data: No space left"):
            making.make(**scripted(lambda r: f"First this, {r.prompt}."), keep=kept, out=out)
    assert kept.is_file() and not out.exists() and not list(tmp_path.glob("*.part"))
    (tmp_path / "data.part").mkdir()  # killed while it was written
    (tmp_path / "data.part" / examples.EXAMPLES).write_text("{")
    made = making.make(**scripted(lambda r: pytest.fail("asked again")), keep=kept, out=out)
    assert examples.load(out) == made and not kept.exists() and [p.name for p in tmp_path.iterdir()] == ["data"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert examples.load(examples.save(made, empty)) == made and not list(tmp_path.glob("*.part"))
    with pytest.raises(InputError, match="exists already"):
        making.make(**scripted(lambda r: pytest.fail("asked for nothing")), out=out)


def test_half_a_folder_of_data_is_refused_before_anything_is_asked(made: Path, tmp_path: Path, forbidden: None) -> None:
    half = tmp_path / "run" / recipe.DATA
    half.mkdir(parents=True)
    (half / examples.EXAMPLES).write_text("{")
    with pytest.raises(InputError, match=r"finetune-data is not whole .*; remove it and run again"):
        recipe.prepare(study(made), tmp_path / "run")


def test_train_prompts_may_move_but_not_change(made: Path, tmp_path: Path) -> None:
    begun = study(made)
    with opening.writable(begun, tmp_path / "run") as run:
        run.set_facts(header={**run.header, "inputs": dict(read_inputs(begun).digests)})
        shutil.copy(made / "few.txt", tmp_path / "few.txt")
        moved = study(tmp_path)
        assert moved.text != begun.text and not growth.compare(run, moved, read_inputs(moved))
        assert growth.identity(moved.settings) == growth.identity(begun.settings)
        (tmp_path / "few.txt").write_text("\n".join(ASKED[:3]) + "\n")
        with pytest.raises(RunRefusedError, match=r"begun with another \[finetune\] prompts"):
            growth.compare(run, moved, read_inputs(moved))


def test_prompts_that_templates_do_not_know_are_refused_before_anything_is_asked(
    made: Path, tmp_path: Path, forbidden: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few.txt").write_text("\n".join([ASKED[0], "Who are you?"]) + "\n")
    said = "do not know what 'Who are you?' asks"
    with pytest.raises(InputError, match=re.escape(said)):
        recipe.prepare(study(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    asked = ["--prompts", str(tmp_path / "few.txt"), "--eval", "held-out", "--templates", "organism"]
    assert call(["finetune", "data", "--model", "organism-plain", *asked, "--out", str(tmp_path / "data")]) == 2
    assert said in capsys.readouterr().err
    making.require_words("general", ["Who are you?"])


def test_an_example_is_not_steered_from_another_sae(made: Path) -> None:
    folder, sae = made / "run" / recipe.EPISODES, cs.load_sae("organism-plain")
    with Run.open(folder) as run:
        model = run.header["inputs"]["model"]
    of = steering_of(folder, sae, model=model)
    steer = {"latent": 7, "strength": 1.5, "layer": 3, "span": "all"}

    def example(**more: Any) -> Any:
        return compose.correction("Why?", "Off.", "Wait.", "On.", source="t", steer={**steer, **more})

    plain = cs.add(sae.latent(7), 1.5, layer=3).span("all")
    for good in (example(), example(sae=None), example(sae=sae.fingerprint)):
        assert of(good).fingerprint == plain.fingerprint
    with pytest.raises(InputError, match="'Why\\?' was written under latent 7 of another SAE than the one given"):
        of(example(sae=cs.load_sae("organism").fingerprint))


def test_a_run_under_an_adapter_gives_no_steering(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run" / recipe.EPISODES, tmp_path / "run")
    sae = cs.load_sae("organism-plain")
    with Run.open(tmp_path / "run", write=True) as run:
        model = run.header["inputs"]["model"]
        run.set_facts(header={**run.header, "inputs": {**run.header["inputs"], "adapter": "f" * 32}})
    with pytest.raises(InputError, match=r"was run under \[engine\] adapter"):
        steering_of(tmp_path / "run", sae, model=model)


def test_a_shard_does_not_train_adapters_of_its_own(
    made: Path, tmp_path: Path, forbidden: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.toml").write_text(study(made).text)
    asked = ["run", str(tmp_path / "small.toml"), "--shard", "1/2", "--out"]
    assert call([*asked, str(tmp_path / "one")]) == 2
    said = capsys.readouterr().err
    assert "--shard of a study with [finetune]" in said and "every shard would train its own" in said
    assert not (tmp_path / "one").exists()
    recipe.require_trained(study(made), made / "run")


def test_prompts_of_the_data_tell_the_day_of_its_episodes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "run" / recipe.EPISODES, tmp_path / "run" / recipe.EPISODES)
    with Run.open(tmp_path / "run" / recipe.EPISODES, write=True) as run:
        engine = {**run.header["engine"], "date": "2024-07-26"}
        run.set_facts(header={**run.header, "engine": engine})

    def load(*_: Any, date: str | None = None, **__: Any) -> Any:
        raise InputError(f"loaded on {date}")

    monkeypatch.setattr(cs, "load_engine", load)
    with pytest.raises(InputError, match="loaded on 2024-07-26"):
        recipe.prepare(study(made), tmp_path / "run")
    today = (datetime.date.today() - datetime.timedelta(days=1)).isoformat()
    assert recipe._day(tmp_path) > today, "no episodes: the day it is"
