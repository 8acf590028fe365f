"""What the server answers when it does not answer: one error body, in the form that OpenAI's clients read.

`Refusal` is raised anywhere below a handler. `refusal_of` turns the library's own errors into one. Only errors about
the client's own input are quoted: what failed inside, and what the policy's bundles did, stays in the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from countersteer.core.errors import EngineError, InputError, NoOpError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}


class Refusal(Exception):
    """A request that ends with an error: HTTP status, a code for programs, one line for people."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, " ".join(message.split()), param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object that OpenAI's clients expect."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal_of(error: BaseException) -> Refusal:
    """The refusal that an error means to a client."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, TimeoutError):
        return Refusal(504, "timeout", "the answer took longer than this server allows; ask for fewer tokens")
    if isinstance(error, NoOpError):
        return Refusal(422, "no_op", "the steering of this server could not act, so the answer is withheld; "
                       "ask for more tokens")  # fmt: skip
    if isinstance(error, InputError):
        return Refusal(400, "invalid_request", str(error))
    if isinstance(error, EngineError):
        return Refusal(
            503, "engine_failed", "the engine failed; the server's log says why", headers={"Retry-After": "5"}
        )
    return Refusal(500, "internal_error", "the server failed; its log says why")
