"""`detectors`, `trace`, `judge`, `import` and `models`: what goes beyond running a study and reading its result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from countersteer.cli import judging
from countersteer.cli.output import Json, emit, say, table

Folder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]


def detectors(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A study file (TOML), or preset:NAME.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run (runs/STUDY); the study goes on from there.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Rows to print.")] = 30,
    as_json: Json = False,
) -> None:
    """Find latents that tell a response to another prompt from one to its own, and keep them in the run.

    Example: countersteer detectors preset:full-organism --out runs/full
    """
    from countersteer.cli.progress import watch
    from countersteer.studies import runner, spec

    loaded = spec.load(study)
    if out is None:
        out = Path("runs") / study.removeprefix("preset:").rpartition("/")[2].removesuffix(".toml")
        say(f"the run is in {out}")
    with watch(loaded.base) as observer:
        run = runner.run_study(loaded, out, observer=observer, search_only=True)
    with run:
        found = run.fact("detectors")
    if found is None:
        say(f"{out} is finished and has no detector search; choose another folder")
        raise typer.Exit(2)
    rows = [("latent", "AUC", "d", "matched", "shuffled", "p", "label")]
    for row in found["table"][:top]:
        mark = "*" if row["selected"] else ""
        rows.append((f"{row['latent']}{mark}", f"{row['auc']:.3f}", f"{row['cohen_d']:.2f}", f"{row['matched']:.3g}",
                     f"{row['shuffled']:.3g}", f"{row['p']:.3f}", row["label"] or ""))  # fmt: skip
    text = (
        f"{len(found['selected'])} detectors of {found['latents']} latents at layer {found['layer']}"
        f" ({found['prompts']} prompts, {found['pairs']} pairs; null's 95% point of the largest AUC"
        f" {found['null_95']:.3f}; * chosen)\n{table(rows)}"
    )
    emit({"run": str(out), **found}, as_json=as_json, text=text)


def trace(
    run: Folder,
    arm: Annotated[
        str | None, typer.Option("--arm", help="Arm whose episodes are read; else all steered ones.")
    ] = None,
    latents: Annotated[
        str, typer.Option("--latents", help='Ids ("3,9"), "detectors", or "backtracking" (by label).')
    ] = "detectors",
    most: Annotated[int, typer.Option("--most", min=1, help="Episodes read at most.")] = 1000,
    as_json: Json = False,
) -> None:
    """Read latents token by token around a correction, aligned over the episodes of a run.

    Example: countersteer trace runs/full --latents detectors
    """
    from countersteer.cli.progress import watch
    from countersteer.studies.read_again import trace_run

    with watch() as bars:
        bars.stage("reading episodes", None)
        found = trace_run(run, latents=latents, arm=arm, most=most, progress=bars.progress)
    rows = [("latent", "n", "off topic", "after", "d", "p (Holm)", "label")]
    for row in found["latents"]:
        before, after, d, p = (_num(row[k]) for k in ("before", "after", "cohen_d", "p_holm"))
        rows.append((str(row["latent"]), str(row["n"]), before, after, d, p, row["label"] or ""))
    said = "So few steering latents cannot show a fall, however large."
    if found["smallest_d"] is not None:
        said = f"A d below {found['smallest_d']:.2f} may well have been missed."
    text = found["sentence"]
    text += f"\n{said} n counts steering latents.\n{table(rows)}" if found["latents"] else ""
    emit({"run": str(run), **found}, as_json=as_json, text=text)


def judge(
    run: Folder,
    by: Annotated[str, typer.Option("--judge", help="offline, PROVIDER/NAME, or a name for --labels.")],
    sample: Annotated[int, typer.Option("--sample", min=1, help="Responses to judge again, at most.")] = 1000,
    labels: Annotated[Path | None, typer.Option("--labels", help="CSV with arm, ordinal, scores, by people.")] = None,
    max_cost: judging.MaxCost = None,
    prices: judging.Prices = None,
    judge_connections: judging.Connections = 16,
    judge_rpm: judging.PerMinute = None,
    judge_tpm: judging.TokensPerMinute = None,
    judge_batch: judging.Batch = False,
    judge_batch_size: judging.BatchSize = None,
    judge_cache: judging.Cache = None,
    base_url: Annotated[str | None, typer.Option("--base-url", help="Server of the judge's model.")] = None,
    rubric: Annotated[
        str, typer.Option("--rubric", help='"attempts"; "recovery" rates whole responses; "episodes" marks boundaries.')
    ] = "attempts",
    as_json: Json = False,
) -> None:
    """Grade a run's responses again by another judge, and say how far the two agree.

    Example: countersteer judge runs/full --judge anthropic/claude-haiku-4-5 --sample 1000 --max-cost 5
    """
    from countersteer.cli.progress import watch
    from countersteer.report.agreement import agreement
    from countersteer.store import Run
    from countersteer.studies.read_again import judge_run

    how = judging.options(max_cost=max_cost, prices=prices, connections=judge_connections, rpm=judge_rpm, tpm=judge_tpm,
                          batch=judge_batch, batch_size=judge_batch_size, cache=judge_cache)  # fmt: skip
    with watch() as bars:
        bars.stage("judging", None)
        made = judge_run(run, by, sample=sample, labels=labels, options=how, base_url=base_url, rubric=rubric,
                         progress=bars.progress, spent=bars.spent)  # fmt: skip
    if rubric == "recovery":
        kinds = ", ".join(f"{count} {kind}" for kind, count in made["kinds"].items())
        said = (
            f"{made['rated']} of {made['sampled']} whole responses rated by {made['judge']}:"
            f" {made['recovered']} recover (7 of 10 or more){f'; {kinds}' if kinds else ''}."
            " Such judges over-score against people."
        )
        return emit({"run": str(run), **made}, as_json=as_json, text=said)
    if rubric == "episodes":
        said = (
            f"{made['marked']} of {made['sampled']} episodes marked by {made['judge']}; median distance in characters"
            f" from the attempts' boundaries: {', '.join(f'{k} {_num(v)}' for k, v in made['distance'].items())}"
        )
        return emit({"run": str(run), **made}, as_json=as_json, text=said)
    with Run.open(run) as opened:
        found = agreement(opened, made["key"], name=made["judge"])
    rows = [("measure", "value", "95% interval", "n")]
    for group in ("multi_attempt", "direction", "first_score"):
        for name, measure in found[group].items():
            low_high = measure["interval"]
            interval = "" if not low_high else f"[{low_high[0]:.3f}, {low_high[1]:.3f}]"
            rows.append((f"{group} {name}", _num(measure["value"]), interval, str(measure["n"])))
    said = f"{made['sampled']} responses judged by {made['judge']}; {found['n']} graded by both,"
    text = f"{said} {found['disagreements']} differ\n{table(rows)}"
    emit({"run": str(run), **made, "agreement": found}, as_json=as_json, text=text)


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Results of the ESR reference code (JSON).")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run to write (runs/FILE).")] = None,
    as_json: Json = False,
) -> None:
    """Bring a published result file into a run, to look at it with these statistics.

    Example: countersteer import experiment_results.json --out runs/published
    """
    from countersteer.cli.results import show
    from countersteer.store.import_results import import_results

    if out is None:
        out = Path("runs") / file.stem
        say(f"the run is in {out}")
    with import_results(file, out) as run:
        show(run, as_json=as_json)


def models(as_json: Json = False) -> None:
    """List the shipped studies: model, SAE, what they need.

    Example: countersteer models
    """
    from countersteer.studies.catalogue import catalogue

    found = catalogue()
    rows = [("preset", "model", "layers", "memory", "downloads", "licence")]
    for item in found:
        layers = f"{item['steer_layer']} / {item['read_layer']}"
        rows.append((item["preset"], item["model"], layers, item["memory"], item["downloads"], item["licence"]))
    emit({"models": found}, as_json=as_json, text=table(rows, indent=""))


def _num(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}"
