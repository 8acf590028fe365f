"""A streamed response that ends its source at once when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

from starlette.responses import Response

from countersteer.serving.receiving import disconnected


class EventStream(Response):
    """Server-sent events from an async generator, which is closed whatever happens."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], headers: dict[str, str], *, held: AsyncExitStack, seconds: float
    ) -> None:
        """`held` is closed after the last piece, `seconds` is how long all of it may take."""
        # Proxies must pass the pieces on as they come.
        super().__init__(None, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self.events, self.held, self.seconds = events, held, seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send until the events end or the client goes."""
        async with self.held:
            task = asyncio.ensure_future(self._send(send))
            watch = asyncio.ensure_future(disconnected(receive))
            try:
                await asyncio.wait({task, watch}, timeout=self.seconds, return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    task.result()
            finally:
                for one in (task, watch):
                    one.cancel()
                    with contextlib.suppress(asyncio.CancelledError, Exception):
                        await one

    async def _send(self, send: Any) -> None:
        async with aclosing(self.events) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for piece in events:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
