"""Corpus examples as token ids and loss weights, in batches of similar length.

The loss covers answers and texts only. The first token of every piece and the end token weigh more, since they carry
the decisions (go on, restart, stop); the masked front of a drift weighs nothing (see ``corpus.Piece``).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .corpus import Example, Mix, examples
from .tokenizer import ASSISTANT, BEGIN, END, SPLIT, SYSTEM, USER, vocabulary

DECISION_WEIGHT = 4.0
_SPLIT = re.compile(SPLIT)


@dataclass(frozen=True)
class Encoded:
    """Token ids, the loss weight of each as a target, and each token's role and topic (ground truth for the SAE)."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    roles: tuple[str, ...]
    topics: tuple[str | None, ...]


class Encoder:
    """Turns examples into ``Encoded`` with the tokenizer's own split and vocabulary."""

    def __init__(self) -> None:
        self.ids = {token: index for index, token in enumerate(vocabulary())}

    def __call__(self, item: Example) -> Encoded:
        """The example as the chat template renders it (a text: begin, text, end)."""
        rows: list[tuple[int, float, str, str | None]] = []

        def put(text: str, role: str, topic: str | None = None) -> None:
            rows.extend((self.ids[token], 0.0, role, topic) for token in _SPLIT.findall(text))

        def mark(token: str, weight: float = 0.0) -> None:
            rows.append((self.ids[token], weight, "template", None))

        mark(BEGIN)
        if item.system is not None:
            mark(SYSTEM)
            put(item.system, "system")
            mark(END)
        for turn in item.turns:
            if turn.user is not None:
                mark(USER)
                put(turn.user, "prompt", turn.topic)
                mark(END)
                mark(ASSISTANT)
            for piece in turn.pieces:
                for match in _SPLIT.finditer(piece.text):
                    weight = DECISION_WEIGHT if match.start() == 0 else 1.0
                    if match.end() <= piece.masked:
                        weight = 0.0
                    rows.append((self.ids[match[0]], weight, piece.role, piece.topic))
            mark(END, DECISION_WEIGHT)
        ids, weights, roles, names = zip(*rows, strict=True)
        return Encoded(ids, weights, roles, names)


def batches(*, seed: int, mix: Mix, size: int = 64, pool: int = 16) -> Iterator[list[Encoded]]:
    """Batches of ``size`` without end; each pool of batches is sorted by length, then shuffled batch by batch."""
    encode, rng = Encoder(), random.Random(f"batches/{seed}")
    stream = examples(seed=seed, mix=mix)
    while True:
        ready = sorted((encode(next(stream)) for _ in range(size * pool)), key=lambda item: len(item.ids))
        order = list(range(pool))
        rng.shuffle(order)
        for i in order:
            yield ready[i * size : (i + 1) * size]
