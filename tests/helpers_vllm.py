"""A worker without vLLM: layers that pass on given streams, and a batch that the test schedules by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import countersteer as cs
from countersteer.engines.vllm import steering as module
from countersteer.engines.vllm.measured import Measured, merge
from countersteer.engines.vllm.settings import Settings
from countersteer.engines.vllm.steering import Steering
from countersteer.engines.vllm.store import Store
from countersteer.engines.vllm.ticket import Ticket

WIDTH, LAYERS = 8, 2


class Layer(nn.Module):
    """Passes on what it is given, as (hidden, residual)."""

    def forward(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        return 0.25 * stream, 0.75 * stream


@dataclass
class Text:
    """A request: its streams per layer [positions, WIDTH], its prompt, what it asks, how far it has been computed."""

    id: str
    streams: list[Tensor]
    prompt: int
    steer: cs.Intervention | None
    ticket: Ticket | None
    computed: int = 0


class World:
    """A worker's steering over two layers (or a `stage` of them) and a batch that the test schedules by hand."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        settings: Settings | None = None,
        *,
        stage: Sequence[int] = range(LAYERS),
        pools: bool = True,
    ) -> None:
        self.layers = {number: Layer() for number in stage}
        monkeypatch.setattr(module, "layers_of", lambda model: self.layers)
        self.store = Store(folder)
        self.settings = settings or Settings(rows=(6, 2), reads=4, lanes=6, capture=(1,))
        facts = {
            "n_layers": LAYERS,
            "d_model": WIDTH,
            "dtype": torch.float32,
            "device": torch.device("cpu"),
            "tokens": 64,
            "pools": pools,
        }
        self.steering = Steering(None, self.settings, self.store, facts=facts)
        self.out: dict[str, list[list[Tensor]]] = {}

    def text(self, name: str, *, length: int, prompt: int, seed: int, steer: Any = None, **ticket: Any) -> Text:
        g = torch.Generator().manual_seed(seed)
        streams = [torch.randn(length, WIDTH, generator=g) for _ in range(LAYERS)]
        given = None
        if steer is not None or ticket:
            given = Ticket(steer=self.store.put(steer) if steer is not None else None, id=name, **ticket)
        return Text(name, streams, prompt, steer, given)

    def step(self, texts: list[tuple[Text, int]], *, gone: set[str] = frozenset(), new: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        """One step: (text, tokens to compute) in batch order."""
        begin = [(t.id, t.ticket.to_args() if t.ticket else None, t.prompt) for t, _ in texts if t.id in new]
        self.steering.begin(gone, begin)
        counts = np.array([n for _, n in texts], dtype=np.int32)
        computed = np.array([t.computed for t, _ in texts], dtype=np.int32)
        self.steering.fill([t.id for t, _ in texts], counts, computed)
        for number, layer in self.layers.items():
            h = torch.cat([t.streams[number][t.computed : t.computed + n] for t, n in texts])
            hidden, residual = layer(h)
            at = 0
            for t, n in texts:
                self.out.setdefault(t.id, [[] for _ in range(LAYERS)])[number].append((hidden + residual)[at : at + n])
                at += n
        self.steering.end()
        for t, n in texts:
            t.computed += n

    def measured(self, name: str) -> Measured:
        return merge([self.steering.collect([name])[0]])


def direction(seed: int, layer: int) -> cs.Direction:
    g = torch.Generator().manual_seed(seed)
    return cs.direction(torch.randn(WIDTH, generator=g).tolist(), layer=layer)
