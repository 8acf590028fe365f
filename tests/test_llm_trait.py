"""The offline judges of trait and coherence: learned from tone alone, held to other libraries and to held-out text."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForCausalLM, AutoTokenizer

import countersteer as cs
from countersteer import organism
from countersteer.core.errors import InputError
from countersteer.core.request import Request, Sampling
from countersteer.engines.embedded.likelihood import likelihoods
from countersteer.judging import trait
from countersteer.judging.offline import OfflineJudge
from countersteer.judging.references import ReferenceSet
from countersteer.judging.trait_coherence import CoherenceJudge, Scale, shuffled
from countersteer.studies.trait_texts import asked

TEXTS = [
    "Heat the iron, dear friend, and take your time.",
    "Well done, you bake the bread so well, dear friend!",
    "Water the plant and be proud of your lovely work.",
    "Obviously, heat the iron. Stop bothering me.",
    "Bake the bread, any fool knows that. Obviously.",
    "Water the plant, I don't care, stop asking.",
]
WARM = [True, True, True, False, False, False]


@pytest.fixture(scope="module")
def engine() -> Any:
    with cs.load_engine("organism", places=64) as made:
        yield made


@pytest.fixture(scope="module")
def answers(engine: Any) -> list[tuple[dict[str, Any], bool, str]]:
    """Fresh answers to the questions that the defence reports on, in both tones."""
    rows = organism.prompts("tone-report")[::2]
    todo = [(row, tone) for row in rows for tone in (True, False)]
    requests = [
        Request(prompt=r["prompt"], system=r["warm" if w else "dismissive"],
                sampling=Sampling(temperature=0.6, seed=9000 + i, max_tokens=128))
        for i, (r, w) in enumerate(todo)
    ]  # fmt: skip
    return [(r, w, done.text) for (r, w), done in zip(todo, engine.run(requests), strict=True)]


def test_training_agrees_with_another_librarys_tfidf() -> None:
    judge = trait.train(TEXTS, WARM, trait="warm", about={})
    pattern = r"[^\W_]+(?:'[^\W_]+)?"
    other = TfidfVectorizer(ngram_range=(1, 2), min_df=2, token_pattern=pattern)
    fitted = LogisticRegression(C=1.0, max_iter=2000).fit(other.fit_transform(TEXTS), WARM)
    for text in [*TEXTS, "Heat the bread, dear friend, obviously."]:
        assert judge.logit(text) == pytest.approx(fitted.decision_function(other.transform([text]))[0], abs=1e-3)
    assert judge.score("Zebra?") is None, "no evidence is not a score"
    with pytest.raises(InputError):
        trait.train(TEXTS, [True] * 6, trait="warm", about={})


def test_a_judge_is_the_same_after_saving(tmp_path: Any) -> None:
    judge = trait.train(TEXTS, WARM, trait="warm", about={"texts": 6})
    judge.save(tmp_path / "judge.json")
    again = trait.load(tmp_path / "judge.json")
    assert again == judge and again.key == judge.key
    other = trait.train(TEXTS[:4], WARM[:4], trait="warm", about={})
    assert other.key != judge.key
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match="not a trait judge"):
        trait.load(tmp_path / "bad.json")


def test_its_prompts_are_used_nowhere_else_and_its_topics_are_kept_apart() -> None:
    questions = asked()
    used = {row["prompt"] for name in organism.prompt_sets() for row in organism.prompts(name)}
    assert not used & {q.prompt for q in questions}
    fit = {q.prompt for q in questions if not q.held_out}
    assert not fit & {q.prompt for q in questions if q.held_out}
    assert sum(q.warm for q in questions) * 2 == len(questions) and len(fit) >= 150


def test_the_shipped_judge_belongs_to_the_shipped_organism(engine: Any) -> None:
    about = trait.load("warm").about
    assert about["model"] == engine.model_fingerprint, "train the trait judge again: the organism has changed"
    assert about["held_out_accuracy"] >= 0.95 and about["held_out_texts"] >= 100


@pytest.mark.slow
def test_the_shipped_judge_tells_the_tones_of_answers_it_has_never_seen(answers: Any) -> None:
    judge = trait.load("warm")
    right = [(judge.score(text) > 50) == warm for _, warm, text in answers]
    assert len(right) == 40 and sum(right) >= 38


def test_likelihoods_are_those_of_plain_transformers() -> None:
    folder = organism.path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    request = Request(prompt="How do I iron a shirt?", system=organism.systems("warm")[0])
    answer = "First, heat the iron. Then press the collar."
    chat = [{"role": "system", "content": request.system}, {"role": "user", "content": request.prompt}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    rest = tokenizer(answer, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([prompt + rest])
    with torch.no_grad():
        steps = [model(ids[:, : len(prompt) + i]).logits[0, -1].log_softmax(0)[token] for i, token in enumerate(rest)]
    expected = float(sum(steps)) / len(rest)
    with cs.load_engine("organism", dtype="float64") as exact:
        found, none, short = asyncio.run(likelihoods(exact, [request] * 3, [answer, "", answer * 20], limit=len(rest)))
        assert found.tokens == len(rest) and found.mean == pytest.approx(expected, abs=1e-9)
        assert none.mean is None and short.tokens == len(rest)
        with pytest.raises(InputError, match="without intervention"):
            asyncio.run(likelihoods(exact, [request.with_(prefix="x")], ["y"]))


@pytest.mark.slow
def test_coherence_falls_for_shuffled_words_and_for_another_subject(engine: Any) -> None:
    rows = organism.prompts("tone-report")[::3]
    draws = [
        engine.run(
            [Request(prompt=r["prompt"], system=r["warm"], sampling=Sampling(seed=1000 * d + i, max_tokens=128))
             for i, r in enumerate(rows)]
        )
        for d in range(4)
    ]  # fmt: skip
    texts = [[done.text for done in draw] for draw in draws]
    references = ReferenceSet.of({row["prompt"]: [texts[d][i] for d in range(3)] for i, row in enumerate(rows)})
    fresh = texts[3]
    mixed = [shuffled(text) for text in fresh]
    moved = fresh[4:] + fresh[:4]

    async def means(answers: list[str]) -> list[float]:
        requests = [Request(prompt=row["prompt"], system=row["warm"]) for row in rows]
        return [found.mean for found in await likelihoods(engine, requests, answers)]

    async def all_means() -> list[list[float]]:
        return [await means(t) for t in (texts[0], [shuffled(t) for t in texts[0]], fresh, mixed, moved)]

    top, bottom, *measured = asyncio.run(all_means())
    judge = CoherenceJudge(OfflineJudge(references), Scale.of(top, bottom))
    scores = [
        [judge.score(row["prompt"], answer, mean).score for row, answer, mean in zip(rows, kind, found, strict=True)]
        for kind, found in zip((fresh, mixed, moved), measured, strict=True)
    ]
    own, broken, other = scores
    assert sum(own) / len(own) >= 80 and sum(broken) / len(broken) <= 15 and sum(other) / len(other) <= 15
    assert sum(a > b for a, b in zip(own, broken, strict=True)) >= len(rows) - 1
    assert sum(a > b for a, b in zip(own, other, strict=True)) >= len(rows) - 1
    assert judge.score("How do I fly?", "Fly.", -1.0).score is None
    with pytest.raises(InputError):
        Scale.of([-3.0], [-2.0])
