"""The difference of two means as a direction: the plainest way to get one from examples (CAA, ActAdd).

Points from the second set to the first, in the residual stream's own units: adding it with strength 1 moves a token of
the second set's mean onto the first set's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from countersteer.core.errors import InputError
from countersteer.core.site import Site

if TYPE_CHECKING:
    from torch import Tensor

    from countersteer.edits.vectors import Direction


def mean_difference(
    positive: Tensor, negative: Tensor, *, layer: int, model: str | None = None, label: str | None = None
) -> Direction:
    """mean(positive) - mean(negative) of residuals [n, d_model] and [m, d_model] at `resid_post.layer`.

    One row per example, e.g. the mean over a response's tokens or the residual of the last prompt token; n and m may
    differ. Means in float64, result in float32. Raises InputError for empty, unequally wide or non-finite sets, or
    equal means (a direction without a length). Rimsky et al. 2024 (CAA), section 3.
    """
    import torch

    from countersteer.edits.vectors import Direction

    means = []
    for name, given in (("positive", positive), ("negative", negative)):
        rows = torch.as_tensor(given).detach().cpu()
        if rows.ndim != 2 or 0 in rows.shape:
            raise InputError(f"the {name} set must be residuals [examples, d_model], got shape {list(rows.shape)}")
        rows = rows.double()
        if not torch.isfinite(rows).all():
            raise InputError(f"the {name} set holds NaN or infinite values")
        means.append(rows.mean(0))
    if means[0].shape != means[1].shape:
        raise InputError(f"the two sets differ in width: {len(means[0])} and {len(means[1])}")
    difference = (means[0] - means[1]).float()
    if not difference.abs().max() > 0:
        raise InputError("the two sets have the same mean: there is no direction from one to the other")
    origin = f"mean difference of {len(positive)} and {len(negative)} examples"
    return Direction(difference, Site(layer), model=model, origin=origin, label=label)
