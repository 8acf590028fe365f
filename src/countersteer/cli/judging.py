"""Options of commands that ask a language model to judge, and `merge` for the shards of one study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from countersteer.cli.output import Json, emit
from countersteer.core.errors import InputError

MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", min=0, help="USD the run may spend on its judge, all told."),
]
RetryStatus = Annotated[
    list[str] | None, typer.Option("--retry-status", help="Try trials of this status again (error, unparsed, ...).")
]
Prices = Annotated[Path | None, typer.Option("--prices", help="TOML file of prices that come before the shipped ones.")]
Connections = Annotated[int, typer.Option("--judge-connections", min=1, max=1000, help="Judge calls at once.")]
PerMinute = Annotated[int | None, typer.Option("--judge-rpm", min=1, help="Judge calls per minute.")]
TokensPerMinute = Annotated[int | None, typer.Option("--judge-tpm", min=1, help="Judge tokens per minute.")]
Batch = Annotated[bool, typer.Option("--judge-batch", help="Use the provider's batch interface (cheaper, slow).")]
Cache = Annotated[Path | None, typer.Option("--judge-cache", help="Folder of replies that several runs share.")]
Shard = Annotated[str | None, typer.Option("--shard", help="I/N: only every N-th trial, for `merge` later.")]


def part(text: str | None) -> tuple[int, int] | None:
    """The shard that "I/N" names. Raises InputError."""
    if text is None:
        return None
    first, _, of = text.partition("/")
    if not (first.isdigit() and of.isdigit() and 1 <= int(first) <= int(of)):
        raise InputError(f"--shard {text!r} is not I/N with I from 1 to N, such as 1/4")
    return int(first), int(of)


def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of the shards.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the merged run.")],
    as_json: Json = False,
) -> None:
    """Put the shards of one study together; running its study in the merged folder does what is missing.

    Example: countersteer merge shard1 shard2 --out runs/whole
    """
    from countersteer.store.merge import merge as put_together

    result = put_together(runs, out)
    state = "finished" if result["finished"] else f"{result['missing']} trials are missing"
    text = f"{result['shards']} shards merged into {out}: {result['responses']} responses, {state}"
    emit(result, as_json=as_json, text=text)
