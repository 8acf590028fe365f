"""Corrections from the model's own steered responses in a run: what it will meet when it is steered again.

A response that went off topic gives its first sentences; the acknowledgement comes from templates and the answer is one
of the model's own. A response that corrected itself well is taken as it stands. Latent and strength are kept with the
example, so that training can happen under the same steering.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from countersteer.core.errors import InputError, RefusedError
from countersteer.core.fingerprint import named_seed, rng
from countersteer.core.trial import OK
from countersteer.finetune.compose import correction, stretch_of
from countersteer.finetune.examples import CORRECTION, Example
from countersteer.finetune.templates import Templates
from countersteer.store import Run

log = logging.getLogger(__name__)
OFF_TOPIC = 50.0
"""A first attempt below this score is off topic."""
RECOVERED = 80.0
"""A last attempt of at least this score, after an off-topic one, is a correction as it stands."""


def from_run(
    folder: str | Path, prompts: Sequence[str], answers: Mapping[str, Sequence[str]], which: Templates, *, count: int,
    seed: int, arm: str | None = None, model: str | None = None, check: Callable[[Example], object] | None = None,
    required: bool = True,
) -> list[Example]:  # fmt: skip
    """At most `count` corrections from a run's steered arm (base unless given) on the train prompts.

    `model`: fingerprint of the model to be trained, which must be the run's. `check` raises RefusedError for an example
    that cannot be trained on, which is left out. Raises InputError for another model's run, an arm that is not steered,
    and, if `required`, where no response is off topic.
    """
    name = require_usable(folder, arm=arm, model=model)
    with Run.open(folder) as run:
        arms = run.arms()
        layer = arms[name].get("layer")
        layer = run.fact("steer_layer") if layer is None else layer
        span, sae = str(arms[name].get("span", "all")), run.header["inputs"].get("sae")
        stops = run.header.get("settings", {}).get("sampling", {}).get("stop")  # end a response like its own end does
        known = {prompt for prompt in prompts if answers.get(prompt)}
        trials = [t for t in run.trials(name) if t.status == OK and t.plan.prompt in known and _low(t)]
    out: list[Example] = []
    refused: list[RefusedError] = []
    for index in rng(seed, "episodes").permutation(len(trials)):
        if len(out) == count:
            break
        trial = trials[index]
        steer = {"latent": trial.plan.latent, "strength": trial.plan.strength, "layer": layer, "span": span, "sae": sae}
        draw = np.random.default_rng(named_seed(seed, "episodes", trial.plan.key))
        made = None if stops else _whole(trial, steer)
        made = made or _composed(trial, steer, answers[trial.plan.prompt], which, draw)
        if made is not None:
            try:
                if check is not None:
                    check(made)
                out.append(made)
            except RefusedError as error:
                refused.append(error)
    if refused and not out:
        raise refused[0]
    if refused:
        log.warning("%d responses of %s cannot be trained on and are left out: %s", len(refused), folder, refused[0])
    if required and not out:
        raise InputError(f"no response of arm {name} in {folder} to the train prompts is off topic; steer harder")
    return out


def require_usable(folder: str | Path, *, arm: str | None = None, model: str | None = None) -> str:
    """The arm whose episodes are taken (base unless given). Raises InputError for a run that cannot give any."""
    with Run.open(folder) as run:
        name = arm or run.base_arm
        arms = run.arms()
        if name not in arms:
            raise InputError(f"{folder} has no arm {name!r}; it has {', '.join(arms) or 'none yet'}")
        if not arms[name].get("steered"):
            raise InputError(f"arm {name} of {folder} is not steered, so it has no steered episodes; name another arm")
        others = [key for key in ("system", "suffix", "prefix", "adapter") if arms[name].get(key)]
        others += ["engine adapter"] if run.header.get("inputs", {}).get("adapter") else []
        if others:
            raise InputError(
                f"the episodes of arm {name} of {folder} come from another setting than examples have"
                f" ({', '.join(others)}); take a run of the bare model and the bare prompts"
            )
        if not run.finished:
            raise InputError(f"{folder} is not finished: run its study to the end, then take its episodes")
        theirs = run.header.get("inputs", {}).get("model")
        if model is not None and theirs != model:
            raise InputError(f"{folder} is a run of another model than the one to be trained; use a run of that model")
    return name


def _low(trial: Any) -> bool:
    return bool(trial.scores) and trial.scores[0] < OFF_TOPIC


def _whole(trial: Any, steer: Mapping[str, Any]) -> Example | None:
    """The response as it stands, if it corrected itself well and ended: trained from its second attempt on."""
    if len(trial.scores) < 2 or trial.scores[-1] < RECOVERED or trial.finish != "stop":
        return None
    scored = [a for a in trial.grade["attempts"] if a["score"] is not None]
    text = trial.text.strip()
    at = int(scored[1]["start"]) - (len(trial.text) - len(trial.text.lstrip()))
    at -= at > 0 and text[at - 1] == " "  # tokens hold the space before a word, but the newlines after a sentence
    if not 0 < at < len(text):
        return None
    return Example(trial.plan.prompt, text, ((at, len(text)),), CORRECTION, "own episodes", None, True, steer)


def _composed(
    trial: Any, steer: Mapping[str, Any], said: Sequence[str], which: Templates, draw: np.random.Generator
) -> Example | None:  # fmt: skip
    """The beginning of the response, an acknowledgement, and one of the model's own answers."""
    scored = [a for a in trial.grade["attempts"] if a["score"] is not None]
    stretch = stretch_of(trial.text[: int(scored[0]["end"])], draw)
    if stretch is None:
        return None
    prompt = trial.plan.prompt
    answer = said[int(draw.integers(len(said)))]
    return correction(prompt, stretch, which.acknowledgement(prompt, draw), answer, source="own episodes", steer=steer)
