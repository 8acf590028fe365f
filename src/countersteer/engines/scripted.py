"""A deterministic engine without a model: a script answers. For tests, documentation and dry runs.

It obeys the protocol (max tokens, stop strings, spans that hold no position, errors, closing) but computes no model:
its receipts say which positions the spans held, not what was measured, and carry a note that says so.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from countersteer.core.errors import EngineError, InputError, NoOpError
from countersteer.core.fingerprint import fingerprint, named_seed, rng
from countersteer.core.request import Chunk, Completion, LayerReceipt, Receipt, Request
from countersteer.core.site import Site
from countersteer.engines.pooling import pooled, pooling_site

Script = Callable[[Request], Any] | Mapping[str, str]
_PIECE = re.compile(r"\s*\S+|\s+")
NOTE = "scripted: no model ran, so nothing was measured"


@dataclass(frozen=True)
class Shape:
    """What the pretended model looks like."""

    layers: int = 4
    d_model: int = 16


class ScriptedEngine:
    """An engine whose responses come from `script`.

    `script`: a function from a request to a text (or a Completion, or an exception to raise), or a mapping from
    prompt to text. `delay`: seconds each response takes. `residuals`: a function (text, site) -> [tokens, d_model]
    for `forward`; without one they are pseudo-random and depend on the text and site only.
    """

    def __init__(
        self,
        script: Script,
        *,
        name: str = "scripted",
        shape: Shape | None = None,
        delay: float = 0.0,
        residuals: Callable[[str, Site], Any] | None = None,
    ) -> None:
        self._script = script
        self._name = name
        self._shape = shape or Shape()
        self._delay = delay
        self._residuals = residuals
        self._closed = False
        self.generated = 0
        """Responses given so far."""

    @property
    def model_fingerprint(self) -> str:
        """Hash of the name and shape: give engines with other scripts other names."""
        return fingerprint(["scripted", self._name, self._shape])

    @property
    def family(self) -> str:
        """Engine family with its major version."""
        return "scripted-1"

    def describe(self) -> dict[str, Any]:
        """Plain facts for a run's header."""
        facts = {"engine": self.family, "model": self._name, "dtype": "none", "device": "none", "template_hash": None}
        return {**facts, "layers": self._shape.layers, "d_model": self._shape.d_model}

    def _answer(self, request: Request) -> Completion:
        """The script's response as a completion: cut at stop strings and max tokens, with its receipt."""
        if self._closed:
            raise EngineError("the engine is closed; load it again")
        request.refuse_embedded_only()
        said = self._say(request)
        if isinstance(said, BaseException):
            raise said
        completion = said if isinstance(said, Completion) else self._complete(request, said)
        self.generated += 1
        reason = self._no_op(request, completion)
        if reason:
            raise NoOpError(reason, completion)
        return completion

    def _say(self, request: Request) -> Any:
        if callable(self._script):
            return self._script(request)
        if request.prompt is None or request.prompt not in self._script:
            raise InputError(f"the script has no response to {request.prompt!r}; add one")
        return self._script[request.prompt]

    def _complete(self, request: Request, text: str) -> Completion:
        finish = "stop"
        for stop in request.sampling.stop:
            text = text.split(stop)[0]
        pieces = _PIECE.findall(text)
        if len(pieces) > request.sampling.max_tokens:
            pieces, finish = pieces[: request.sampling.max_tokens], "length"
        tokens = tuple(named_seed(0, piece) % 2**16 for piece in pieces)
        prompt_tokens = self._prompt_tokens(request)
        return Completion("".join(pieces), tokens, prompt_tokens, finish, self._receipt(request, prompt_tokens, tokens))

    @staticmethod
    def _prompt_tokens(request: Request) -> int:
        """A first token, then one per word of everything that is given."""
        if request.tokens is not None:
            return len(request.tokens)
        given = [m.get("content", "") for m in request.messages or ()]
        given += [request.system or "", request.prompt or "", request.prefix or ""]
        return 1 + sum(len(_PIECE.findall(text)) for text in given)

    def _receipt(self, request: Request, prompt_tokens: int, tokens: Sequence[int]) -> Receipt:
        if request.intervention is None:
            return Receipt(engine=self.family, notes=(NOTE,))
        computed = prompt_tokens + max(len(tokens) - 1, 0)
        layers = []
        for edit in request.intervention.edits:
            if edit.site.layer >= self._shape.layers:
                raise InputError(f"layer {edit.site.layer} is out of range: there are {self._shape.layers}")
            if edit.d_model != self._shape.d_model:
                raise InputError(f"the intervention is {edit.d_model} wide, the model {self._shape.d_model}")
            held = edit.span.count(prompt_tokens, computed)
            changed = 0 if edit.conditional else held
            layers.append(LayerReceipt(str(edit.site), held, changed, None, None, conditional=edit.conditional))
        return Receipt(tuple(layers), engine=self.family, notes=(NOTE,))

    @staticmethod
    def _no_op(request: Request, completion: Completion) -> str | None:
        if request.intervention is None:
            return None
        empty = [layer for layer in completion.receipt.layers if layer.tokens_seen == 0]
        return f"the edit at {empty[0].site} changed nothing: its span held no position" if empty else None

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The response piece by piece; the last chunk carries the completion."""
        completion = self._answer(request)
        pieces = _PIECE.findall(completion.text)
        for piece in pieces:
            await asyncio.sleep(self._delay / max(len(pieces), 1))
            yield Chunk(piece)
        yield Chunk("", completion.tokens, completion)

    async def generate(self, request: Request) -> Completion:
        """The whole response. Raises NoOpError when a span held no position, and what the script raises."""
        await asyncio.sleep(self._delay)
        return self._answer(request)

    def run(self, requests: Sequence[Request], *, errors: str = "raise") -> list[Any]:
        """Completions in order, synchronously. `errors="return"` puts an exception in a completion's place."""
        if errors not in ("raise", "return"):
            raise InputError(f"errors must be 'raise' or 'return', got {errors!r}")
        out: list[Any] = []
        for request in requests:
            try:
                out.append(self._answer(request))
            except Exception as error:
                if errors == "raise":
                    raise
                out.append(error)
        return out

    async def forward(
        self,
        inputs: Sequence[str] | Sequence[Sequence[int]],
        *,
        readouts: Any = None,
        capture: Any = None,
        reduce: str = "none",
        span: str = "all",
        template: bool = False,
    ) -> list[Any]:
        """Per input a tensor [tokens, n] of readouts, or the residuals [tokens, d_model] of a site (a list of several).

        "max" and "mean" pool over positions, position 0 left out.
        """
        if (readouts is None) == (capture is None):
            raise InputError("forward takes either readouts or capture")
        if span != "all" or reduce not in ("none", "max", "mean"):
            raise InputError("a scripted engine's forward knows span 'all' and reduce 'none', 'max', 'mean'")
        return [self._read(x if isinstance(x, str) else repr(tuple(x)), readouts, capture, reduce) for x in inputs]

    async def max_activations(
        self, inputs: Sequence[Any], sae: Any, *, layer: int | None = None, template: bool = False
    ) -> NDArray[np.float32]:
        """Largest activation of every latent of an SAE on each text, [texts, d_sae]; see the engine protocol."""
        site = pooling_site(inputs, sae, layer=layer, d_model=self._shape.d_model)
        return await pooled(self.forward, inputs, sae, site, template=template)

    def _read(self, text: str, readouts: Any, capture: Any, reduce: str) -> Any:
        import torch

        def reduced(values: Any) -> Any:
            if reduce == "none":
                return values
            pooled = values[1:] if len(values) > 1 else values
            return pooled.amax(0) if reduce == "max" else pooled.mean(0)

        if isinstance(capture, Site):
            return reduced(self._residual(text, capture))
        if capture is not None:
            return [reduced(self._residual(text, site)) for site in capture]
        from countersteer.edits.vectors import read_rows

        groups = read_rows(readouts)
        return reduced(torch.cat([group.values(self._residual(text, group.site)) for group in groups], dim=1))

    def _residual(self, text: str, site: Site) -> Any:
        import torch

        if site.layer >= self._shape.layers:
            raise InputError(f"layer {site.layer} is out of range: there are {self._shape.layers}")
        if self._residuals is not None:
            return torch.as_tensor(self._residuals(text, site))
        tokens = 1 + len(_PIECE.findall(text))
        draw = rng(0, "residual", self._name, text, str(site)).standard_normal((tokens, self._shape.d_model))
        return torch.from_numpy(draw).float()

    def close(self) -> None:
        """Refuse everything from now on."""
        self._closed = True
