"""The model's own unsteered answers: normal examples, and what a correction ends in. Nobody else's style is taught."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint, named_seed, rng
from countersteer.core.request import Request, Sampling
from countersteer.engines.base import Engine
from countersteer.finetune.compose import normal, spread
from countersteer.finetune.examples import Example

log = logging.getLogger(__name__)
_CHUNK = 256


def each_prompt(normals: int, prompts: Sequence[str]) -> int:
    """How many answers each prompt is asked for, so that there are enough for `normals` examples."""
    return max(2, -(-normals // max(len(prompts), 1)))


class Kept:
    """Answers in a file, a line each, under the hash of what decides them: an interrupted command asks for the rest."""

    def __init__(self, path: Path, engine: Engine) -> None:
        self.path, self._made_by = path, engine.describe()
        self._found: dict[str, tuple[str, bool]] = {}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for line in text.split("\n")[:-1]:  # a killed process leaves its last line without an end
            try:
                row = json.loads(line)
                self._found[row["key"]] = (str(row["text"]), bool(row["ended"]))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path} is not a file of kept answers ({error}); remove it") from error
        self._whole = len(text.encode()) - len(text.split("\n")[-1].encode())

    def key(self, request: Request) -> str:
        """The key of a request's answer."""
        return fingerprint([self._made_by, request.prompt, vars(request.sampling)])

    def get(self, key: str) -> tuple[str, bool] | None:
        """A kept answer, and whether it came to its end."""
        return self._found.get(key)

    def add(self, rows: Sequence[tuple[str, str, bool]]) -> None:
        """Keep answers (key, text, ended)."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.truncate(self._whole)
            file.seek(self._whole)
            for key, text, ended in rows:
                file.write((json.dumps({"key": key, "text": text, "ended": ended}) + "\n").encode())
                self._found[key] = (text, ended)
            self._whole = file.tell()


def own_answers(
    engine: Engine, prompts: Sequence[str], *, each: int, seed: int, sampling: Sampling,
    progress: Callable[[int, int], None] | None = None, kept: Kept | None = None,
    check: Callable[[str, str], object] | None = None,
) -> dict[str, list[str]]:  # fmt: skip
    """`each` finished answers per prompt, distinct where the model varies; a prompt without one has an empty list.

    Answers that were cut at the length limit are left out: their end would be trained where it is none. Stop strings
    do not count for the same reason. `check` sees every (prompt, answer) when it comes, and may refuse it before the
    others are asked for.
    """
    sampling = replace(sampling, stop=())
    asked = [(prompt, i) for prompt in prompts for i in range(each)]
    found: dict[str, list[str]] = {prompt: [] for prompt in prompts}
    for start in range(0, len(asked), _CHUNK):
        part = asked[start : start + _CHUNK]
        requests = [
            Request(prompt=p, sampling=sampling.with_seed(named_seed(seed, "answers", p, i) % 2**32)) for p, i in part
        ]
        for (prompt, _), (said, ended) in zip(part, _answered(engine, requests, kept), strict=True):
            text = said.strip()
            if ended and text and text not in found[prompt]:
                if check is not None:
                    check(prompt, text)
                found[prompt].append(text)
        if progress is not None:
            progress(min(start + _CHUNK, len(asked)), len(asked))
    empty = [prompt for prompt in prompts if not found[prompt]]
    if len(empty) == len(found):
        raise InputError("no prompt has an answer that ends; raise max_tokens")
    for prompt in empty:
        log.warning("no finished answer to %r: it is left out of the training data", prompt)
    return found


def _answered(engine: Engine, requests: Sequence[Request], kept: Kept | None) -> list[tuple[str, bool]]:
    """Text of each request's answer and whether it ended, from what was kept or from the engine. Raises InputError."""
    keys = ["" if kept is None else kept.key(request) for request in requests]
    have = [None if kept is None else kept.get(key) for key in keys]
    missing = [i for i, answer in enumerate(have) if answer is None]
    fresh = []
    for i, done in zip(missing, engine.run([requests[i] for i in missing], errors="return"), strict=True):
        if isinstance(done, Exception):
            raise InputError(f"the model gave no answer to {requests[i].prompt!r}: {done}") from done
        have[i] = (done.text, done.finish == "stop")
        fresh.append((keys[i], done.text, done.finish == "stop"))
    if kept is not None and fresh:
        kept.add(fresh)
    return [answer for answer in have if answer is not None]


def normal_examples(answers: dict[str, list[str]], *, count: int, seed: int) -> list[Example]:
    """`count` normal examples, spread evenly over the prompts; an answer comes again only when all were used."""
    usable = [prompt for prompt, said in answers.items() if said]
    draw, taken, out = rng(seed, "normal"), dict.fromkeys(usable, 0), []
    for prompt in spread(usable, count, draw):
        said = answers[prompt]
        out.append(normal(prompt, said[taken[prompt] % len(said)], source="own answers"))
        taken[prompt] += 1
    return out
