"""Every private name of vLLM that this package relies on, and the gate that refuses versions it was not proven on.

vLLM promises `worker_cls`, `scheduler_cls`, `additional_config`, `logits_processors`, `SamplingParams.extra_args` and
endpoint plugins. The names below are not promised. They are checked when a worker or scheduler starts.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any

import numpy as np

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


def watch_inputs(runner: Any, fill: Any) -> None:
    """Have `fill(request ids, scheduled, computed)` called once the runner has ordered a step's batch: how many tokens
    of each request it holds and how many were computed before."""
    prepare = runner._prepare_inputs

    def prepare_and_fill(scheduler_output: Any, num_scheduled_tokens: Any, *args: Any, **kwargs: Any) -> Any:
        out = prepare(scheduler_output, num_scheduled_tokens, *args, **kwargs)
        batch = runner.input_batch
        computed = np.asarray(batch.num_computed_tokens_cpu[: batch.num_reqs])
        fill(list(batch.req_ids), np.asarray(num_scheduled_tokens), computed)
        return out

    runner._prepare_inputs = prepare_and_fill


def watch_logits(runner: Any, steered: Any) -> None:
    """Have the runner mark requests without a finite next token, before it samples, in steps in which `steered()`.

    It does so in place of counting NaNs, and `marks` reads it.
    """

    def unsound(logits: Any) -> dict[str, int]:
        if logits is None or not steered():
            return {}
        bad = (~logits.amax(-1).isfinite()).nonzero().flatten().tolist()
        ids = list(runner.input_batch.req_ids)
        return {ids[i]: 1 for i in bad if i < len(ids)}

    os.environ["VLLM_COMPUTE_NANS_IN_LOGITS"] = "1"
    runner._get_nans_in_logits = unsound


def mark_failed(runner_output: Any, failed: Container[str]) -> Any:
    """A step's output in which requests that could not be steered are marked, too."""
    ids = getattr(runner_output, "req_ids", None) or ()
    found = {r: -1 for r in ids if r in failed}
    if found:
        runner_output.num_nans_in_logits = {**(runner_output.num_nans_in_logits or {}), **found}
    return runner_output


def marks(runner_output: Any) -> Mapping[str, int]:
    """Requests of a step that must not go on: > 0 for no finite next token, < 0 for not steered."""
    return {r: n for r, n in (runner_output.num_nans_in_logits or {}).items() if n}


def came_and_went(scheduler_output: Any) -> tuple[Collection[str], list[tuple[str, Any, int]]]:
    """The requests that ended before a step, and (id, extra_args, prompt tokens) of those that begin in it."""
    new = [
        (r.req_id, getattr(r.sampling_params, "extra_args", None), r.prompt_len)
        for r in scheduler_output.scheduled_new_reqs
    ]
    return scheduler_output.finished_req_ids, new


def dummy_run(runner: Any, tokens: int, *, decode: bool) -> None:
    """Run the model on made-up tokens, in the graph of prefill or of decoding."""
    more = {"uniform_decode": True} if decode else {}
    runner._dummy_run(tokens, force_attention=True, **more)  # without it attention may hand on garbage


def served_loras(state: Any) -> Mapping[str, Any]:
    """The LoRA requests of a server by name."""
    found: Mapping[str, Any] = getattr(getattr(state, "openai_serving_models", None), "lora_requests", {})
    return found


def tensor_rank() -> int:
    """Which of the workers that hold the same layers this process is: all of them see the same residuals."""
    from vllm.distributed import get_tensor_model_parallel_rank

    return int(get_tensor_model_parallel_rank())


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
