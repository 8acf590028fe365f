"""Requests on a running vLLM: the same code for an engine in this process and for a server's endpoint.

Everything here runs on the event loop that vLLM's asynchronous engine lives on.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from countersteer.core.errors import EngineError, InputError, NoOpError, RefusedError
from countersteer.core.request import Chunk, Completion, Receipt, Request
from countersteer.core.site import Site
from countersteer.core.span import END, Span
from countersteer.edits.edit import Intervention
from countersteer.edits.vectors import ReadRows
from countersteer.engines.embedded.text import TextStream, encode_request
from countersteer.engines.vllm.adapters import Adapter
from countersteer.engines.vllm.collector import Collector, RowsOf
from countersteer.engines.vllm.measured import Measured, notes_of, problem_of, readouts_of, receipt_of
from countersteer.engines.vllm.plan import Planner
from countersteer.engines.vllm.settings import Settings
from countersteer.engines.vllm.store import Store
from countersteer.engines.vllm.ticket import Ticket

FAMILY = "vllm-1"


@dataclass(frozen=True)
class Facts:
    """What a session knows of its model. `ends` are the ids that end a response; `adapter` names the one of `adapters`
    that is under every request."""

    name: str
    fingerprint: str
    tokenizer: Any
    ends: frozenset[int]
    vocab: int
    max_positions: int
    n_layers: int
    d_model: int
    dtype: str
    device: str
    table_bytes: int = 0
    template: str | None = None
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    adapter: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


class Session:
    """Turns requests into vLLM's, and its outputs and the workers' sums into completions."""

    def __init__(self, llm: Any, store: Store, settings: Settings, facts: Facts) -> None:
        self.llm, self.store, self.settings, self.facts = llm, store, settings, facts
        self.planner = Planner(settings, n_layers=facts.n_layers, d_model=facts.d_model)
        self.rows = RowsOf()
        self.collector = Collector(llm)
        self.pooling = asyncio.Semaphore(1)
        """One batch of texts at a time is pooled, so that what workers hold is bounded whoever asks."""
        self._numbers = itertools.count()

    @staticmethod
    async def workers(llm: Any, store: Store) -> list[dict[str, Any]]:
        """What every worker says it is. Raises RefusedError if one does not see the store."""
        probe = f"probe.{uuid.uuid4().hex}"
        (store.folder / probe).write_text("")
        try:
            answers = await llm.collective_rpc("countersteer_facts", args=(probe,))
        finally:
            os.unlink(store.folder / probe)
        if not all(a["store"] for a in answers):
            raise RefusedError(
                "this placement of workers",
                f"some of them do not see the folder {store.folder}",
                "setting COUNTERSTEER_STORE to a folder on a file system that all nodes share",
            )
        return list(answers)

    def encode(self, request: Request) -> list[int]:
        """The token ids of a request's prompt. Raises InputError."""
        ids = encode_request(request, self.facts.tokenizer, template=self.facts.template)
        if min(ids) < 0 or max(ids) >= self.facts.vocab:
            raise InputError(f"token ids must lie in 0..{self.facts.vocab - 1}")
        return ids

    def check(self, request: Request) -> tuple[list[int], list[ReadRows]]:
        """Everything that can be refused before work starts. Raises InputError or RefusedError."""
        if not isinstance(request, Request):
            raise InputError(f"an engine takes a Request, got {type(request).__name__}")
        steer = request.intervention
        if steer is not None and not isinstance(steer, Intervention):
            raise InputError(f"an intervention is made by cs.add, cs.clamp, ...; got {type(steer).__name__}")
        groups = self.rows(request.readouts)
        self.planner.pieces(steer, groups)
        if steer is not None and steer.gate is not None:
            self.check_capture(steer.gate.site, "the gate")
            if steer.gate.direction.shape[1] != self.facts.d_model:
                raise InputError(f"the gate is not {self.facts.d_model} wide as the model's residual stream is")
        self._lora(request)
        prompt = self.encode(request)
        limit, most = self.facts.max_positions, request.sampling.max_tokens
        if len(prompt) + most > limit:
            raise RefusedError(
                f"a prompt of {len(prompt)} tokens with max_tokens {most}",
                f"the model has {limit} positions here",
                f"max_tokens of at most {max(limit - len(prompt), 0)}",
            )
        for what, given in (("stop strings", request.sampling.stop), ("exempt stretches", request.exempt)):
            if given and self.facts.tokenizer is None:
                raise InputError(f"{what} are found in the text, and this model has no tokenizer")
        return prompt, groups

    def _lora(self, request: Request) -> Any:
        """vLLM's form of the adapter under a request, None for none. Raises InputError for one that is not loaded."""
        name, known = self.facts.adapter, self.facts.adapters
        if request.adapter is not None:
            if name is not None or request.adapter not in known:
                loaded = f"adapter {request.adapter!r} is not loaded (loaded: {', '.join(known) or 'none'})"
                raise InputError(f"{loaded}; give it to load_engine(adapters=...)")
            name = request.adapter
        return known[name].lora if name is not None else None

    @property
    def own_lora(self) -> Any:
        """vLLM's form of the adapter under every request, None for none."""
        return self.facts.adapters[self.facts.adapter].lora if self.facts.adapter is not None else None

    def check_capture(self, site: Site, what: str) -> None:
        """Raises InputError or RefusedError for a layer whose residuals cannot be taken."""
        if site.layer >= self.facts.n_layers:
            raise InputError(f"{what} is at layer {site.layer}, but the model has layers 0..{self.facts.n_layers - 1}")
        if site.layer not in self.settings.capture:
            raise RefusedError(
                f"{what} at layer {site.layer}",
                f"this engine was started with capture layers {list(self.settings.capture)}",
                f"starting it with capture_layers that hold {site.layer}",
            )

    def _params(self, request: Request, ticket: Ticket | None, *, fresh: bool, **more: Any) -> Any:
        """vLLM's sampling parameters. Ends are given by id, so that they are the same on every engine."""
        from vllm import SamplingParams

        s = request.sampling
        return SamplingParams(
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            repetition_penalty=s.repetition_penalty,
            seed=s.seed if s.temperature > 0 else None,
            max_tokens=s.max_tokens,
            stop=list(s.stop) or None,
            stop_token_ids=sorted(self.facts.ends),
            ignore_eos=True,
            detokenize=bool(s.stop),
            extra_args=ticket.to_args() if ticket is not None else None,
            skip_reading_prefix_cache=True if fresh else None,
            **more,
        )

    async def stream(self, request: Request, **more: Any) -> AsyncIterator[Chunk]:
        """Pieces as they are generated, the last one with the completion. Closing it aborts the request.

        Raises InputError, NoOpError, EngineError. `more` goes to vLLM's SamplingParams.
        """
        from vllm.sampling_params import RequestOutputKind

        prompt, groups = self.check(request)
        steer, notes, lora = request.intervention, [], self._lora(request)
        if steer is not None and steer.gate is not None:
            residuals = await self._pass(prompt, capture=(steer.gate.site.layer,), lora=lora)
            opened = steer.gate.opens(residuals.arrays[f"capture.{steer.gate.site.layer}"])
            notes.append(f"gate {'open' if opened else 'closed'}")
            steer = steer if opened else None
        only = steer is not None and request.measure_only
        ticket = None
        if steer is not None or groups:
            ticket = Ticket(
                steer=self.store.put(steer) if steer is not None else None,
                only=only,
                exempt=request.exempt if steer is not None else (),
                reads=self.store.put_reads(groups) if groups else None,
                id=uuid.uuid4().hex,
            )
        # What is read or only measured must be computed: cached positions would be missing.
        params = self._params(request, ticket, fresh=bool(groups) or only, output_kind=RequestOutputKind.DELTA, **more)
        text, tokens, finish, reason = TextStream(self.facts.tokenizer, request.sampling.stop), [], None, None
        async for output in self._outputs(prompt, params, lora):
            for token in output.token_ids:
                tokens.append(token)
                piece = text.push(token) if token not in self.facts.ends else ""
                yield Chunk(piece, (token,))
            finish, reason = output.finish_reason, output.stop_reason
        if finish not in ("stop", "length"):
            raise EngineError(str(reason or f"vLLM ended the request with {finish or 'nothing'}"))
        rest = text.finish()
        if rest:
            yield Chunk(rest)
        receipt, values, problem = Receipt((), FAMILY), None, None
        if ticket is not None and ticket.id is not None:
            measured = await self.collector.collect(ticket.id)
            receipt = receipt_of(steer, measured, prompt_tokens=len(prompt), family=FAMILY)
            notes += notes_of(measured)
            values = readouts_of(groups, measured).numpy() if groups else None
            if steer is not None:
                problem = problem_of(steer, receipt, measured, prompt_tokens=len(prompt))
        if problem and only:  # what is not there to act cannot fail to act
            notes, problem = [*notes, f"would have been refused as a no-op: {problem}"], None
        completion = Completion(
            text=text.text,
            tokens=tuple(tokens),
            prompt_tokens=len(prompt),
            finish=finish,
            receipt=replace(receipt, notes=(*notes, *receipt.notes)),
            readouts=values,
        )
        if problem:
            raise NoOpError(problem, completion)
        yield Chunk(completion=completion)

    async def generate(self, request: Request) -> Completion:
        """The whole completion."""
        stream = self.stream(request)
        try:
            async for chunk in stream:
                if chunk.completion is not None:
                    return chunk.completion
        finally:
            await stream.aclose()  # type: ignore[attr-defined]
        raise EngineError("the stream ended without a completion")

    async def _outputs(self, prompt: list[int], params: Any, lora: Any = None) -> AsyncIterator[Any]:
        """vLLM's output pieces of one request."""
        number = f"countersteer-{next(self._numbers)}-{uuid.uuid4().hex[:8]}"
        outputs = self.llm.generate({"prompt_token_ids": prompt}, params, number, lora_request=lora)
        try:
            async for output in outputs:
                yield output.outputs[0]
        except (ValueError, TypeError) as error:
            raise InputError(f"vLLM refuses the request: {' '.join(str(error).split())[:300]}") from error
        except (InputError, asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:
            raise EngineError(f"vLLM failed: {' '.join(str(error).split())[:300] or type(error).__name__}") from error
        finally:
            await outputs.aclose()

    async def _pass(
        self,
        ids: Sequence[int],
        *,
        groups: Sequence[ReadRows] = (),
        capture: tuple[int, ...] = (),
        reduce: str = "none",
        bounds: tuple[int, int] = (0, END),
        lora: Any = None,
    ) -> Measured:
        """One teacher-forced pass over a text: a request for one token that is thrown away."""
        ticket = Ticket(
            reads=self.store.put_reads(groups) if groups else None,
            capture=capture,
            reduce=reduce,
            start=bounds[0],
            stop=None if bounds[1] >= END else bounds[1],
            id=uuid.uuid4().hex,
        )
        await self.compute(ids, ticket, lora)
        assert ticket.id is not None
        return await self.collector.collect(ticket.id)

    async def compute(self, ids: Sequence[int], ticket: Ticket, lora: Any = None) -> None:
        """Every position of a text, with one token after it that is thrown away."""
        one = Request(tokens=tuple(ids))
        one = one.with_(sampling=replace(one.sampling, temperature=0.0, max_tokens=1))
        async for _ in self._outputs(list(ids), self._params(one, ticket, fresh=True), lora):
            pass

    async def forward(
        self,
        inputs: Sequence[Any],
        *,
        readouts: Any = None,
        capture: Any = None,
        reduce: str = "none",
        span: str | Span = "all",
        template: bool = False,
    ) -> list[Any]:
        """Teacher-forced, unsteered pass over texts or token ids; see the engine protocol."""
        if (readouts is None) == (capture is None):
            raise InputError("forward takes either readouts or capture")
        if reduce not in ("none", "max", "mean"):
            raise InputError(f"reduce must be none, max or mean, got {reduce!r}")
        if isinstance(inputs, str):
            raise InputError("forward takes a list of texts: forward([text])")
        where, one = Span.parse(span), isinstance(capture, Site)
        groups = self.rows(readouts)
        self.planner.pieces(None, groups)
        lora = self.own_lora
        sites: list[Site] = [] if capture is None else [capture] if one else list(capture)
        for site in sites:
            self.check_capture(site, "a capture")
        texts = [self.text_ids(item, template) for item in inputs]
        for ids in texts:
            start, stop = where.bounds(len(ids))
            if reduce != "none" and min(stop, len(ids)) <= max(start, 1):
                raise InputError(f"span {where} holds no position beyond 0 of a text of {len(ids)} tokens")

        async def one_text(ids: list[int]) -> Any:
            bounds = where.bounds(len(ids))
            layers = tuple(dict.fromkeys(s.layer for s in sites))
            measured = await self._pass(ids, groups=groups, capture=layers, reduce=reduce, bounds=bounds, lora=lora)
            if groups:
                return reduced(readouts_of(groups, measured), reduce, bounds)
            values = [measured.arrays[f"capture.{s.layer}"] for s in sites]
            return values[0] if one else values

        return list(await asyncio.gather(*map(one_text, texts)))

    def text_ids(self, item: Any, template: bool) -> list[int]:
        """The token ids of a text that a pass is made over. Raises InputError."""
        request = Request(prompt=item, template=template) if isinstance(item, str) else Request(tokens=tuple(item))
        ids = self.encode(request)
        if len(ids) >= self.facts.max_positions:
            raise InputError(
                f"a text of {len(ids)} tokens is too long for the {self.facts.max_positions} positions here"
            )
        return ids


def reduced(values: Tensor, how: str, bounds: tuple[int, int]) -> Tensor:
    """Rows of a span, all of them or their max or mean (position 0 left out of both)."""
    start, stop = bounds
    if how == "none":
        return values[start:stop]
    rows = values[max(start, 1) : stop]
    return rows.amax(0) if how == "max" else rows.mean(0)
