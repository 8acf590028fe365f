"""What a failed request of a judge means: whether it was billed, whether another try may help, how long to wait.

Providers' clients and Inspect wrap one another's errors, so an error is read from the inside: its HTTP status, what the
provider's own rule says of it, and whether the request can have left at all.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from countersteer.judging.llm_wire import TooMuchError, told

_UNSENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "InvalidURL", "ProxyError",
                     "ClientConnectorError", "ClientConnectorDNSError", "EndpointConnectionError"})  # fmt: skip
"""Errors of httpx, aiohttp and botocore from before a request leaves."""


@dataclass(frozen=True)
class Failure:
    """What a failed request means.

    `kind`: rate, transient or bad. `status`: HTTP status, None without an answer. `billed`: whether it may be billed.
    `wait`: seconds that the provider asks for. `fatal`: every other request would fail the same way. `said`: what the
    server sent instead of a reply, in words; empty where the error says it.
    """

    error: BaseException
    kind: str
    status: int | None
    wait: float | None
    billed: bool
    fatal: bool = False
    said: str = ""


class AgainError(Exception):
    """A try failed in a way that another one may not: after `wait` seconds, for `everyone`, or `plain` at once."""

    def __init__(self, reason: str, wait: float | None, *, everyone: bool = False, plain: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.everyone, self.plain = reason, wait, everyone, plain


def classify(error: BaseException, model: Any, seen: list[Any]) -> Failure:
    """Sort an error of Inspect or a provider's client, with the wait it asks for. `seen`: its responses."""
    much = next((link for link in _chain(error) if isinstance(link, TooMuchError)), None)
    if much is not None:
        return Failure(much, "bad", None, None, billed=True, said=str(much))
    found = _sorted(error, model)
    status, said = told(seen) if found.status is None else (None, "")
    if not said:
        return found
    if status is None:
        return replace(found, said=said)
    kind = "rate" if status == 429 else "transient" if status >= 500 or status in (408, 409, 425) else "bad"
    return replace(found, kind=kind, status=status, billed=False, fatal=status == 401, said=said)


def _sorted(error: BaseException, model: Any) -> Failure:
    """An error by itself."""
    inner = error
    last = getattr(error, "last_attempt", None)
    if last is not None and last.exception() is not None:
        inner = last.exception()
    cause = inner.__cause__ if type(inner).__name__ == "ModelGenerateError" and inner.__cause__ else inner
    status = getattr(cause, "status_code", None) or getattr(inner, "status_code", None)
    status = status if isinstance(status, int) and status >= 400 else None
    wait = None
    retry = status is None
    with contextlib.suppress(Exception):  # a provider's own judgement, where it has one
        decision = model.api.should_retry(cause)
        retry = retry or bool(decision)
        wait = getattr(decision, "retry_after", None)
        if getattr(decision, "kind", "") == "rate_limit" and status is None:
            status = 429
    billed = status is None and not _unsent(error)
    text = str(getattr(cause, "body", "") or cause)
    if status == 429:
        return Failure(cause, "rate", status, wait, billed, fatal="insufficient_quota" in text)
    if status is not None and (status >= 500 or status in (408, 409, 425) or retry):
        return Failure(cause, "transient", status, wait, billed)
    return Failure(cause, "bad" if status is not None else "transient", status, wait, billed, fatal=status == 401)


def _unsent(error: BaseException) -> bool:
    """Whether an error says that the request never left: no server there, no such name, no connection free."""
    return any(
        type(link).__name__ in _UNSENT or isinstance(link, ConnectionRefusedError | socket.gaierror)
        for link in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those it came from."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def root(error: BaseException) -> str:
    """The first error of a chain, in words, where it says more than the last one; else the empty string."""
    first = list(_chain(error))[-1]
    text = " ".join(str(first).split())
    return text if text and text not in str(error) else ""


__all__ = ["AgainError", "Failure", "classify", "root"]
