"""The policy in force and the ones before it: reload, roll back, change the rollout, without dropping a request.

A change makes a new policy, checks it on the engine, and swaps one reference. Requests in flight keep the policy they
began with. A change that fails leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from countersteer.core.errors import InputError, NoOpError
from countersteer.core.request import Request, Sampling
from countersteer.engines.base import Engine
from countersteer.serving.policy import Plan, Policy, Served, load_policy

log = logging.getLogger(__name__)
KEPT = 16
"""Policies that can be gone back to."""


class Policies:
    """Owns the current policy. `plan` is called at every reload, so that a changed file is read again.

    Raises InputError when the first policy cannot be served.
    """

    def __init__(self, engine: Engine, plan: Callable[[], Plan]) -> None:
        self.engine, self.plan = engine, plan
        self.facts = engine.describe()
        self.current = self._load()
        self.kept: deque[Policy] = deque([self.current], maxlen=KEPT)
        """The last policies that were in force, the current one included."""
        self._undo: deque[Policy] = deque(maxlen=KEPT)
        self._number = 1
        self._changing = asyncio.Lock()

    async def reload(self) -> Policy:
        """Read the policy and its bundles again. Raises InputError and changes nothing if anything is wrong."""
        async with self._changing:
            return self._take(await asyncio.to_thread(self._load))

    async def rollback(self, number: int | None = None) -> Policy:
        """Take the last change back (again and again: one more each time), or take up a numbered policy that is kept.

        The bundles are still in memory: no file is read. Raises InputError when there is nothing to go back to.
        """
        async with self._changing:
            if number is None:
                if not self._undo:
                    raise InputError("there is no change to take back")
                return self._take(self._undo.pop(), undo=False)
            known = [p for p in self.kept if p.number == number]
            if not known:
                numbers = ", ".join(str(p.number) for p in self.kept)
                raise InputError(f"there is no policy {number} to go back to; kept: {numbers}")
            return self._take(known[0])

    async def rollout(self, mode: str | None, share: float | None) -> Policy:
        """Change mode or share until the next reload. Raises InputError for a mode that the engine does not have."""
        async with self._changing:
            given = {"mode": mode, "share": share}
            changes = {k: v for k, v in given.items() if v is not None and v != getattr(self.current, k)}
            if not changes:
                return self.current
            new = self.current.numbered(0, **changes)
            await asyncio.to_thread(self._prove_shadow, new)
            return self._take(new)

    def _take(self, policy: Policy, *, undo: bool = True) -> Policy:
        """Put a policy in force under a new number; `undo`: rollback can come back to the one before."""
        if undo:
            self._undo.append(self.current)
        self._number += 1
        self.current = policy.numbered(self._number)
        self.kept.append(self.current)
        return self.current

    def _load(self) -> Policy:
        """Read everything and prove it on the engine. Raises InputError."""
        policy = load_policy(self.plan(), self.facts)
        for served in policy.bundles.values():
            self._prove(served)
        self._prove_shadow(policy)
        return policy

    def _prove_shadow(self, policy: Policy) -> None:
        default = policy.bundles.get(policy.default)
        if policy.mode == "shadow" and default is not None:
            self._prove(default, measure_only=True)

    def _prove(self, served: Served, *, measure_only: bool = False) -> None:
        """Generate a few tokens with a bundle, so that an engine which cannot run it says so now."""
        request = Request(
            prompt="Hello",
            template=False,
            intervention=served.bundle.intervention,
            exempt=served.exempt,
            measure_only=measure_only,
            sampling=Sampling(temperature=0, max_tokens=4),
        )
        try:
            self.engine.run([request])
        except NoOpError as error:
            if not served.bundle.intervention.conditional and error.completion is not None:
                log.warning("bundle %s changed nothing on a short text: %s", served.label, error)
        except InputError as error:
            raise InputError(f"bundle {served.label} cannot be served: {error}") from error
