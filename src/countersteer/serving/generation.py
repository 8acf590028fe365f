"""The two endpoints that generate, whole or streamed."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from countersteer.core.request import Chunk, Completion
from countersteer.serving.errors import Refusal
from countersteer.serving.eventstream import EventStream
from countersteer.serving.jobs import Job, Ticket
from countersteer.serving.receiving import read, while_connected
from countersteer.serving.replies import DONE, Reply, event
from countersteer.serving.rollout import conversation_of, decide
from countersteer.serving.server import Server
from countersteer.serving.wire import ChatRequest, CompletionRequest

HEADER = "x-conversation-id"
GRACE = 30.0
"""Seconds that a slow reader gets beyond the time for generating."""


async def chat(request: Request) -> Response:
    """POST /v1/chat/completions."""
    return await _answer(request, "chat", ChatRequest)


async def completions(request: Request) -> Response:
    """POST /v1/completions."""
    return await _answer(request, "text", CompletionRequest)


async def _answer(request: Request, kind: Any, form: type[ChatRequest] | type[CompletionRequest]) -> Response:
    """Admit, decide, generate. The place in the turnstile is held until the last byte."""
    server: Server = request.app.state.server
    key = server.who(request)
    unhealthy = server.healthy()
    if unhealthy:
        raise Refusal(503, "unhealthy", unhealthy, headers={"Retry-After": "5"})
    async with AsyncExitStack() as stack:
        stack.enter_context(server.turnstile.enter(key.name))
        body = await read(request, form, server.limits)
        ticket = _ticket(server, request, key, kind, body)
        job = Job(ticket, server.engine, server.metrics, server.audit, server.limits.seconds)
        reply = Reply(kind, ticket.id, server.settings.name, int(time.time()))
        headers = {"X-Request-Id": ticket.id}
        if not body.stream:
            completion = await while_connected(request, _whole(job))
            return JSONResponse(reply.whole(completion, job.extra(completion)), headers=headers)
        chunks = await stack.enter_async_context(aclosing(job.chunks()))
        first = await while_connected(request, _next(chunks))  # decides between an error status and a stream
        counts = body.stream_options is not None and body.stream_options.include_usage
        events = _events(job, reply, first, chunks, counts)
        return EventStream(events, headers, held=stack.pop_all(), seconds=server.limits.seconds + GRACE)


def _ticket(server: Server, request: Request, key: Any, kind: str, body: ChatRequest | CompletionRequest) -> Ticket:
    """Everything that can be refused before work starts. Raises Refusal and InputError."""
    if body.model != server.settings.name:
        raise Refusal(404, "model_not_found", "there is no such model here; see /v1/models", param="model")
    given = request.headers.get(HEADER)
    if given is not None and not (0 < len(given) <= 256 and given.isprintable()):
        raise Refusal(400, "conversation_id", "X-Conversation-Id must be 1 to 256 printable characters")
    conversation = conversation_of(key, given, body.opening())
    policy = server.policies.current
    decision = decide(policy, key, asked=body.bundle, conversation=conversation)
    wanted = body.request(server.limits)
    prefix, path = ("chatcmpl", "chat") if kind == "chat" else ("cmpl", "completions")
    return Ticket(server.new_id(prefix), path, key, policy, decision, conversation, wanted)


async def _whole(job: Job) -> Completion:
    """Run a job to its end."""
    completion: Completion | None = None
    async with aclosing(job.chunks()) as chunks:
        async for chunk in chunks:
            completion = chunk.completion or completion
    if completion is None:
        raise Refusal(503, "engine_failed", "the engine ended without a completion")
    return completion


async def _next(chunks: AsyncGenerator[Chunk, None]) -> Chunk:
    return await anext(chunks)


async def _events(
    job: Job, reply: Reply, first: Chunk, chunks: AsyncGenerator[Chunk, None], counts: bool
) -> AsyncGenerator[bytes, None]:
    """A job as server-sent events. An error after the first piece is an event of its own, without [DONE]."""
    try:
        yield reply.opening() + (reply.piece(first.text) if first.text else b"")
        chunk = first
        while chunk.completion is None:
            chunk = await anext(chunks)
            if chunk.text:
                yield reply.piece(chunk.text)
        done = chunk.completion
        last = reply.piece(None, finish=done.finish, extra=job.extra(done))
        yield last + (reply.counts(done) if counts else b"") + DONE
    except Refusal as refusal:
        yield event(refusal.body())
