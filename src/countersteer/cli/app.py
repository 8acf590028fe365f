"""The commands by name. Each lives in the module that its name says and imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from countersteer.cli import (
    bundle,
    defence,
    doctor,
    experiments,
    finetune,
    judging,
    organism,
    results,
    sae,
    serve,
    studies,
)

app = typer.Typer(
    name="countersteer",
    help="Steer language models precisely, measure how they resist, deploy steering as a tested defence.\n\n"
    "Example: countersteer demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from countersteer import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Steer language models precisely, measure how they resist, deploy steering as a tested defence."""


app.command("demo")(studies.demo)
app.command("plan")(studies.plan)
app.command("run")(studies.run)
app.command("report")(results.report)
app.command("export")(results.export)
app.command("grade")(judging.grade)
app.command("merge")(judging.merge)
app.command("detectors")(experiments.detectors)
app.command("trace")(experiments.trace)
app.command("judge")(experiments.judge)
app.command("import")(experiments.import_)
app.command("serve")(serve.serve)
app.command("models")(experiments.models)
app.command("doctor")(doctor.doctor)
app.add_typer(organism.app, name="organism")
app.add_typer(sae.app, name="sae")
app.add_typer(finetune.app, name="finetune")
app.add_typer(defence.app, name="defence")
app.add_typer(bundle.app, name="bundle")
