"""The scheduler: vLLM's own, with row budgets and with interventions in the keys of the prefix cache.

A steered request enters when its rows fit beside everything in flight, and waits otherwise; unsteered requests never
wait for rows. One that names an unknown intervention ends with an error.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from countersteer.core.errors import CountersteerError
from countersteer.engines.vllm import private
from countersteer.engines.vllm.plan import Ledger, Piece, check_fits, pieces_of
from countersteer.engines.vllm.settings import Settings
from countersteer.engines.vllm.store import Store
from countersteer.engines.vllm.ticket import Ticket

log = logging.getLogger(__name__)


def cache_key(store: Store) -> Any:
    """The part of a cache block's key that a request's intervention decides: its content, from the first block with
    an edited position on (keys chain). A response-only intervention shares the blocks of the unsteered prompt."""

    def extra(request: Any, stop: int) -> tuple[Any, ...]:
        args = getattr(getattr(request, "sampling_params", None), "extra_args", None)
        if not args or private.CONFIG_KEY not in args:
            return ()
        try:
            ticket = Ticket.of(args)
            if ticket is None or ticket.steer is None:
                return ()
            steer = store.get(ticket.steer)
            first = min(edit.span.bounds(request.num_prompt_tokens)[0] for edit in steer.edits)
            return ((private.CONFIG_KEY, steer.fingerprint),) if first < stop else ()
        except CountersteerError:  # never shared with anybody; the scheduler ends the request
            return ((private.CONFIG_KEY, f"unknown {request.request_id}"),)

    return extra


class SteerScheduler(Scheduler):
    """vLLM's scheduler with admission by rows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        private.check_version()
        super().__init__(*args, **kwargs)
        private.check_scheduler(self)
        private.check_config(self.vllm_config)
        model = self.vllm_config.model_config
        self.steer_settings = Settings.from_dict(self.vllm_config.additional_config.get(private.CONFIG_KEY))
        self.steer_shape = {
            "n_layers": int(model.hf_text_config.num_hidden_layers),
            "d_model": int(model.get_hidden_size()),
        }
        self.steer_store = Store.here()
        self.steer_ledger = Ledger(self.steer_settings)
        self.steer_waiting: deque[tuple[Any, tuple[Piece, ...]]] = deque()
        self.steer_undo = private.patch_block_hash(cache_key(self.steer_store))

    def _steer_pieces(self, request: Any) -> tuple[Piece, ...] | None:
        """The rows a request needs, None for one without a ticket. Raises InputError."""
        args = getattr(request.sampling_params, "extra_args", None)
        ticket = Ticket.of(args) if args else None
        if ticket is None:
            return None
        steer = self.steer_store.get(ticket.steer) if ticket.steer else None
        pieces = pieces_of(steer, self.steer_store.reads(ticket.reads) if ticket.reads else ())
        check_fits(pieces, self.steer_settings, **self.steer_shape)
        return pieces

    def add_request(self, request: Any) -> None:
        """Admit a request, or let it wait for rows."""
        try:
            pieces = self._steer_pieces(request)
        except Exception as error:
            log.warning("request %s is refused: %s", request.request_id, error)
            super().add_request(request)
            self.grammar_compile_error_reqs.add(request.request_id)
            return
        if pieces is None:
            super().add_request(request)
            return
        self._steer_release()
        if self.steer_waiting or not self.steer_ledger.fits(pieces):
            self.steer_waiting.append((request, pieces))
            return
        self.steer_ledger.reserve(request.request_id, pieces)
        super().add_request(request)

    def _steer_release(self) -> None:
        for user in [u for u in self.steer_ledger.users if u not in self.requests]:
            self.steer_ledger.release(user)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Let in who fits now, in order of arrival, then schedule."""
        if self.steer_ledger.users:
            self._steer_release()
        while self.steer_waiting and self.steer_ledger.fits(self.steer_waiting[0][1]):
            request, pieces = self.steer_waiting.popleft()
            self.steer_ledger.reserve(request.request_id, pieces)
            super().add_request(request)
        return super().schedule(*args, **kwargs)

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: Any) -> Any:
        """Also ends requests that wait for rows."""
        if request_ids is not None:
            request_ids = {request_ids} if isinstance(request_ids, str) else set(request_ids)
        kept = [(r, p) for r, p in self.steer_waiting if request_ids is not None and r.request_id not in request_ids]
        self.steer_waiting = deque(kept)
        return super().finish_requests(request_ids, finished_status)

    def get_num_unfinished_requests(self) -> int:
        """Counts requests that wait for rows."""
        return int(super().get_num_unfinished_requests()) + len(self.steer_waiting)

    def shutdown(self) -> None:
        """Undo what was patched in this process."""
        self.steer_undo()
        super().shutdown()
