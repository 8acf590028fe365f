"""The engine's own thread: continuous batching of requests with any interventions.

Newcomers wait until some places are free, are prefilled together and then decode with everyone else. A finished
request's place is filled by the last one (so that the active places stay 0..n-1). If a step fails, every waiter gets
the cause and the loop goes on with an empty batch.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from countersteer.core.errors import EngineError, NoOpError
from countersteer.core.exempt import Exempt
from countersteer.core.request import Chunk, Completion, Receipt
from countersteer.core.restart import TAIL, completes
from countersteer.edits.receipts import no_op
from countersteer.edits.vectors import read_rows
from countersteer.engines.embedded.batch import Batch
from countersteer.engines.embedded.flight import Flight, Job
from countersteer.engines.embedded.hooks import SteeringHooks
from countersteer.engines.embedded.model import LoadedModel
from countersteer.engines.embedded.sampling import choose

log = logging.getLogger(__name__)
PREFILL_WASTE = 1.5
"""Newcomers are prefilled together while padding costs less than this factor."""

OVERFLOW = "the activations overflowed to infinity or NaN, so there is no next token: lower the strength"


class Loop:
    """Owns the batch and steps it. All model work happens on its thread."""

    def __init__(self, model: LoadedModel, hooks: SteeringHooks, batch: Batch, places: int, family: str) -> None:
        self.model, self.hooks, self.batch, self.places, self.family = model, hooks, batch, places, family
        self.inbox: queue.SimpleQueue[Flight | Job | None] = queue.SimpleQueue()
        self.waiting: deque[Flight] = deque()
        self.active: list[Flight] = []
        self.free = list(range(places))
        self.seen: torch.Tensor | None = None
        self.ends = model.end_tokens
        self.closed = False
        self.door = threading.Lock()
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="countersteer-engine", daemon=True)
        self.thread.start()

    def submit(self, item: Flight | Job) -> None:
        """Hand work to the thread. Raises EngineError when the engine is closed or dead."""
        with self.door:
            if self.closed or not self.thread.is_alive():
                gone = "the engine is closed" if self.failure is None else "the engine died"
                raise EngineError(gone) from self.failure
            self.inbox.put(item)

    def close(self) -> None:
        """Stop the thread; whatever is in flight ends with EngineError."""
        with self.door:
            if not self.closed:
                self.closed = True
                self.inbox.put(None)
        if threading.current_thread() is not self.thread:
            self.thread.join(timeout=60)

    # Everything below runs on the engine's thread.

    def _run(self) -> None:
        try:
            while self._take():
                self._guard(self._step)
        except BaseException as error:  # a dying thread must not leave anybody waiting
            self.failure = error
            log.exception("the engine's thread died")
        finally:
            with self.door:  # nothing is put in after this
                self.closed = True
            self._drop_all(self.failure or EngineError("the engine was closed"))

    def _take(self) -> bool:
        """Move new work in; block while there is nothing to do. False ends the thread."""
        while True:
            idle = not self.active and not self.waiting
            try:
                item = self.inbox.get(block=idle)
            except queue.Empty:
                return True
            if item is None:
                return False
            if isinstance(item, Job):
                item.do()
            else:
                self.waiting.append(item)

    def _guard(self, work: Callable[[], None]) -> None:
        """Run a step; a failure ends the requests in flight, not the engine."""
        try:
            work()
        except Exception as error:
            log.debug("a step failed", exc_info=True)
            failed = EngineError(f"the engine failed while it worked: {' '.join(str(error).split())[:300]}")
            failed.__cause__ = error
            self._drop_all(failed)

    def _drop_all(self, error: BaseException) -> None:
        flights = [*self.active, *self.waiting]
        self.active.clear()
        self.waiting.clear()
        while not self.inbox.empty():
            item = self.inbox.get()
            if isinstance(item, Job):
                item.fail(error)
            elif item is not None:
                flights.append(item)
        for flight in flights:
            self._leave(flight)
            flight.fail(error)

    def _leave(self, flight: Flight) -> None:
        """Free what a flight holds in the tables."""
        if flight.slot >= 0:
            self.hooks.release(flight.slot)
            self.free.append(flight.slot)
            flight.slot = -1

    def _step(self) -> None:
        for flight in [f for f in (*self.active, *self.waiting) if f.cancelled]:
            self._end(flight)
            flight.fail(EngineError("the request was cancelled"))
        open_places = self.places - len(self.active)
        # Few forwards for many newcomers: wait until an eighth of the places is free, unless nobody else waits.
        if self.waiting and (open_places >= min(len(self.waiting), max(1, self.places // 8))):
            self._admit(open_places)
        if self.active:
            self._decode()

    def _admit(self, room: int) -> None:
        """Prefill newcomers in groups of similar length."""
        chosen = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]
        chosen.sort(key=lambda f: len(f.prompt))
        groups: list[list[Flight]] = []
        for flight in chosen:
            # In the active list from here on: a failing step must find everybody.
            place = len(self.active)
            self.active.append(flight)
            flight.slot = self.free.pop()
            group = groups[-1] if groups else None
            real = sum(len(f.prompt) for f in group or ()) + len(flight.prompt)
            if group is None or len(flight.prompt) * (len(group) + 1) > PREFILL_WASTE * real:
                groups.append([flight])
            else:
                group.append(flight)
            assert self.active[place] is flight
        for group in groups:
            self._prefill(group)

    def _prefill(self, group: list[Flight]) -> None:
        places = [self.active.index(f) for f in group]
        for flight in group:
            self._install(flight)
        logits = self.batch.prefill([f.prompt for f in group], places, [f.slot for f in group])
        for flight, place in zip(group, places, strict=True):
            self._mark(flight, place)
        self._advance(group, places, logits)

    def _install(self, flight: Flight) -> None:
        intervention = flight.request.intervention
        if intervention is not None:
            if intervention.gate is not None:
                flight.gated_off = not self._gate_opens(flight)
                flight.notes.append(f"gate {'closed' if flight.gated_off else 'open'}")
            if not flight.gated_off:
                only = flight.request.measure_only
                self.hooks.install(flight.slot, intervention.edits, len(flight.prompt), measure_only=only)
                if only:
                    flight.notes.append("measured only: nothing was changed")
                if flight.request.exempt:
                    flight.exempt = Exempt(flight.request.exempt, self.model.tokenizer.decode)
                flight.turns = any(edit.span.restart for edit in intervention.edits)
        if flight.request.readouts is not None:
            self.hooks.read(flight.slot, read_rows(flight.request.readouts))

    def _gate_opens(self, flight: Flight) -> bool:
        """Evaluate a request-level gate in a pass of its own over the unsteered prompt."""
        from countersteer.engines.embedded.forward import capture

        gate = flight.request.intervention.gate
        residuals = capture(self.model, [flight.prompt], [gate.site.layer])[0][0]
        return bool(gate.opens(residuals))

    def _mark(self, flight: Flight, place: int) -> None:
        """Remember the prompt's tokens for the repetition penalty."""
        if flight.request.sampling.repetition_penalty != 1 or self.seen is not None:
            if self.seen is None:
                shape = (self.places, self.model.vocab)
                self.seen = torch.zeros(shape, dtype=torch.bool, device=self.model.device)
            self.seen[place] = False
            self.seen[place, torch.tensor(flight.prompt, device=self.model.device)] = True

    def _decode(self) -> None:
        flights = list(self.active)
        logits = self.batch.decode(
            [f.generated[-1] for f in flights], [f.position for f in flights], [f.slot for f in flights]
        )
        self._advance(flights, range(len(flights)), logits)

    def _advance(self, flights: list[Flight], places: Sequence[int], logits: torch.Tensor) -> None:
        """Choose each flight's next token and end those that are done."""
        seen = None
        if self.seen is not None:
            rows = torch.tensor(list(places), device=self.seen.device)
            seen = self.seen[rows]
        tokens = choose(logits, [f.request.sampling for f in flights], [len(f.generated) for f in flights], seen)
        if self.seen is not None:
            self.seen[rows, torch.tensor(tokens, device=rows.device)] = True
        done: list[tuple[Flight, str]] = []
        sound = logits.amax(1).isfinite().tolist()
        for flight, token, finite in zip(flights, tokens, sound, strict=True):
            if not finite:
                done.append((flight, OVERFLOW))
                continue
            flight.generated.append(token)
            if flight.turns:
                self._watch(flight)
            if flight.exempt is not None and flight.exempt.push(flight.generated):
                self._exempt(flight, flight.exempt)
            piece, over = "", token in self.ends
            if flight.on_chunk is not None or flight.request.sampling.stop:
                piece = "" if over else flight.text.push(token)
                flight.emit(Chunk(piece, (token,)))
            if over or flight.text.stopped:
                done.append((flight, "stop"))
            elif flight.finish:
                done.append((flight, flight.finish))
        for flight, reason in done:
            if reason == OVERFLOW:
                self._end(flight)
                flight.fail(EngineError(OVERFLOW))
            else:
                self._complete(flight, reason)

    def _watch(self, flight: Flight) -> None:
        """Turn the spans that follow the text once a restart phrase is complete: from the next token on.

        A phrase may begin in a given prefix, but the response has to complete it.
        """
        given = list(flight.prompt[-TAIL:]) if flight.request.prefix and len(flight.generated) < TAIL else []

        def text(ids: list[int]) -> str:
            return self.model.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

        after = len(text(given)) if given else 0
        if completes(text([*given, *flight.generated[-TAIL:]]), after=after):
            flight.turns = False
            self.hooks.turn(flight.slot, flight.position + 1)
            flight.notes.append(f"restart complete at position {flight.position}")

    def _exempt(self, flight: Flight, watch: Exempt) -> None:
        """An exempt stretch has opened (its marker is still edited) or closed (its marker is edited again)."""
        if watch.inside is not None:
            self.hooks.pause(flight.slot, flight.position + 1)
            flight.notes.append(f"{watch.inside} exempt from position {flight.position + 1}")
        else:
            self.hooks.resume(flight.slot, flight.position)
            flight.notes.append(f"exempt to position {flight.position}")

    def _complete(self, flight: Flight, reason: str) -> None:
        for token in flight.generated if not flight.text.tokens else ():
            if token not in self.ends:
                flight.text.tokens.append(token)
        rest = flight.text.finish()
        if rest:
            flight.emit(Chunk(rest))
        read = len(flight.prompt) + len(flight.generated) - 1
        notes = tuple(n for n in (*flight.notes, self.batch.note) if n)
        layers = self.hooks.receipts(flight.slot, read)
        values = self.hooks.collect(flight.slot)
        completion = Completion(
            text=flight.text.text,
            tokens=tuple(flight.generated),
            prompt_tokens=len(flight.prompt),
            finish=reason,
            receipt=Receipt(layers, self.family, notes),
            readouts=None if values is None else values.numpy(),
        )
        self._end(flight)
        problem = None
        intervention = flight.request.intervention
        if intervention is not None and not flight.gated_off:
            problem = no_op(intervention, completion.receipt, prompt_tokens=len(flight.prompt), tokens=read)
        if problem and flight.request.measure_only:  # what is not there to act cannot fail to act
            note = f"would have been refused as a no-op: {problem}"
            completion = replace(completion, receipt=replace(completion.receipt, notes=(*notes, note)))
            problem = None
        if problem:
            flight.fail(NoOpError(problem, completion))
        else:
            flight.succeed(completion)

    def _end(self, flight: Flight) -> None:
        """Take a flight out of the batch; the last active one moves into its place."""
        if flight in self.waiting:
            self.waiting.remove(flight)
        elif flight in self.active:
            place, last = self.active.index(flight), len(self.active) - 1
            if place != last:
                self.batch.move(last, place)
                self.active[place] = self.active[last]
                if self.seen is not None:
                    self.seen[place] = self.seen[last]
            self.active.pop()
        self._leave(flight)
