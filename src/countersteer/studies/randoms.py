"""Random latents as a control for clamping: disjoint sets, matched to the latents they stand in for.

A random latent that never fires is no control, so only latents that fire on the base arm's steered responses are
drawn. Each stands in for one target: nearest in the matched measure among those left, with some chance so that sets
differ. The achieved match is part of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from countersteer.core.errors import InputError
from countersteer.sources.usage import Usage

NEAREST = 3
"""A target's stand-in is drawn among this many nearest latents."""
MEASURES = {"firing-rate": "firing_rate", "mean-activation": "mean_activation", "perturbation": "perturbation"}


def draw_sets(
    used: Usage, targets: Sequence[int], *, count: int, sets: int, matched: str, exclude: set[int],
    draw: np.random.Generator,
) -> list[dict[str, Any]]:  # fmt: skip
    """`sets` disjoint sets of `count` latents each, as {"latents", "match"}.

    "match": per measure the mean over the set beside that over the targets (of perturbations, those of single latents;
    what the whole set does is measured by the caller). Targets are taken in turn where `count`
    exceeds them; a target that never fires is matched to the rarest. Raises InputError when too few latents fire.
    """
    alive = [int(i) for i in np.flatnonzero(used.firing_rate > 0) if int(i) not in exclude]
    if count * sets > len(alive):
        raise InputError(
            f"{sets} random sets of {count} latents need {count * sets}, but {len(alive)} others fire on the base"
            " arm's responses; ask for fewer sets or fewer latents"
        )
    left = list(draw.permutation(alive))
    chosen: list[list[int]] = [[] for _ in range(sets)]
    if matched == "count":
        for number in range(sets):
            chosen[number] = sorted(int(i) for i in left[number * count : (number + 1) * count])
    else:
        if not targets:
            raise InputError("random latents are to be matched to the detectors, but the search chose none")
        values = getattr(used, MEASURES[matched])
        floor = float(values[alive].min())
        level = np.log(np.maximum(values, max(floor, 1e-30)))
        wanted = [int(targets[i % len(targets)]) for i in range(count)]
        for target in sorted(wanted, key=lambda t: -level[t]):  # the most used first: they have the fewest peers
            for number in draw.permutation(sets):
                gaps = np.abs(level[np.asarray(left)] - level[target])
                near = np.argsort(gaps, kind="stable")[:NEAREST]
                taken = left.pop(int(draw.choice(near)))
                chosen[int(number)].append(int(taken))
        chosen = [sorted(one) for one in chosen]
    return [{"latents": one, "match": match(used, one, targets)} for one in chosen]


def match(used: Usage, latents: Sequence[int], targets: Sequence[int]) -> dict[str, dict[str, float | None]]:
    """Per measure: mean over the latents, and over the targets."""
    found = {}
    for name, attribute in MEASURES.items():
        values = getattr(used, attribute)
        of = float(values[list(targets)].mean()) if len(targets) else None
        found[name] = {"set": float(values[list(latents)].mean()), "targets": of}
    return found
