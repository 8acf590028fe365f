"""The endpoints that do not generate: models, health, metrics, and the administrator's."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from countersteer.core.errors import InputError
from countersteer.serving.errors import Refusal
from countersteer.serving.keys import Key, Role
from countersteer.serving.metrics import CONTENT_TYPE
from countersteer.serving.policy import Policy
from countersteer.serving.receiving import read
from countersteer.serving.server import Server
from countersteer.serving.wire import RollbackRequest, RolloutRequest


async def models(request: Request) -> Response:
    """GET /v1/models: the one model; a key that may choose also sees which bundles it may name."""
    server: Server = request.app.state.server
    return JSONResponse({"object": "list", "data": [_model(server, server.who(request))]})


async def model(request: Request) -> Response:
    """GET /v1/models/{model}."""
    server: Server = request.app.state.server
    key = server.who(request)
    if request.path_params["model"] != server.settings.name:
        raise Refusal(404, "model_not_found", "there is no such model here; see /v1/models", param="model")
    return JSONResponse(_model(server, key))


def _model(server: Server, key: Key) -> dict[str, Any]:
    data: dict[str, Any] = {"id": server.settings.name, "object": "model", "created": 0, "owned_by": "countersteer"}
    if key.role >= Role.CHOOSE:
        data["bundles"] = sorted(server.policies.current.choose)
    return data


async def health(request: Request) -> Response:
    """GET /health: 200 while work is taken, else 503 with the reason. Needs no key."""
    server: Server = request.app.state.server
    problem = server.healthy()
    body = {"status": "failing", "reason": problem} if problem else {"status": "ok"}
    return JSONResponse(body, status_code=503 if problem else 200)


async def metrics(request: Request) -> Response:
    """GET /metrics, for Prometheus. They name bundles, so a key that may choose is needed."""
    server: Server = request.app.state.server
    server.who(request, Role.CHOOSE)
    server.healthy()
    server.metrics.policy.set(server.policies.current.number)
    return Response(server.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


async def policy(request: Request) -> Response:
    """GET /admin/policy: what is in force and what can be gone back to."""
    server: Server = request.app.state.server
    server.who(request, Role.ADMIN)
    kept = [p.to_dict() for p in server.policies.kept]
    return JSONResponse({"current": server.policies.current.to_dict(), "kept": kept})


async def reload(request: Request) -> Response:
    """POST /admin/reload: read the policy and bundles that the server was started with again."""
    server: Server = request.app.state.server
    key = server.who(request, Role.ADMIN)
    return await _change(server, key, "reload", server.policies.reload())


async def rollback(request: Request) -> Response:
    """POST /admin/rollback: take the last change back, or take up a numbered policy."""
    server: Server = request.app.state.server
    key = server.who(request, Role.ADMIN)
    body = await read(request, RollbackRequest, server.limits, empty=True)
    return await _change(server, key, "rollback", server.policies.rollback(body.number))


async def rollout(request: Request) -> Response:
    """PUT /admin/rollout: another mode or share, until the next reload."""
    server: Server = request.app.state.server
    key = server.who(request, Role.ADMIN)
    body = await read(request, RolloutRequest, server.limits)
    return await _change(server, key, "rollout", server.policies.rollout(body.mode, body.share))


async def _change(server: Server, key: Key, kind: str, work: Awaitable[Policy]) -> Response:
    """Make a change, audit it either way. Raises Refusal 409 when it is refused; nothing has changed then."""
    try:
        new = await work
    except InputError as error:
        server.note(kind, key, status="refused", reason=str(error), policy=server.policies.current.number)
        server.metrics.reloads.labels(kind, "refused").inc()
        raise Refusal(409, "policy", f"nothing was changed: {error}") from error
    server.note(kind, key, status="ok", policy=new.to_dict())
    server.metrics.reloads.labels(kind, "ok").inc()
    server.metrics.policy.set(new.number)
    return JSONResponse(new.to_dict())
