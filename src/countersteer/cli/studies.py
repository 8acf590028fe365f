"""`demo`, `plan` and `run`: a study file in, a run on disk and its result out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from countersteer.cli import judging
from countersteer.cli.output import Json, emit, say, table

if TYPE_CHECKING:
    from countersteer.studies.spec import Spec

Study = Annotated[str, typer.Argument(metavar="STUDY", help="A study file (TOML), or preset:NAME.")]


Out = Annotated[Path, typer.Option("--out", help="Folder of the run; running again resumes it.")]


def demo(out: Out = Path("runs/demo"), as_json: Json = False) -> None:
    """Run a complete study on the shipped organism, offline.

    Calibrates, steers, judges, counts and reports. The organism is a test animal, not evidence about real models.

    Example: countersteer demo --out runs/demo
    """
    _run("preset:demo", out, as_json=as_json)


def run(
    study: Study,
    out: Out,
    in_flight: Annotated[int, typer.Option("--in-flight", min=1, max=4096, help="Requests in flight at once.")] = 64,
    max_cost: judging.MaxCost = None,
    retry_status: judging.RetryStatus = None,
    prices: judging.Prices = None,
    judge_connections: judging.Connections = 16,
    judge_rpm: judging.PerMinute = None,
    judge_tpm: judging.TokensPerMinute = None,
    judge_batch: judging.Batch = False,
    judge_batch_size: judging.BatchSize = None,
    judge_cache: judging.Cache = None,
    shard: judging.Shard = None,
    calibration: judging.Calibration = None,
    as_json: Json = False,
) -> None:
    """Run a study into a folder, or go on with it where it stopped.

    Example: countersteer run study.toml --out runs/first --max-cost 5
    """
    options = judging.options(
        max_cost=max_cost, prices=prices, connections=judge_connections, rpm=judge_rpm, tpm=judge_tpm,
        batch=judge_batch, batch_size=judge_batch_size, cache=judge_cache,
    )  # fmt: skip
    more = {"retry_status": tuple(retry_status or ()), "shard": judging.part(shard), "calibration": calibration}
    _run(study, out, as_json=as_json, in_flight=in_flight, options=options, **more)


def _run(study: str, out: Path, *, as_json: bool, in_flight: int = 64, **more: Any) -> None:
    from countersteer.cli.progress import watch
    from countersteer.cli.results import show
    from countersteer.studies import opening, runner, spec
    from countersteer.studies.inputs import read_inputs

    loaded = spec.load(study)
    finished = opening.open_run(loaded, out, read_inputs(loaded))
    if finished is not None and more.get("retry_status"):
        finished.close()
        finished = None
    if finished is None:
        with watch(loaded.base) as observer:
            if loaded.settings.finetune is not None:
                from countersteer.finetune import recipe

                if more.get("shard") is not None:
                    recipe.require_trained(loaded, out)
                recipe.prepare(loaded, out, observer=observer, options=more.get("options"))
                if more.get("options") is not None:  # one cap for both
                    more["options"] = replace(more["options"], spent_before=recipe.spent(out))
            finished = runner.run_study(loaded, out, observer=observer, in_flight=in_flight, **more)
    else:
        say(f"{out} is finished; this is its result")
    with finished:
        show(finished, as_json=as_json)


def plan(study: Study, prices: judging.Prices = None, as_json: Json = False) -> None:
    """Say what a study will take, and the smallest effect it can detect, before it runs.

    Example: countersteer plan preset:demo
    """
    from countersteer.studies import costs, spec
    from countersteer.studies import plan as planning
    from countersteer.studies.inputs import read_inputs
    from countersteer.studies.judges import JudgeOptions

    loaded = spec.load(study)
    inputs = read_inputs(loaded)
    prompts = inputs.prompts
    cost = planning.estimate(loaded, inputs)
    answers = 0
    if loaded.settings.finetune is not None:
        from countersteer.finetune.recipe import estimated

        stages, answers, tokens = estimated(loaded)
        cost["generations"] = {**stages, **cost["generations"]}
        cost["tokens"] = {**tokens, **cost["tokens"]}
        cost["tokens_at_most"] += sum(tokens.values())
        cost["generations_certain"] += answers + sum(n for name, n in stages.items() if "resamples" not in name)
    cost["judge"] = costs.judge_costs(
        loaded, prompts, cost["generations"], JudgeOptions(prices=None if prices is None else str(prices))
    )
    if answers:
        cost["generations"] = {"fine-tuning answers": answers, **cost["generations"]}
    power = [_detectable(loaded, cost, rate) for rate in (0.01, 0.05, 0.2)] if cost["latents"] > 1 else []
    data = {"study": loaded.name, **cost, "detectable": power, "notes": list(loaded.notes), "resolved": loaded.text}
    emit(data, as_json=as_json, text=_plan_text(loaded, data))


def _detectable(loaded: Spec, cost: dict[str, Any], base_rate: float) -> dict[str, Any]:
    """The smallest change of a rate that the study's paired design detects (two-sided 5%, power 80%)."""
    from countersteer.statistics import Design, detectable

    found = detectable(Design(cost["latents"], cost["per_latent"], base_rate))
    return {
        "base_rate": base_rate,
        "rise": found.rise,
        "rise_ratio": found.rise_ratio,
        "fall": found.fall,
        "fall_ratio": found.fall_ratio,
    }


def _plan_text(loaded: Spec, data: dict[str, Any]) -> str:
    counts, tokens = data["generations"], data["tokens"]
    stages = [(name, f"{count:,}", f"{tokens[name]:,}") for name, count in counts.items()]
    lines = [
        f"{loaded.name}: {data['latents']} latents x {data['per_latent']} prompts (of {data['prompts']})"
        f" = {data['trials_per_arm']} trials in each of {len(data['arms'])} arms; contrasts against {loaded.base}",
        table([("", "generations", "tokens, at most"), *stages, ("certain", f"{data['generations_certain']:,}", "")]),
        f"generated tokens, at most: {data['tokens_at_most']:,}",
    ]
    if data["judge"] is not None:
        from countersteer.studies.costs import words

        lines += words(data["judge"])
    if data["detectable"]:
        lines.append("smallest change of a rate against base that is detected (two-sided 5%, power 80%)")
        lines.append(table([(f"from {100 * d['base_rate']:g}%", _change(d)) for d in data["detectable"]]))
    return "\n".join(lines + [f"note: {note}" for note in data["notes"]])


def _change(found: dict[str, Any]) -> str:
    def side(name: str, sign: str) -> str:
        change = found[name]
        return "none" if change is None else f"{sign}{100 * abs(change):.1f} points"

    return f"rise {side('rise', '+')}, fall {side('fall', '-')}"
