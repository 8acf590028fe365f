"""What an engine is asked and what it answers: Request, Sampling, Chunk, Completion, Receipt.

An intervention travels through here untyped (its class lives one layer up); everything else is plain frozen data.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from countersteer.core.errors import InputError, RefusedError
from countersteer.core.exempt import check_exemptions


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    temperature 0 is greedy. top_k 0 and top_p 1 switch those filters off. The repetition penalty divides positive and
    multiplies negative logits of tokens already in prompt or response. Randomness depends on (seed, position) only.
    """

    temperature: float = 0.6
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        def bad(name: str, need: str) -> InputError:
            return InputError(f"sampling {name} must be {need}, got {getattr(self, name)!r}")

        for name in ("temperature", "top_p", "repetition_penalty"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise bad(name, "a finite number")
        for name in ("top_k", "seed", "max_tokens"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise bad(name, "a whole number")
        if self.temperature < 0:
            raise bad("temperature", ">= 0")
        if not 0 < self.top_p <= 1:
            raise bad("top_p", "in (0, 1]")
        if self.top_k < 0:
            raise bad("top_k", ">= 0")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise bad("repetition_penalty", "in [0.01, 100]")
        if not 0 <= self.seed < 1 << 63:
            raise bad("seed", "in [0, 2^63)")
        if self.max_tokens < 1:
            raise bad("max_tokens", ">= 1")
        listed = isinstance(self.stop, list | tuple)
        if not listed or not all(isinstance(s, str) and s for s in self.stop):
            raise bad("stop", "a list of non-empty strings")
        object.__setattr__(self, "stop", tuple(self.stop))

    def with_seed(self, seed: int) -> Sampling:
        """A copy with another seed. The rest was checked when this one was made, so it is not checked again."""
        if type(seed) is not int:
            return replace(self, seed=seed)
        copy = object.__new__(Sampling)
        copy.__dict__.update(self.__dict__, seed=seed)
        return copy


def _messages(given: Any) -> tuple[dict[str, str], ...]:
    """Messages as a tuple of {"role", "content"} texts. Raises InputError."""
    if not isinstance(given, list | tuple) or not given:
        raise InputError("messages must be a list of at least one message")
    for message in given:
        texts = isinstance(message, dict) and all(isinstance(v, str) for v in message.values())
        if not texts or not {"role", "content"} <= set(message):
            raise InputError('each message must be {"role": text, "content": text}')
    return tuple(dict(message) for message in given)


def _tokens(given: Any) -> tuple[int, ...]:
    """Token ids as a tuple of whole numbers. Raises InputError."""
    try:
        ids = tuple(operator.index(token) for token in given)
    except TypeError as error:
        raise InputError("tokens must be a list of whole numbers") from error
    if not ids:
        raise InputError("tokens is empty")
    return ids


@dataclass(frozen=True)
class Request:
    """One generation. Exactly one of `prompt` (one user turn), `messages` (role / content dicts) or `tokens` (ids).

    `system` is put before a prompt; `prefix` is text the answer must begin with (it is given, so it counts as prompt
    for spans); `template` False sends a prompt as plain text. `readouts` are latents or directions to record.
    `adapter`: the name of an adapter that the engine was loaded with.
    `measure_only`: the receipt says what the intervention would have done to each layer, and nothing is changed.
    `exempt`: stretches of the response that the edits leave alone (core/exempt.py).
    """

    prompt: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    tokens: tuple[int, ...] | None = None
    system: str | None = None
    prefix: str | None = None
    intervention: Any = None
    readouts: Any = None
    sampling: Sampling = field(default_factory=Sampling)
    template: bool = True
    measure_only: bool = False
    exempt: tuple[str, ...] = ()
    adapter: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "exempt", check_exemptions(self.exempt))
        if sum(x is not None for x in (self.prompt, self.messages, self.tokens)) != 1:
            raise InputError("a request takes exactly one of prompt, messages or tokens")
        for name in ("prompt", "system", "prefix", "adapter"):
            if not isinstance(getattr(self, name), str | None):
                raise InputError(f"a request's {name} must be text, got {type(getattr(self, name)).__name__}")
        if not isinstance(self.sampling, Sampling):
            raise InputError(f"a request's sampling must be a Sampling, got {type(self.sampling).__name__}")
        if self.prompt is not None and not self.prompt.strip():
            raise InputError("the prompt is empty")
        if self.messages is not None:
            object.__setattr__(self, "messages", _messages(self.messages))
            if self.system is not None:
                raise InputError("give the system prompt as a message, not both ways")
        if self.tokens is not None:
            object.__setattr__(self, "tokens", _tokens(self.tokens))
            if self.system is not None or self.prefix is not None:
                raise InputError("system and prefix need text, not token ids: put their ids into tokens")

    def refuse_embedded_only(self) -> None:
        """For engines that would ignore them: raises RefusedError for `measure_only`, `exempt`, `adapter`."""
        asked = "measure_only" if self.measure_only else "exempt stretches" if self.exempt else None
        asked = asked or (f"adapter {self.adapter}" if self.adapter is not None else None)
        if asked:
            raise RefusedError(
                asked, "this engine does not have it", "the embedded or the vLLM engine, or leave it out"
            )

    def with_(self, **changes: Any) -> Request:
        """A copy with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class EditReceipt:
    """What one edit of a layer did by itself, where several edits share the layer.

    `tokens_changed`: positions of its span at which its own write, without the others', changes the residual that it
    read (in the model's dtype). `mean_relative` and `before` as in `LayerReceipt`, of this edit alone.
    """

    method: str
    tokens_seen: int
    tokens_changed: int
    mean_relative: float | None
    before: tuple[float, ...] = ()
    conditional: bool = False


@dataclass(frozen=True)
class LayerReceipt:
    """What the edits of one layer did to one request, measured on the tensor handed on, in the model's dtype.

    `tokens_seen` positions lay in a span, `tokens_changed` of them came out different. `mean_relative` and
    `max_relative` are of |h' - h| / |h| over the seen positions, position 0 left out. `before` and `after` are the
    mean read x = R h + b per read row (order of the rows), position 0 left out. `missed_target` is the largest
    distance between a setter's target and the x that was reached (None without setters). `edits`: one entry per edit
    in their order; empty from an engine that measures whole layers only.
    """

    site: str
    tokens_seen: int
    tokens_changed: int
    mean_relative: float | None
    max_relative: float | None
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()
    missed_target: float | None = None
    conditional: bool = False
    edits: tuple[EditReceipt, ...] = ()

    def __post_init__(self) -> None:
        plain = (e if isinstance(e, EditReceipt) else EditReceipt(**{**e, "before": tuple(e["before"])})
                 for e in self.edits)  # fmt: skip
        object.__setattr__(self, "edits", tuple(plain))


@dataclass(frozen=True)
class Receipt:
    """The receipt of one request: one entry per edited layer, and notes on how it was run."""

    layers: tuple[LayerReceipt, ...] = ()
    engine: str = ""
    notes: tuple[str, ...] = ()

    @property
    def acted(self) -> bool:
        """Whether any token was changed."""
        return any(layer.tokens_changed for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        layers = tuple({**vars(layer), "edits": tuple(dict(vars(e)) for e in layer.edits)} for layer in self.layers)
        return {"layers": layers, "engine": self.engine, "notes": self.notes}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Receipt:
        """The receipt of `to_dict`'s data, also after JSON. Raises TypeError or KeyError for anything else."""
        layers = (LayerReceipt(**{**e, "before": tuple(e["before"]), "after": tuple(e["after"])})
                  for e in data["layers"])  # fmt: skip
        return cls(tuple(layers), data["engine"], tuple(data["notes"]))


@dataclass(frozen=True)
class Chunk:
    """A piece of a stream. The last one carries the completion; `text` pieces join to its text."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    completion: Completion | None = None


@dataclass(frozen=True)
class Completion:
    """A finished generation.

    `tokens` are the generated ids (the end token included when it was drawn), `text` their decoding without special
    tokens, cut before a stop string. `finish` is "stop" (end token or stop string) or "length". `readouts` is an
    array [positions, n] over the positions that were read (prompt and response), or None.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish: str
    receipt: Receipt = field(default_factory=Receipt)
    readouts: Any = None
