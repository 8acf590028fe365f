"""`attach`: edits on a transformers model that the user already holds, for as long as a `with` block lasts.

The hooks sit on the model's own modules, so `generate`, its caches, left padding, beams and plain forwards all work.
Positions come from what the model is called with: a forward without a past starts new texts (its real tokens are the
prompt), a forward with the cache of those texts continues them, and so does each further forward of one call of
`generate` without a cache. What cannot be placed is refused by name. Everything is taken off on exit.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from countersteer.core.errors import InputError, NoOpError, RefusedError
from countersteer.core.request import EditReceipt, LayerReceipt, Receipt
from countersteer.edits.edit import Intervention
from countersteer.edits.receipts import no_op
from countersteer.engines.embedded.hooks import SteeringHooks
from countersteer.engines.embedded.layers import find_layers, text_config, verify_layers


@dataclass(frozen=True)
class _Finished:
    """The receipts of one row of a batch that is over."""

    layers: tuple[LayerReceipt, ...]
    prompt_tokens: int
    tokens: int


@dataclass
class _Shared:
    """What several attachments of one model share: the residuals of the forward under way before any write.

    `calls` counts the calls of `generate`, `generating` those that have not returned.
    """

    users: int
    originals: dict[int, Tensor]
    calls: int = 0
    generating: int = 0


_MARK = "_countersteer_shared"


class Attachment:
    """The handle that `attach` gives: `receipt` sums up everything that ran inside the block."""

    def __init__(self, model: nn.Module, intervention: Intervention) -> None:
        if not isinstance(intervention, Intervention):
            raise InputError(f"attach takes an intervention (cs.add, cs.clamp, ...), got {type(intervention).__name__}")
        for edit in intervention.edits:
            if edit.span.restart:
                edit.span.bounds(0)  # refused by name: a hook does not see the text
        if intervention.gate is not None:
            raise RefusedError(
                "attaching an intervention with a request-level gate",
                "the gate needs a pass over each prompt before generation starts",
                "load_engine((model, tokenizer)) and engine.run([...])",
            )
        if not isinstance(model, nn.Module) or not hasattr(model, "config"):
            raise InputError(f"attach takes a transformers model, got {type(model).__name__}")
        signature = inspect.signature(model.forward)
        if "past_key_values" not in signature.parameters:
            raise RefusedError(
                f"attaching to {type(model).__name__}",
                "its forward takes no past_key_values, so a continued text cannot be told from a new one",
                "load_engine((model, tokenizer)) and engine.run([...])",
            )
        self.model, self.intervention, self.signature = model, intervention, signature
        self.layers = find_layers(model)
        self.d_model = int(text_config(model).hidden_size)
        for edit in intervention.edits:
            if edit.site.layer >= len(self.layers):
                last = len(self.layers) - 1
                raise InputError(f"edit {edit.method} is at layer {edit.site.layer}, the model has layers 0..{last}")
            if edit.d_model != self.d_model:
                raise InputError(f"edit {edit.method} is {edit.d_model} wide, the model is {self.d_model} wide")
        self.hooks: SteeringHooks | None = None
        self.handles: list[Any] = []
        self.finished: list[_Finished] = []
        self.prompts: list[int] = []
        self.read: list[int] = []
        self.text: Tensor | None = None
        self.length = 0
        self.call = 0
        self.cache: Any = None

    def __enter__(self) -> Attachment:
        if self.handles:
            raise InputError("this attachment is already in use: call attach again for another block")
        shared = self.layers.__dict__.get(_MARK)
        if shared is None:
            training = self.model.training
            self.model.eval()
            try:
                verify_layers(self.model, self.layers, self.d_model)
            finally:
                self.model.train(training)
            shared = self.layers.__dict__[_MARK] = _Shared(0, {})
            if hasattr(self.model, "generate"):
                self.model.generate = _counted(self.model.generate, shared)
        shared.users += 1
        self.shared = shared

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            shared.originals.clear()
            self._place(self._given(args, kwargs))

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if self.hooks is not None:
                self.hooks.slot = self.hooks.position = None
                self.cache = _held(self._given(args, kwargs).get("past_key_values"), output)

        self.handles = [
            self.model.register_forward_pre_hook(before, with_kwargs=True),
            self.model.register_forward_hook(after, with_kwargs=True, always_call=True),
        ]
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []
        self.shared.users -= 1
        self.shared.originals.clear()
        if not self.shared.users:
            del self.layers.__dict__[_MARK]
            self.model.__dict__.pop("generate", None)
        self._finish()
        if kind is None:
            for row in self.finished:
                receipt = Receipt(row.layers)
                why = no_op(self.intervention, receipt, prompt_tokens=row.prompt_tokens, tokens=row.tokens)
                if why:
                    raise NoOpError(why)

    @property
    def receipt(self) -> Receipt:
        """One entry per edited layer over all rows and forwards so far (beams that were dropped included)."""
        rows = [*self.finished, *self._current()]
        merged = [_merge([r.layers[i] for r in rows]) for i in range(len(rows[0].layers))] if rows else []
        return Receipt(tuple(merged), "attached", (f"{len(rows)} rows",))

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """A forward's arguments by name."""
        given = self.signature.bind_partial(*args, **kwargs).arguments
        return {**given, **given.get("kwargs", {})}

    def _place(self, given: dict[str, Any]) -> None:
        """Before a forward: say which token is at which position of which row."""
        ids = given.get("input_ids")
        source = ids if ids is not None else given.get("inputs_embeds")
        if source is None:
            raise InputError("a steered forward needs input_ids or inputs_embeds")
        rows, tokens = source.shape[:2]
        mask = given.get("attention_mask")
        past = given.get("past_key_values")
        seen = int(past.get_seq_length()) if past is not None and hasattr(past, "get_seq_length") else 0
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            if isinstance(mask, dict) or mask.ndim == 4:
                mask = None if self._unpadded(given) else mask
            if mask is not None:
                raise RefusedError(
                    "a steered forward with a ready-made 4D attention mask",
                    "the padding of its rows cannot be read from it",
                    "a 2D attention mask, or dynamic caches in generate",
                )
        device = source.device
        if mask is None:
            mask = torch.ones(rows, seen + tokens, dtype=torch.long, device=device)
        if mask.shape[1] < seen + tokens:
            raise InputError(f"the attention mask covers {mask.shape[1]} of {seen + tokens} positions")
        real = mask[:, : seen + tokens].to(device).long()
        position = (real.cumsum(1) - 1)[:, seen:]
        inside = real[:, seen:] > 0
        if seen == 0:
            call = self.shared.calls if self.shared.generating else 0
            if call and call == self.call and self.hooks is not None:
                self._read_again(ids)  # generate without a cache: the prompts stay what they were
                prompts = self.prompts
                self._drop()
            else:
                prompts = real.sum(1).tolist()
                self._finish()
            self._start(rows, prompts)
            self.text, self.call = ids, call
        elif self.hooks is None or self.cache is None or self.cache() is not past or seen != self.length:
            raise RefusedError(
                "a steered forward that continues a cache of other texts than the block's last ones",
                "the length of its prompt is unknown",
                "start the text inside the block, and finish it before the next one",
            )
        elif tokens > 1:
            raise RefusedError(
                "a steered forward that adds several tokens to a cache",
                "chunked prefill and assisted decoding hide which tokens belong to the prompt",
                "generate without prefill_chunk_size or an assistant model",
            )
        assert self.hooks is not None
        owner = torch.arange(rows, device=device)[:, None].expand(-1, tokens)
        self.hooks.slot = torch.where(inside, owner, -1).reshape(-1)
        self.hooks.position = position.clamp_min(0).reshape(-1)
        self.read = [n + k for n, k in zip(self.read, inside.sum(1).tolist(), strict=True)]
        self.length = seen + tokens

    def _read_again(self, ids: Tensor | None) -> None:
        """Check that a forward of `generate` without a cache reads the last texts with one more token each.

        Beams may have changed places, but only with rows of as long a prompt. Raises RefusedError.
        """
        last = self.text
        if ids is not None and last is not None and ids.shape == (last.shape[0], last.shape[1] + 1):
            same = (ids[:, None, :-1] == last[None]).all(2)
            prompts = torch.tensor(self.prompts, device=ids.device)
            if (same & (prompts[:, None] == prompts[None])).any(1).all():
                return
        raise RefusedError(
            "generate without a cache whose forwards are not the same texts with one more token each",
            "which of their tokens are the prompt's cannot be told",
            "use_cache=True, or a forward of your own",
        )

    @staticmethod
    def _unpadded(given: dict[str, Any]) -> bool:
        """Whether explicit position ids say that no row is padded."""
        position = given.get("position_ids")
        if position is None:
            return False
        steps = torch.arange(position.shape[-1], device=position.device)
        return bool((position == position[:1, :1] + steps).all())

    def _start(self, rows: int, prompts: list[int]) -> None:
        dtype = next(self.layers[0].parameters()).dtype
        self.hooks = SteeringHooks(self.layers, rows, self.d_model, dtype)
        self.hooks.originals = self.layers.__dict__[_MARK].originals
        self.prompts, self.read = prompts, [0] * rows
        for row, length in enumerate(prompts):
            self.hooks.install(row, self.intervention.edits, length)

    def _current(self) -> list[_Finished]:
        if self.hooks is None:
            return []
        return [
            _Finished(self.hooks.receipts(row, read), prompt, read)
            for row, (prompt, read) in enumerate(zip(self.prompts, self.read, strict=True))
        ]

    def _finish(self) -> None:
        """Close the batch that is under way and take its hooks off."""
        self.finished += self._current()
        self._drop()
        self.text, self.cache, self.call = None, None, 0

    def _drop(self) -> None:
        """Take the layer hooks of the batch under way off."""
        if self.hooks is not None:
            self.hooks.close()
            self.hooks = None


def _counted(generate: Any, shared: _Shared) -> Any:
    """A model's own `generate`, which says in `shared` that it is under way."""

    @functools.wraps(generate)
    def counted(*args: Any, **kwargs: Any) -> Any:
        shared.calls += 1
        shared.generating += 1
        try:
            return generate(*args, **kwargs)
        finally:
            shared.generating -= 1

    return counted


def _held(given: Any, output: Any) -> Any:
    """A weak reference to the cache that a forward was given, or made; None without one."""
    found = [given, getattr(output, "past_key_values", None), *(output if isinstance(output, tuple) else ())]
    caches = (value for value in found if hasattr(value, "get_seq_length"))
    cache = next(caches, None)
    return None if cache is None else weakref.ref(cache)


def attach(model: Any, intervention: Intervention) -> Attachment:
    """Edits on a transformers model within a `with` block: `with attach(model, steer) as handle: model.generate(...)`.

    The model's layers are verified on entry. On exit every hook is removed, whatever happened, and an intervention that
    changed nothing where it had to raises NoOpError. Raises InputError and RefusedError before anything is generated.
    """
    return Attachment(model, intervention)


def _merge(parts: list[LayerReceipt]) -> LayerReceipt:
    """One receipt for several rows; means are weighted by the tokens seen."""

    def weigh(values: list[tuple[float, int]]) -> float | None:
        total = sum(n for _, n in values)
        return sum(v * n for v, n in values) / total if total else None

    known = [(p.mean_relative, p.tokens_seen) for p in parts if p.mean_relative is not None]
    peaks = [p.max_relative for p in parts if p.max_relative is not None]
    missed = [p.missed_target for p in parts if p.missed_target is not None]
    read = [p for p in parts if p.before]

    def columns(name: str) -> tuple[float, ...]:
        width = len(getattr(read[0], name)) if read else 0
        return tuple(weigh([(getattr(p, name)[i], p.tokens_seen) for p in read]) or 0.0 for i in range(width))

    return LayerReceipt(
        site=parts[0].site,
        tokens_seen=sum(p.tokens_seen for p in parts),
        tokens_changed=sum(p.tokens_changed for p in parts),
        mean_relative=weigh(known),
        max_relative=max(peaks, default=None),
        before=columns("before"),
        after=columns("after"),
        missed_target=max(missed, default=None),
        conditional=parts[0].conditional,
        edits=tuple(_merge_edits([p.edits[i] for p in parts]) for i in range(len(parts[0].edits))),
    )


def _merge_edits(parts: list[EditReceipt]) -> EditReceipt:
    """One entry for several rows of the same edit; means are weighted by the tokens seen."""
    seen = sum(p.tokens_seen for p in parts)
    known = [(p.mean_relative, p.tokens_seen) for p in parts if p.mean_relative is not None]
    total = sum(n for _, n in known)
    read = [p for p in parts if p.before]
    weight = sum(p.tokens_seen for p in read)
    before = tuple(
        sum(p.before[i] * p.tokens_seen for p in read) / weight for i in range(len(read[0].before) if weight else 0)
    )
    mean = sum(v * n for v, n in known) / total if total else None
    changed = sum(p.tokens_changed for p in parts)
    return EditReceipt(parts[0].method, seen, changed, mean, before, parts[0].conditional)
