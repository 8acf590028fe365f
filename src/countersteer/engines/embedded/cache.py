"""A key-value cache with a place per request, refilled in place, for decoders with ordinary attention layers.

Every layer keeps full-length keys and values per place ([places, heads, capacity, head_dim], zeros at first: NaN in a
stale place would leak through a mask). Newcomers are prefilled together and written to their places; all active
places decode in one forward, each at its own position. Sliding windows and chunks live in the masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import Cache, CacheLayerMixin, get_layer_types_and_kwargs

BUCKET = 64
PLAIN = ("full_attention", "sliding_attention", "chunked_attention", "dummy")


@dataclass
class Plan:
    """What the forward under way does: prefill `rows`, or decode places 0..n-1 at positions `at`."""

    prefill: bool
    rows: Tensor
    at: Tensor
    length: int


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one decoder layer, one place per request."""

    is_sliding = False

    def __init__(self, owner: SlotCache) -> None:
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        places, capacity = self.owner.places, self.owner.capacity
        heads, width = key_states.shape[1], key_states.shape[3]
        self.keys = key_states.new_zeros((places, heads, capacity, width))
        self.values = value_states.new_zeros((places, value_states.shape[1], capacity, value_states.shape[3]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        plan = self.owner.plan
        assert self.keys is not None and self.values is not None and plan is not None
        if plan.prefill:
            self.keys[plan.rows, :, : plan.length] = key_states
            self.values[plan.rows, :, : plan.length] = value_states
            # What an earlier request left behind could be NaN, which no mask keeps out (0 * NaN).
            self.keys[plan.rows, :, plan.length :] = 0
            self.values[plan.rows, :, plan.length :] = 0
            return key_states, value_states
        n = len(plan.rows)
        self.keys[plan.rows, :, plan.at] = key_states[:, :, 0]
        self.values[plan.rows, :, plan.at] = value_states[:, :, 0]
        return self.keys[:n, :, : plan.length], self.values[:n, :, : plan.length]

    def grow(self, capacity: int) -> None:
        """Make room for longer texts, keeping what is there."""
        if self.is_initialized:
            for name in ("keys", "values"):
                old = getattr(self, name)
                new = old.new_zeros((*old.shape[:2], capacity, old.shape[3]))
                new[:, :, : old.shape[2]] = old
                setattr(self, name, new)

    def move(self, source: int, target: int) -> None:
        """Copy one place's keys and values to another place."""
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            self.keys[target], self.values[target] = self.keys[source], self.values[source]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        assert self.owner.plan is not None
        return self.owner.plan.length, 0

    def get_seq_length(self) -> int:
        plan = self.owner.plan
        return 0 if plan is None or plan.prefill else plan.length - 1

    def get_max_length(self) -> int:
        return -1


def _empty() -> Any:
    """The layer of a decoder layer that keeps nothing; transformers 5.19 has none and never asks for one."""
    return cache_utils.DummyLayer()


class SlotCache(Cache):
    """The cache of a whole decoder: `places` requests, any lengths. Only plain attention layers (`PLAIN`)."""

    def __init__(self, config: Any, places: int) -> None:
        self.places, self.capacity = places, 0
        self.plan: Plan | None = None
        self.config = config
        types, kwargs = get_layer_types_and_kwargs(config)
        self.types = types
        self.windows = [k.get("sliding_window") for k in kwargs]
        super().__init__(layers=[_empty() if t == "dummy" else _SlotLayer(self) for t in types])
        self.reserve(BUCKET)

    @staticmethod
    def supports(config: Any) -> str | None:
        """Why this cache cannot hold a model of `config`, or None if it can."""
        types, _ = get_layer_types_and_kwargs(config)
        if len(types) < int(getattr(config, "num_hidden_layers", 0)):  # as transformers 5.19 lists shared layers
            return "some layers share the keys and values of others"
        strange = sorted(set(types) - set(PLAIN))
        if strange:
            return f"layers of type {', '.join(strange)} keep more than keys and values"
        if getattr(config, "alibi", False):
            return "ALiBi biases depend on the padding of the batch"
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        nested = [rope, *(v for v in rope.values() if isinstance(v, dict))] if isinstance(rope, dict) else []
        for entry in nested:
            kind = entry.get("rope_type") or entry.get("type")
            if kind in ("dynamic", "longrope"):
                return f"{kind} RoPE frequencies follow the longest text of a batch"
        return None

    def reserve(self, length: int) -> None:
        """Make sure that every place can hold `length` positions."""
        if length <= self.capacity:
            return
        capacity = max(BUCKET, 2 * self.capacity)
        while capacity < length:
            capacity *= 2
        for layer in self.layers:
            if isinstance(layer, _SlotLayer):
                layer.grow(capacity)
        self.capacity = capacity

    def move(self, source: int, target: int) -> None:
        """Copy one place to another."""
        for layer in self.layers:
            if isinstance(layer, _SlotLayer):
                layer.move(source, target)

    def masks(self, position: Tensor, length: int, *, dtype: torch.dtype, eager: bool) -> Any:
        """Attention masks [n, 1, t, length] for queries at `position` [n, t] over cached positions 0..length-1.

        A dict by layer type iff the configuration names layer types, else one mask, as the models expect. Bool for
        sdpa, additive in `dtype` for eager attention.
        """
        kv = torch.arange(length, device=position.device)[None, None, :]
        q = position[:, :, None]
        causal = kv <= q

        def build(kind: str, window: int | None) -> Tensor:
            mask = causal
            if kind == "sliding_attention" and window is not None:
                mask = causal & (kv > q - window)
            elif kind == "chunked_attention" and window is not None:
                mask = causal & (kv // window == q // window)
            mask = mask[:, None]
            if eager:
                zero = torch.zeros((), dtype=dtype, device=position.device)
                return torch.where(mask, zero, torch.finfo(dtype).min)
            return mask

        by_type: dict[str, Tensor] = {}
        for kind, window in zip(self.types, self.windows, strict=True):
            if kind != "dummy" and kind not in by_type:
                by_type[kind] = build(kind, window)
        if getattr(self.config, "layer_types", None) is not None:
            return by_type
        return next(iter(by_type.values()))
