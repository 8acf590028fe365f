"""The model's own unsteered answers: normal examples, and what a correction ends in. Nobody else's style is taught."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import named_seed, rng
from countersteer.core.request import Request, Sampling
from countersteer.engines.base import Engine
from countersteer.finetune.compose import normal, spread
from countersteer.finetune.examples import Example

log = logging.getLogger(__name__)
_CHUNK = 256


def own_answers(
    engine: Engine, prompts: Sequence[str], *, each: int, seed: int, sampling: Sampling,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[str]]:  # fmt: skip
    """`each` finished answers per prompt, distinct where the model varies; a prompt without one has an empty list.

    Answers that were cut at the length limit are left out: their end would be trained where it is none.
    """
    asked = [(prompt, i) for prompt in prompts for i in range(each)]
    found: dict[str, list[str]] = {prompt: [] for prompt in prompts}
    for start in range(0, len(asked), _CHUNK):
        part = asked[start : start + _CHUNK]
        requests = [
            Request(prompt=p, sampling=sampling.with_seed(named_seed(seed, "answers", p, i) % 2**32)) for p, i in part
        ]
        for (prompt, _), done in zip(part, engine.run(requests, errors="return"), strict=True):
            if isinstance(done, Exception):
                raise InputError(f"the model gave no answer to {prompt!r}: {done}") from done
            text = done.text.strip()
            if done.finish == "stop" and text and text not in found[prompt]:
                found[prompt].append(text)
        if progress is not None:
            progress(min(start + _CHUNK, len(asked)), len(asked))
    empty = [prompt for prompt in prompts if not found[prompt]]
    if len(empty) == len(found):
        raise InputError("no prompt has an answer that ends; raise max_tokens")
    for prompt in empty:
        log.warning("no finished answer to %r: it is left out of the training data", prompt)
    return found


def normal_examples(answers: dict[str, list[str]], *, count: int, seed: int) -> list[Example]:
    """`count` normal examples, spread evenly over the prompts; an answer comes again only when all were used."""
    usable = [prompt for prompt, said in answers.items() if said]
    draw, taken, out = rng(seed, "normal"), dict.fromkeys(usable, 0), []
    for prompt in spread(usable, count, draw):
        said = answers[prompt]
        out.append(normal(prompt, said[taken[prompt] % len(said)], source="own answers"))
        taken[prompt] += 1
    return out
