"""Corrections from steered runs: the model's own words, borders, latents and strengths; and steering by them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import countersteer as cs
from countersteer.core.errors import InputError, RefusedError
from countersteer.finetune.compose import normal, sentences
from countersteer.finetune.encode import Encoder, shown
from countersteer.finetune.examples import Example
from countersteer.finetune.own_episodes import OFF_TOPIC as LOW
from countersteer.finetune.own_episodes import RECOVERED, _whole, from_run
from countersteer.finetune.steering import steering_of
from countersteer.finetune.templates import general
from countersteer.store import Run
from countersteer.studies import spec
from countersteer.studies.runner import run_study
from finetune_tokenizers import joined_stops
from studies_world import OFF_TOPIC, RESTART, TOPICS, study, tools

TRAIN = list(TOPICS)[:6]
ANSWERS = {prompt: [TOPICS[prompt]] for prompt in TRAIN}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any, Any]]:
    """A finished run of the scripted world, its SAE, and its trials."""
    place = tmp_path_factory.mktemp("world")
    path = study(place, arms="[arms.base]\n[arms.unsteered]\nstrength = 0\n", latents="count = 12\n")
    given = tools(place / "sae")
    with run_study(spec.load(path), place / "run", tools=lambda _: given) as run:
        trials = list(run.trials("base"))
    yield place / "run", given, trials


def test_examples_are_the_models_own_words_under_their_own_steering(world: tuple[Path, Any, Any]) -> None:
    folder, given, trials = world
    low = {t.text: t for t in trials if t.status == "ok" and t.scores and t.scores[0] < LOW and t.plan.prompt in TRAIN}
    made = from_run(folder, TRAIN, ANSWERS, general(), count=500, seed=0, model=given.engine.model_fingerprint)
    assert len(made) == sum(t.text in low and t.plan.prompt in TRAIN for t in trials if t.text in low)
    assert len(made) > 3 and {e.prompt for e in made} <= set(TRAIN) and {e.source for e in made} == {"own episodes"}
    whole = [e for e in made if e.answer in low]
    for example in made:
        ((start, stop),) = example.spans
        stretch = example.answer[:start]
        mine = [t for t in trials if t.plan.prompt == example.prompt and t.plan.latent == example.steer["latent"]]
        assert any(t.plan.strength == example.steer["strength"] and t.text.startswith(stretch) for t in mine)
        assert example.steer["layer"] == given.sae.site.layer and example.steer["span"] == "all"
        assert example.steer["sae"] == given.sae.fingerprint
        assert stop == len(example.answer) and example.answer[start] == " "
        if example in whole:
            assert example.answer[start:].startswith(RESTART.rstrip()) and low[example.answer].scores[-1] >= RECOVERED
        else:
            assert example.answer.endswith(TOPICS[example.prompt]) and stretch in OFF_TOPIC
            assert 1 <= len(sentences(stretch)) <= 4
            said = example.answer[start : -len(TOPICS[example.prompt])].strip()
            assert said in general().acknowledgements
    expected = [t for t in low.values() if len(t.scores) > 1 and t.scores[-1] >= RECOVERED]
    assert len({e.answer for e in whole}) == len({t.text for t in expected})
    assert from_run(folder, TRAIN, ANSWERS, general(), count=3, seed=0) == made[:3]


@pytest.mark.parametrize("gap", [" ", "\n\n", "\n"])
def test_a_response_that_corrected_itself_is_cut_where_tokens_are(gap: str) -> None:
    """Llama 3 has a token for the newlines after a full stop: a border before them would cut it."""
    text = f"Off the track.{gap}Wait, no. On it."
    start = text.index("Wait")
    grade = {"attempts": [{"start": 0, "end": start, "score": 10.0}, {"start": start, "end": len(text), "score": 95.0}]}
    given = {"scores": (10.0, 95.0), "grade": grade, "plan": SimpleNamespace(prompt="Why?")}
    example = _whole(SimpleNamespace(text=text, finish="stop", **given), {})
    assert example is not None
    for cut in ("length", "max_positions", None):
        assert _whole(SimpleNamespace(text=text, finish=cut, **given), {}) is None, "its end is none"
    for attempt in grade["attempts"]:
        attempt.update(start=attempt["start"] + 3 * (attempt["start"] > 0), end=attempt["end"] + 3)
    assert _whole(SimpleNamespace(text=f" \n {text}\n", finish="stop", **given), {}) == example, "templates trim"
    tokenizer = joined_stops()
    assert shown(example, Encoder(tokenizer)(example), tokenizer).endswith(
        f"Off the track.{gap.strip(' ')}[[{gap.strip(chr(10))}Wait, no. On it.<|eot_id|>]]"
    )
    joined = any(tokenizer.convert_ids_to_tokens(t) == ".ĊĊ" for t in Encoder(tokenizer)(example).ids)
    assert joined == (gap == "\n\n")


def test_runs_that_cannot_be_used_are_refused(world: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _, _ = world
    for options, said in (
        ({"model": "other"}, "a run of another model"),
        ({"arm": "unsteered"}, "is not steered"),
        ({"arm": "bsae"}, "has no arm 'bsae'"),
    ):
        with pytest.raises(InputError, match=said):
            from_run(folder, TRAIN, ANSWERS, general(), count=3, seed=0, **options)
    with Run.open(folder) as run:
        header, arms = run.header, run.arms()
    for settings, inputs, said in (
        ({"system": "Be kind."}, {}, r"\(system\)"),
        ({"suffix": " Please.", "prefix": "So"}, {}, r"\(suffix, prefix\)"),
        ({}, {"adapter": "3715"}, r"\(engine adapter\)"),
    ):
        arms["base"] |= {"system": None, "suffix": None, "prefix": None, **settings}
        monkeypatch.setattr(Run, "arms", lambda self: arms)
        monkeypatch.setattr(Run, "header", {**header, "inputs": {**header["inputs"], **inputs}})
        with pytest.raises(InputError, match=f"another setting than examples have {said}"):
            from_run(folder, TRAIN, ANSWERS, general(), count=3, seed=0)
    monkeypatch.undo()
    with pytest.raises(InputError, match="is off topic"):
        from_run(folder, ["Else?"], {"Else?": ["So."]}, general(), count=3, seed=0)


def test_a_response_that_cannot_be_trained_on_is_left_out(world: tuple[Path, Any, Any], heard: list[str]) -> None:
    folder, _, _ = world
    given: dict[str, Any] = {"count": 500, "seed": 0}
    whole = from_run(folder, TRAIN, ANSWERS, general(), **given)

    def check(example: Example) -> None:
        if example == whole[1]:
            raise RefusedError("this conversation", "the chat template drops it", "another")

    assert from_run(folder, TRAIN, ANSWERS, general(), check=check, **given) == [whole[0], *whole[2:]]
    (said,) = heard
    assert "1 responses of" in said and "cannot be trained on and are left out: this conversation" in said

    def nothing(example: Example) -> None:
        raise RefusedError("this conversation", "the chat template drops it", "another")

    with pytest.raises(RefusedError, match="the chat template drops it"):
        from_run(folder, TRAIN, ANSWERS, general(), check=nothing, **given)
    assert from_run(folder, ["Else?"], {"Else?": ["So."]}, general(), required=False, **given) == []


def test_training_meets_the_steering_of_the_episode_or_a_calibrated_one(world: tuple[Path, Any, Any]) -> None:
    folder, given, trials = world
    made = from_run(folder, TRAIN, ANSWERS, general(), count=4, seed=0)
    steer = steering_of(folder, given.sae, model=given.engine.model_fingerprint)
    for example in made:
        wanted = cs.add(given.sae.latent(example.steer["latent"]), example.steer["strength"]).span("all")
        assert steer(example).fingerprint == wanted.fingerprint
    assert steer(normal("Why?", "So.", source="t")) is None
    plain = type(made[0])("Why?", "Off. On.", ((4, 8),), "correction", "templates")
    found = steer(plain)
    calibrated = {(t.plan.latent, t.plan.strength) for t in trials if t.plan.strength}
    known = {cs.add(given.sae.latent(n), s).span("all").fingerprint for n, s in calibrated}
    assert found.fingerprint in known and steer(plain).fingerprint == found.fingerprint
    double = steering_of(folder, given.sae, model=given.engine.model_fingerprint, scale=2.0)(made[0])
    wanted = cs.add(given.sae.latent(made[0].steer["latent"]), 2 * made[0].steer["strength"]).span("all")
    assert double.fingerprint == wanted.fingerprint
    with pytest.raises(InputError, match="another model"):
        steering_of(folder, given.sae, model="other")
    with pytest.raises(InputError, match="another SAE"):
        steering_of(folder, cs.load_sae("organism"), model=given.engine.model_fingerprint)
