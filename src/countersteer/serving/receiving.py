"""Reading a request from the network, and noticing that its sender has gone.

Bodies are read piece by piece against a limit and a time, must be JSON in the clear, and are validated strictly.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from countersteer.serving.errors import Refusal
from countersteer.serving.limits import Limits

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")


class Gone(Exception):
    """The client has closed the connection."""


async def read(request: Request, kind: type[Body], limits: Limits, *, empty: bool = False) -> Body:
    """The body as a `kind`; with `empty` no body is the default one. Raises Refusal."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal(415, "encoding", "compressed bodies are not read; send the JSON as it is")
    data = await _bytes(request, limits)
    if empty and not data.strip():
        return kind()
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "content_type", "the body must be sent as application/json")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise _invalid(error) from None


async def _bytes(request: Request, limits: Limits) -> bytes:
    declared = request.headers.get("content-length")
    over = Refusal(413, "too_large", f"the body is larger than {limits.body_bytes} bytes")
    if declared is not None and (not declared.isdigit() or int(declared) > limits.body_bytes):
        raise over
    data = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in request.stream():
                data += piece
                if len(data) > limits.body_bytes:
                    raise over
    except TimeoutError:
        raise Refusal(408, "slow_body", f"the body took longer than {limits.body_seconds:g} s") from None
    except ClientDisconnect:
        raise Gone from None
    return bytes(data)


def _invalid(error: ValidationError) -> Refusal:
    """The first thing that is wrong with a body, in one line, without quoting what was sent."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return Refusal(400, "malformed_json", "the body is not valid JSON")
    message = first["msg"]
    if first["type"] == "extra_forbidden":
        message = "this server does not know the field; leave it out"
    return Refusal(400, "invalid_request", f"{where or 'body'}: {message}", param=where or None)


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client goes away. Raises Gone then."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        watch.cancel()
        task.cancel()
        for other in (watch, task):
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await other


async def disconnected(receive: Any) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
