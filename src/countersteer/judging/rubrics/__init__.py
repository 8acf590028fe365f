"""Rubrics: what a language model is told to judge, as versioned files whose hash is part of every grade's key.

A rubric file is TOML: name, version, system and user text, and the JSON schema of the reply. `{{prompt}}`,
`{{response}}` and the other fields are filled in once, so nothing inside a response is ever expanded; `{{tag}}` is a
mark derived from the text itself, so that a response cannot close the block it stands in.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError, nearest
from countersteer.core.fingerprint import fingerprint

NAMED = ("attempts", "trait", "coherence", "concreteness", "recovery", "episodes", "pairwise")
_FIELD = re.compile(r"\{\{(\w+)\}\}")
_KEYS = {"name", "version", "system", "user", "schema", "optional"}


@dataclass(frozen=True)
class Rubric:
    """A rubric. `digest` hashes the whole file; `optional` holds lines that appear only when their field is given."""

    name: str
    version: int
    digest: str
    system: str
    user: str
    schema: dict[str, Any] = field(hash=False)
    optional: dict[str, str] = field(hash=False)

    @property
    def fields(self) -> frozenset[str]:
        """The fields that must be given to `render`; `tag` is made, optional lines may be left out."""
        named = set(_FIELD.findall(self.system + self.user))
        return frozenset(named - {"tag"} - set(self.optional))

    def render(self, values: Mapping[str, str | None]) -> tuple[str, str]:
        """(system, user) with the fields filled in. Raises InputError if one is missing."""
        missing = sorted(name for name in self.fields if values.get(name) is None)
        if missing:
            raise InputError(f"rubric {self.name} needs {', '.join(missing)}")
        given = {name: sendable(value) for name, value in values.items() if value is not None}
        given["tag"] = fingerprint(sorted(given.items()))[:8]

        def fill(template: str) -> str:
            def one(match: re.Match[str]) -> str:
                name = match[1]
                if name in self.optional:
                    return _FIELD.sub(lambda m: given.get(m[1], ""), self.optional[name]) if name in given else ""
                return given[name]

            return _FIELD.sub(one, template).strip()

        return fill(self.system), fill(self.user)


def sendable(text: str) -> str:
    """A text as it can be sent: half a surrogate pair becomes "?"; every place in it stays where it is."""
    return text.encode("utf-8", "replace").decode()


@cache
def _shipped(name: str) -> Rubric:
    text = (resources.files("countersteer.judging.rubrics") / f"{name}.toml").read_text(encoding="utf-8")
    return parse(text, where=name)


def load(source: str | Path) -> Rubric:
    """A shipped rubric by name, or one from a TOML file. Raises InputError."""
    if str(source) in NAMED:
        return _shipped(str(source))
    path = Path(source)
    if path.suffix != ".toml":
        raise InputError(f"no rubric {str(source)!r}{nearest(str(source), NAMED)}; use {', '.join(NAMED)} or a file")
    try:
        return parse(path.read_bytes().decode("utf-8-sig"), where=str(path))
    except OSError as error:
        raise InputError(f"cannot read rubric {path}: {error.strerror or error}; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"rubric {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def parse(text: str, *, where: str) -> Rubric:
    """The rubric in a TOML text. Raises InputError."""
    try:
        data = tomllib.loads(text)
        schema = json.loads(data.get("schema", ""))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"rubric {where} is not valid TOML: {error}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"rubric {where}: schema is not valid JSON ({error}); give a JSON schema as text") from error
    unknown = sorted(set(data) - _KEYS)
    if unknown:
        raise InputError(f"rubric {where}: unknown key {unknown[0]!r}{nearest(unknown[0], _KEYS)}")
    kinds = {"name": str, "version": int, "system": str, "user": str}
    for key, kind in kinds.items():
        if not isinstance(data.get(key), kind):
            raise InputError(f"rubric {where} needs {key!r} ({kind.__name__})")
    optional = data.get("optional", {})
    if not isinstance(optional, dict) or not all(isinstance(line, str) for line in optional.values()):
        raise InputError(f"rubric {where}: [optional] must hold texts")
    if data["name"] not in NAMED:
        raise InputError(f"rubric {where}: name must be one of {', '.join(NAMED)}: it decides how replies are read")
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return Rubric(data["name"], data["version"], digest, data["system"], data["user"], schema, dict(optional))
