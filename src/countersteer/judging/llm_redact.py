"""Keeping secrets out of what is stored and said.

Whatever the environment holds under a name that speaks of a key, token, secret or password is replaced by that name in
every reply, reason and error before it is written anywhere. What no file can hold (half of a surrogate pair) and what
would act on a terminal (control characters in an error) is replaced as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
_LOOKS = re.compile(
    r"\b(?:sk|pk|rk|key|ghp|gho|xai|hf|gsk|AIza)[-_][A-Za-z0-9_\-]{16,}|\bBearer\s+[A-Za-z0-9._\-]{12,}"
)
_LOGIN = re.compile(r"://[^\s/@:]+:[^\s/@]+@")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ESCAPED = re.compile(r"\\\\|\\u00([2-7][0-9a-fA-F])")
_LEAST = 6
"""Shorter values are no secrets, and would be found in ordinary words."""


def _plain(match: re.Match[str]) -> str:
    """A letter or digit that JSON did not need to escape, as itself: a secret may be written in escapes."""
    letter = chr(int(match[1], 16)) if match[1] else ""
    return letter if letter and (letter.isalnum() or letter in "-_.") else match[0]


@dataclass(frozen=True)
class Redactor:
    """Replaces the secrets of an environment, and what has the shape of a key, in any text."""

    secrets: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, environment: Mapping[str, str] | None = None) -> Redactor:
        """The redactor of an environment (default: this process's)."""
        given = os.environ if environment is None else environment
        found = [(value, name) for name, value in given.items() if _NAME.search(name) and len(value) >= _LEAST]
        return cls(tuple(sorted(found, key=lambda pair: -len(pair[0]))))

    def __call__(self, text: str) -> str:
        """The text without secrets, and such that it can be written to a file."""
        text = text.encode("utf-8", "replace").decode()
        if "\\u00" in text:
            text = _ESCAPED.sub(_plain, text)
        for value, name in self.secrets:
            if value in text:
                text = text.replace(value, f"[{name}]")
        if "://" in text:
            text = _LOGIN.sub("://[redacted]@", text)
        return _LOOKS.sub("[redacted]", text)

    def data(self, value: Any) -> Any:
        """JSON data whose texts are without secrets: an escape in a reply may hide one until it is decoded."""
        if isinstance(value, str):
            return value if len(value) < _LEAST and value.isascii() else self(value)
        if isinstance(value, dict):
            return {self.data(name): self.data(item) for name, item in value.items()}
        return [self.data(item) for item in value] if isinstance(value, list) else value

    def one_line(self, error: BaseException, *, limit: int = 500) -> str:
        """An error in one bounded line without secrets."""
        message = " ".join(str(error).split()) or type(error).__name__
        named = f"{type(error).__name__}: {message}" if type(error).__name__ not in message else message
        return self.line(named, limit=limit)

    def line(self, text: str, *, limit: int = 500) -> str:
        """A text in one bounded line without secrets and control characters."""
        return _CONTROL.sub("?", self(" ".join(text.split())))[:limit]


def bad_url(url: str) -> str | None:
    """What is wrong with the address of a server, or None. What may be a secret in it is not repeated."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return "must be an address such as http://localhost:8000/v1"
    if "@" in url or parts.query or parts.fragment:
        return "must not hold a user name, password, query or fragment; use the provider's environment variables"
    return None if right else f"must be an address such as http://localhost:8000/v1, got {url!r}"
