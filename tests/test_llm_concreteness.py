"""Latents are drawn among labels that a judge finds concrete: each rated once, and no more than the draw comes to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import studies_world as world
from countersteer.core.errors import InputError
from countersteer.core.fingerprint import rng
from countersteer.studies import runner, spec
from fake_openai import FakeOpenAI, score
from test_long_runs_judge import key, run, study  # noqa: F401

WANTED = 4


def bare(path: Path, *, every: int = 1) -> dict[int, str]:
    """Labels without a concreteness in the study's SAE folder, for every so-many-th latent."""
    texts = {i: f"topic {i}" for i in range(0, world.D_SAE, every)}
    (path.parent / "sae" / "labels.csv").write_text("index,label\n" + "".join(f"{i},{t}\n" for i, t in texts.items()))
    return texts


def expected(texts: dict[int, str], least: float) -> list[int]:
    """The first latents of the study's order whose label the fake judge scores high enough."""
    order = rng(0, "latents").permutation(world.D_SAE)
    return [int(i) for i in order if int(i) in texts and score(texts[int(i)]) >= least][:WANTED]


@pytest.mark.parametrize("least", [50, 80])
def test_labels_are_rated_until_enough_have_passed(tmp_path: Path, least: float) -> None:
    with FakeOpenAI() as server:
        latents = f'count = {WANTED}\nconcreteness = {least}.0\nrelevance = "any"\n'
        path = study(tmp_path, server, latents=latents)
        texts = bare(path)
        with run(path, tmp_path / "run") as done:
            rows = done.latents()
            assert [row.latent for row in rows] == expected(texts, least)
            assert [row.concreteness for row in rows] == [score(texts[row.latent]) for row in rows]
            asked = [user for user in server.answered if "<description-" in user]
            order = rng(0, "latents").permutation(world.D_SAE)
            last = int(np.flatnonzero(order == rows[-1].latent)[0])
            assert last < len(asked) <= last + 3 * WANTED, "no more labels are paid for than the draw comes to"
            assert all(server.answered[user] == 1 for user in asked)
            assert any(f"concreteness of {len(asked)} labels rated by openai/gpt-4o" in note for note in done.notes)
            assert done.judging()["requests"] == server.requests, "ratings are in the ledger"


def test_a_label_without_a_usable_rating_is_not_chosen_and_counted(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        path = study(tmp_path, server, latents=f'count = {WANTED}\nconcreteness = 1.0\nrelevance = "any"\n')
        texts = bare(path)
        broken = expected(texts, 1)[0]
        said = server.said
        refusal = "I'm sorry, but I can't help with that."
        server.said = lambda u: (refusal, "stop") if f"\ntopic {broken}\n" in u else said(u)  # type: ignore[method-assign]
        with run(path, tmp_path / "run") as done:
            assert broken not in [row.latent for row in done.latents()]
            assert any("1 of them without a usable rating" in note for note in done.notes)


def test_a_judge_that_can_rate_nothing_stops_the_study(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        path = study(tmp_path, server, latents=f'count = {WANTED}\nrelevance = "any"\n')
        bare(path)
        server.said = lambda user: ("I'm sorry, but I can't help with that.", "stop")  # type: ignore[method-assign]
        with pytest.raises(InputError, match=r"no usable concreteness for any of 40 labels.*concreteness = 0"):
            run(path, tmp_path / "run")


def test_labels_that_carry_one_are_not_rated(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        path = study(tmp_path, server, latents=f'count = {WANTED}\nrelevance = "any"\n')
        with run(path, tmp_path / "run") as done:
            assert all(row.concreteness == 90 for row in done.latents())
        assert not any("<description-" in user for user in server.answered)


def test_without_a_language_model_the_filter_is_skipped_with_a_note(tmp_path: Path) -> None:
    path = world.study(tmp_path, latents=f'count = {WANTED}\nrelevance = "any"\n', arms="[arms.base]\nstrength = 3.0\n")
    bare(path)
    with runner.run_study(spec.load(path), tmp_path / "run", tools=lambda _: world.tools(tmp_path / "sae")) as done:
        assert len(done.latents()) == WANTED
        assert any("not filtered by concreteness" in note and "no language model" in note for note in done.notes)
