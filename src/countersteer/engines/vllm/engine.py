"""The vLLM engine in this process's hands: starts vLLM with steering, speaks the engine protocol."""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from countersteer.core.errors import CountersteerError, EngineError, InputError, RefusedError, nearest
from countersteer.core.fingerprint import fingerprint
from countersteer.core.request import Chunk, Completion, Request
from countersteer.engines.embedded.adapter import text_facts
from countersteer.engines.vllm.adapters import EVERY, load_adapters, lora_options, read_adapters
from countersteer.engines.vllm.pooling import max_activations
from countersteer.engines.vllm.session import FAMILY, Facts, Session
from countersteer.engines.vllm.settings import Settings
from countersteer.engines.vllm.store import ENV, Store

WORKER = "countersteer.engines.vllm.worker.SteerWorker"
SCHEDULER = "countersteer.engines.vllm.scheduler.SteerScheduler"


def engine_options(settings: Settings, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of vLLM that turn steering on, joined with the caller's own. Raises InputError."""
    fixed = {"worker_cls": WORKER, "scheduler_cls": SCHEDULER, "async_scheduling": False}
    for name, value in fixed.items():
        if options.get(name, value) != value and name == "async_scheduling":
            raise RefusedError("asynchronous scheduling", "receipts would count tokens after the end", "leave it off")
    more = dict(options.get("additional_config") or {})
    return {**fixed, **options, "additional_config": {**more, **settings.additional_config()}}


def check_layers(settings: Settings, n_layers: int) -> None:
    """Raises InputError for layers that the model does not have."""
    outside = [n for n in (*settings.layers, *settings.capture) if n >= n_layers]
    if outside:
        raise InputError(f"layers {outside} are not in the model: it has layers 0..{n_layers - 1}")


@contextmanager
def process_environment(store: Path) -> Iterator[None]:
    """What vLLM's processes must inherit: where the store is, and the runner that is proven."""
    wanted = {ENV: str(store), "VLLM_USE_V2_MODEL_RUNNER": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def read_facts(config: Any, name: str, workers: Sequence[Mapping[str, Any]], *, template: str | None = None) -> Facts:
    """What a session must know, from vLLM's configuration and its workers. Raises InputError.

    `template`: a variation of the chat template, by name. Adapters are added where they are loaded.
    """
    from transformers import GenerationConfig
    from transformers.utils import cached_file
    from vllm import __version__ as version

    from countersteer.engines.embedded.fingerprint import folder_fingerprint
    from countersteer.engines.embedded.text import check_variation, load_tokenizer

    model = config.model_config
    source = model.model
    folder = Path(source) if Path(source).is_dir() else Path(str(cached_file(source, "config.json"))).parent
    tokenizer = None if model.skip_tokenizer_init else load_tokenizer(source)
    check_variation(tokenizer, template)
    ends: set[int] = set()
    try:
        ends |= _ids(GenerationConfig.from_pretrained(folder).eos_token_id)
    except OSError:
        ends |= _ids(getattr(model.hf_text_config, "eos_token_id", None))
    ends |= _ids(getattr(tokenizer, "eos_token_id", None))
    chat = getattr(tokenizer, "chat_template", None)
    cache = str(config.cache_config.cache_dtype)
    first = workers[0]
    return Facts(
        name=name,
        fingerprint=folder_fingerprint(folder),
        tokenizer=tokenizer,
        ends=frozenset(ends),
        vocab=int(model.get_vocab_size()),
        max_positions=int(model.max_model_len),
        n_layers=int(first["n_layers"]),
        d_model=int(first["d_model"]),
        dtype=str(first["dtype"]),
        device=str(first["device"]),
        table_bytes=max(int(w["table_bytes"]) for w in workers),
        template=template,
        more={
            "architecture": ", ".join(model.architectures or ()),
            "template_hash": fingerprint([chat, template] if template else chat) if chat else None,
            "quantisation": model.quantization if cache == "auto" else f"{model.quantization}, keys {cache}",
            **({"template": template} if template else {}),
            "tensor_parallel": config.parallel_config.tensor_parallel_size,
            "pipeline_parallel": config.parallel_config.pipeline_parallel_size,
            "compiled": not model.enforce_eager,
            "prefix_caching": bool(config.cache_config.enable_prefix_caching),
            "vllm": str(version),
        },
    )


def _ids(value: Any) -> set[int]:
    return set(value) if isinstance(value, list | tuple) else set() if value is None else {int(value)}


def describe(facts: Facts, settings: Settings) -> dict[str, Any]:
    """Plain facts for a run's header."""
    return {
        "engine": FAMILY,
        "model": facts.name,
        "model_fingerprint": facts.fingerprint,
        "dtype": facts.dtype,
        "device": facts.device,
        "layers": facts.n_layers,
        "d_model": facts.d_model,
        "table_bytes_per_worker": facts.table_bytes,
        "settings": settings.to_dict(),
        **facts.more,
        **_described(facts),
    }


def _described(facts: Facts) -> dict[str, Any]:
    """The adapters, as the embedded engine describes them."""
    if facts.adapter is not None:
        return {"adapter": facts.adapters[facts.adapter].record.fingerprint}
    return {"adapters": {n: a.record.described() for n, a in facts.adapters.items()}} if facts.adapters else {}


class Bridge:
    """An event loop on a thread of its own, and calls into it from anywhere."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self.thread.start()

    def start(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Begin a coroutine there; the result is a concurrent future. Raises EngineError when closed."""
        if not self.thread.is_alive():
            work.close()
            raise EngineError("the engine is closed")
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def stop(self) -> None:
        """End what still runs, the loop and its thread."""
        if not self.thread.is_alive():
            return

        async def end() -> None:
            others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self.loop.shutdown_asyncgens()

        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(end(), self.loop).result(timeout=20)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(timeout=30)

    async def stream(self, chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
        """An iterator that lives on the other loop, on this one. Closing this one closes that one."""
        here, events = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def hand_over(item: Any) -> None:
            if not here.is_closed():
                here.call_soon_threadsafe(events.put_nowait, item)

        async def pump() -> None:
            try:
                async for chunk in chunks:
                    hand_over(chunk)
                hand_over(None)
            except Exception as error:
                hand_over(error)
            finally:
                await chunks.aclose()  # type: ignore[attr-defined]

        running = self.start(pump())
        try:
            while (item := await events.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            running.cancel()


def gather(bridge: Bridge, generate: Any, requests: Sequence[Request], errors: str) -> list[Any]:
    """`run` of the protocol on top of an asynchronous `generate`."""
    if errors not in ("raise", "return"):
        raise InputError(f"errors must be 'raise' or 'return', got {errors!r}")
    if isinstance(requests, Request):
        raise InputError("run takes a list of requests: run([request])")
    futures = [bridge.start(generate(request)) for request in requests]
    out: list[Any] = []
    try:
        for future in futures:
            try:
                out.append(future.result())
            except CountersteerError as error:
                if errors == "raise":
                    raise
                out.append(error)
    finally:
        for future in futures:
            future.cancel()
    return out


class VllmEngine:
    """Generates with edits on a model served by vLLM (see `load_vllm`)."""

    family = FAMILY

    def __init__(self, llm: Any, session: Session, bridge: Bridge, store: Path) -> None:
        self.llm, self.session, self.bridge, self._store = llm, session, bridge, store

    @property
    def model_fingerprint(self) -> str:
        """Fingerprint of the model's configuration and weights."""
        return self.session.facts.fingerprint

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.session.facts.d_model

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return self.session.facts.n_layers

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or None."""
        return self.session.facts.tokenizer

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self.llm is not None and self.bridge.thread.is_alive() and not self.llm.errored

    def describe(self) -> dict[str, Any]:
        """Plain facts for a run's header."""
        return describe(self.session.facts, self.session.settings)

    def encode(self, request: Request) -> list[int]:
        """The token ids of a request's prompt. Raises InputError."""
        return self.session.encode(request)

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Pieces as they are generated, the last one with the completion. Closing frees the place in the batch."""
        return self.bridge.stream(self.session.stream(request))

    async def generate(self, request: Request) -> Completion:
        """The whole completion. Cancelling aborts it. Raises NoOpError, EngineError, InputError."""
        out: Completion = await asyncio.wrap_future(self.bridge.start(self.session.generate(request)))
        return out

    def run(self, requests: Sequence[Request], *, errors: str = "raise") -> list[Any]:
        """Completions in order, synchronously. With `errors="return"` a failed one is its exception."""
        return gather(self.bridge, self.session.generate, requests, errors)

    async def forward(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """Teacher-forced, unsteered pass; options as in the protocol (readouts, capture, reduce, span, template)."""
        out: list[Any] = await asyncio.wrap_future(self.bridge.start(self.session.forward(inputs, **options)))
        return out

    async def max_activations(self, inputs: Sequence[Any], sae: Any, **options: Any) -> NDArray[np.float32]:
        """Maxima of an SAE, [texts, d_sae], taken in the workers; options as in the protocol (layer, template)."""
        work = max_activations(self.session, inputs, sae, **options)
        out: NDArray[np.float32] = await asyncio.wrap_future(self.bridge.start(work))
        return out

    def close(self) -> None:
        """Stop vLLM's processes and remove the store."""
        if self.bridge.thread.is_alive():
            self.bridge.loop.call_soon_threadsafe(self.llm.shutdown)
            self.bridge.stop()
        self.llm = self.session.llm = None
        shutil.rmtree(self._store, ignore_errors=True)

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def load_vllm(
    model: str,
    *,
    layers: Sequence[int] = (),
    rows: Sequence[int] = (128,),
    readouts: int = 32,
    capture_layers: Sequence[int] = (),
    lanes: int = 512,
    parts: int = 2,
    template: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    adapters: Mapping[str, str | os.PathLike[str]] | None = None,
    **options: Any,
) -> VllmEngine:
    """Start vLLM on a folder, a Hugging Face id or a shipped model and steer it.

    `layers` can be edited or read (all by default); `rows` per layer, one entry per step of `order`; `parts`: edits of
    one request per layer and step; `readouts` per layer; `capture_layers` for `forward(capture=...)` and gates;
    `template`: a variation of the chat template; `adapter`: a LoRA folder under every request, `adapters`: folders by
    the names that requests use. Other options are vLLM's own (`dtype`, `tensor_parallel_size`,
    `pipeline_parallel_size`, `max_model_len`, `enforce_eager`, ...). Raises InputError, RefusedError, EngineError.
    """
    settings = Settings(tuple(layers), tuple(rows), readouts, tuple(capture_layers), lanes, parts)
    if adapter is not None and adapters:
        raise InputError("give adapter (under every request) or adapters (by name), not both")
    records = read_adapters({EVERY: adapter} if adapter is not None else adapters or {})
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise InputError("vLLM is not installed: pip install 'countersteer[vllm]'") from error
    from countersteer.engines.vllm.private import check_config, check_version

    check_version()
    from countersteer import organism

    source = str(organism.path(model)) if model in organism.SHIPPED else model
    known = set(inspect.signature(AsyncEngineArgs).parameters)
    for name in sorted(set(options) - known):
        raise InputError(f"vLLM has no option {name!r}{nearest(name, known)}")
    chosen = engine_options(settings, {"disable_log_stats": True, **lora_options(records), **options})
    given = os.environ.get(ENV)
    if given:
        Path(given).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="countersteer-vllm-", dir=given))
    store, bridge = Store(folder), Bridge("countersteer-vllm")

    async def start() -> tuple[Any, Session]:
        try:
            config = AsyncEngineArgs(model=source, **chosen).create_engine_config()
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"vLLM refuses {model}: {' '.join(str(error).split())[:300]}") from error
        check_config(config)
        check_layers(settings, int(config.model_config.hf_text_config.num_hidden_layers))
        llm = AsyncLLM.from_vllm_config(config, disable_log_stats=bool(chosen["disable_log_stats"]))
        try:
            workers = await Session.workers(llm, store)
            facts = read_facts(llm.vllm_config, model, workers, template=template)
            text = text_facts(facts.tokenizer, facts.template)
            loaded = await load_adapters(llm, records, model=facts.fingerprint, name=model, text=text)
            facts = replace(facts, adapters=loaded, adapter=EVERY if adapter is not None else None)
        except BaseException:
            llm.shutdown()
            raise
        return llm, Session(llm, store, settings, facts)

    try:
        with process_environment(folder):
            llm, session = bridge.start(start()).result()
    except CountersteerError:
        bridge.stop()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except Exception as error:
        bridge.stop()
        shutil.rmtree(folder, ignore_errors=True)
        raise EngineError(
            f"vLLM did not start: {' '.join(str(error).split())[:300] or type(error).__name__}"
        ) from error
    return VllmEngine(llm, session, bridge, folder)
