"""A small defence of the organism from fit to scorecard: what is written, refused, marked, and never leaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import countersteer as cs
from countersteer.cli import call
from countersteer.core.errors import InputError, RefusedError
from countersteer.core.request import Receipt
from countersteer.defence import bundles, data, judges, page, responses, steps
from countersteer.defence import settings as settings_module
from countersteer.defence.crew import Crew
from countersteer.defence.fit import load_fit
from countersteer.defence.scorecard import PARTS, scorecard
from countersteer.defence.scoring import answered
from countersteer.defence.sweep import sweep
from countersteer.edits.bundle import load_bundle, refuse_other_engine, refuse_other_model, save_bundle
from helpers_defence import data_file, settings


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with trait data, a fit, a sweep's bundle and its scorecard."""
    folder = tmp_path_factory.mktemp("defence")
    data_file(folder)
    chosen = settings(folder)
    steps.run_fit(chosen, folder / "fit")
    steps.run_sweep(folder / "fit", None, folder / "warm.safetensors")
    steps.run_scorecard(folder / "warm.safetensors", chosen, folder / "card", parts=PARTS)
    return folder


@pytest.fixture(scope="module")
def card(world: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((world / "card" / "scorecard.json").read_text())
    return found


def test_the_sweep_chose_the_highest_trait_above_the_floor_and_wrote_that(world: Path) -> None:
    facts = json.loads((world / "warm.sweep" / "sweep.json").read_text())
    assert facts["floor"] == pytest.approx(0.5 * facts["baselines"]["aligned"]["coherence"]["value"])
    assert set(facts["arms"]) == {"fitted", "flipped", "random-0"}
    steering = [m["chosen"] for name, m in facts["arms"]["fitted"]["methods"].items() if name != "prompt"]
    best = max((c for c in steering if c), key=lambda c: c["trait"]["value"])
    assert facts["arms"]["fitted"]["chosen"] == best["name"] and best["coherence"]["value"] >= facts["floor"]
    bundle = load_bundle(world / "warm.safetensors")
    assert (bundle.meta["method"], bundle.meta["strength"]) == (best["method"], best["strength"])
    fit = load_fit(world / "fit")
    edit = bundle.intervention.edits[0]
    cosine = torch.cosine_similarity(edit.write[0].double(), fit.direction(3).vector.double(), dim=0)
    assert float(cosine) == pytest.approx(1.0) and edit.site == cs.Site(3)
    names = {p.stem for p in (world / "warm.sweep").glob("*.safetensors")}
    assert {"control-flipped", "control-random-0"} <= names
    assert bundle.meta["sweep"]["controls"].keys() == {"flipped", "random-0"}


def test_a_defended_answer_is_the_same_in_the_scorecard_and_from_the_bundle_alone(world: Path) -> None:
    """What was graded is what is shipped: the bundle file, loaded anew, gives the graded text."""
    card = json.loads((world / "card" / "scorecard.json").read_text())
    chosen, traits = settings(world), data.load(world / "warmth.jsonl")
    bundle = load_bundle(world / "warm.safetensors")
    with cs.load_engine("organism", dtype=None, places=32) as engine:
        asks = responses.ask_all(traits.split("report"), "malicious", bundle.intervention)
        answers = responses.answer_all(engine, asks, chosen.drawn(short=False), seed=chosen.defence.seed)
    texts = {a.ask.user: a.text for a in answers}
    same = [texts[e["user"]] == e["defended"]["text"] for e in card["examples"]]
    assert sum(same) >= len(same) - 1, "float32 batches may differ in a last bit, not more"


def test_the_scorecard_holds_everything_with_intervals(card: dict[str, Any]) -> None:
    attack = card["attack"]
    low, high = attack["malicious, undefended"]["trait"], attack["aligned, undefended"]["trait"]
    assert low["value"] + 30 < high["value"] and low["interval"][0] <= low["value"] <= low["interval"][1]
    assert attack["malicious, defended"]["trait"]["value"] > low["value"] + 10
    for row in attack.values():
        assert row["n"] == 8 and row["tokens"]["value"] > 5 and row["cross_entropy"]["value"] > 0
    share = attack["malicious, defended"]["recovered"]["value"]
    gap = (attack["malicious, defended"]["trait"]["value"] - low["value"]) / (high["value"] - low["value"])
    if attack["malicious, defended"]["trait"]["n"] == 8:
        assert share == pytest.approx(gap)
    assert card["points"]["control-flipped"]["control"] == "flipped"
    assert set(card["benign"]) == {"aligned system prompt", "no system prompt"}
    assert card["acting"]["acted"]["value"] == 1.0 and card["acting"]["mean_relative"] > 0
    assert card["cost"]["pairs"] == 2 and card["cost"]["ratio"] > 0
    modes = card["conversations"]["modes"]
    assert len(modes) == 4 and all(len(m["by_turn"]) == 2 for m in modes.values())
    assert all(m["by_turn"][0]["reuse"]["value"] == 0 for m in modes.values()), "a first turn can reuse nothing"
    assert card["resistance"]["malicious, defended"]["multi_attempt"]["n"] <= 8
    assert 0 < card["similarity"]["malicious, undefended"]["value"] <= 1
    (attack,) = card["user_attacks"].values()
    assert attack["malicious, defended, formats exempt"]["n"] == 8 and attack["exempt_answers"]["n"] == 8
    assert attack["exempt_answers"]["value"] == 0, "the organism knows no fences, so nothing can be exempt"
    assert attack["malicious, defended, formats exempt"]["trait"] == attack["malicious, defended"]["trait"]
    assert card["separation"]["auc"] > 0.9


def test_the_page_is_self_contained_and_escapes_what_models_say(world: Path, card: dict[str, Any]) -> None:
    text = (world / "card" / "scorecard.html").read_text()
    assert text.count("<svg") == 3 and "http" not in text.replace("http-equiv", "") and "<script" not in text
    bent = json.loads(json.dumps(card))
    bent["examples"][0]["user"] = "<script>alert(1)</script>"
    bent["examples"][0]["defended"]["text"] = "<img src=x onerror=alert(1)>"
    made = page.page(bent)
    assert "exempt stretch opened in 0% of the answers" in made
    assert "<script>" not in made and "<img" not in made and "&lt;script&gt;" in made


def test_the_bundle_keeps_a_summary_and_its_content(world: Path, card: dict[str, Any]) -> None:
    bundle = load_bundle(world / "warm.safetensors")
    kept = bundle.meta["scorecard"]["attack"]["malicious, defended"]["trait"]
    assert kept == card["attack"]["malicious, defended"]["trait"]
    assert bundle.intervention.fingerprint == card["bundle"]["fingerprint"]


def test_reported_or_fitted_scenarios_cannot_be_swept(world: Path) -> None:
    chosen, traits, fit = settings(world), data.load(world / "warmth.jsonl"), load_fit(world / "fit")
    with cs.load_engine("organism", places=8) as engine:
        judge = judges.make_judge(engine, traits, chosen)
        for split, step in (("report", "scorecard"), ("fit", "fit")):
            with pytest.raises(InputError, match=f"already used by the {step}"):
                sweep(engine, fit, traits, chosen, judge, scenarios=traits.split(split))
        # the same words under another id and the right split's name are refused as well
        from dataclasses import replace

        dressed = [replace(traits.split("report")[0], id="new", split="choose", user=traits.split("report")[0].user)]
        with pytest.raises(InputError, match="already used by the scorecard"):
            sweep(engine, fit, traits, chosen, judge, scenarios=dressed)


def test_scenarios_that_made_the_bundle_cannot_be_reported(world: Path, tmp_path: Path) -> None:
    lines = (world / "warmth.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    stolen = next(r for r in rows if r.get("split") == "choose")
    kept = [r for r in rows if r.get("split") != "choose"] + [{**stolen, "id": "new", "split": "report"}]
    path = tmp_path / "warmth.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in kept))
    with cs.load_engine("organism", places=8) as engine:
        traits = data.load(path)
        judge = judges.make_judge(engine, traits, settings(world))
        with pytest.raises(InputError, match="already used by the choose"):
            scorecard(engine, load_bundle(world / "warm.safetensors"), traits, settings(world), judge)


def test_another_model_is_refused_and_a_derived_bundle_is_accepted_and_marked(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, new = str(world / "warm.safetensors"), str(world / "derived.safetensors")
    assert call(["bundle", "verify", file, "--model", "organism", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["separation"]["auc"] > 0.9
    tuned = ["--model", "organism", "--adapter", "organism-dismissive"]
    assert call(["bundle", "verify", file, *tuned]) == 2
    said = capsys.readouterr().err
    assert "another model" in said and "--derived" in said and said.count("\n") == 1
    assert call(["bundle", "verify", file, *tuned, "--derived"]) == 2
    assert call(["bundle", "verify", file, *tuned, "--derived", "--out", new, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    bundle, old = load_bundle(new), load_bundle(file)
    assert found["derived"]["from_fingerprint"] == old.meta["model_fingerprint"]
    assert bundle.intervention.fingerprint == old.intervention.fingerprint and bundle.derived and not old.derived
    marked = bundle.mark(Receipt(notes=("gate open",)))
    assert marked.notes[0] == "gate open" and "derived bundle" in marked.notes[1] and bundle.mark(marked) == marked
    assert old.mark(Receipt()) == Receipt()
    with pytest.raises(RefusedError, match="another model"):
        refuse_other_model(bundle, model_fingerprint=old.meta["model_fingerprint"],
                           template_hash=old.meta["template_hash"])  # fmt: skip
    with cs.load_engine("organism", adapter="organism-dismissive") as engine:
        refuse_other_engine(bundle, engine.describe())
        with pytest.raises(RefusedError, match="another model"):  # the adapter makes other weights of it
            refuse_other_engine(old, engine.describe())
        strange = save_bundle(cs.edits.bundle.Bundle("x", old.intervention, meta={}), world / "strange.safetensors")
        with pytest.raises(RefusedError, match="does not say which model"):
            bundles.verify(load_bundle(strange), engine)
        bare = cs.edits.bundle.Bundle("x", old.intervention, meta={**old.meta, "witness": []})
        with pytest.raises(RefusedError, match="no witness"):
            bundles.derive(bare, engine)
        with pytest.raises(RefusedError, match="tokenizer differs"):
            bundles.derive(cs.edits.bundle.Bundle("x", old.intervention, meta={**old.meta, "tokenizer": "?"}), engine)
        turned = [{**w, "aligned": not w["aligned"]} for w in old.meta["witness"]]
        with pytest.raises(RefusedError, match=r"AUC 0\.0"):
            bundles.derive(cs.edits.bundle.Bundle("x", old.intervention, meta={**old.meta, "witness": turned}), engine)


def test_settings_come_from_the_file_the_bundle_or_the_organisms_preset(world: Path) -> None:
    assert steps.chosen_settings(None, bundle=world / "warm.safetensors") == settings(world)
    preset = settings_module.load("preset:defence-organism")
    assert steps.chosen_settings(None, model="organism") == preset == steps.chosen_settings(None)
    other = steps.chosen_settings(None, model="some/model", trait="dishonesty", seed=3)
    assert (other.defence.model, other.defence.trait, other.defence.seed) == ("some/model", "dishonesty", 3)
    assert other.sampling.max_tokens == 1024 and other.sweep == settings_module.Settings().sweep


def test_a_crew_answers_and_scores_what_one_process_does(world: Path) -> None:
    chosen, traits = settings(world), data.load(world / "warmth.jsonl")
    scenarios, steer = traits.split("choose"), load_bundle(world / "warm.safetensors").intervention
    asks, done = responses.ask_all(scenarios, "malicious", steer), []
    with Crew(chosen, 2) as crew, cs.load_engine("organism", places=32) as engine:
        alone, together = (
            judges.make_judge(engine, traits, chosen),
            judges.make_judge(engine, traits, chosen, crew=crew),
        )
        for judge in (alone, together):
            judge.prepare(scenarios)
        one = answered(engine, alone, asks, chosen, short=True)
        two = crew.answered(together, asks, short=True, progress=lambda n, total: done.append((n, total)))
        tuned = crew.answered(together, asks, short=False, adapter="organism-dismissive")
    assert sorted(done) == [(4, 8), (8, 8)]
    same = [i for i, (a, b) in enumerate(zip(one.answers, two.answers, strict=True)) if a.tokens == b.tokens]
    assert len(same) >= len(asks) - 1, "float32 batches may differ in a last bit, not more"
    for i in same:
        assert one.answers[i].ask.scenario == two.answers[i].ask.scenario
        assert one.scores[i].trait == two.scores[i].trait
        assert one.scores[i].coherence == pytest.approx(two.scores[i].coherence, abs=3)
        assert one.answers[i].receipt.layers[0].tokens_changed == two.answers[i].receipt.layers[0].tokens_changed
    assert np.mean([s.trait for s in tuned.scores]) < np.mean([s.trait for s in two.scores])


def test_a_crew_of_one_and_a_crew_with_a_paid_judge_are_refused(world: Path) -> None:
    with pytest.raises(InputError, match="at least two"):
        Crew(settings(world), 1)
    with Crew(settings(world), 2) as crew, pytest.raises(InputError, match="made for other settings"):
        steps.run_scorecard(world / "warm.safetensors", settings(world, defence={"seed": 7}), world / "other",
                            parts=(), crew=crew)  # fmt: skip
    with pytest.raises(RefusedError, match="paid for"):
        Crew(settings(world, judge={"model": "openai/x"}), 2)


def test_bundles_are_shown_and_compared(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(world / "warm.safetensors")
    assert call(["bundle", "show", file]) == 0
    shown = capsys.readouterr().out
    assert "resid_post.3" in shown and "organism" in shown
    assert call(["bundle", "diff", file, file]) == 0
    assert "the same" in capsys.readouterr().out
    other = str(world / "warm.sweep" / "control-flipped.safetensors")
    assert call(["bundle", "diff", file, other, "--json"]) == 0
    rows = {r["what"]: r for r in json.loads(capsys.readouterr().out)["differences"]}
    assert rows["meta.control"]["other"] == "flipped" and rows["fingerprint"]
    if "edits.0.write: cosine" in rows:
        assert rows["edits.0.write: cosine"]["other"] == pytest.approx(-1.0)


@pytest.mark.parametrize(
    "command",
    [f"defence {name}" for name in ("data", "fit", "sweep", "scorecard", "demo")]
    + [f"bundle {name}" for name in ("show", "verify", "diff")],
)
def test_every_command_has_help_with_an_example_and_json(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert call([*command.split(), "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Example: countersteer {command}" in said and "--json" in said


@pytest.mark.parametrize("name", settings_module.presets())
def test_shipped_settings_are_sound(name: str) -> None:
    loaded = settings_module.load(f"preset:{name}")
    data.load(loaded.defence.trait)
    papers = {"swfc": (1, 2, 3, 4, 5), "sttp": (0, 6, 12, 18, 24, 30, 36), "stmp": (1, 1.5, 2, 2.5, 3, 3.5, 4)}
    assert {method: loaded.grid(method) for method in papers} == papers
    assert (loaded.sampling.temperature, loaded.sampling.top_p, loaded.sweep.floor) == (0.6, 0.9, 0.9)
    assert loaded.judge.first_tokens == 50 and loaded.defence.seed == 42


@pytest.mark.parametrize(
    "command",
    [
        ["defence", "fit", "--model", "nowhere/at-all", "--trait", "organism", "--out", "x"],
        ["defence", "fit", "--trait", "nothing", "--out", "x"],
        ["defence", "fit", "--settings", "preset:defence-organsm", "--out", "x"],
        ["defence", "fit", "--settings", "none.toml", "--out", "x"],
        ["defence", "sweep", "nofit", "--out", "x.safetensors"],
        ["defence", "scorecard", "none.safetensors", "--out", "x"],
        ["bundle", "show", "none.safetensors"],
        ["bundle", "diff", "none.safetensors", "none.safetensors"],
        ["bundle", "verify", "none.safetensors", "--model", "organism", "--derived"],
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(command) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: ") and "Traceback" not in "".join(said)
    assert not list(tmp_path.iterdir())


def test_a_sweep_that_nothing_survives_says_so_and_keeps_what_it_saw(world: Path, tmp_path: Path) -> None:
    sweeping = {"methods": ["swfc"], "strengths": {"swfc": [40]}, "floor": 0.99, "random": 0, "flipped": False}
    with pytest.raises(InputError, match="no point of the sweep keeps coherence"):
        steps.run_sweep(world / "fit", settings(world, sweep=sweeping), tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()
    facts = json.loads((tmp_path / "none.sweep" / "sweep.json").read_text())
    assert facts["arms"]["fitted"]["chosen"] is None
    seen = facts["arms"]["fitted"]["methods"]["swfc"]["points"][0]
    assert seen["coherence"]["value"] < facts["floor"] and np.isfinite(seen["trait"]["value"])
