"""The embedded engine: a transformers decoder in this process, continuously batched, every request steered apart."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from countersteer.core.errors import CountersteerError, InputError, RefusedError
from countersteer.core.request import Chunk, Completion, Request
from countersteer.core.site import Site
from countersteer.core.span import Span
from countersteer.edits.edit import Intervention
from countersteer.edits.vectors import read_rows
from countersteer.engines.embedded.adapter import Adapters
from countersteer.engines.embedded.flight import Flight, Job
from countersteer.engines.embedded.forward import capture as capture_residuals
from countersteer.engines.embedded.forward import readout_columns, reduce_rows
from countersteer.engines.embedded.loop import Loop
from countersteer.engines.embedded.model import LoadedModel
from countersteer.engines.embedded.selftest import build_batch
from countersteer.engines.embedded.text import TextStream, encode_request, tells_date
from countersteer.engines.pooling import pooled, pooling_site

log = logging.getLogger(__name__)
FAMILY = "embedded-1"


class EmbeddedEngine:
    """Generates with edits on a verified transformers model (see `countersteer.load_engine`).

    `places` requests are decoded together. One thread steps the model; `generate`, `stream` and `run` may be called
    from anywhere, inside a running event loop too.
    """

    family = FAMILY

    def __init__(
        self, model: LoadedModel, *, places: int = 32, adapters: Mapping[str, str | os.PathLike[str]] | None = None
    ) -> None:
        """`adapters`: folders by the names that requests use. Raises InputError, RefusedError for another model's."""
        if places < 1:
            raise InputError(f"places must be >= 1, got {places}")
        self.model = model
        self.adapters = Adapters(model, adapters or {}, lambda made: EmbeddedEngine(made, places=places))
        self.hooks, batch = build_batch(model, places)
        self.loop = Loop(model, self.hooks, batch, places, FAMILY)

    @property
    def model_fingerprint(self) -> str:
        """Fingerprint of the model's configuration and weights."""
        return self.model.fingerprint

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.model.d_model

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.model.layers)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or None."""
        return self.model.tokenizer

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return not self.loop.closed and self.loop.thread.is_alive()

    def describe(self) -> dict[str, Any]:
        """Plain facts for a run's header."""
        import transformers

        return {
            "engine": FAMILY,
            "model": self.model.name,
            "model_fingerprint": self.model.fingerprint,
            "architecture": type(self.model.module).__name__,
            "dtype": self.model.dtype_name,
            "device": str(self.model.device),
            "layers": self.n_layers,
            "d_model": self.d_model,
            "template_hash": self.model.template_hash,
            "tokenizer": self.model.tokenizer_hash,
            "end_tokens": sorted(self.model.end_tokens),
            "cache": self.loop.batch.note or "slots",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            **({"template": self.model.template} if self.model.template else {}),
            **({"date": self.model.date} if self.model.date and tells_date(self.model.tokenizer) else {}),
            **({"adapter": self.model.adapter} if self.model.adapter else {}),
            **({"adapters": self.adapters.described()} if self.adapters.records else {}),
        }

    def encode(self, request: Request) -> list[int]:
        """The token ids of a request's prompt, template and prefix included. Raises InputError."""
        ids = encode_request(request, self.model.tokenizer, template=self.model.template, date=self.model.date)
        if min(ids) < 0 or max(ids) >= self.model.vocab:
            raise InputError(f"token ids must lie in 0..{self.model.vocab - 1}")
        return ids

    def _check_site(self, what: str, site: Site, width: int) -> None:
        if site.layer >= self.n_layers:
            raise InputError(f"{what} is at layer {site.layer}, but the model has layers 0..{self.n_layers - 1}")
        if width != self.d_model:
            raise InputError(f"{what} is {width} wide, but the model's residual stream is {self.d_model} wide")

    def _flight(self, request: Request) -> Flight:
        """Check everything before work starts. Raises InputError or RefusedError."""
        if not isinstance(request, Request):
            raise InputError(f"an engine takes a Request, got {type(request).__name__}")
        if request.adapter is not None:
            home = self.adapters.engine(request.adapter)
            flight: Flight = home._flight(request.with_(adapter=None))
            flight.start = home.loop.submit
            return flight
        steer = request.intervention
        if steer is not None:
            if not isinstance(steer, Intervention):
                raise InputError(f"an intervention is made by cs.add, cs.clamp, ...; got {type(steer).__name__}")
            for edit in steer.edits:
                self._check_site(f"edit {edit.method}", edit.site, edit.d_model)
                if edit.span.restart and self.model.tokenizer is None:
                    raise InputError(f"span {edit.span} needs a tokenizer, and this model has none")
            if steer.gate is not None:
                self._check_site("the gate", steer.gate.site, steer.gate.direction.shape[1])
        if request.exempt and self.model.tokenizer is None:
            raise InputError("exempt stretches are found in the text, and this model has no tokenizer")
        if request.readouts is not None:
            for rows in read_rows(request.readouts):
                self._check_site("a readout", rows.site, rows.read.shape[1])
        prompt = self.encode(request)
        limit, needed = self.model.max_positions, len(prompt) + request.sampling.max_tokens - 1
        if limit is not None and needed > limit:
            raise RefusedError(
                f"a prompt of {len(prompt)} tokens with max_tokens {request.sampling.max_tokens}",
                f"the model has {limit} positions",
                f"max_tokens of at most {max(limit - len(prompt) + 1, 0)}",
            )
        if request.sampling.stop and self.model.tokenizer is None:
            raise InputError("stop strings need a tokenizer, and this model has none")
        return Flight(request, prompt, TextStream(self.model.tokenizer, request.sampling.stop), start=self.loop.submit)

    def submit(self, request: Request) -> Future[Completion]:
        """Start a request; the future resolves to its completion or to its error."""
        flight = self._flight(request)
        flight.begin()
        return flight.future

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Pieces as they are generated, the last one with the completion. Closing frees the place in the batch."""
        flight = self._flight(request)
        events: asyncio.Queue[Chunk] = asyncio.Queue()
        here = asyncio.get_running_loop()

        def hand_over(chunk: Chunk) -> None:
            if not here.is_closed():
                here.call_soon_threadsafe(events.put_nowait, chunk)

        flight.on_chunk = hand_over
        flight.begin()
        try:
            while True:
                chunk = await events.get()
                if chunk.completion is None and not chunk.text and not chunk.tokens:
                    await asyncio.wrap_future(flight.future)  # raises the error that ended the stream
                yield chunk
                if chunk.completion is not None:
                    return
        finally:
            flight.cancelled = not flight.future.done()

    async def generate(self, request: Request) -> Completion:
        """The whole completion. Cancelling frees the place in the batch. Raises NoOpError, EngineError, InputError."""
        flight = self._flight(request)
        flight.begin()
        try:
            return await asyncio.wrap_future(flight.future)
        finally:
            flight.cancelled = not flight.future.done() or flight.future.cancelled()

    def run(self, requests: Sequence[Request], *, errors: str = "raise") -> list[Any]:
        """Completions in order, synchronously. With `errors="return"` a failed one is its exception."""
        if errors not in ("raise", "return"):
            raise InputError(f"errors must be 'raise' or 'return', got {errors!r}")
        if isinstance(requests, Request):
            raise InputError("run takes a list of requests: run([request])")
        flights: list[Flight | Exception] = []
        for request in requests:
            try:
                flights.append(self._flight(request))
            except CountersteerError as error:
                if errors == "raise":
                    raise
                flights.append(error)
        started = [f for f in flights if isinstance(f, Flight)]
        for flight in started:
            flight.begin()
        out: list[Any] = []
        try:
            for item in flights:
                failed = item if isinstance(item, Exception) else item.future.exception()
                if failed is not None and errors == "raise":
                    raise failed
                out.append(failed if isinstance(item, Exception) or failed is not None else item.future.result())
        finally:
            for flight in started:
                flight.cancelled = not flight.future.done()
        return out

    async def forward(
        self,
        inputs: Sequence[str] | Sequence[Sequence[int]],
        *,
        readouts: Any = None,
        capture: Any = None,
        reduce: str = "none",
        span: str | Span = "all",
        template: bool = False,
    ) -> list[Any]:
        """Teacher-forced, unsteered pass over texts (template off or on) or token ids.

        With `readouts` (latents or directions): per input a tensor [tokens, n] of activations or projections. With
        `capture` (a site or several): the residuals [tokens, d_model], one tensor for a site, a list for several.
        `reduce` "max" or "mean" pools over the span's positions with position 0 left out. The whole input is prompt.
        """
        if (readouts is None) == (capture is None):
            raise InputError("forward takes either readouts or capture")
        if reduce not in ("none", "max", "mean"):
            raise InputError(f"reduce must be none, max or mean, got {reduce!r}")
        if isinstance(inputs, str):
            raise InputError("forward takes a list of texts: forward([text])")
        where, groups = Span.parse(span), []
        one = isinstance(capture, Site)
        if readouts is not None:
            groups = read_rows(readouts)
            sites = [g.site for g in groups]
            for rows in groups:
                self._check_site("a readout", rows.site, rows.read.shape[1])
        else:
            sites = [capture] if one else list(capture)
            for site in sites:
                self._check_site("a capture", site, self.d_model)
        texts = [self._ids(item, template) for item in inputs]
        job = Job(lambda: capture_residuals(self.model, texts, [s.layer for s in sites]))
        self.loop.submit(job)
        out: list[Any] = []
        for residuals, ids in zip(await asyncio.wrap_future(job.future), texts, strict=True):
            if groups:
                out.append(reduce_rows(readout_columns(residuals, groups), reduce, where, len(ids)))
            else:
                values = [reduce_rows(h, reduce, where, len(ids)) for h in residuals]
                out.append(values[0] if one else values)
        return out

    async def max_activations(
        self, inputs: Sequence[Any], sae: Any, *, layer: int | None = None, template: bool = False
    ) -> NDArray[np.float32]:
        """Largest activation of every latent of an SAE on each text, [texts, d_sae]; see the engine protocol."""
        site = pooling_site(inputs, sae, layer=layer, d_model=self.d_model)
        return await pooled(self.forward, inputs, sae, site, template=template)

    def _ids(self, item: str | Sequence[int], template: bool) -> list[int]:
        request = Request(prompt=item, template=template) if isinstance(item, str) else Request(tokens=tuple(item))
        ids = self.encode(request)
        if self.model.max_positions is not None and len(ids) > self.model.max_positions:
            raise InputError(f"a text of {len(ids)} tokens is longer than the model's {self.model.max_positions}")
        return ids

    def close(self) -> None:
        """Stop the thread, take every hook off the model, and put a user's own model back into training mode."""
        self.adapters.close()
        self.loop.close()
        self.hooks.close()
        for part in self.model.training:
            part.training = True

    def __enter__(self) -> EmbeddedEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
