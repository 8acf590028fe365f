"""Where a model's decoder layers are, and the proof that an edit written there reaches the logits.

The usual places are a table; otherwise every ModuleList of the right length is a candidate. Either way the find is
verified: a probe written to each layer's *output* must change the logits exactly as the same probe written to the
*input* of the module that consumes it (the next layer, or what follows the last). One batch holds a row per layer, so
the proof costs three short forwards. A model that fails is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from countersteer.core.errors import RefusedError

KNOWN = (
    "model.layers",
    "model.language_model.layers",
    "language_model.model.layers",
    "gpt_neox.layers",
    "transformer.h",
    "model.decoder.layers",
    "transformer.blocks",
    "backbone.layers",
)
"""Dotted paths of the decoder layer list in models known so far; unknown ones are searched for."""


def residual(output: Any) -> Tensor:
    """The residual stream in a decoder layer's output (a tensor, or the first entry of a tuple)."""
    return output[0] if isinstance(output, tuple) else output


def with_residual(output: Any, h: Tensor) -> Any:
    """The layer's output with another residual stream in it."""
    return (h, *output[1:]) if isinstance(output, tuple) else h


def text_config(model: nn.Module) -> Any:
    """The configuration of the text decoder, for composite models too."""
    return model.config.get_text_config(decoder=True)  # type: ignore[union-attr,operator]


def find_layers(model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers. Raises RefusedError when none can be found."""
    count = getattr(text_config(model), "num_hidden_layers", None)
    found = dict(model.named_modules())
    for path in KNOWN:
        module = found.get(path)
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    lists = [m for m in found.values() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise RefusedError(
            f"model {type(model).__name__}",
            f"no list of {count} decoder layers was found in it",
            "a decoder-only transformers model",
        )
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))


def _probe_inputs(model: nn.Module, rows: int) -> dict[str, Any]:
    vocab = int(text_config(model).vocab_size)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(3, vocab - 1), vocab, (1, 5), generator=generator).expand(rows, -1)
    device = next(model.parameters()).device
    return {"input_ids": ids.contiguous().to(device), "use_cache": False}


def _consumer(model: nn.Module, layers: nn.ModuleList) -> nn.Module:
    """The module that takes the last layer's output: a sibling of the layer list fed with the very same values."""
    parent = next(m for m in model.modules() if any(child is layers for child in m.children()))
    seen: dict[int, Tensor] = {}
    hooks: list[Any] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            seen[id(module)] = args[0].detach()

    last: list[Tensor] = []
    hooks.append(layers[-1].register_forward_hook(lambda m, a, out: last.append(residual(out).detach())))
    candidates = [m for m in parent.children() if m is not layers]
    if isinstance(head := getattr(model, "lm_head", None), nn.Module):
        candidates.append(head)
    hooks += [m.register_forward_pre_hook(note) for m in candidates]
    try:
        with torch.no_grad():
            model(**_probe_inputs(model, 1))
    finally:
        for hook in hooks:
            hook.remove()
    for module in candidates:
        value = seen.get(id(module))
        if last and value is not None and value.shape == last[-1].shape and torch.equal(value, last[-1]):
            return module
    raise RefusedError(
        f"model {type(model).__name__}",
        "nothing was found that reads the last decoder layer's output, so an edit there cannot be verified",
        "a decoder-only model whose final norm follows its layers",
    )


def verify_layers(model: nn.Module, layers: nn.ModuleList, d_model: int) -> None:
    """Prove for every layer that a write to its output changes the logits as predicted. Raises RefusedError."""
    try:
        _verify(model, layers, d_model)
    except RefusedError:
        raise
    except Exception as error:  # whatever a model's own code raises on five plain tokens
        reason = " ".join(str(error).split())[:300]
        raise RefusedError(
            f"model {type(model).__name__}",
            f"its own forward fails on five tokens ({type(error).__name__}: {reason})",
            "another dtype or device, or a decoder-only model",
        ) from error


def _verify(model: nn.Module, layers: nn.ModuleList, d_model: int) -> None:
    count = len(layers)
    consumers: list[nn.Module] = [*layers[1:], _consumer(model, layers)]
    inputs = _probe_inputs(model, count)
    device = inputs["input_ids"].device
    generator = torch.Generator().manual_seed(1)
    probe = torch.randn(d_model, generator=generator).to(device)
    calls: list[int] = []
    reach: dict[int, float] = {}

    def refuse(layer: int, why: str) -> RefusedError:
        return RefusedError(
            f"editing layer {layer} of {type(model).__name__}", why, "another model or transformers 5.x"
        )

    def written(h: Tensor, row: int) -> Tensor:
        out = h.clone()
        size = h[row].float().norm(dim=-1).median().item()
        out[row] += (probe * (size / probe.norm().item())).to(h.dtype)
        return out

    def on_output(row: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            calls.append(row)
            h = residual(output)
            if not isinstance(h, Tensor) or h.shape != (*inputs["input_ids"].shape, d_model):
                shape = list(h.shape) if isinstance(h, Tensor) else type(h).__name__
                raise refuse(row, f"its output has shape {shape}, not [batch, tokens, {d_model}]")
            return with_residual(output, written(h, row))

        return hook

    def on_input(row: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            name = next(iter(kwargs), "")
            h = args[0] if args else kwargs[name]
            out = written(h, row)
            return ((out, *args[1:]), kwargs) if args else (args, {**kwargs, name: out})

        return hook

    def logits(hooks: list[Any]) -> Tensor:
        try:
            with torch.no_grad():
                return model(**inputs).logits.double()
        finally:
            for hook in hooks:
                hook.remove()

    clean = logits([])
    output = logits([m.register_forward_hook(on_output(i)) for i, m in enumerate(layers)])
    if calls != list(range(count)):
        raise refuse(0, f"its {count} layers did not run once each, in order")
    expected = logits([m.register_forward_pre_hook(on_input(i), with_kwargs=True) for i, m in enumerate(consumers)])
    scale = clean.abs().amax().item() + 1e-12
    tolerance = 1e-3 if next(model.parameters()).dtype in (torch.float32, torch.float64) else 5e-2
    for i in range(count):
        reach[i] = (output[i] - clean[i]).abs().amax().item() / scale
        if not reach[i] > 0:
            raise refuse(i, "a probe written to its output did not change the logits")
        if (output[i] - expected[i]).abs().amax().item() / scale > tolerance * max(1.0, reach[i]):
            raise refuse(i, "a probe written to its output did not change the logits as predicted")
