"""Readouts of a worker's steps, kept once per step for all requests in it, and picked out when requests are collected.

A thousand requests in flight would otherwise cost a thousand small slices in every step, while the device waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from countersteer.engines.vllm.lanes import Lane


@dataclass(frozen=True, eq=False)
class Step:
    """What one step read: `lane` [tokens] owns each row of `values[layer]` [tokens, reads], 0 for nobody.

    Steps are numbered as they happen.
    """

    number: int
    lane: np.ndarray
    values: Mapping[int, Tensor]


def picked(lanes: Sequence[Lane]) -> list[dict[int, np.ndarray]]:
    """The readouts of each lane by layer: [positions, its own rows], in order of position.

    One transfer from the device per layer. Lane numbers are used again, so a step is asked only for lanes it had.
    """
    steps: dict[int, tuple[Step, list[int]]] = {}
    for i, lane in enumerate(lanes):
        for step in lane.steps:
            steps.setdefault(id(step), (step, []))[1].append(i)
    numbers = np.array([lane.number for lane in lanes], dtype=np.int64)
    owners: dict[int, list[np.ndarray]] = {}
    parts: dict[int, list[Tensor]] = {}
    for step, here in sorted(steps.values(), key=lambda entry: entry[0].number):
        asked = np.full(max(int(step.lane.max()), int(numbers.max())) + 1, -1, dtype=np.int64)
        asked[numbers[here]] = here
        owner = asked[step.lane]
        rows = np.flatnonzero(owner >= 0)
        for layer, values in step.values.items():
            owners.setdefault(layer, []).append(owner[rows])
            parts.setdefault(layer, []).append(values[torch.from_numpy(rows).to(values.device)])
    out: list[dict[int, np.ndarray]] = [{} for _ in lanes]
    for layer, found in parts.items():
        owner, read = np.concatenate(owners[layer]), torch.cat(found).cpu().numpy()
        order = np.argsort(owner, kind="stable")
        ends = np.searchsorted(owner[order], np.arange(len(lanes) + 1))
        for i, lane in enumerate(lanes):
            if layer in lane.columns:
                out[i][layer] = read[order[ends[i] : ends[i + 1]]][:, lane.columns[layer]]
    return out
