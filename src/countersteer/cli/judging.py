"""`grade` for responses from elsewhere, `merge` for the shards of one study, and options of whoever asks a judge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from countersteer.cli.output import Json, emit
from countersteer.core.errors import InputError

if TYPE_CHECKING:
    from countersteer.studies.judges import JudgeOptions

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
BatchSize = Annotated[int | None, typer.Option("--judge-batch-size", min=1, help="Questions per batch (100).")]
Cache = Annotated[Path | None, typer.Option("--judge-cache", help="Folder of replies that several runs share.")]
Shard = Annotated[str | None, typer.Option("--shard", help="I/N: only every N-th trial, for `merge` later.")]

Calibration = Annotated[
    Path | None, typer.Option("--calibration", help="A run of this study whose calibration and plan are taken over.")
]


def part(text: str | None) -> tuple[int, int] | None:
    """The shard that "I/N" names. Raises InputError."""
    if text is None:
        return None
    first, _, of = text.partition("/")
    if not (first.isdigit() and of.isdigit() and 1 <= int(first) <= int(of)):
        raise InputError(f"--shard {text!r} is not I/N with I from 1 to N, such as 1/4")
    return int(first), int(of)


def options(
    *, max_cost: float | None, prices: Path | None, connections: int, rpm: int | None, tpm: int | None, batch: bool,
    batch_size: int | None, cache: Path | None,
) -> JudgeOptions:  # fmt: skip
    """What the command line says of a judge's money and pace. Raises InputError."""
    from countersteer.studies.judges import JudgeOptions

    return JudgeOptions(
        max_cost=max_cost,
        prices=None if prices is None else str(prices),
        connections=connections,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        batch=batch,
        batch_size=batch_size,
        cache=None if cache is None else str(cache),
    )


def grade(
    file: Annotated[Path, typer.Argument(metavar="FILE", help='JSON Lines with "prompt" and "response".')],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    judge: Annotated[str, typer.Option("--judge", help="offline, or a language model as PROVIDER/NAME.")] = "offline",
    rubric: Annotated[
        str, typer.Option("--rubric", help="What a model is asked: a rubric's name or file.")
    ] = "attempts",
    base_url: Annotated[str | None, typer.Option("--base-url", help="Server of the judge's model.")] = None,
    max_cost: MaxCost = None,
    prices: Prices = None,
    judge_connections: Connections = 16,
    judge_rpm: PerMinute = None,
    judge_tpm: TokensPerMinute = None,
    judge_batch: Batch = False,
    judge_batch_size: BatchSize = None,
    judge_cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Split responses into attempts and score each, line by line; a language model may rate them by other rubrics.

    What a model replied is kept beside OUT (or in --judge-cache), so running again pays for nothing twice.

    Example: countersteer grade responses.jsonl --judge anthropic/claude-haiku-4-5 --max-cost 2 --out graded.jsonl
    """
    from countersteer.cli.progress import watch
    from countersteer.judging.grade_file import grade_file
    from countersteer.studies.grade_lines import grade_lines

    how = options(max_cost=max_cost, prices=prices, connections=judge_connections, rpm=judge_rpm, tpm=judge_tpm,
                  batch=judge_batch, batch_size=judge_batch_size, cache=judge_cache)  # fmt: skip
    with watch() as bars:
        bars.stage("grading", None)
        if "/" in judge:
            result = grade_lines(file, out, judge=judge, rubric=rubric, base_url=base_url, options=how,
                                 progress=bars.progress, spent=bars.spent)  # fmt: skip
        elif rubric != "attempts":
            raise InputError(f"the offline judge knows no rubric {rubric!r}; name a language model with --judge")
        else:
            how.require_offline()
            result = grade_file(file, out, judge=judge, progress=bars.progress)
    found = ", ".join(f"{count} {status}" for status, count in result["statuses"].items())
    more = f", {result['multi_attempt']} with more than one attempt" if "multi_attempt" in result else ""
    money = f", {result['usd']:.4f} USD" if result.get("usd") else ""
    text = f"{result['lines']} lines graded ({found}){more}{money}: {out}"
    emit({"out": str(out), **result}, as_json=as_json, text=text)


def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of the shards.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the merged run.")],
    as_json: Json = False,
) -> None:
    """Put the shards of one study together; running its study in the merged folder does what is missing.

    Example: countersteer merge shard1 shard2 --out runs/whole
    """
    from countersteer.cli.progress import watch
    from countersteer.store.merge import merge as put_together

    with watch() as bars:
        bars.stage("merging", len(runs))
        result = put_together(runs, out, progress=bars.progress)
    state = "finished" if result["finished"] else f"{result['missing']} trials are missing"
    text = f"{result['shards']} shards merged into {out}: {result['responses']} responses, {state}"
    emit(result, as_json=as_json, text=text)
