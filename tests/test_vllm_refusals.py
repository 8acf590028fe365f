"""Configurations of vLLM under which edits would silently be wrong, and unknown versions, are refused by name."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

import countersteer as cs
from countersteer.engines.vllm import private


def config(**changes: Any) -> Any:
    """A configuration that is taken, with parts changed: `name=value`, or `part__name=value`."""
    made = SimpleNamespace(
        use_v2_model_runner=False,
        speculative_config=None,
        kv_transfer_config=None,
        parallel_config=SimpleNamespace(
            use_ubatching=False,
            prefill_context_parallel_size=1,
            decode_context_parallel_size=1,
            data_parallel_size=1,
        ),
        scheduler_config=SimpleNamespace(async_scheduling=False),
        compilation_config=SimpleNamespace(pass_config=SimpleNamespace(enable_sp=False)),
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
        model_config=SimpleNamespace(enable_sleep_mode=False, hf_overrides={}, runner_type="generate"),
    )
    for name, value in changes.items():
        *path, last = name.split("__")
        part = made
        for step in path:
            part = getattr(part, step)
        assert hasattr(part, last), name
        setattr(part, last, value)
    return made


def test_an_ordinary_configuration_is_taken() -> None:
    private.check_config(config())


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"use_v2_model_runner": True}, "V2 model runner"),
        ({"parallel_config__use_ubatching": True}, "micro-batching"),
        ({"parallel_config__prefill_context_parallel_size": 2}, "context parallelism"),
        ({"parallel_config__decode_context_parallel_size": 2}, "context parallelism"),
        ({"parallel_config__data_parallel_size": 2}, "data parallelism"),
        ({"compilation_config__pass_config__enable_sp": True}, "sequence parallelism"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"scheduler_config__async_scheduling": True}, "asynchronous scheduling"),
        ({"kv_transfer_config": object()}, "KV connector"),
        ({"cache_config__kv_sharing_fast_prefill": True}, "kv_sharing_fast_prefill"),
        ({"model_config__enable_sleep_mode": True}, "sleep mode"),
        ({"model_config__hf_overrides": {"rope_theta": 1.0}}, "hf_overrides"),
        ({"model_config__runner_type": "pooling"}, "pooling model"),
    ],
)
def test_what_edits_would_be_wrong_under_is_refused_by_name(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(cs.RefusedError, match=what) as error:
        private.check_config(config(**changes))
    assert "Instead:" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0.0", "0.3", "0.320.0"])
def test_other_versions_of_vllm_are_refused(version: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__=version))
    with pytest.raises(cs.RefusedError, match=version):
        private.check_version()
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.32.0+cpu"))
    private.check_version()


def test_a_runner_whose_inputs_are_prepared_in_another_form_is_refused() -> None:
    class Runner:
        input_batch = SimpleNamespace(num_computed_tokens_cpu=[])

        def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> None: ...

        def _dummy_run(self) -> None: ...

        def _get_nans_in_logits(self) -> None: ...

        def get_model(self) -> None: ...

    private.check_runner(Runner())

    class Other(Runner):
        def _prepare_inputs(self, batch: Any) -> None: ...  # type: ignore[override]

    with pytest.raises(cs.RefusedError, match="_prepare_inputs"):
        private.check_runner(Other())

    class Third(Runner):
        input_batch = None  # type: ignore[assignment]

    with pytest.raises(cs.RefusedError, match="num_computed_tokens_cpu"):
        private.check_runner(Third())
