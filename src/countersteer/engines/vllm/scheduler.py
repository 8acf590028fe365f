"""The scheduler: vLLM's own, with row budgets and with interventions in the keys of the prefix cache.

A steered request enters when its rows fit beside everything in flight, and waits otherwise; unsteered requests never
wait for rows. One that names an unknown intervention, and one whose activations overflow, ends with an error and
without a token. Exempt stretches are found here, where every new token passes before the next step is planned.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from countersteer.engines.vllm import private
from countersteer.engines.vllm.blockkey import BlockKey
from countersteer.engines.vllm.measured import OVERFLOW
from countersteer.engines.vllm.plan import Ledger, Piece, Planner
from countersteer.engines.vllm.resting import Resting
from countersteer.engines.vllm.settings import CONFIG_KEY, Settings
from countersteer.engines.vllm.store import Store
from countersteer.engines.vllm.ticket import Ticket

log = logging.getLogger(__name__)


class SteerScheduler(Scheduler):
    """vLLM's scheduler with admission by rows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        private.check_version()
        super().__init__(*args, **kwargs)
        private.check_scheduler(self)
        private.check_config(self.vllm_config)
        model = self.vllm_config.model_config
        settings = Settings.from_dict(self.vllm_config.additional_config.get(CONFIG_KEY))
        self.steer_store = Store.here()
        self.steer_planner = Planner(
            settings, n_layers=int(model.hf_text_config.num_hidden_layers), d_model=int(model.get_hidden_size())
        )
        self.steer_ledger = Ledger(settings)
        self.steer_waiting: deque[tuple[Any, tuple[Piece, ...]]] = deque()
        self.steer_errors: dict[str, str] = {}
        self.steer_resting = Resting(None if model.skip_tokenizer_init else model.model)
        self.steer_undo = private.patch_block_hash(BlockKey(self.steer_store))

    def _steer_pieces(self, request: Any) -> tuple[Piece, ...] | None:
        """The rows a request needs, None for one without a ticket. Raises InputError."""
        args = getattr(request.sampling_params, "extra_args", None)
        ticket = Ticket.of(args) if args else None
        if ticket is None:
            return None
        steer = self.steer_store.get(ticket.steer) if ticket.steer else None
        pieces = self.steer_planner.pieces(steer, self.steer_store.reads(ticket.reads) if ticket.reads else ())
        if ticket.exempt:
            self.steer_resting.check()
        return pieces

    def _steer_enter(self, request: Any, pieces: tuple[Piece, ...]) -> None:
        """Let a request in whose rows fit."""
        self.steer_ledger.reserve(request.request_id, pieces)
        ticket = Ticket.of(request.sampling_params.extra_args)
        if ticket is not None and ticket.exempt and ticket.steer:
            self.steer_resting.watch(request, ticket.exempt)
        super().add_request(request)

    def add_request(self, request: Any) -> None:
        """Admit a request, or let it wait for rows."""
        try:
            pieces = self._steer_pieces(request)
        except Exception as error:
            log.warning("request %s is refused: %s", request.request_id, error)
            self.steer_errors[request.request_id] = f"the request was not steered: {' '.join(str(error).split())[:300]}"
            super().add_request(request)
            return
        if pieces is None:
            super().add_request(request)
            return
        self._steer_release()
        if self.steer_waiting or not self.steer_ledger.fits(pieces):
            self.steer_waiting.append((request, pieces))
            return
        self._steer_enter(request, pieces)

    def _steer_release(self) -> None:
        for user in [u for u in self.steer_ledger.users if u not in self.requests]:
            self.steer_ledger.release(user)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Let in who fits now, in order of arrival, then schedule."""
        if self.steer_ledger.users:
            self._steer_release()
        while self.steer_waiting and self.steer_ledger.fits(self.steer_waiting[0][1]):
            self._steer_enter(*self.steer_waiting.popleft())
        out = super().schedule(*args, **kwargs)
        private.send_pauses(out, self.steer_resting.pauses(out.num_scheduled_tokens))
        return out

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take in a step's tokens. Requests that cannot be honoured end here, before their token counts."""
        for request, count in private.marks(model_runner_output).items():
            if request in self.steer_ledger.users:
                self.steer_errors.setdefault(request, OVERFLOW if count > 0 else "a worker could not steer it")
        wrong = {r: self.steer_errors.pop(r) for r in scheduler_output.num_scheduled_tokens if r in self.steer_errors}
        ended = private.end_with_error(self, wrong)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self.steer_resting.follow(self.requests)
        return private.with_errors(outputs, ended)

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: Any) -> Any:
        """Also ends requests that wait for rows."""
        if request_ids is not None:
            request_ids = {request_ids} if isinstance(request_ids, str) else set(request_ids)
        kept = [(r, p) for r, p in self.steer_waiting if request_ids is not None and r.request_id not in request_ids]
        self.steer_waiting = deque(kept)
        for request in list(self.steer_errors) if request_ids is None else request_ids:
            self.steer_errors.pop(request, None)
        return super().finish_requests(request_ids, finished_status)

    def get_num_unfinished_requests(self) -> int:
        """Counts requests that wait for rows."""
        return int(super().get_num_unfinished_requests()) + len(self.steer_waiting)

    def shutdown(self) -> None:
        """Undo what was patched in this process."""
        self.steer_undo()
        super().shutdown()
