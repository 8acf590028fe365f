"""Putting an example together from its parts, so that the trained characters are exact by construction.

A correction is an off-topic stretch (no loss), an acknowledgement and the answer (both trained); the border lies
before the space that separates them, where every common tokenizer has a token border. A normal example trains its
whole answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from countersteer.core.errors import InputError
from countersteer.finetune.examples import CORRECTION, NORMAL, Example

_SENTENCE = re.compile(r".+?[.!?]+(?=\s|$)", re.DOTALL)


def correction(
    prompt: str, stretch: str, acknowledgement: str, answer: str, *, source: str, system: str | None = None,
    steer: Mapping[str, Any] | None = None,
) -> Example:  # fmt: skip
    """An example that goes off topic for `stretch`, says so, and answers. Raises InputError for an empty part."""
    parts = {"off-topic stretch": stretch, "acknowledgement": acknowledgement, "answer": answer}
    for name, text in parts.items():
        if not text.strip():
            raise InputError(f"a correction for {prompt!r} has an empty {name}")
    off = stretch.strip()
    whole = f"{off} {acknowledgement.strip()} {answer.strip()}"
    return Example(prompt, whole, ((len(off), len(whole)),), CORRECTION, source, system, True, steer)


def normal(prompt: str, answer: str, *, source: str, system: str | None = None) -> Example:
    """An example whose whole answer is trained."""
    text = answer.strip()
    return Example(prompt, text, ((0, len(text)),), NORMAL, source, system)


def sentences(text: str) -> list[str]:
    """The whole sentences of a text, in order; what is left after the last one is dropped."""
    return [found.strip() for found in _SENTENCE.findall(text.strip()) if found.strip()]


def stretch_of(text: str, draw: np.random.Generator, *, most: int = 4) -> str | None:
    """The first one to `most` sentences of an off-topic text (how many is drawn); None if it has no whole sentence."""
    found = sentences(text)
    if not found:
        return None
    return " ".join(found[: int(draw.integers(1, min(most, len(found)) + 1))])


def spread(prompts: Sequence[str], count: int, draw: np.random.Generator) -> list[str]:
    """`count` prompts, each as often as any other (up to one), in a drawn order."""
    if not prompts:
        raise InputError("there are no train prompts to make examples for")
    out: list[str] = []
    while len(out) < count:
        out += [prompts[i] for i in draw.permutation(len(prompts))]
    return out[:count]
