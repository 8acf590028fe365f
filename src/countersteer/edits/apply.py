"""The reference arithmetic of an edit on a tensor of residuals.

One pure function, no engine, no model. `RowTable` (table.py) is the same formula over a mixed batch; both call
`piecewise`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from countersteer.core.errors import InputError
from countersteer.edits.edit import Edit


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that x and the write are computed in: float32, or the model's if it is wider."""
    return torch.promote_types(dtype, torch.float32)


def knots_as(knots: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 knots rounded up to `dtype`, so that x < knot means the same as in exact arithmetic."""
    rounded = knots.to(dtype)
    low = rounded.double() < knots.double()
    return torch.where(low, torch.nextafter(rounded, torch.full_like(rounded, math.inf)), rounded)


def piecewise(x: Tensor, lo: Tensor, hi: Tensor | None, slope: Tensor, intercept: Tensor) -> Tensor:
    """f(x) [..., k] for x [..., k], knots [k], slope and intercept [k, 3]; all in one dtype.

    `hi` None: no row has a second knot (all are infinite), so the third piece is nowhere.
    """
    below, slopes, intercepts = x < lo, slope.unbind(1), intercept.unbind(1)
    if hi is None:
        return torch.where(below, slopes[0], slopes[1]) * x + torch.where(below, intercepts[0], intercepts[1])
    above = x >= hi
    a = torch.where(below, slopes[0], torch.where(above, slopes[2], slopes[1]))
    b = torch.where(below, intercepts[0], torch.where(above, intercepts[2], intercepts[1]))
    return a * x + b


def edit_write(h: Float[Tensor, "tokens d_model"], edit: Edit) -> Float[Tensor, "tokens d_model"]:
    """The write W^T f(R h + b) of one edit for every row of h, in `wide_dtype(h.dtype)`."""
    wide = wide_dtype(h.dtype)

    def to(t: Tensor) -> Tensor:
        return t.to(h.device, wide)

    if edit.read is None:
        x = to(edit.bias).expand(h.shape[0], -1)
    else:
        x = h.to(wide) @ to(edit.read).T + to(edit.bias)
    lo, hi = knots_as(edit.lo, wide).to(h.device), knots_as(edit.hi, wide).to(h.device)
    f = piecewise(x, lo, hi, to(edit.slope), to(edit.intercept))
    return f @ to(edit.write)


def apply(
    h: Float[Tensor, "tokens d_model"],
    edits: Iterable[Edit],
    *,
    layer: int,
    prompt_tokens: int | None = None,
    start: int = 0,
) -> Float[Tensor, "tokens d_model"]:
    """h' for the residuals h at the output of `layer`: the edits of other layers are left out.

    Row 0 of h is token position `start`. `prompt_tokens` is needed for spans that depend on the prompt's length.
    Edits of one order read the same h and their writes add up; a later order reads what the earlier ones wrote.
    Arithmetic in float32 or h's dtype if wider; the result has h's dtype. Raises InputError on wrong widths.
    """
    if h.ndim != 2:
        raise InputError(f"residuals must be [tokens, d_model], got shape {list(h.shape)}")
    here = [e for e in edits if e.site.layer == layer]
    positions = torch.arange(start, start + h.shape[0], device=h.device)
    for order in sorted({e.order for e in here}):
        total = torch.zeros(h.shape, dtype=wide_dtype(h.dtype), device=h.device)
        for edit in (e for e in here if e.order == order):
            if edit.d_model != h.shape[1]:
                raise InputError(f"edit {edit.method} is {edit.d_model} wide, the residuals are {h.shape[1]}")
            if edit.span.needs_prompt and prompt_tokens is None:
                raise InputError(f"span {edit.span} depends on the prompt: give prompt_tokens")
            first, stop = edit.span.bounds(prompt_tokens or 0)
            inside = ((positions >= first) & (positions < stop))[:, None]
            total += torch.where(inside, edit_write(h, edit), torch.zeros_like(total))
        h = torch.where(total != 0, (h.to(total.dtype) + total).to(h.dtype), h)
    return h
