"""API keys and what each may do.

Three roles, each including the one before: `use` sends requests, `choose` may also name a bundle or none where the
policy allows it and reads receipts, `admin` may also reload, roll back and change the rollout. Keys are kept as SHA-256
digests only and compared in constant time; a key itself is never logged, stored or echoed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError, nearest

ENV = "COUNTERSTEER_KEYS"
SHORTEST = 16


class Role(IntEnum):
    """What a key may do; a higher role includes the lower ones."""

    USE = 1
    CHOOSE = 2
    ADMIN = 3

    @classmethod
    def parse(cls, text: Any) -> Role:
        """The role of a name. Raises InputError."""
        names = [role.name.lower() for role in cls]
        if not isinstance(text, str) or text not in names:
            raise InputError(f"unknown role {text!r}{nearest(str(text), names)}; known: {', '.join(names)}")
        return cls[text.upper()]


@dataclass(frozen=True)
class Key:
    """A key by its name; `digest` is the SHA-256 of the secret, empty for the keyless local user."""

    name: str
    role: Role
    digest: bytes = b""


LOCAL = Key("local", Role.CHOOSE)
"""Who everybody is on a server without keys, which only listens on this machine: no administrator."""


class Keyring:
    """The keys of a server. Without any, everybody is `LOCAL`."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        for what in ("name", "digest"):
            values = [getattr(key, what) for key in keys]
            if len(set(values)) < len(values):
                raise InputError(f"two keys have the same {'name' if what == 'name' else 'secret'}: each needs its own")
        self.keys = tuple(keys)

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, authorization: str | None) -> Key | None:
        """The key of an `Authorization: Bearer ...` header, or None. Every key is compared, whatever matches."""
        if not self.keys:
            return LOCAL
        scheme, _, secret = (authorization or "").partition(" ")
        digest = hashlib.sha256(secret.strip().encode("utf-8", "surrogateescape")).digest()
        found: Key | None = None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found if scheme.lower() == "bearer" else None


def make_key(name: str, role: str, *, secret: str | None = None, sha256: str | None = None) -> Key:
    """A key from its secret or from the hexadecimal SHA-256 of it. Raises InputError."""
    if not name or not name.isprintable() or len(name) > 64:
        raise InputError(f"a key's name must be 1 to 64 printable characters, got {name!r}")
    if (secret is None) == (sha256 is None):
        raise InputError(f"key {name!r} needs either key or sha256")
    if secret is not None:
        if len(secret) < SHORTEST:
            raise InputError(f"key {name!r} is shorter than {SHORTEST} characters: draw a longer one")
        return Key(name, Role.parse(role), hashlib.sha256(secret.encode()).digest())
    try:
        digest = bytes.fromhex(sha256 or "")
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise InputError(f"sha256 of key {name!r} must be 64 hexadecimal digits")
    return Key(name, Role.parse(role), digest)


def load_keys(path: Path | None = None, *, environment: Mapping[str, str] | None = None) -> Keyring:
    """The keys of a TOML file (`[[key]]` with name, role and key or sha256) and of COUNTERSTEER_KEYS together.

    The variable holds `name:role:secret`, several separated by commas. Raises InputError, also for a file that holds
    secrets and can be read by other users of the machine.
    """
    keys: list[Key] = []
    for number, entry in enumerate((environment or {}).get(ENV, "").split(",")):
        if entry.strip():
            parts = entry.strip().split(":", 2)
            if len(parts) != 3:
                raise InputError(f"entry {number + 1} of {ENV} is not name:role:secret")
            keys.append(make_key(parts[0], parts[1], secret=parts[2]))
    if path is not None:
        keys += _from_file(path)
        if not keys:
            raise InputError(f"{path} holds no [[key]]")
    return Keyring(keys)


def _from_file(path: Path) -> list[Key]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        # A TOML error could quote a line of the file, which may be a secret.
        reason = error.strerror if isinstance(error, OSError) else "it is not valid TOML"
        raise InputError(f"cannot read keys from {path}: {reason}") from None
    entries = data.get("key")
    if set(data) != {"key"} or not isinstance(entries, list):
        raise InputError(f"{path} must hold [[key]] entries only")
    known = {"name", "role", "key", "sha256"}
    for number, entry in enumerate(entries, start=1):
        named = isinstance(entry, dict) and all(isinstance(v, str) for v in entry.values())
        if not named or not {"name", "role"} <= set(entry) <= known:
            raise InputError(f"key {number} of {path} needs name, role and key or sha256, all of them texts")
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO) and any("key" in e for e in entries):
        raise InputError(f"{path} holds secrets and other users can read it: chmod 600, or write sha256 digests")
    return [make_key(e["name"], e["role"], secret=e.get("key"), sha256=e.get("sha256")) for e in entries]
