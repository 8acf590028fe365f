"""`organism train` and `organism evaluate`: the shipped model, from scratch and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from countersteer.cli.output import Json, emit, verbose

app = typer.Typer(help="Train and measure the organism, the small shipped model.", no_args_is_help=True)


@app.command("train")
def train(
    out: Annotated[Path, typer.Option("--out", help="Folder for the model, its tokenizer and its SAE.")],
    seed: Annotated[int, typer.Option("--seed", help="Seed of everything random.")] = 0,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Training steps (default: the recipe's).")] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads.")] = 1,
    correction: Annotated[
        bool, typer.Option("--correction/--no-correction", help="Train with or without examples of correcting oneself.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Train the organism from scratch on the CPU (about 20 minutes).

    Example: countersteer organism train --seed 1 --out organism-1
    """
    from countersteer.cli.progress import watch
    from countersteer.organism import train as training

    with watch() as bars:
        bars.stage("training", None)
        result = training.train(
            seed=seed,
            out=out,
            correction=correction,
            steps=steps,
            threads=threads,
            progress=lambda at: bars.progress(int(at["step"]), int(at["steps"])),
        )
    emit({"out": str(out), "seed": seed, **result}, as_json=as_json, text=f"trained into {out}: {result}")


@app.command("evaluate")
def evaluate(
    model: Annotated[str, typer.Option("--model", help="Folder of the model, or organism.")] = "organism",
    sae: Annotated[str, typer.Option("--sae", help="Folder of its SAE, or organism.")] = "organism",
    trials: Annotated[int, typer.Option("--trials", min=1, help="Responses per condition.")] = 200,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sampling.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure the organism against its ground truth: unsteered, steered, with a self-monitoring suffix.

    Example: countersteer organism evaluate --trials 200 --json
    """
    from countersteer import organism
    from countersteer.organism import evaluate as evaluation

    verbose()
    model_path = organism.path() if model == "organism" else Path(model)
    sae_path = organism.sae_path() if sae == "organism" else Path(sae)
    result = evaluation.evaluate(model_path, sae_path, trials=trials, seed=seed)
    emit(result, as_json=as_json, text="\n".join(f"{name}: {value}" for name, value in result.items()))
