"""The worker: the platform's own, with edits in its decoder layers.

Start vLLM with `worker_cls="countersteer.engines.vllm.worker.SteerWorker"` and the settings in `additional_config`.
"""

from __future__ import annotations

from typing import Any

from countersteer.core.errors import RefusedError
from countersteer.engines.vllm import private
from countersteer.engines.vllm.pooling import pool
from countersteer.engines.vllm.selftest import self_test
from countersteer.engines.vllm.settings import CONFIG_KEY, Settings
from countersteer.engines.vllm.steering import Steering
from countersteer.engines.vllm.store import Store

_Base: Any = private.base_worker()


class SteerWorker(_Base):
    """vLLM's worker with steering. Refuses to start where an edit would not be certain to act."""

    steering: Steering

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        private.check_version()
        super().__init__(*args, **kwargs)
        private.check_config(self.vllm_config)
        self.steer_settings = Settings.from_dict(self.vllm_config.additional_config.get(CONFIG_KEY))
        self.steer_store = Store.here()

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model and hook the tables onto its layers, before anything is compiled."""
        super().load_model(*args, **kwargs)
        runner, model = self.model_runner, self.model_config
        private.check_runner(runner)
        config = model.hf_text_config
        self.steering = Steering(
            runner.get_model(),
            self.steer_settings,
            self.steer_store,
            facts={
                "n_layers": int(config.num_hidden_layers),
                "d_model": int(model.get_hidden_size()),
                "dtype": model.dtype,
                "device": self.device,
                "tokens": int(getattr(runner, "max_num_tokens", self.scheduler_config.max_num_batched_tokens)),
                "pools": private.tensor_rank() == 0,
            },
        )
        private.watch_inputs(runner, lambda *batch: self.steering.fill(*batch))
        private.watch_logits(runner, lambda: bool(self.steering.lanes))

    def compile_or_warm_up_model(self) -> Any:
        """Compile, then prove that an edit written into every table changes the tokens it should."""
        out = super().compile_or_warm_up_model()
        self_test(self.steering, self.model_runner, self.vllm_config)
        return out

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """One step, with the tables brought up to date before it."""
        gone, new = private.came_and_went(scheduler_output)
        self.steering.begin(gone, new, private.pauses_in(scheduler_output))
        out = super().execute_model(scheduler_output, *args, **kwargs)
        self.steering.end()
        return private.mark_failed(out, self.steering.failed)

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """The step's tokens."""
        return private.mark_failed(super().sample_tokens(*args, **kwargs), self.steering.failed)

    def countersteer_collect(self, ids: list[str]) -> list[dict[str, Any]]:
        """Receipts, readouts and captures by ticket id."""
        return self.steering.collect(ids)

    def countersteer_pool(self, ids: list[str], sae: str | None, layer: int) -> dict[str, Any]:
        """Maxima of an SAE over residuals that are kept under ticket ids, which are let go; None only lets them go."""
        return pool(self.steering, ids, sae, layer)

    def countersteer_facts(self, probe: str) -> dict[str, Any]:
        """What this worker is, and whether it sees the file `probe` of the store."""
        return {
            "store": (self.steer_store.folder / probe).exists(),
            "layers": sorted(self.steering.units),
            "n_layers": self.steering.n_layers,
            "d_model": self.steering.d_model,
            "table_bytes": self.steering.table_bytes,
            "dtype": str(self.model_config.dtype).removeprefix("torch."),
            "device": str(self.device),
            "settings": self.steer_settings.to_dict(),
        }


if not callable(getattr(_Base, "compile_or_warm_up_model", None)) or not hasattr(_Base, "load_model"):
    raise RefusedError("this build of vLLM", "its worker has no load_model or warm-up", "pip install 'vllm==0.32.*'")
