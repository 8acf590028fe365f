"""The texts that the shipped trait judge is trained and checked on: the organism's unsteered answers in both tones.

The prompts are wordings that no named prompt set uses. A third of the topics is kept from the training; the judge is
checked on those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from countersteer import organism
from countersteer.core.request import Request, Sampling
from countersteer.engines.base import Engine
from countersteer.judging.trait import TraitJudge, train

TONES = ("warm", "dismissive")


@dataclass(frozen=True)
class Asked:
    """A question in one tone; `held_out`: its topic is kept from the training."""

    prompt: str
    system: str
    warm: bool
    held_out: bool


def asked() -> list[Asked]:
    """Every question in both tones, with the system prompts in turn. Disjoint from every named prompt set."""
    made = []
    for row in organism.judge_prompts():
        for tone in TONES:
            systems = organism.systems(tone)
            system = systems[row["turn"] % len(systems)]
            made.append(Asked(row["prompt"], system, tone == "warm", row["topic"] % 3 == 2))
    return made


def answers(engine: Engine, questions: list[Asked], *, seed: int = 0) -> list[str]:
    """The engine's unsteered answers, one per question."""
    requests = [
        Request(prompt=q.prompt, system=q.system, sampling=Sampling(temperature=0.6, seed=seed + i, max_tokens=128))
        for i, q in enumerate(questions)
    ]
    return [done.text for done in engine.run(requests)]


def train_judge(engine: Engine, *, seed: int = 0) -> tuple[TraitJudge, dict[str, Any]]:
    """The trait judge of the engine's model, and how it does on topics it has not seen."""
    questions = asked()
    texts = answers(engine, questions, seed=seed)
    fit = [i for i, q in enumerate(questions) if not q.held_out]
    kept = [i for i, q in enumerate(questions) if q.held_out]
    about = {"model": engine.model_fingerprint, "texts": len(fit), "held_out_texts": len(kept), "seed": seed}
    judge = train([texts[i] for i in fit], [questions[i].warm for i in fit], trait="warm", about=about)
    scores = np.array([50.0 if (s := judge.score(texts[i])) is None else s for i in kept])
    warm = np.array([questions[i].warm for i in kept])
    pairs = scores[warm][:, None] - scores[~warm][None, :]
    checked = {
        "held_out_accuracy": float(((scores > 50) == warm).mean()),
        "held_out_auc": float(((pairs > 0) + 0.5 * (pairs == 0)).mean()),
        "mean_warm": float(scores[warm].mean()),
        "mean_dismissive": float(scores[~warm].mean()),
    }
    return TraitJudge(judge.trait, judge.intercept, judge.weights, {**about, **checked}), checked
