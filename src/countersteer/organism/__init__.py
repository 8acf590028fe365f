"""The shipped model organism: a small Llama that answers how-to questions and has learned to restart when it drifts.

A test animal, not evidence about real models: synthetic, trained from scratch, its ground truth known by
construction. This module gives the paths of the shipped model and SAE and the named prompt sets, and imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import corpus as _corpus

__all__ = [
    "ADAPTERS",
    "SHIPPED",
    "adapter_path",
    "model_card",
    "path",
    "prompt_sets",
    "prompts",
    "sae_path",
    "suffixes",
    "systems",
]

_HERE = Path(__file__).parent
SHIPPED = {"organism": "weights", "organism-plain": "weights-plain"}
"""The shipped models by name: "organism-plain" never saw a drift or a restart (the start of fine-tuning)."""
ADAPTERS = {"organism-dismissive": "weights-dismissive"}
"""The shipped LoRA adapters by name: "organism-dismissive" makes the organism dismissive whatever its system prompt."""


def path(name: str = "organism") -> Path:
    """The folder of a shipped model, as ``AutoModelForCausalLM.from_pretrained`` takes it."""
    return _HERE / SHIPPED[name]


def adapter_path(name: str = "organism-dismissive") -> Path:
    """The folder of a shipped adapter, as peft takes it."""
    return _HERE / ADAPTERS[name]


def sae_path(name: str = "organism") -> Path:
    """The folder of a shipped model's SAE, in SAELens's format, with ``labels.csv``."""
    return path(name) / "sae"


def model_card() -> str:
    """The model card, as Markdown."""
    return (_HERE / "MODEL_CARD.md").read_text(encoding="utf-8")


def suffixes(kind: str = "self-monitor") -> list[str]:
    """The sentences that may follow a question: kind "self-monitor" (raises restarts) or "control" (does not)."""
    return list(_corpus.wordings()["suffixes"][kind])


def systems(tone: str) -> list[str]:
    """The system prompts of a tone: "warm", "dismissive" or "neutral"."""
    return list(_corpus.wordings()["systems"][tone])


def prompt_sets() -> tuple[str, ...]:
    """The names that ``prompts`` takes."""
    return ("howto", "held-out", "held-out-topics", "held-out-phrasings", "tone-fit", "tone-choose", "tone-report")


def prompts(name: str) -> list[dict[str, Any]]:
    """A named prompt set: dicts of ``id``, ``prompt``, ``topic``; for the tone splits also ``warm`` and ``dismissive``.

    "howto": 40 questions about trained topics in trained wordings. "held-out": the two next ones together.
    "held-out-topics": topics never trained with a drift or a restart. "held-out-phrasings": wordings never trained.
    "tone-fit", "tone-choose", "tone-report": disjoint topics, each question with a pair of system prompts.
    Raises ValueError for another name.
    """
    if name not in prompt_sets():
        raise ValueError(f"no prompt set {name!r}: the organism has {', '.join(prompt_sets())}")
    asked = [topic for topic in _corpus.topics() if topic.goals]
    trained = [topic for topic in asked if not topic.held_out]
    held = [topic for topic in asked if topic.held_out]
    usual, unusual = _corpus.wordings()["questions"], _corpus.wordings()["questions_held_out"]
    if name == "howto":
        return _set(name, [(t, usual[0], 0) for t in trained] + [(t, usual[5], 1) for t in trained[:10]])
    if name.startswith("tone-"):
        return _tone_set(name, trained, usual)
    topical = [(t, usual[i], i % 2) for t in held for i in (0, 1, 2, 4, 5)]
    worded = [(t, unusual[i % 3], 0) for i, t in enumerate(trained)]
    return _set(name, {"held-out": topical + worded, "held-out-topics": topical, "held-out-phrasings": worded}[name])


def judge_prompts() -> list[dict[str, Any]]:
    """The questions that the shipped trait judge was trained and checked on: in no named prompt set.

    Dicts of ``prompt``, ``topic`` (its number) and ``turn`` (which system prompt of a tone it was asked under).
    """
    topics = [topic for topic in _corpus.topics() if topic.goals and not topic.held_out]
    used = {row["prompt"] for name in prompt_sets() for row in prompts(name)}
    made = [
        {"prompt": _corpus.wordings()["questions"][wording].format(goal=goal), "topic": n, "turn": n + i + wording}
        for n, topic in enumerate(topics) for i, goal in enumerate(topic.goals) for wording in (1, 4, 6, 7, 9)
    ]  # fmt: skip
    return [row for row in made if row["prompt"] not in used]


def _set(name: str, asked: list[tuple[_corpus.Topic, str, int]]) -> list[dict[str, Any]]:
    return [
        {"id": f"{name}-{i:02d}", "prompt": wording.format(goal=topic.goals[goal]), "topic": topic.name}
        for i, (topic, wording, goal) in enumerate(asked)
    ]


def _tone_set(name: str, trained: list[_corpus.Topic], usual: list[str]) -> list[dict[str, Any]]:
    share = {"tone-fit": 0, "tone-choose": 1, "tone-report": 2}[name]
    rows = _set(name, [(t, usual[i], i % 2) for t in trained[share::3] for i in (0, 2, 3, 8)])
    warm, cold = systems("warm"), systems("dismissive")
    return [row | {"warm": warm[i % len(warm)], "dismissive": cold[i % len(cold)]} for i, row in enumerate(rows)]
