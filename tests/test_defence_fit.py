"""Fitting: formulas against scikit-learn and brute force, embeddings against plain transformers, CLAS and adapters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression

import countersteer as cs
from countersteer import organism
from countersteer.core.errors import InputError
from countersteer.defence import data, responses
from countersteer.defence import fit as fitting
from countersteer.defence import separation as sep
from helpers_defence import data_file, settings

RNG = np.random.default_rng(11)
GOOD, BAD = RNG.normal(0.4, 1.0, (40, 12)), RNG.normal(-0.4, 1.3, (40, 12))


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    with cs.load_engine("organism", places=32) as made:
        yield made


@pytest.fixture(scope="module")
def fitted(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> fitting.Fit:
    folder = tmp_path_factory.mktemp("fit")
    made = fitting.fit(engine, data.load(data_file(folder)), settings(folder, fit={"clas_layers": [3]}))
    return fitting.load_fit(made.save(folder / "fit"))


def test_the_exported_embeddings_give_every_number_again(fitted: fitting.Fit) -> None:
    good, bad = (fitted.arrays[f"embeddings.{kind}"] for kind in ("aligned", "malicious"))
    count = fitted.facts["scenarios"]["used"]
    assert good.shape == bad.shape == (count, 6, 128) and count >= 10
    for i, row in enumerate(fitted.facts["layers"]):
        x = np.concatenate([good[:, i], bad[:, i]])
        y = np.repeat([1, 0], count)
        model = LogisticRegression(C=1.0, solver="lbfgs", max_iter=10_000).fit(x, y)
        w, b = model.coef_[0], model.intercept_[0]
        size = np.sqrt((w**2).sum())
        at = row["along"]["logistic"]
        np.testing.assert_allclose(fitted.arrays["direction.logistic"][i], w / size, rtol=1e-9)
        assert at["boundary"] == pytest.approx(-b / size)
        p, n = (np.array([float(e @ (w / size)) for e in rows[:, i]]) for rows in (good, bad))
        assert at["aligned_mean"] == pytest.approx(sum(p) / count)
        assert at["aligned_spread"] == pytest.approx(np.sqrt(sum((p - p.mean()) ** 2) / (count - 1)))
        assert at["separation"] == pytest.approx(p.mean() - n.mean())
        difference = good[:, i].mean(0) - bad[:, i].mean(0)
        cosine = float(difference @ w / size / np.linalg.norm(difference))
        assert row["cosine_with_logistic"]["mean-difference"] == pytest.approx(cosine)
        assert fitted.direction(row["layer"]).site == cs.Site(row["layer"])
        assert row["tokens"]["aligned_token_spread"] > at["aligned_spread"], "tokens spread wider than their averages"


def test_embeddings_are_means_of_what_plain_transformers_computes(engine: Any) -> None:
    from transformers import AutoModelForCausalLM

    scenarios = data.load("organism").split("fit")[:3]
    sampling = cs.Sampling(max_tokens=12)
    answers = responses.answer_all(engine, responses.ask_all(scenarios, "malicious"), sampling, seed=3)
    found = responses.read(engine, answers, sampling=sampling, layers=[0, 2, 4])
    model = AutoModelForCausalLM.from_pretrained(organism.path(), dtype=torch.float32)
    for i, answer in enumerate(answers):
        text = engine.tokenizer.apply_chat_template(
            [{"role": "system", "content": scenarios[i].malicious}, {"role": "user", "content": scenarios[i].user}],
            tokenize=False, add_generation_prompt=True,
        )  # fmt: skip
        prompt = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert engine.tokenizer.eos_token_id not in answer.tokens
        ids = torch.tensor([prompt + list(answer.tokens)])
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        for k, layer in enumerate((0, 2, 4)):
            h = states[layer + 1][0].double().numpy()
            np.testing.assert_allclose(found.response[i, k], h[len(prompt) :].mean(0), atol=1e-5)
            np.testing.assert_allclose(found.last[i, k], h[-1], atol=1e-5)
            np.testing.assert_allclose(found.prompt[i, k], h[1 : len(prompt)].mean(0), atol=1e-5)


def test_conditions_share_the_noise_of_their_scenario(engine: Any) -> None:
    scenarios = data.load("organism").split("fit")[:2]
    asks = [*responses.ask_all(scenarios, "aligned"), *responses.ask_all(scenarios, "malicious")]
    seeds = [a.request(cs.Sampling(), 7).sampling.seed for a in asks]
    assert seeds[:2] == seeds[2:] and seeds[0] != seeds[1]
    assert responses.ask_all(scenarios, "none", attack="X {user} Y")[0].user == f"X {scenarios[0].user} Y"
    reminded = responses.ask_all(scenarios, "malicious", reminder="Be kind.")[0]
    assert reminded.system == f"{scenarios[0].malicious} Be kind."


def test_lat_is_the_first_principal_axis_of_the_signed_pairs_and_points_to_the_aligned_side() -> None:
    axis = sep.lat(GOOD, BAD, np.random.default_rng(0))
    signed = (GOOD - BAD) * np.random.default_rng(0).choice([-1.0, 1.0], size=(40, 1))
    _, vectors = np.linalg.eigh(np.cov(signed.T))
    assert abs(float(axis @ vectors[:, -1])) == pytest.approx(1.0)
    assert float(((GOOD - BAD) @ axis).mean()) >= 0
    assert np.array_equal(axis, sep.lat(GOOD, BAD, np.random.default_rng(0)))


def test_auc_and_cohens_d_against_counting() -> None:
    a, b = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0])
    assert sep.auc(a, b) == (1 + 1 + 0.5 + 1 + 0 + 1) / 6
    at = sep.along(np.eye(12)[0], GOOD, BAD)
    pooled = np.sqrt((GOOD[:, 0].var(ddof=1) + BAD[:, 0].var(ddof=1)) / 2)
    assert at.cohen_d == pytest.approx((GOOD[:, 0].mean() - BAD[:, 0].mean()) / pooled)
    assert at.boundary == pytest.approx((GOOD[:, 0].mean() + BAD[:, 0].mean()) / 2)


def test_held_out_separation_never_sees_a_group_and_is_at_chance_on_noise() -> None:
    groups = [f"g{i // 4}" for i in range(40)]
    real = sep.held_out(GOOD, BAD, groups, np.random.default_rng(1), folds=5)
    assert real.accuracy > 0.8 and real.auc > 0.9
    noise = np.random.default_rng(2)
    found = [
        sep.held_out(noise.normal(size=(40, 12)), noise.normal(size=(40, 12)), groups, noise).auc for _ in range(40)
    ]
    assert abs(np.mean(found) - 0.5) < 0.06
    same = np.repeat(noise.normal(size=(10, 12)), 4, axis=0)  # four copies per group: leaking them would give AUC 1
    copies = sep.held_out(same, np.repeat(noise.normal(size=(10, 12)), 4, axis=0), groups, noise, folds=10)
    assert copies.auc < 0.95
    with pytest.raises(InputError, match="at least two groups"):
        sep.held_out(GOOD, BAD, ["one"] * 40, noise)


def test_classes_that_do_not_differ_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be told apart"):
        sep.logistic(np.ones((5, 3)), np.ones((5, 3)))
    with pytest.raises(InputError, match="same mean"):
        sep.mean_difference(GOOD, GOOD)


def test_clas_lowers_the_loss_of_the_aligned_response_below_the_fixed_strength(fitted: fitting.Fit) -> None:
    row = fitted.facts["layers"][3]["clas"]
    assert row["loss"] < row["loss_before"] and row["loss"] < row["unsteered_loss"]
    assert fitted.arrays["clas.3"].shape == (128,)


def test_a_fit_refuses_leaking_data_and_other_folders(engine: Any, tmp_path: Path) -> None:
    path = data_file(tmp_path)
    lines = path.read_text().splitlines()
    lines.append(json.dumps({**json.loads(lines[1]), "id": "again", "split": "report"}))
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match="leaks between splits"):
        fitting.fit(engine, data.load(path), settings(tmp_path))
    with pytest.raises(InputError, match="is not a fit"):
        fitting.load_fit(tmp_path)
    (tmp_path / "fit.json").write_text("{}")
    (tmp_path / "responses.jsonl").write_text("")
    save_file({"x": torch.ones(1)}, str(tmp_path / "fit.safetensors"))
    with pytest.raises(InputError, match="another format"):
        fitting.load_fit(tmp_path)
