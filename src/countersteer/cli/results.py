"""`report` and `export`: what is read from a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from countersteer.cli.output import Json, emit, say
from countersteer.core.errors import InputError

if TYPE_CHECKING:
    from countersteer.store import Run

Folder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]


def show(run: Run, *, as_json: bool, html: bool = True) -> None:
    """Print a run's result; write its report.html beside it (a folder that cannot be written is only said)."""
    from countersteer.report import html as page
    from countersteer.report import summary, terminal

    result = summary.summarise(run)
    if html:
        target = run.folder / "report.html"
        try:
            page.write(run, result, target)
            say(f"report: {target}")
        except OSError as error:
            say(f"report.html was not written: {error.strerror or error}")
    emit(result, as_json=as_json, text="" if as_json else terminal.render(result))


def report(run: Folder, as_json: Json = False) -> None:
    """Print a run's result and write its report.html, finished or not.

    Example: countersteer report runs/demo
    """
    from countersteer.store import Run

    with Run.open(run) as opened:
        show(opened, as_json=as_json)


def export(
    run: Folder,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; else JSON Lines on stdout.")] = None,
    form: Annotated[str, typer.Option("--format", help="jsonl, parquet or inspect")] = "jsonl",
    as_json: Json = False,
) -> None:
    """Write a run's trials to a file: JSON Lines, a Parquet table, or a log that Inspect opens (.eval).

    Example: countersteer export runs/demo --format inspect --out demo.eval
    """
    from countersteer.cli.progress import watch
    from countersteer.store import Run
    from countersteer.store import export as write
    from countersteer.store.export import lines

    if out is None and (as_json or form != "jsonl"):
        raise InputError(f"{'--json' if as_json else f'--format {form}'} needs a file: name it with --out")
    with Run.open(run) as opened:
        if out is None:
            for line in lines(opened):
                typer.echo(line)
            return
        with watch() as bars:
            bars.stage("exporting", sum(opened.trial_counts().values()))
            count = write(opened, out, form=form, progress=bars.progress)
    emit({"out": str(out), "format": form, "trials": count}, as_json=as_json, text=f"{count} trials written to {out}")
