"""The proof at start-up that steering acts, in the very graph that will serve.

vLLM's compile cache does not know the worker class: it may hand out a graph that was compiled without our layer
operation, and every request would then come out unsteered. So an edit is written into each table and a dummy batch is
run: each table must have seen and changed its tokens, and the stream must be what the layers are believed to pass on.
"""

from __future__ import annotations

from typing import Any

import torch

from countersteer.core.errors import RefusedError
from countersteer.engines.vllm.private import dummy_run, two_inputs
from countersteer.engines.vllm.rows import NOWHERE
from countersteer.engines.vllm.steering import Steering
from countersteer.engines.vllm.unit import CHANGED, LANE, OWNER, POSITION, SEEN, Unit

TOKENS = 4


def self_test(steering: Steering, runner: Any, config: Any) -> None:
    """Raises RefusedError when an edit would not act, or not as predicted."""
    dummy_run(
        runner, TOKENS, decode=False
    )  # layers with adapters must have been told of a batch before they are called
    _check_streams(steering, config)
    for count in (TOKENS, 1):
        try:
            _arm(steering, count)
            dummy_run(runner, count, decode=count == 1)
            _check(steering, count)
        finally:
            _disarm(steering)


def _arm(steering: Steering, count: int) -> None:
    """One unconditional row in every table, switched on for lane 1 on all tokens."""
    lane = torch.tensor([1], device=steering.index.at.device)
    for number, unit in steering.units.items():
        unit.open(lane)
        unit.values.zero_()
        for table in unit.tables:
            table.bias[0], table.slope[0], table.intercept[0] = 1.0, 0.0, 1.0
            generator = torch.Generator().manual_seed(number)
            table.write[0] = torch.randn(steering.d_model, generator=generator).to(table.write)
            table.start[1, 0], table.stop[1, 0], table.part[1, 0] = 0, NOWHERE, 0
        if unit.reads:
            unit.read_bias[0] = 1.0
    at = steering.index.at
    at[LANE, :count], at[OWNER, :count] = 1, 1
    at[POSITION, :count] = torch.arange(1, count + 1)


def _disarm(steering: Steering) -> None:
    steering.index.at.zero_()
    for unit in steering.units.values():
        for total in (unit.sums, unit.peaks, unit.values, unit.read_bias):
            total.zero_()
        for table in unit.tables:
            table.shut(torch.tensor([1], device=table.start.device))
            for part in (table.read, table.write, table.bias, table.slope, table.intercept):
                part[0] = 0


def _check(steering: Steering, count: int) -> None:
    for number, unit in steering.units.items():
        if unit.editable:
            seen, changed = unit.sums[1, SEEN].item(), unit.sums[1, CHANGED].item()
            # A replayed or repeated dummy run may pass the tokens more than once, never less.
            if seen < count or changed != seen or seen % count:
                raise RefusedError(
                    "serving",
                    f"the edit of the start-up test at layer {number} changed {changed:.0f} of {count} tokens: the "
                    "compiled graph was made without steering",
                    "clearing vLLM's compile cache (~/.cache/vllm), or VLLM_DISABLE_COMPILE_CACHE=1",
                )
        if unit.reads and not bool((unit.values[:count, 0] == 1).all()):
            raise RefusedError(
                "serving",
                f"the readouts of layer {number} are not recorded by the compiled graph",
                "clearing vLLM's compile cache (~/.cache/vllm), or VLLM_DISABLE_COMPILE_CACHE=1",
            )


def _check_streams(steering: Steering, config: Any) -> None:
    """The residual stream of a layer that passes on (hidden, residual) is their sum: prove it on what reads them.

    Some child of the layer must be called with both and return their sum as its second result, as vLLM's fused norm
    does. A layer whose residual means something else is refused.
    """
    from vllm.forward_context import set_forward_context

    for number in steering.units:
        layer = steering.layers[number]
        kind = two_inputs(layer)
        if kind is False:
            continue
        if kind is None or not _adds_up(layer, steering, config, set_forward_context):
            raise RefusedError(
                f"model layer {type(layer).__name__}",
                "what it passes on is not known to be (hidden, residual) with their sum as the residual stream",
                "the embedded engine, or a Llama-like model",
            )


def _adds_up(layer: Any, steering: Steering, config: Any, context: Any) -> bool:
    device = steering.index.at.device
    dtype = next(p.dtype for p in layer.parameters() if p.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(TOKENS, steering.d_model, generator=generator).to(device, dtype) for _ in range(2)]
    total = (parts[0] + parts[1]).float()
    given: dict[int, bool] = {}
    found: list[bool] = []

    def before(module: Any, args: tuple[Any, ...]) -> None:
        given[id(module)] = len(args) == 2 and all(
            isinstance(a, torch.Tensor) and a.shape == p.shape and torch.equal(a, p)
            for a, p in zip(args, kept, strict=True)
        )

    def after(module: Any, args: Any, output: Any) -> None:
        if given.get(id(module)) and isinstance(output, tuple) and len(output) == 2:
            tolerance = 1e-5 if dtype == torch.float32 else 5e-2
            found.append(bool(torch.allclose(output[1].float(), total, rtol=tolerance, atol=tolerance)))

    kept = [p.clone() for p in parts]
    handles = []
    for child in layer.children():
        if not isinstance(child, Unit):
            handles += [child.register_forward_pre_hook(before), child.register_forward_hook(after)]
    try:
        with torch.inference_mode(), context(None, config):
            positions = torch.arange(TOKENS, device=device)
            layer(positions=positions, hidden_states=parts[0], residual=parts[1])
    finally:
        for handle in handles:
            handle.remove()
    return bool(found) and all(found)
