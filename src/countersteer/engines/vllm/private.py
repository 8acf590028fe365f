"""Every private name of vLLM that this package relies on, and the gate that refuses versions it was not proven on.

vLLM promises `worker_cls`, `scheduler_cls`, `additional_config`, `logits_processors`, `SamplingParams.extra_args` and
endpoint plugins. The names below are not promised. They are checked when a worker or scheduler starts.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

from countersteer.core.errors import RefusedError

VERSIONS = ("0.32.",)
"""Beginnings of the versions of vLLM on which the tests of this engine pass."""

_LAYERS = ("model.layers", "transformer.h", "language_model.model.layers", "gpt_neox.layers", "model.decoder.layers")
_RUNNER = ("_prepare_inputs", "_dummy_run", "_get_nans_in_logits", "get_model")
_SCHEDULER = ("add_request", "finish_requests", "schedule", "update_from_output", "requests")
_PAUSES = "countersteer_pauses"
"""The attribute of vLLM's `SchedulerOutput` that tells workers where edits rest; it is pickled as it is."""
_HASHERS = ("vllm.v1.core.kv_cache_utils", "vllm.v1.core.block_pool", "vllm.v1.simple_kv_offload.manager")
HASH_FUNCTION = "generate_block_hash_extra_keys"


def check_version() -> None:
    """Raises RefusedError for a version of vLLM that this engine was not proven on."""
    import vllm

    version = str(vllm.__version__)
    if not version.startswith(VERSIONS):
        raise RefusedError(
            f"vLLM {version}",
            f"steering relies on inner names of vLLM and was proven on {', '.join(v + 'x' for v in VERSIONS)} only",
            "pip install 'vllm==0.32.*', or the embedded engine",
        )


def base_worker() -> type[Any]:
    """The platform's own worker class."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return importlib.import_module("vllm.v1.worker.cpu_worker").CPUWorker
    if current_platform.is_cuda_alike():
        return importlib.import_module("vllm.v1.worker.gpu_worker").Worker
    raise RefusedError(
        f"steering on vLLM's platform {current_platform.device_name}", "it was not proven there", "a GPU or a CPU"
    )


def check_config(config: Any) -> None:
    """Refuse, by name, what the edits would silently be wrong under. Raises RefusedError."""
    parallel, scheduler = config.parallel_config, config.scheduler_config

    def refuse(what: str, why: str, instead: str) -> None:
        raise RefusedError(f"{what} with steering", why, instead)

    if config.use_v2_model_runner:
        refuse("vLLM's V2 model runner", "its inputs are prepared in another form", "VLLM_USE_V2_MODEL_RUNNER=0")
    if parallel.use_ubatching:
        refuse("micro-batching", "a batch is split after its tokens were assigned", "leave enable_dbo off")
    if parallel.prefill_context_parallel_size > 1 or parallel.decode_context_parallel_size > 1:
        refuse("context parallelism", "its workers hold other tokens than they were told", "tensor parallelism")
    if parallel.data_parallel_size > 1:
        refuse("data parallelism inside one server", "receipts of its replicas are not merged", "one server per URL")
    if getattr(config.compilation_config.pass_config, "enable_sp", False):
        refuse("sequence parallelism", "its workers hold a part of the tokens", "leave enable_sp off")
    if config.speculative_config is not None:
        refuse("speculative decoding", "rejected tokens would enter receipts", "no speculative_config")
    if scheduler.async_scheduling:
        refuse("asynchronous scheduling", "it computes positions after the end", "async_scheduling=False")
    if config.kv_transfer_config is not None:
        refuse("a KV connector", "its caches may be keyed by tokens alone", "vLLM's own prefix cache")
    if config.cache_config.kv_sharing_fast_prefill:
        refuse("kv_sharing_fast_prefill", "it skips layers for prompt tokens", "leaving it off")
    if config.model_config.enable_sleep_mode:
        refuse("sleep mode", "the tables would be lost with the memory it frees", "leaving it off")
    if config.model_config.hf_overrides:
        refuse("hf_overrides", "the model's fingerprint does not know them", "a config.json that holds them")
    if config.model_config.runner_type != "generate":
        refuse("a pooling model", "there is no response to steer", "a model that generates")


def check_runner(runner: Any) -> None:
    """The model runner has the parts we use, with the arguments we know. Raises RefusedError."""
    missing = [name for name in _RUNNER if not callable(getattr(runner, name, None))]
    if not missing:
        names = list(inspect.signature(runner._prepare_inputs).parameters)
        if names[:2] != ["scheduler_output", "num_scheduled_tokens"]:
            missing.append("_prepare_inputs(scheduler_output, num_scheduled_tokens)")
        if not hasattr(getattr(runner, "input_batch", None), "num_computed_tokens_cpu"):
            missing.append("input_batch.num_computed_tokens_cpu")
    if missing:
        raise RefusedError(
            "this build of vLLM", f"its model runner lacks {', '.join(missing)}", "pip install 'vllm==0.32.*'"
        )


def check_scheduler(scheduler: Any) -> None:
    """The scheduler has the parts we use. Raises RefusedError."""
    missing = [name for name in _SCHEDULER if not hasattr(scheduler, name)]
    if missing:
        raise RefusedError("this build of vLLM", f"its scheduler lacks {missing}", "pip install 'vllm==0.32.*'")


def send_pauses(scheduler_output: Any, pauses: Mapping[str, Any]) -> None:
    """Tell workers with a step where edits rest."""
    if pauses:
        setattr(scheduler_output, _PAUSES, dict(pauses))


def pauses_in(scheduler_output: Any) -> Mapping[str, Any]:
    """What `send_pauses` sent."""
    found: Mapping[str, Any] = getattr(scheduler_output, _PAUSES, None) or {}
    return found


def end_with_error(scheduler: Any, reasons: Mapping[str, str]) -> list[tuple[Any, str]]:
    """End requests before their newest token counts; returns (request, reason) for `with_errors`."""
    if not reasons:
        return []
    from vllm.v1.request import RequestStatus

    requests = scheduler.finish_requests(set(reasons), RequestStatus.FINISHED_ERROR)
    return [(request, reasons[request.request_id]) for request in requests]


def with_errors(outputs: dict[int, Any], ended: Sequence[tuple[Any, str]]) -> dict[int, Any]:
    """A step's outputs and those of requests that ended with an error, which say why."""
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

    for request, reason in ended:
        out = EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[],
            finish_reason=request.get_finished_reason(),
            stop_reason=reason,
            events=request.take_events(),
            trace_headers=request.trace_headers,
        )
        whole = outputs.setdefault(request.client_index, EngineCoreOutputs())
        whole.outputs.append(out)
        if whole.finished_requests is not None:
            whole.finished_requests.add(request.request_id)
    return outputs


def watch_logits(runner: Any, unsound: Any) -> None:
    """Have `unsound(logits)` say which requests of a step have no next token: {request: a number > 0}.

    The runner asks for it in place of counting NaNs, before it samples.
    """
    os.environ["VLLM_COMPUTE_NANS_IN_LOGITS"] = "1"
    runner._get_nans_in_logits = unsound


def layers_of(model: Any) -> dict[int, Any]:
    """Decoder layers of this pipeline stage by their global index. Raises RefusedError."""
    from vllm.model_executor.models.utils import PPMissingLayer

    for path in _LAYERS:
        found = model
        for part in path.split("."):
            found = getattr(found, part, None)
        if found is not None and hasattr(found, "__getitem__"):
            return {i: layer for i, layer in enumerate(found) if not isinstance(layer, PPMissingLayer)}
    raise RefusedError(f"model {type(model).__name__}", "its decoder layers were not found", "a decoder-only model")


def patch_block_hash(extra: Any) -> Any:
    """Make `extra(request, stop)` (a tuple) part of the key of the cache block that ends at `stop`.

    Returns a function that undoes it. Every module that holds the hash function by name gets the new one.
    """
    modules = [m for m in map(_module, _HASHERS) if m is not None and hasattr(m, HASH_FUNCTION)]
    if not modules or modules[0].__name__ != _HASHERS[0]:
        raise RefusedError("this build of vLLM", f"it has no {HASH_FUNCTION}", "pip install 'vllm==0.32.*'")
    original = getattr(modules[0], HASH_FUNCTION)
    names = list(inspect.signature(original).parameters)
    if names != ["request", "start_token_idx", "end_token_idx", "start_mm_idx"]:
        raise RefusedError("this build of vLLM", f"{HASH_FUNCTION} takes {names}", "pip install 'vllm==0.32.*'")

    def keyed(request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int) -> Any:
        keys, index = original(request, start_token_idx, end_token_idx, start_mm_idx)
        more = extra(request, end_token_idx)
        return ((*(keys or ()), *more) if more else keys), index

    for module in modules:
        setattr(module, HASH_FUNCTION, keyed)

    def undo() -> None:
        for module in modules:
            setattr(module, HASH_FUNCTION, original)

    return undo


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def two_inputs(layer: Any) -> bool | None:
    """Whether a decoder layer takes (positions, hidden, residual); False for (positions, hidden); None if unknown."""
    names = [
        p.name
        for p in inspect.signature(type(layer).forward).parameters.values()
        if p.default is inspect.Parameter.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    given = set(names) - {"self"}
    if given == {"positions", "hidden_states", "residual"}:
        return True
    return False if given in ({"positions", "hidden_states"}, {"position_ids", "hidden_states"}) else None
