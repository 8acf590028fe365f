"""Exempt stretches on vLLM: the scheduler reads along, the workers leave the edits of those positions out.

The stretches are those of `core/exempt.py`, token for token: the marker that opens one is still edited, and so is the
one that closes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.exempt import Exempt
from countersteer.core.span import END

Pauses = list[tuple[int, int, str]]
"""Stretches of positions [from, to) with the exemption's name; `to` is END while one is open."""


class _Watch:
    """One response that is read along."""

    def __init__(self, exempt: Exempt, prompt_tokens: int) -> None:
        self.exempt, self.prompt_tokens = exempt, prompt_tokens
        self.generated: list[int] = []
        self.pauses: Pauses = []

    def push(self, token: int) -> None:
        self.generated.append(token)
        if not self.exempt.push(self.generated):
            return
        position = self.prompt_tokens + len(self.generated) - 1  # where the newest token will be read
        if self.exempt.inside is not None:
            self.pauses.append((position + 1, END, self.exempt.inside))
        else:
            start, _, name = self.pauses[-1]
            self.pauses[-1] = start, max(start, position), name


class Resting:
    """The responses of requests with exemptions. `source`: the model whose tokenizer reads them, None for none."""

    def __init__(self, source: str | None) -> None:
        self.source = source
        self._tokenizer: Any = None
        self._watched: dict[str, _Watch] = {}

    def check(self) -> None:
        """Raises InputError where there is no tokenizer to read with."""
        if self._tokenizer is None and self.source is not None:
            from countersteer.engines.embedded.text import load_tokenizer

            self._tokenizer = load_tokenizer(self.source)
        if self._tokenizer is None:
            raise InputError("exempt stretches are found in the text, and this model has no tokenizer")

    def watch(self, request: Any, names: Iterable[str]) -> None:
        """Follow a request from its first token on. Raises InputError without a tokenizer."""
        self.check()
        exempt = Exempt(tuple(names), self._tokenizer.decode)
        self._watched[request.request_id] = _Watch(exempt, int(request.num_prompt_tokens))

    def follow(self, requests: Mapping[str, Any]) -> None:
        """Read what was generated since the last time; forget requests that are over."""
        for name, watch in list(self._watched.items()):
            request = requests.get(name)
            if request is None:
                del self._watched[name]
                continue
            for token in request.output_token_ids[len(watch.generated) :]:
                watch.push(int(token))

    def pauses(self, scheduled: Iterable[str]) -> dict[str, Pauses]:
        """The stretches of the requests of a step that have any."""
        if not self._watched:
            return {}
        return {r: w.pauses for r in scheduled if (w := self._watched.get(r)) is not None and w.pauses}
