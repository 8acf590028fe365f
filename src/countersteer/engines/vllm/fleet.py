"""The servers of a remote engine: who is up, who is least busy, and whether each is still the model that was asked for.

A server that was away may have come back as something else, so it is looked at again before it gets work.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from countersteer.core.errors import EngineError, RefusedError

log = logging.getLogger(__name__)
REST_SECONDS = 20.0
"""How long a server that failed is left alone."""
ROUNDS, PAUSE = 3, 1.0
"""How often all servers are tried before a request fails, and the seconds before the second round (then twice that)."""
IDENTITY = ("model_fingerprint", "dtype", "quantisation", "template_hash", "engine")


class Unreachable(Exception):
    """A server could not be reached, broke off, or is not the model any more; another may do."""


@dataclass(eq=False)
class Server:
    """One server: who it is, what it has been told, how busy it is, whether it was looked at since it was away."""

    url: str
    facts: dict[str, Any] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    flying: int = 0
    down_until: float = 0.0
    seen: bool = False

    def look(self, facts: dict[str, Any], like: Server | None = None) -> None:
        """Note what the server says it is. Raises RefusedError if it is another model than `like`'s."""
        other = [k for k in IDENTITY if facts.get(k) != like.facts.get(k)] if like is not None else []
        if like is self and other:
            raise RefusedError(
                f"server {self.url}",
                f"it came back with another {', '.join(other)}",
                "servers of one model in one dtype",
            )
        if like is not None and other:
            raise RefusedError(
                f"a study over {like.url} and {self.url}",
                f"they differ in {', '.join(other)}, so their answers are not the same trials",
                "servers of one model in one dtype",
            )
        self.facts, self.seen = facts, True

    def rest(self) -> None:
        """Leave the server alone for a while. It forgets what it was told and is looked at before it gets work."""
        self.down_until = time.monotonic() + REST_SECONDS
        self.seen = False
        self.known.clear()


@dataclass
class Tried:
    """The servers that have failed one request in this round, how many rounds are over, and why each server failed."""

    servers: set[Server] = field(default_factory=set)
    rounds: int = 0
    reasons: dict[str, str] = field(default_factory=dict)


class Fleet:
    """Servers of one model. `first` is one that answered at the start: what it is, all must be."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = list(servers)

    @property
    def first(self) -> Server:
        """The first server that has ever answered."""
        return next(s for s in self.servers if s.facts)

    @property
    def urls(self) -> str:
        """All addresses, for messages."""
        return ", ".join(s.url for s in self.servers)

    async def choose(self, tried: Tried) -> Server:
        """The least busy server of those left in this round; after a pause all of them again. Raises EngineError."""
        left = [s for s in self.servers if s not in tried.servers]
        if not left:
            tried.rounds += 1
            if tried.rounds >= ROUNDS:
                raise EngineError(
                    f"no server answers: tried {self.urls}; {'; '.join(dict.fromkeys(tried.reasons.values()))}"
                )
            await asyncio.sleep(PAUSE * tried.rounds)
            tried.servers.clear()
            left = self.servers
        return min(left, key=lambda s: (s.down_until > time.monotonic(), s.flying))

    @staticmethod
    def down(server: Server, tried: Tried, error: Exception) -> None:
        """Note that a server has failed a request; it rests."""
        if server.down_until <= time.monotonic():
            log.warning("server %s is left alone for %.0f s: %s", server.url, REST_SECONDS, error)
        tried.servers.add(server)
        tried.reasons[server.url] = str(error)
        server.rest()
