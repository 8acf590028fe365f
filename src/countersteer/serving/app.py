"""The ASGI application: routes, one error form, start and stop.

`create_app(engine, settings)` is what any ASGI server can run; `serving.run` runs it with uvicorn.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from countersteer import __version__
from countersteer.core.errors import CountersteerError
from countersteer.engines.base import Engine
from countersteer.serving import generation, routes
from countersteer.serving.errors import Refusal, refusal_of
from countersteer.serving.openapi import description
from countersteer.serving.receiving import Gone
from countersteer.serving.server import Server, Settings

log = logging.getLogger(__name__)


def create_app(engine: Engine, settings: Settings) -> Starlette:
    """The application. Everything that can be refused is refused here: InputError, RefusedError.

    The engine stays the caller's: closing it is theirs, after the application has ended.
    """
    server = Server(engine, settings)
    described = description(keys=bool(len(settings.keys)), version=__version__)

    async def openapi(request: Request) -> Response:
        return JSONResponse(described)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            server.start()
            yield
        finally:
            server.close()

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", generation.chat, methods=["POST"]),
            Route("/v1/completions", generation.completions, methods=["POST"]),
            Route("/v1/models", routes.models, methods=["GET"]),
            Route("/v1/models/{model}", routes.model, methods=["GET"]),
            Route("/health", routes.health, methods=["GET"]),
            Route("/metrics", routes.metrics, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
            Route("/admin/policy", routes.policy, methods=["GET"]),
            Route("/admin/reload", routes.reload, methods=["POST"]),
            Route("/admin/rollback", routes.rollback, methods=["POST"]),
            Route("/admin/rollout", routes.rollout, methods=["PUT"]),
        ],
        exception_handlers={
            Refusal: _refused,
            CountersteerError: _refused,
            Gone: _gone,
            HTTPException: _unknown,
            Exception: _failed,
        },
        lifespan=lifespan,
    )
    app.state.server = server
    return app


async def _refused(request: Request, error: Any) -> Response:
    refusal = refusal_of(error)
    request.app.state.server.metrics.refused.labels(refusal.code).inc()
    return JSONResponse(refusal.body(), status_code=refusal.status, headers=refusal.headers)


async def _gone(request: Request, error: Any) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _unknown(request: Request, error: Any) -> Response:
    """No such path, or not with this method."""
    code = "not_found" if error.status_code == 404 else "method_not_allowed"
    refusal = Refusal(error.status_code, code, str(error.detail))
    return JSONResponse(refusal.body(), status_code=error.status_code, headers=error.headers)


async def _failed(request: Request, error: Any) -> Response:
    """An error of the server itself: the log has it, the client does not."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse(refusal_of(error).body(), status_code=500)
