"""The server's OpenAPI description, made from the models that validate its input."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from countersteer.serving.wire import ChatRequest, CompletionRequest, RollbackRequest, RolloutRequest

_INPUTS: tuple[type[BaseModel], ...] = (ChatRequest, CompletionRequest, RollbackRequest, RolloutRequest)
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def _outputs() -> dict[str, Any]:
    usage = _object({n: _COUNT for n in ("prompt_tokens", "completion_tokens", "total_tokens")})
    finish = {"type": "string", "enum": ["stop", "length"]}
    head = {"id": _TEXT, "created": _COUNT, "model": _TEXT}
    turn = _object({"role": {"const": "assistant"}, "content": _TEXT})
    bundle = _object({"name": _TEXT, "version": _TEXT, "fingerprint": _TEXT, "exempt": {"type": "array"}})
    policy = _object(
        {
            "number": {"type": "integer", "minimum": 1},
            "default": _TEXT,
            "mode": {"enum": ["shadow", "canary", "enforce"]},
            "share": {"type": "number", "minimum": 0, "maximum": 1},
            "choose": {"type": "array", "items": _TEXT},
            "bundles": {"type": "object", "additionalProperties": bundle},
        }
    )
    model = _object({"id": _TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": _TEXT})
    error = _object({"message": _TEXT, "type": _TEXT}, param={"type": ["string", "null"]}, code=_TEXT)

    def answer(what: str, **choice: Any) -> dict[str, Any]:
        one = _object({"index": _COUNT, "finish_reason": finish, **choice})
        choices = {"type": "array", "minItems": 1, "maxItems": 1, "items": one}
        return _object({**head, "object": {"const": what}, "choices": choices, "usage": usage},
                       countersteer={"type": "object"})  # fmt: skip

    return {
        "ChatCompletion": answer("chat.completion", message=turn),
        "TextCompletion": answer("text_completion", text=_TEXT),
        "Model": model,
        "Models": _object({"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}}),
        "Health": _object({"status": {"enum": ["ok", "failing"]}}, reason=_TEXT),
        "Policy": policy,
        "Policies": _object({"current": _ref("Policy"), "kept": {"type": "array", "items": _ref("Policy")}}),
        "Error": _object({"error": error}),
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str, description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(name)}}}


def _operation(
    summary: str, output: dict[str, Any], *, codes: str, body: str | None = None, **more: Any
) -> dict[str, Any]:
    said = {
        "400": "the request cannot be used",
        "401": "no valid key",
        "403": "this key may not do that",
        "404": "no such model",
        "408": "the body came too slowly",
        "409": "nothing was changed",
        "413": "the body is too large",
        "415": "not plain JSON",
        "422": "the bundle changed nothing",
        "429": "too many requests",
        "500": "the server failed",
        "503": "no room, or the engine failed",
        "504": "it took too long",
    }
    responses = {"200": output, **{code: _json("Error", said[code]) for code in codes.split()}}
    made: dict[str, Any] = {"summary": summary, "responses": responses, **more}
    if body is not None:
        optional = body == "RollbackRequest"
        made["requestBody"] = {"required": not optional, "content": {"application/json": {"schema": _ref(body)}}}
    return made


def _generates(summary: str, body: str, output: str) -> dict[str, Any]:
    answer = _json(output, "the answer")
    answer["content"]["text/event-stream"] = {"schema": _TEXT}
    answer["headers"] = {"X-Request-Id": {"schema": _TEXT}}
    header = {"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[A-Za-z0-9_.:-]+$"}
    return _operation(
        summary,
        answer,
        codes="400 401 403 404 408 413 415 422 429 500 503 504",
        body=body,
        parameters=[{"name": "X-Conversation-Id", "in": "header", "required": False, "schema": header}],
    )


def description(*, keys: bool, version: str) -> dict[str, Any]:
    """The description as plain data; `keys`: whether the server asks for keys."""
    _, made = models_json_schema([(m, "validation") for m in _INPUTS], ref_template="#/components/schemas/{model}")
    schemas = {**made["$defs"], **_outputs()}
    text = {"description": "Prometheus text", "content": {"text/plain": {"schema": _TEXT}}}
    name = {"name": "model", "in": "path", "required": True, "schema": _TEXT}
    health = _operation("Whether work is taken", _json("Health", "ok"), codes="", security=[])
    health["responses"]["503"] = _json("Health", "failing")
    changed = _json("Policy", "the policy in force")
    admin = "401 403 409 500"
    paths: dict[str, Any] = {
        "/v1/chat/completions": {"post": _generates("Answer a conversation", "ChatRequest", "ChatCompletion")},
        "/v1/completions": {"post": _generates("Continue a text", "CompletionRequest", "TextCompletion")},
        "/v1/models": {"get": _operation("The model", _json("Models", "the model"), codes="401")},
        "/v1/models/{model}": {
            "get": _operation("The model", _json("Model", "the model"), codes="401 404", parameters=[name])
        },
        "/health": {"get": health},
        "/metrics": {"get": _operation("Metrics", text, codes="401 403")},
        "/admin/policy": {"get": _operation("The policy", _json("Policies", "the policies"), codes="401 403")},
        "/admin/reload": {"post": _operation("Read policy and bundles again", changed, codes=admin)},
        "/admin/rollback": {
            "post": _operation("Go back", changed, codes=f"400 408 413 415 {admin}", body="RollbackRequest")
        },
        "/admin/rollout": {
            "put": _operation("Change mode or share", changed, codes=f"400 408 413 415 {admin}", body="RolloutRequest")
        },
    }
    out: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "countersteer", "version": version},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if keys:
        out["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        out["security"] = [{"key": []}]
    return out
