"""Running the application with uvicorn: in the foreground, or on a thread for notebooks and tests.

The server speaks plain HTTP. TLS and slow clients are a proxy's work (docs/serving.md).
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from countersteer.core.errors import InputError
from countersteer.engines.base import Engine
from countersteer.serving.app import create_app
from countersteer.serving.server import Settings

log = logging.getLogger(__name__)
DRAIN_SECONDS = 30
"""How long requests in flight get after the signal to stop."""
KEEP_ALIVE_SECONDS = 75
"""How long an idle connection is kept: longer than clients and proxies do, or theirs and ours would cross."""


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int, settings: Settings) -> socket.socket:
    """A listening socket. Raises InputError: a taken port, or a reachable address without keys."""
    if not len(settings.keys) and not is_local(host):
        raise InputError(
            f"{host} can be reached from elsewhere and there are no keys: give --keys, or listen on 127.0.0.1"
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from error


class _Uvicorn(uvicorn.Server):
    """Uvicorn that says when it listens."""

    def __init__(self, app: Any, ready: Callable[[], None] = lambda: None) -> None:
        # Requests are audited by the application itself; uvicorn's access log would hold nothing more.
        config = uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=DRAIN_SECONDS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=64 << 10,
            ws="none",
        )
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()


def run(
    engine: Engine,
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until interrupted; requests in flight are finished first. `ready` is called with the URL.

    Raises InputError and RefusedError before anything is served.
    """
    with contextlib.closing(listen(host, port, settings)) as door:
        _Uvicorn(create_app(engine, settings), lambda: ready(_url(door))).run(sockets=[door])


@contextlib.contextmanager
def running(engine: Engine, settings: Settings, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """A server on a thread of its own for as long as the block lasts; gives its URL. Port 0 takes a free one."""
    with contextlib.closing(listen(host, port, settings)) as door:
        server = _Uvicorn(create_app(engine, settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, name="countersteer-http", daemon=True)
        thread.start()
        try:
            while thread.is_alive() and not server.started:
                time.sleep(0.01)
            yield _url(door)
        finally:
            server.should_exit = True
            thread.join(timeout=DRAIN_SECONDS + 10)


def _url(door: socket.socket) -> str:
    host, port = door.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
