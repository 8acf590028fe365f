"""The prompts of a study: a named set that ships with the package, or a file."""

from __future__ import annotations

import json
from pathlib import Path

from countersteer.core.errors import InputError, nearest

NAMED = ("howto", "held-out", "held-out-topics", "held-out-phrasings")
_LIMIT = 16 << 20


def load_prompts(source: str) -> list[str]:
    """The prompts of a named set, a .txt file (one per line) or a .jsonl file (objects with "prompt").

    Raises InputError for an unknown name, a file that is missing, empty, not UTF-8 or malformed, a repeated prompt.
    """
    if source in NAMED:
        from countersteer import organism

        return [row["prompt"] for row in organism.prompts(source)]
    path = Path(source)
    if not path.suffix and not path.exists():
        raise InputError(f"no prompt set {source!r}{nearest(source, NAMED)}; use {', '.join(NAMED)} or a file")
    found = _parse(path, _read(path))
    if not found:
        raise InputError(f"prompt file {path} is empty; put one prompt on each line")
    seen: dict[str, int] = {}
    for line, prompt in found:
        if prompt in seen:
            raise InputError(f"prompt file {path}: line {line} repeats line {seen[prompt]}; keep one of them")
        seen[prompt] = line
    return list(seen)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _LIMIT:
            raise InputError(f"prompt file {path} is larger than {_LIMIT >> 20} MiB: is it a list of prompts?")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read prompt file {path}: {error.strerror or error}; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"prompt file {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def _parse(path: Path, text: str) -> list[tuple[int, str]]:
    """(line number, prompt) of each line that is not blank."""
    lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        return lines
    prompts = []
    for number, line in lines:
        where = f"prompt file {path}, line {number}"
        try:
            item = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not valid JSON ({error}); one object per line") from error
        prompt = item.get("prompt") if isinstance(item, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f'{where}: expected an object such as {{"prompt": "How do I iron a shirt?"}}')
        prompts.append((number, prompt.strip()))
    return prompts
