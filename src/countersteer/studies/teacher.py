"""Teacher-forced inputs: a prompt with a response after it, as the model would have seen them.

An engine that can encode a request gives token ids (template, prompt, response); one that cannot (the scripted one)
gets the two as a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from countersteer.core.request import Request

BATCH = 32


def forced(engine: Any, prompt: str, response: str, *, system: str | None = None) -> Any:
    """The input of `engine.forward` for a prompt and its response: token ids, or a text."""
    encode = getattr(engine, "encode", None)
    if encode is None:
        return "\n".join(part for part in (system, prompt, response) if part)
    return encode(Request(prompt=prompt, system=system, prefix=response or None))


async def in_batches(
    engine: Any, inputs: Sequence[Any], *, progress: Callable[[int, int], None] | None = None, **what: Any
) -> list[Any]:
    """`engine.forward` over inputs in batches that keep memory bounded; results in order. `progress(done, total)`."""
    out: list[Any] = []
    for start in range(0, len(inputs), BATCH):
        out += await engine.forward(list(inputs[start : start + BATCH]), **what)
        if progress is not None:
            progress(len(out), len(inputs))
    return out
