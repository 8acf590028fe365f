"""The shipped organism: it loads like any Hugging Face model, behaves as its card says, and can be trained again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from countersteer import organism
from countersteer.organism import corpus
from countersteer.organism.evaluate import _crossing, _decreasing, steering_latents, summary
from countersteer.organism.generate import Ask, Generator
from countersteer.organism.measure import measure, restarts, tone
from countersteer.organism.sae import encode
from countersteer.organism.tokenizer import build
from countersteer.organism.train import Recipe, run


@pytest.fixture(scope="module")
def generator() -> Generator:
    cfg = json.loads((organism.sae_path() / "cfg.json").read_text(encoding="utf-8"))
    return Generator(organism.path(), layer=int(cfg["metadata"]["hook_name"].split(".")[1]))


@pytest.fixture(scope="module")
def sae() -> dict[str, torch.Tensor]:
    return load_file(organism.sae_path() / "sae_weights.safetensors")


def _labels() -> list[dict[str, str]]:
    with (organism.sae_path() / "labels.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_is_shipped_is_small():
    def size(folder: Path) -> int:
        return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts)

    assert all(size(organism.path(name)) <= 8e6 for name in organism.SHIPPED)
    assert size(Path(organism.__file__).parent) <= 10e6


def test_the_folder_loads_by_the_auto_classes():
    model = AutoModelForCausalLM.from_pretrained(organism.path())
    tokenizer = AutoTokenizer.from_pretrained(organism.path())
    assert isinstance(model, LlamaForCausalLM) and model.dtype == torch.float32
    assert tokenizer.get_vocab() == build().get_vocab() and len(tokenizer) == model.config.vocab_size
    chat = [{"role": "user", "content": "How do I iron a shirt?"}]
    assert (
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        == "<|begin|><|user|>How do I iron a shirt?<|end|><|assistant|>"
    )
    text = corpus.example(5, 7).turns[0].answer
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_unsteered_answers_are_on_topic_ended_and_without_restarts(generator):
    rows = organism.prompts("howto")
    texts = generator.sample([Ask(row["prompt"]) for row in rows], seed=1)
    results = [measure(text, row["topic"], ended=ended) for (text, ended), row in zip(texts, rows, strict=True)]
    assert sum(m.clean for m in results) >= 0.95 * len(rows)
    assert sum(bool(restarts(text)) for text, _ in texts) <= 1


def test_the_system_prompt_sets_the_tone(generator):
    rows = organism.prompts("tone-report")[::2]
    for name in ("warm", "dismissive"):
        texts = generator.sample([Ask(row["prompt"], row[name]) for row in rows], seed=2)
        assert sum(tone(text) == name for text, _ in texts) >= 0.9 * len(rows)
    texts = generator.sample([Ask(row["prompt"]) for row in rows], seed=2)
    assert sum(tone(text) == "plain" for text, _ in texts) >= 0.9 * len(rows)


def test_a_topic_latent_pulls_answers_to_its_topic_and_restarts_appear(generator):
    rows = organism.prompts("howto")
    latents = steering_latents(generator, organism.sae_path(), rows)
    assert len(latents) >= 15
    asks = [(row, latents[i % len(latents)]) for i, row in enumerate(rows * 2)]
    texts = generator.sample([Ask(row["prompt"], None, 0.8 * k.unit) for row, k in asks], seed=3)
    results = [measure(text, row["topic"], ended=ended) for (text, ended), (row, _) in zip(texts, asks, strict=True)]
    assert sum(m.scores[0] for m in results) / len(results) < 70
    pulled = [m.elsewhere == k.label for m, (_, k) in zip(results, asks, strict=True) if m.scores[0] < 50]
    assert sum(pulled) > 0.5 * len(pulled) > 5
    assert any(m.restarted for m in results)


def test_the_sae_folder_is_in_saelens_format_and_fits(generator, sae):
    cfg = json.loads((organism.sae_path() / "cfg.json").read_text(encoding="utf-8"))
    width, count = cfg["d_in"], cfg["d_sae"]
    assert (cfg["architecture"], cfg["normalize_activations"], cfg["apply_b_dec_to_input"]) == (
        "jumprelu",
        "none",
        True,
    )
    assert {name: tuple(t.shape) for name, t in sae.items()} == {
        "W_enc": (width, count), "W_dec": (count, width), "b_enc": (count,), "b_dec": (width,), "threshold": (count,),
    }  # fmt: skip
    layer = int(cfg["metadata"]["hook_name"].split(".")[1])
    text = "<|begin|><|user|>How do I bake bread?<|end|><|assistant|>" + corpus.example(5, 7).turns[0].answer
    ids = generator.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.no_grad():
        hidden = generator.model(ids, output_hidden_states=True).hidden_states[layer + 1][0, 1:]
    acts = encode(hidden, sae, sae["threshold"])
    left = (hidden - acts @ sae["W_dec"] - sae["b_dec"]).pow(2).sum() / (hidden - hidden.mean(0)).pow(2).sum()
    assert left < 0.35


def test_labels_name_real_latents_and_real_topics(sae):
    rows, names = _labels(), {topic.name for topic in corpus.topics()}
    other = {topic.name for topic in corpus.topics() if not topic.goals}
    indices = [int(row["index"]) for row in rows]
    assert len(set(indices)) == len(indices) and min(indices) >= 0 and max(indices) < sae["W_dec"].shape[0]
    concrete = [row for row in rows if int(row["concreteness"]) >= 65]
    assert len(concrete) >= 60 and all(row["topic"] in names and row["label"] == row["topic"] for row in concrete)
    assert len({row["topic"] for row in concrete} & other) >= 0.6 * len(other)


def test_training_is_seeded(tmp_path):
    recipe = Recipe(seed=4, steps=20, warmup=5, batch=8, width=32, layers=2, heads=2, feed_forward=64)
    first = run(recipe, tmp_path / "a")
    assert first == run(recipe, tmp_path / "b") and first[-1] < first[0]
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_interrupted_training_ends_with_the_same_weights(tmp_path):
    recipe = Recipe(seed=4, steps=260, warmup=5, batch=2, width=16, layers=1, heads=1, feed_forward=16)

    def interrupt(at: dict[str, float]) -> None:
        if at["step"] >= 255:
            raise KeyboardInterrupt

    whole = run(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "cut", progress=interrupt)
    assert (tmp_path / "cut" / "training.pt").exists()
    assert run(recipe, tmp_path / "cut") == whole
    assert not (tmp_path / "cut" / "training.pt").exists()
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_calibration_arithmetic():
    assert _decreasing([100, 40, 60, 10]) == [100, 50, 50, 10]
    assert _crossing([100] * 9) is None
    # 100 at 0.2, 65 at 0.3, then 0 at 0.4: 30 lies 35/65 of the way from 0.3 to 0.4
    assert _crossing([100, 65, 0, 0, 0, 0, 0, 0, 0]) == pytest.approx(0.3 + 0.1 * 35 / 65)


def test_summary_counts():
    topic = "ironing a shirt"
    texts = [
        "Press the collar and the cuffs. Steam the yoke.",
        "The volcano erupted. Wait, that's not right. Let me try again. Iron each sleeve.",
        "Iron each sleeve. Sorry, I made a mistake. Let me start over. The volcano erupted.",
    ]
    found = summary([measure(text, topic, ended=True) for text in texts])
    assert (found["n"], found["multi_attempt"], found["esr"], found["improvement"]) == (3, 66.67, 33.33, 50.0)
    assert found["first_attempt"] == pytest.approx(66.7) and found["clean"] == pytest.approx(33.33)


def test_the_card_says_what_it_is_not():
    assert "not evidence about real models" in organism.model_card()
