"""The frozen texts that an offline judge compares with: for every prompt, some answers that are taken to be on topic.

A reference set depends on nothing but its texts, so a score never depends on what else is in a run; its digest is
part of the key of every grade made with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint


@dataclass(frozen=True)
class ReferenceSet:
    """Reference answers by prompt, in a canonical order of prompts; the texts of a prompt keep their order."""

    entries: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def of(cls, texts: Mapping[str, Iterable[str]]) -> ReferenceSet:
        """The set of a mapping {prompt: [texts]}; texts without a word are left out. InputError on other types."""
        entries = []
        for prompt in sorted(texts):
            given = texts[prompt]
            if not isinstance(prompt, str) or isinstance(given, str):
                raise InputError(
                    "references must map each prompt to a list of texts, not to one text; wrap it in a list"
                )
            listed = tuple(given)
            if not all(isinstance(text, str) for text in listed):
                raise InputError(f"references of prompt {prompt[:60]!r} must all be texts")
            entries.append((prompt, tuple(text for text in listed if text.strip())))
        return cls(tuple(entries))

    @property
    def digest(self) -> str:
        """Hash of all prompts and texts (32 hexadecimal digits)."""
        return fingerprint(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        return iter(self.entries)

    def __getitem__(self, prompt: str) -> tuple[str, ...]:
        """The texts of a prompt; KeyError if there is no such prompt."""
        return dict(self.entries)[prompt]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: {prompt: [texts]}."""
        return {prompt: list(texts) for prompt, texts in self.entries}

    def save(self, path: str | Path) -> None:
        """Write the set as one JSON object."""
        Path(path).write_text(json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> ReferenceSet:
        """Read what `save` wrote. InputError if the file is missing or not of that form."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"no reference file at {path}; write one with ReferenceSet.save") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is not a reference file: {error}; write one with ReferenceSet.save") from None
        if not isinstance(data, dict) or not all(isinstance(texts, list) for texts in data.values()):
            raise InputError(f"{path} is not a reference file: it must be one JSON object of prompt: [texts]")
        return cls.of(data)
