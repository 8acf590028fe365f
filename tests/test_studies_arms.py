"""Arms that find out what they need: detectors, random sets, prefixes, levels in SD, directions, own strengths.

The script restarts with a probability that a latent decides (which one is planted), so what a run must find is known.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import studies_world as world
from countersteer.core.errors import InputError, RefusedError
from countersteer.core.request import Request
from countersteer.engines.scripted import ScriptedEngine, Shape
from countersteer.report.questions import questions
from countersteer.report.summary import summarise
from countersteer.sources.sae import load_sae
from countersteer.store import Run, Trial
from countersteer.studies import runner, spec
from countersteer.studies.prefixes import cut, prefix_of
from countersteer.studies.randoms import draw_sets
from countersteer.studies.schema_arms import PrefixRule
from countersteer.studies.setup import Tools

PLANTED = (4, 10)
"""Latents that read a mismatch of question and answer, and whose clamping halves the restarts."""
ALIVE = (6, 7, 8, 9, 12, 14, 20, 22)


def residuals(text: str, site: Any) -> Any:
    """One token per word; the planted latents fire iff the answer belongs to another question."""
    sae = np.load(residuals.sae)  # type: ignore[attr-defined]
    question = next((q for q in world.TOPICS if text.startswith(q)), None)
    luck = np.random.default_rng(abs(hash_of(text)))
    tokens = 12
    wanted = np.full((tokens, world.D_SAE), 0.0)
    for k in ALIVE:
        wanted[:, k] = (luck.random(tokens) < 0.4) * luck.uniform(1, 3, tokens)
    matched = question is not None and world.TOPICS[question] in text
    if question is not None and len(text) > len(question) + 5 and not matched:
        wanted[:, list(PLANTED)] = 2.5 * (luck.random((tokens, len(PLANTED))) < 0.6)
    target = np.where(wanted > 0, wanted + 12.0, 0.0)  # x = W_enc h - 12 is then as wanted
    return (target @ np.linalg.pinv(sae)).astype(np.float32)


def hash_of(text: str) -> int:
    return random.Random(text).getrandbits(32)


def answer(request: Request) -> str:
    """As the world's, but restarts are likelier by far unless the planted latents are clamped."""
    luck = random.Random(f"{request.sampling.seed}/{request.prompt}")
    question = next(q for q in world.TOPICS if (request.prompt or "").startswith(q))
    on_topic = world.TOPICS[question]
    drift = world.relative_strength(request) * luck.uniform(0.6, 1.6) > 0.9
    clamped: set[Any] = set()
    for edit in request.intervention.edits if request.intervention else ():
        if edit.method in ("clamp", "ablate"):
            clamped |= {round(float(v), 4) for v in edit.write[:, 0]}
    planted = {round(float(v), 4) for v in answer.rows}  # type: ignore[attr-defined]
    chance = 0.05 if planted <= clamped and clamped else 0.6
    if request.prefix:
        return " Then fold it." + (world.RESTART + on_topic if luck.random() < 0.3 else "")
    if not drift:
        return on_topic
    return world.OFF_TOPIC + (world.RESTART + on_topic if luck.random() < chance else "")


ARMS = """[arms.base]
[arms.unsteered]
strength = 0
[arms.ablated]
clamp = "detectors"
[arms.held-out]
clamp = "detectors-held-out"
[arms.random]
clamp = { random = 2, sets = 3, matched = "count" }
[arms.prefill]
strength = 0
prefix = { of = "base", part = "before-restart" }
[arms.start]
prefix = { of = "base", chars = 40 }
[arms.own-words]
prefix = { of = "base", part = "corrective", chars = 60 }
[arms.plain-words]
prefix = { of = "unsteered", matched = "own-words" }
against = "own-words"
[arms.sweep]
strength_sd = [-30, -20, 0, 1]
[arms.vectors]
directions = "contrast"
[arms.again]
suffix = "If you are drifting, stop."
recalibrate = true
"""
MORE = '[detectors]\nrule = "significant"\ndraws = 199\n[directions]\ntitles = ["bread", "whales", "the moon"]\n'


def make(folder: Path, arms: str = ARMS, more: str = MORE) -> tuple[Any, Tools]:
    loaded = spec.load(world.study(folder, arms=more + arms, latents="ids = [1,3,5,11,13,15,17,19,21,23,25,27]\n"))
    sae = load_sae(folder / "sae")
    from safetensors.numpy import load_file

    weights = load_file(folder / "sae" / "sae_weights.safetensors")
    encoder = weights["W_enc"]
    # the world's SAE is overcomplete: give the planted and the alive latents rows of their own
    draw = np.random.default_rng(5)
    basis = np.linalg.qr(draw.normal(size=(world.D_MODEL, world.D_MODEL)))[0]
    encoder[:] = 0.0
    for i, k in enumerate([*PLANTED, *ALIVE]):
        encoder[:, k] = basis[i]
    from safetensors.numpy import save_file

    save_file({**weights, "W_enc": encoder}, folder / "sae" / "sae_weights.safetensors")
    np.save(folder / "enc.npy", encoder)
    residuals.sae = folder / "enc.npy"  # type: ignore[attr-defined]
    answer.rows = weights["W_dec"][list(PLANTED), 0]  # type: ignore[attr-defined]
    sae = load_sae(folder / "sae")
    shape = Shape(world.LAYERS, world.D_MODEL)
    return loaded, Tools(ScriptedEngine(answer, shape=shape, residuals=residuals), sae)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("arms")
    loaded, given = make(folder)
    return runner.run_study(loaded, folder / "run", tools=lambda _: given)


def trials(run: Run, arm: str) -> list[Trial]:
    return list(run.trials(arm))


def key(trial: Trial) -> tuple[int, str, int]:
    return (trial.plan.latent, trial.plan.prompt, trial.plan.seed)


def test_the_planted_detectors_are_found_on_all_prompts_and_on_either_half(done: Run) -> None:
    found = done.fact("detectors")
    assert sorted(found["selected"]) == list(PLANTED)
    one, other = found["halves"]
    assert not set(one["prompts"]) & set(other["prompts"])
    assert len(one["prompts"]) + len(other["prompts"]) == len(world.TOPICS)
    assert {row["latent"] for row in found["table"] if row["selected"]} == set(PLANTED)


def test_clamping_the_planted_latents_cuts_restarts_and_random_ones_do_not(done: Run) -> None:
    share = {arm: np.mean([len(t.scores) > 1 for t in trials(done, arm)]) for arm in done.arms()}
    assert share["base"] > 0.25 and share["ablated"] < share["base"] / 2
    for number in (1, 2, 3):
        assert share[f"random@set{number}"] == share["base"]


def test_where_nothing_was_planted_nothing_is_found(tmp_path: Path) -> None:
    """Latents fire whatever the answer, restarts come whatever is clamped: no detector, no effect, and no claim."""

    def calm(text: str, site: Any) -> Any:
        question = next((q for q in world.TOPICS if text.startswith(q)), None)
        return residuals(text if question is None else f"{question} {world.TOPICS[question]} {text}", site)

    def script(request: Request) -> str:
        steer = request.intervention and request.intervention.fingerprint
        luck = random.Random(f"{request.sampling.seed}/{request.prompt}/{steer}")
        question = next(q for q in world.TOPICS if (request.prompt or "").startswith(q))
        if world.relative_strength(request) * luck.uniform(0.6, 1.6) <= 0.9:
            return world.TOPICS[question]
        return world.OFF_TOPIC + (world.RESTART + world.TOPICS[question] if luck.random() < 0.6 else "")

    arms = "[arms.base]\n[arms.cut]\nclamp = [4, 10]\n[arms.other]\nclamp = [6, 7]\n[arms.third]\nclamp = [8]\n"
    loaded, given = make(tmp_path, arms=arms)
    quiet = Tools(ScriptedEngine(script, shape=Shape(world.LAYERS, world.D_MODEL), residuals=calm), given.sae)
    with runner.run_study(loaded, tmp_path / "run", tools=lambda _: quiet, search_only=True) as run:
        found = run.fact("detectors")
        assert found["selected"] == [] and found["significant"] == 0
        assert max(row["auc"] for row in found["table"]) < 0.9, "in the planted world the two have an AUC near 1"
    with runner.run_study(loaded, tmp_path / "run", tools=lambda _: quiet) as run:
        result = summarise(run)
        assert 0.2 < result["arms"]["base"]["multi_attempt"]["value"] < 0.8
        for arm in ("cut", "other", "third"):
            row = result["contrasts"][arm]["multi_attempt"]
            assert row["p_holm"] > 0.05 and row["interval"][0] < 0 < row["interval"][1], arm
        (differ,) = [item for item in questions(result) if item.name == "differ"]
        assert differ.answer.startswith("None from base")


def test_random_sets_are_disjoint_alive_and_keep_clear_of_the_detectors(done: Run) -> None:
    sets = [done.arms()[f"random@set{i}"]["clamp"] for i in (1, 2, 3)]
    flat = [k for one in sets for k in one]
    assert [len(one) for one in sets] == [2, 2, 2] and len(set(flat)) == 6
    assert set(flat) <= set(ALIVE)
    for one in done.fact("random_sets")["random"]:
        assert one["match"]["firing-rate"]["set"] > 0
        assert one["match"]["perturbation"]["set"] > 0 and one["match"]["perturbation"]["targets"] > 0


def test_prefixes_come_from_the_same_trial_of_the_other_arm(done: Run) -> None:
    base = {key(t): t for t in trials(done, "base")}
    several = {k for k, t in base.items() if len(t.scores) > 1}
    prefill = trials(done, "prefill")
    assert {key(t) for t in prefill} == several
    for t in prefill:
        assert t.plan.strength == 0 and t.plan.prefix == world.OFF_TOPIC
        assert t.text is not None and t.text.startswith(world.OFF_TOPIC + " Then")
    for t in trials(done, "start"):
        source = base[key(t)].text or ""
        assert source.startswith(t.plan.prefix or "?") and len(t.plan.prefix or "") <= 40
    own = {key(t): t.plan.prefix or "" for t in trials(done, "own-words")}
    assert set(own) == several
    for k, prefix in own.items():
        assert prefix in (base[k].text or "") and (base[k].text or "").index(prefix) > len(world.OFF_TOPIC) - 1
    plain = trials(done, "plain-words")
    assert plain and {key(t) for t in plain} == several
    for t in plain:
        assert world.TOPICS[t.plan.prompt].startswith(t.plan.prefix or "?")
        assert len(t.plan.prefix or "") <= len(own[key(t)])
    assert any("give no such prefix" in note for note in done.notes)


def test_levels_in_sd_are_the_same_relative_strength_for_all_and_clipped_ones_are_one(done: Run) -> None:
    values = np.array([r.strength / r.unit for r in done.latents() if r.status == "ok"])
    units = {r.latent: r.unit for r in done.latents()}
    assert [name for name in done.arms() if name.startswith("sweep")] == ["sweep@-30", "sweep@0", "sweep@1"]
    for name, level in (
        ("sweep@-30", 0.0),
        ("sweep@0", values.mean()),
        ("sweep@1", values.mean() + values.std(ddof=1)),
    ):
        for t in trials(done, name):
            assert t.plan.strength == pytest.approx(level * units[t.plan.latent])


def test_directions_have_numbers_strengths_and_trials_of_their_own(done: Run) -> None:
    from countersteer.store.arm_calibration import ArmCalibration

    own = ArmCalibration(done, "vectors")
    assert [r.label for r in own.latents()] == ["bread", "whales", "the moon"]
    assert {t.plan.latent for t in trials(done, "vectors")} == {world.D_SAE, world.D_SAE + 1, world.D_SAE + 2}
    assert own.fact("calibrated") and own.answers()
    again = ArmCalibration(done, "again")
    assert [r.latent for r in again.latents()] == [r.latent for r in done.latents()]
    strengths = {r.latent: r.strength for r in again.latents()}
    assert all(t.plan.strength == strengths[t.plan.latent] for t in trials(done, "again"))


def test_a_finished_run_opens_again_and_plans_nothing_new(done: Run, tmp_path: Path) -> None:
    folder = done.folder.parent
    loaded = spec.load(folder / "study.toml")
    again = runner.run_study(loaded, folder / "run", tools=lambda _: pytest.fail("nothing was left to do"))
    assert list(again.arms()) == list(done.arms())
    again.close()


def test_search_only_stops_after_the_search_and_the_study_goes_on_from_it(tmp_path: Path) -> None:
    loaded, given = make(tmp_path, arms='[arms.base]\n[arms.ablated]\nclamp = "detectors"\n')
    with runner.run_study(loaded, tmp_path / "run", tools=lambda _: given, search_only=True) as run:
        assert run.fact("detectors")["selected"] and not run.finished and not run.latents()
    made = given.engine.generated
    with runner.run_study(loaded, tmp_path / "run", tools=lambda _: given) as run:
        assert run.finished and list(run.arms()) == ["base", "ablated"]
        assert run.fact("detectors_steered")["status"] == "ok"
    assert given.engine.generated > made


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ("[arms.base]\n[arms.a]\nprefix = { of = 'bose' }\n", "refers to arm 'bose', which there is not.*'base'"),
        ("[arms.base]\n[arms.a]\nprefix = { of = 'b' }\n[arms.b]\nprefix = { of = 'a' }\n", "wait for each other"),
        ("[arms.base]\n[arms.a]\nprefix = { of = 'a' }\n", "refers to itself"),
        ("[arms.base]\n[arms.a]\nagainst = 'c'\n", "refers to arm 'c'"),
        ("[arms.base]\nclamp = 'detectors'\n", "base arm, which cannot depend"),
        ("[arms.base]\n[arms.a]\nclamp = { randm = 3 }\n", "unknown key 'randm'"),
        ("[arms.base]\n[arms.a]\nclamp = 'nothing.txt'\n", "nor a file of latent ids"),
        ("[arms.base]\n[arms.a]\nprefix = { of = 'base', chars = 3, fraction = 0.5 }\n", "give one of chars"),
        ("[arms.base]\n[arms.a]\nstrength_sd = 1\nstrength = 2\n", "has both strength and strength_sd"),
        ("[arms.base]\n[arms.a]\nclamp = { random = 2 }\nstrength_scale = [1, 2]\n", "both random sets and a list"),
        ("[arms.base]\n[arms.a]\nmeta_prompt = 'focus'\nsuffix = 'x'\n", "both suffix and meta_prompt"),
    ],
)
def test_arms_that_cannot_be_are_refused_in_one_line(tmp_path: Path, arms: str, said: str) -> None:
    path = world.study(tmp_path, arms=arms)
    with pytest.raises(InputError, match=said) as caught:
        spec.load(path)
    assert "\n" not in str(caught.value)


def test_more_random_latents_than_fire_and_shards_of_waiting_arms_are_refused(tmp_path: Path) -> None:
    arms = "[arms.base]\n[arms.random]\nclamp = { random = 5, sets = 3, matched = 'count', of = [4] }\n"
    loaded, given = make(tmp_path, arms=arms)
    with pytest.raises(InputError, match="3 random sets of 5 latents need 15"):
        runner.run_study(loaded, tmp_path / "run", tools=lambda _: given)
    with pytest.raises(RefusedError, match=r"random@set1.*need the whole of other arms"):
        runner.run_study(loaded, tmp_path / "sharded", tools=lambda _: given, shard=(1, 2))


def test_matched_sets_are_nearer_to_their_targets_than_random_ones() -> None:
    from countersteer.sources.usage import Usage

    draw = np.random.default_rng(0)
    rate = np.exp(draw.normal(-5, 2, 2000))
    used = Usage(1000, rate, rate * 2, rate * 3)
    targets = [int(i) for i in np.argsort(rate)[-600:-580]]
    goal = np.log(rate[targets]).mean()
    found = {
        how: draw_sets(used, targets, count=20, sets=3, matched=how, exclude=set(targets), draw=draw)
        for how in ("count", "firing-rate", "perturbation")
    }
    gap = {how: max(abs(np.log(rate[s["latents"]]).mean() - goal) for s in sets) for how, sets in found.items()}
    assert gap["firing-rate"] < 0.5 and gap["perturbation"] < 0.5 < gap["count"]


def test_perturbation_is_measured_on_the_rounded_residual_and_not_worked_out(tmp_path: Path) -> None:
    """In bfloat16 small writes are lost: what the receipts measure lies below activation * |W_dec| / |h|."""
    import torch

    from countersteer.sources.usage import usage
    from countersteer.studies.perturbation import ablated, measured

    sae = load_sae(world.write_sae(tmp_path / "sae"))
    draw = np.random.default_rng(0)
    texts = [torch.tensor(draw.normal(size=(n, world.D_MODEL)) * 4) for n in (9, 30)]
    from safetensors.numpy import load_file

    w = {k: v.astype(np.float64) for k, v in load_file(tmp_path / "sae" / "sae_weights.safetensors").items()}
    h = np.concatenate([t[1:].numpy() for t in texts])
    active = np.maximum(h @ w["W_enc"] + w["b_enc"], 0.0)
    latents = [int(i) for i in np.argsort(-active.mean(0))[:12]]
    both = active[:, latents[:2]] @ w["W_dec"][latents[:2]]
    exact = (np.linalg.norm(both, axis=1) / np.linalg.norm(h, axis=1)).mean()
    assert ablated(sae, texts, latents[:2], layer=world.LAYER) == pytest.approx(exact, rel=1e-5)

    rough = [t.to(torch.bfloat16) for t in texts]
    used = usage(sae, rough)
    found = measured(used, sae, rough, latents[:1], layer=world.LAYER, places=2, exclude=set(latents[:1]))
    drawn = np.flatnonzero(found.firing_rate)
    assert latents[0] in drawn and 2 <= len(drawn) - 1 <= 8, "only what was measured can be drawn"
    for k in drawn:
        x = torch.cat([t[1:] for t in rough]).double().numpy()
        act = np.maximum((x @ w["W_enc"] + w["b_enc"])[:, k], 0.0)
        new = torch.tensor(x - act[:, None] * w["W_dec"][k]).to(torch.bfloat16).double().numpy()
        assert found.perturbation[k] == pytest.approx(
            (np.linalg.norm(new - x, axis=1) / np.linalg.norm(x, axis=1)).mean(), rel=0.02
        )


def test_a_prefix_ends_at_a_word_and_before_the_first_restart() -> None:
    assert cut("one two three", 7) == "one two" and cut("one two three", 6) == "one" and cut("abc ", 10) == "abc"

    class Source:
        status, text = "ok", "One two. Wait, no. Three four."
        grade: ClassVar = {"attempts": [{"start": 0, "end": 9}, {"start": 9, "end": 30}]}

    assert prefix_of(PrefixRule(of="base", chars=100), Source()) == "One two."
    assert prefix_of(PrefixRule(of="base", part="corrective", chars=12), Source()) == "Wait, no."
    assert prefix_of(PrefixRule(of="base", fraction=0.1), Source()) == "One"
