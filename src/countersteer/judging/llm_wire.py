"""What a judge's server sends, watched as it comes over HTTP: never more than a reply can need, and what it was.

Providers' clients read a whole body before anything can object, and say of one that is no chat completion only that
some attribute is missing. So every response is bounded while it is read, and one that came with a request is kept until
the request has ended, so that a failure can name the server's own words. Only public parts of httpx are used.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any

MOST = 16 * 1024 * 1024
"""Bytes of a reply at most: a hundred times the longest that is kept."""
MOST_PACKED = 64 * 1024
"""Bytes of a compressed reply at most: none is asked for, and it can unpack to a thousand times as much."""
_PACKED = ("gzip", "deflate")
_FILES = ("/files", "/batches")
_SAID = 200


class TooMuchError(Exception):
    """A response that is larger than any reply can be."""


SEEN: ContextVar[list[Any] | None] = ContextVar("countersteer_seen", default=None)
"""The responses of the request under way, set by whoever asks."""


def watch(model: Any) -> None:
    """Bound and keep the responses to an Inspect model's requests, where its client is an httpx one."""
    api = model.api
    client = getattr(api, "http_client", None) or getattr(getattr(api, "client", None), "_client", None)
    hooks = getattr(client, "event_hooks", None)
    if client is None or not isinstance(hooks, dict):
        return
    client.event_hooks = {**hooks, "response": [*hooks.get("response", ()), _look]}
    client.headers["accept-encoding"] = "identity"


async def _look(response: Any) -> None:
    """Called with every response before its body is read."""
    if any(part in response.request.url.path for part in _FILES):  # a batch's file holds many replies
        return
    packed = response.headers.get("content-encoding", "identity").lower()
    if packed not in ("", "identity", *_PACKED):
        raise TooMuchError(f"the reply is packed as {packed[:40]!r}, which was not asked for")
    most = MOST_PACKED if packed in _PACKED else MOST
    response.stream = _bounded(response.stream, most)
    seen = SEEN.get()
    if seen is not None:
        seen.append(response)


def _bounded(stream: Any, most: int) -> Any:
    """The stream, ending in an error when it grows beyond `most` bytes."""
    base = next(kind for kind in type(stream).__mro__ if kind.__name__ == "AsyncByteStream")

    async def chunks(self: Any) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in stream:
            size += len(chunk)
            if size > most:
                raise TooMuchError(f"the reply is longer than {most} bytes{' (compressed)' if most < MOST else ''}")
            yield chunk

    async def close(self: Any) -> None:
        await stream.aclose()

    made: Callable[[], Any] = type("Bounded", (base,), {"__aiter__": chunks, "aclose": close})
    return made()


def told(seen: list[Any]) -> tuple[int | None, str]:
    """(HTTP status that the last response stands for, what it said) where it came as a success but is no reply.

    Some servers send an error object with status 200. (None, "") where there was nothing to read.
    """
    if not seen or not 200 <= seen[-1].status_code < 300:
        return None, ""
    text, data = "", None
    with contextlib.suppress(Exception):  # it was not read to its end
        text = seen[-1].text
        data = json.loads(text)
    error = data.get("error") if isinstance(data, dict) else None
    if error:
        code = error.get("code") if isinstance(error, dict) else None
        said = error.get("message") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 600 else None
        return status, f"the server sent an error as a reply: {str(said or error)[:_SAID]}"
    if not text.strip():
        return None, "the server sent an empty reply"
    return None, f"the server's reply is no chat completion; it begins {text[:80]!r}"
