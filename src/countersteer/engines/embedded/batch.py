"""Forward passes over the requests in flight: prefill newcomers, decode everyone.

`SlotBatch` keeps all requests in one slot cache. `AloneBatch` is the fallback for models whose cache is not plain keys
and values (recurrent state, compressed keys): each request has the model's own cache and is stepped on its own, which
is correct and slow; receipts say so. Both place request i of the active list at place i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from countersteer.engines.embedded.cache import Plan, SlotCache
from countersteer.engines.embedded.hooks import SteeringHooks
from countersteer.engines.embedded.layers import text_config
from countersteer.engines.embedded.model import LoadedModel


class Batch(Protocol):
    """What the engine's loop needs of a batch of requests."""

    note: str | None

    def prefill(self, texts: Sequence[Sequence[int]], places: Sequence[int], slots: Sequence[int]) -> Tensor:
        """Read prompts into `places`; logits [n, vocab] after each prompt's last token."""
        ...

    def decode(self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int]) -> Tensor:
        """Read one token for places 0..n-1; logits [n, vocab]."""
        ...

    def move(self, source: int, target: int) -> None:
        """Place `target` becomes what `source` is."""
        ...


class SlotBatch:
    """All requests in one slot cache: newcomers prefilled together, everyone decoded together."""

    note: str | None = None

    def __init__(self, model: LoadedModel, hooks: SteeringHooks, places: int) -> None:
        self.model, self.hooks = model, hooks
        self.cache = SlotCache(text_config(model.module), places)
        self.eager = model.module.config._attn_implementation == "eager"
        self.places = torch.arange(places, device=model.device)
        self.slots: tuple[list[int], Tensor] | None = None
        """The slots of the last step, as a list and as a tensor: mostly they are those of the next."""

    def _masks(self, position: Tensor, length: int) -> Any:
        return self.cache.masks(position, length, dtype=self.model.dtype, eager=self.eager)

    def prefill(self, texts: Sequence[Sequence[int]], places: Sequence[int], slots: Sequence[int]) -> Tensor:
        device = self.model.device
        lengths = [len(t) for t in texts]
        longest = max(lengths)
        self.cache.reserve(longest)
        ids = torch.tensor([[*t, *[t[-1]] * (longest - len(t))] for t in texts], device=device)
        position = torch.arange(longest, device=device).expand(len(texts), -1)
        real = position < torch.tensor(lengths, device=device)[:, None]
        owner = torch.tensor(slots, device=device)[:, None].expand(-1, longest)
        self.hooks.slot = torch.where(real, owner, -1).reshape(-1)
        self.hooks.position = position.reshape(-1)
        self.cache.plan = Plan(True, torch.tensor(places, device=device), torch.empty(0, device=device), longest)
        last = sorted({n - 1 for n in lengths})
        keep: dict[str, Any] = {"logits_to_keep": torch.tensor(last, device=device)} if self.model.keeps_logits else {}
        logits = self._forward(ids, position, self._masks(position, longest), keep)
        column = [last.index(n - 1) if self.model.keeps_logits else n - 1 for n in lengths]
        return logits[torch.arange(len(texts), device=device), torch.tensor(column, device=device)]

    def decode(self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int]) -> Tensor:
        device, n = self.model.device, len(tokens)
        length = max(positions) + 1
        self.cache.reserve(length)
        at = torch.tensor(positions, device=device)
        if self.slots is None or self.slots[0] != slots:
            self.slots = list(slots), torch.tensor(slots, device=device)
        self.hooks.slot, self.hooks.position, self.hooks.decoding = self.slots[1], at, True
        self.cache.plan = Plan(False, self.places[:n], at, length)
        position = at[:, None]
        ids = torch.tensor(tokens, device=device)[:, None]
        return self._forward(ids, position, self._masks(position, length), {})[:, -1]

    def _forward(self, ids: Tensor, position: Tensor, mask: Any, more: dict[str, Any]) -> Tensor:
        try:
            with torch.inference_mode():
                return self.model.module(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=position,
                    past_key_values=self.cache,
                    use_cache=True,
                    **more,
                ).logits
        finally:
            self.hooks.slot = self.hooks.position = None
            self.hooks.decoding = False

    def move(self, source: int, target: int) -> None:
        with torch.inference_mode():
            self.cache.move(source, target)


class AloneBatch:
    """Each request in the model's own cache, one forward per request and step."""

    def __init__(self, model: LoadedModel, hooks: SteeringHooks, why: str) -> None:
        self.model, self.hooks = model, hooks
        self.caches: dict[int, Any] = {}
        self.note: str | None = f"stepped alone through the model's own cache: {why}"

    def _one(self, ids: Sequence[int], start: int, slot: int, cache: Any) -> tuple[Tensor, Any]:
        device = self.model.device
        position = torch.arange(start, start + len(ids), device=device)
        self.hooks.slot, self.hooks.position = torch.full_like(position, slot), position
        given: dict[str, Any] = {"past_key_values": cache} if cache is not None else {}
        mask = torch.ones(1, start + len(ids), dtype=torch.long, device=device)
        try:
            with torch.inference_mode():
                out = self.model.module(
                    input_ids=torch.tensor([list(ids)], device=device), attention_mask=mask, use_cache=True, **given
                )
        finally:
            self.hooks.slot = self.hooks.position = None
        kept = getattr(out, "past_key_values", None)
        return out.logits[:, -1], kept if kept is not None else getattr(out, "cache_params", None)

    def prefill(self, texts: Sequence[Sequence[int]], places: Sequence[int], slots: Sequence[int]) -> Tensor:
        rows = []
        for text, place, slot in zip(texts, places, slots, strict=True):
            logits, self.caches[place] = self._one(text, 0, slot, None)
            rows.append(logits)
        return torch.cat(rows)

    def decode(self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int]) -> Tensor:
        rows = []
        for place, (token, position, slot) in enumerate(zip(tokens, positions, slots, strict=True)):
            logits, self.caches[place] = self._one([token], position, slot, self.caches[place])
            rows.append(logits)
        return torch.cat(rows)

    def move(self, source: int, target: int) -> None:
        self.caches[target] = self.caches.pop(source, None)
