"""What interventions add to the keys of vLLM's prefix cache: blocks are shared exactly where their content is equal."""

from __future__ import annotations

from typing import Any

from countersteer.core.errors import CountersteerError
from countersteer.engines.vllm.settings import CONFIG_KEY
from countersteer.engines.vllm.store import Store
from countersteer.engines.vllm.ticket import Ticket

_NOTE = "_countersteer_key"
"""Where a request keeps what its keys are made of: blocks are hashed one by one."""


class BlockKey:
    """`key(request, stop)`: the extra key (a tuple) of the block that ends at position `stop`.

    Keys chain, so a block's key covers everything before it. A block before the first edited position has none: it is
    the unsteered text's. From there on the key is the intervention's content and, where its spans depend on the length
    of the prompt, how far each of them reaches into the text up to here: the same text may be all prompt for one
    request and half response for another. Nothing is edited by what is only measured. What an exempt stretch leaves
    out depends on what was generated, so blocks with generated positions of such a request are its own.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def __call__(self, request: Any, stop: int) -> tuple[Any, ...]:
        note = getattr(request, _NOTE, None)
        if note is None:
            note = self._note(request)
            setattr(request, _NOTE, note)
        fingerprint, spans, needs_prompt, own_from = note
        reach = [(min(a, stop), min(b, stop)) for a, b in spans]
        if all(a >= b for a, b in reach):
            return ()
        key: tuple[Any, ...] = (CONFIG_KEY, fingerprint)
        if needs_prompt:
            key += tuple(v for pair in reach for v in pair)
        return ((*key, request.request_id) if stop > own_from else key,)

    def _note(self, request: Any) -> tuple[str, list[tuple[int, int]], bool, int]:
        """(content, edited positions of each edit, whether they depend on the prompt, where only its own blocks do)."""
        far = 1 << 60
        args = getattr(getattr(request, "sampling_params", None), "extra_args", None)
        if not args or CONFIG_KEY not in args:
            return "", [], False, far
        try:
            ticket = Ticket.of(args)
            if ticket is None or ticket.steer is None or ticket.only:
                return "", [], False, far
            steer = self.store.get(ticket.steer)
            spans = [edit.span.bounds(request.num_prompt_tokens) for edit in steer.edits]
        except CountersteerError:  # never shared with anybody; the scheduler ends the request
            return "unknown", [(0, far)], False, 0
        needs_prompt = any(edit.span.needs_prompt for edit in steer.edits)
        return steer.fingerprint, spans, needs_prompt, request.num_prompt_tokens if ticket.exempt else far
