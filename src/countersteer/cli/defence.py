"""`defence data|fit|sweep|scorecard|demo`: steering as a runtime defence, from contrast data to a graded bundle."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from countersteer.cli.output import Json, emit, table

app = typer.Typer(help="Fit, choose and grade a steering defence of one trait.", no_args_is_help=True)
Preset = Annotated[str | None, typer.Option("--settings", help="Settings file (TOML), or preset:defence-NAME.")]
Model = Annotated[str | None, typer.Option("--model", help="Folder, Hugging Face id, or organism.")]
Trait = Annotated[
    str | None, typer.Option("--trait", help="dishonesty, dismissiveness, organism, or a JSONL file of your own.")
]
Workers = Annotated[
    int,
    typer.Option("--workers", min=1, help="Processes that answer, each with the model loaded (offline judge only)."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]


@app.command("data")
def data(
    source: Annotated[str, typer.Argument(metavar="TRAIT", help="A shipped trait's name, or a JSONL file.")],
    as_json: Json = False,
) -> None:
    """Count a trait's scenarios and check that nothing leaks between its splits.

    Example: countersteer defence data dishonesty
    """
    from countersteer.defence.steps import check_data

    loaded, leaks = check_data(source)
    splits = Counter(s.split for s in loaded.scenarios)
    kinds = {s: dict(Counter(x.category for x in loaded.scenarios if x.split == s)) for s in splits}
    rows = [(name, str(n), f"{len(kinds[name])} categories") for name, n in splits.items()]
    said = "".join(f"\n{'leak' if leak['grave'] else 'note'}: {leak['text']}" for leak in leaks) or "\nno leaks"
    emit({"trait": loaded.name, "threat": loaded.threat, "splits": dict(splits), "categories": kinds, "leaks": leaks,
          "digest": loaded.digest}, as_json=as_json,
         text=f"against {loaded.threat}, for {loaded.description}\n{table(rows)}{said}")  # fmt: skip
    if any(leak["grave"] for leak in leaks):
        raise typer.Exit(2)


@app.command("fit")
def fit(
    out: Annotated[Path, typer.Option("--out", help="Folder for the fit.")],
    settings: Preset = None,
    model: Model = None,
    trait: Trait = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Fit directions at every layer from the model's own responses under aligned and malicious system prompts.

    Example: countersteer defence fit --model organism --trait organism --out fit
    """
    from countersteer.cli.progress import watch
    from countersteer.defence.steps import chosen_settings, run_fit

    chosen = chosen_settings(settings, model=model, trait=trait, seed=seed)
    with watch() as bars:
        facts = run_fit(chosen, out, observer=bars)
    rows = [("layer", "held-out accuracy", "AUC", "d", "D", "m", "sigma+", "per token", "cos with mean difference")]
    for row in facts["layers"]:
        at, held = row["along"]["logistic"], row["held_out"]
        rows.append((str(row["layer"]), f"{held['accuracy']:.3f}", f"{held['auc']:.3f}", _num(held["cohen_d"]),
                     _num(at["separation"]), _num(at["boundary"]), _num(at["aligned_spread"]),
                     _num(row["tokens"]["aligned_token_spread"]),
                     f"{row['cosine_with_logistic']['mean-difference']:.3f}"))  # fmt: skip
    used = facts["scenarios"]
    text = f"{facts['trait']['name']} on {facts['model']}: {used['used']} of {used['asked']} pairs of responses\n"
    emit({"out": str(out), **facts}, as_json=as_json, text=text + table(rows))


@app.command("sweep")
def sweep(
    fit: Annotated[Path, typer.Argument(metavar="FIT", help="Folder that `defence fit` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Bundle file to write; what was seen goes beside it.")],
    settings: Preset = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Try layers, strengths, spans and methods; choose the highest trait above the coherence floor; write a bundle.

    Example: countersteer defence sweep fit --out warm.safetensors
    """
    from countersteer.cli.progress import watch
    from countersteer.defence.settings import load
    from countersteer.defence.steps import run_sweep, sweep_folder

    with watch() as bars:
        facts = run_sweep(fit, None if settings is None else load(settings), out, workers=workers, observer=bars)
    base = facts["baselines"]
    rows = [("", "trait", "coherence", "point")]
    rows += [(f"{k}, unsteered", _mean(base[k]["trait"]), _mean(base[k]["coherence"]), "") for k in base]
    for arm, found in facts["arms"].items():
        for method, one in found["methods"].items():
            if one["chosen"] is None:
                rows.append((f"{arm} {method}", "-", "-", "none keeps the floor"))
                continue
            star = " *" if arm == "fitted" and one["chosen"]["name"] == found["chosen"] else ""
            best = one["chosen"]
            rows.append((f"{arm} {method}", _mean(best["trait"]), _mean(best["coherence"]), f"{best['name']}{star}"))
    fitted = facts["arms"]["fitted"]
    text = (
        f"{table(rows)}\nfloor of coherence {facts['floor']:.1f}; {fitted['points']} points at"
        f" {100 * (fitted['cost'] or 0):.0f}% of the full grid's cost; * is in {out}, the others in {sweep_folder(out)}"
    )
    emit({"bundle": str(out), **facts}, as_json=as_json, text=text)


@app.command("scorecard")
def scorecard(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for scorecard.json and scorecard.html.")],
    settings: Preset = None,
    model: Model = None,
    trait: Trait = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="LoRA under every request: a folder, or organism-dismissive.")
    ] = None,
    capability: Annotated[
        list[str] | None, typer.Option("--capability", help="Questions (JSONL), or shipped; may be repeated.")
    ] = None,
    points: Annotated[bool, typer.Option("--points/--no-points", help="Try the sweep's other points as well.")] = True,
    conversations: Annotated[bool, typer.Option("--conversations/--no-conversations", help="Hold some.")] = True,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Grade a bundle on scenarios that nobody has seen: what it gains, what it costs, where it fails.

    Example: countersteer defence scorecard warm.safetensors --out card
    """
    from countersteer.cli.progress import watch
    from countersteer.defence import page
    from countersteer.defence.settings import checked
    from countersteer.defence.steps import chosen_settings, run_scorecard

    chosen = chosen_settings(settings, model=model, trait=trait, bundle=bundle)
    if capability:
        section = {**chosen.scorecard.model_dump(), "capability": tuple(capability)}
        chosen = checked({**chosen.model_dump(), "scorecard": section}, where="the options")
    parts = ("user attacks", *(["conversations"] if conversations else []), "cost")
    with watch() as bars:
        card = run_scorecard(bundle, chosen, out, adapter=adapter, parts=parts, with_points=points, workers=workers,
                             observer=bars)  # fmt: skip
    emit({"out": str(out), **card}, as_json=as_json, text=_card_text(card, page.headline(card), out))


@app.command("demo")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything.")] = Path("runs/defence"),
    workers: Workers = 2,
    as_json: Json = False,
) -> None:
    """The whole way on the shipped organism, offline: fit, sweep, scorecard, and a misaligned fine-tune.

    Example: countersteer defence demo --out runs/defence
    """
    from countersteer.cli.progress import watch
    from countersteer.defence import page
    from countersteer.defence.demo import run_demo

    with watch() as bars:
        done = run_demo(out, workers=workers, observer=bars)
    text = _card_text(done["scorecard"], page.headline(done["scorecard"]), out / "card")
    tuned = done["fine_tune"]
    text += f"\n\nMisaligned fine-tune: {page.headline(tuned)}\n{_benign(tuned)}"
    emit({"out": str(out), **done}, as_json=as_json, text=text)


def _card_text(card: dict[str, Any], headline: str, out: Path) -> str:
    rows = [("", "trait", "coherence", "recovered")]
    for name, row in (*card["attack"].items(), *card["points"].items()):
        share = row.get("recovered") or {"value": None}
        closed = "" if share["value"] is None else f"{100 * share['value']:.0f}%"
        rows.append((name, _mean(row["trait"]), _mean(row["coherence"]), closed))
    lines = [headline, table(rows), _benign(card)]
    if card.get("cost"):
        low, high = card["cost"]["interval"]
        lines.append(f"{card['cost']['clock']} ratio {card['cost']['ratio']:.3f} [{low:.3f}, {high:.3f}]")
    return "\n".join([*lines, f"page: {out / 'scorecard.html'}"])


def _benign(card: dict[str, Any]) -> str:
    parts = []
    for name, row in card["benign"].items():
        acted = row["acting"]["acted"]["value"]
        parts.append(f"{name}: acts in {'-' if acted is None else f'{100 * acted:.0f}%'} of the answers, trait"
                     f" {_mean(row['undefended']['trait'])} -> {_mean(row['defended']['trait'])}, coherence"
                     f" {_mean(row['coherence_change'])}")  # fmt: skip
    return "\n".join(parts)


def _mean(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return "-"
    ends = value.get("interval")
    return f"{value['value']:.1f}" + ("" if not ends else f" [{ends[0]:.1f}, {ends[1]:.1f}]")


def _num(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
