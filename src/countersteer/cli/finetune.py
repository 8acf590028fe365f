"""`finetune data`, `check`, `train` and `merge`: training self-correction in. `run` measures it (docs/finetune.md)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from countersteer.cli.output import Json, emit, say
from countersteer.core.errors import InputError

if TYPE_CHECKING:
    from countersteer.finetune.llm_writer import LlmWriter

app = typer.Typer(help="Train self-correction in: data, masks, LoRA adapters.", no_args_is_help=True)
Model = Annotated[str, typer.Option("--model", help="Folder or Hugging Face id, organism or organism-plain.")]
Template = Annotated[
    str | None, typer.Option("--template", help="Variation of the chat template: [study] template, if it has one.")
]
Data = Annotated[Path, typer.Option("--data", help="Folder that `finetune data` wrote.")]


@app.command("data")
def data(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="New folder for the examples and the split of prompts.")],
    prompts: Annotated[str, typer.Option("--prompts", help="A prompt set, or a file.")] = "howto",
    evaluate: Annotated[
        str | None, typer.Option("--eval", help="Evaluation prompts: a set or a file (default: a share of --prompts).")
    ] = None,
    eval_share: Annotated[float, typer.Option("--eval-share", help="Share of --prompts kept for evaluation.")] = 0.3,
    overlap: Annotated[bool, typer.Option("--overlap", help="Allow evaluation prompts to be trained on.")] = False,
    templates: Annotated[str, typer.Option("--templates", help="general, organism, or none.")] = "general",
    run: Annotated[list[Path] | None, typer.Option("--run", help="A finished run: the model's own episodes.")] = None,
    llm: Annotated[str | None, typer.Option("--llm", help="PROVIDER/NAME of a model that writes corrections.")] = None,
    base_url: Annotated[str | None, typer.Option("--base-url", help="Server of the writing model.")] = None,
    max_cost: Annotated[float | None, typer.Option("--max-cost", min=0, help="USD the writer may spend.")] = None,
    prices: Annotated[Path | None, typer.Option("--prices", help="TOML file of prices.")] = None,
    corrections: Annotated[int, typer.Option("--corrections", min=0, help="Self-correction examples.")] = 918,
    normals: Annotated[int, typer.Option("--normals", min=0, help="Normal examples.")] = 760,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, help="Longest answer of the model (default: 512, or what fits)."),
    ] = None,
    template: Template = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")] = 0,
    as_json: Json = False,
) -> None:
    """Make training examples: off topic, an acknowledgement, the answer; and normal answers of the model's own.

    Example: countersteer finetune data --model organism-plain --templates organism --out data
    """
    from datetime import date

    import countersteer as cs
    from countersteer.cli.progress import watch
    from countersteer.finetune import data as making
    from countersteer.finetune import examples
    from countersteer.studies.prompts import load_prompts

    examples.require_new(out)
    beside = Path(os.path.abspath(out))  # "." has a name as well
    given = load_prompts(prompts)
    train, held_out = (given, load_prompts(evaluate)) if evaluate else examples.split_prompts(
        given, eval_share, seed=seed
    )  # fmt: skip
    bars = watch()
    writer = _writer(llm, base_url, max_cost, prices, beside, seed, bars)
    named = None if templates == "none" else templates
    sources = making.Sources(named, tuple(run or ()), writer, words=named or "general")
    engine = cs.load_engine(model, template=template, date=date.today().isoformat())
    try:
        with bars:
            made = making.make(
                engine, train=train, held_out=held_out,
                sources=sources, corrections=corrections, normals=normals, seed=seed, overlap=overlap,
                sampling=None if max_tokens is None else cs.Sampling(temperature=0.6, max_tokens=max_tokens),
                stage=bars.stage, progress=bars.progress, keep=beside.with_name(beside.name + "-answers.jsonl"),
                out=out,
            )  # fmt: skip
    finally:
        engine.close()
    facts: dict[str, Any] = {
        "out": str(out), "digest": made.digest, "train_prompts": len(made.train), "eval_prompts": len(made.held_out),
        "corrections": len(made.of_kind(examples.CORRECTION)), "normals": len(made.of_kind(examples.NORMAL)),
    }  # fmt: skip
    if writer is not None:
        facts["writer"] = writer.described()
        if writer.left_out:
            say("replies left out: " + ", ".join(f"{n} {why}" for why, n in sorted(writer.left_out.items())))
    if facts["corrections"] < corrections:
        say(f"{corrections} corrections were asked for, the sources gave {facts['corrections']}")
    text = (
        f"{facts['corrections']} corrections and {facts['normals']} normal examples on {facts['train_prompts']} prompts"
        f" in {out}; {facts['eval_prompts']} other prompts for evaluation in {out / examples.EVAL}"
    )
    emit(facts, as_json=as_json, text=text)


def _writer(
    model: str | None,
    base_url: str | None,
    max_cost: float | None,
    prices: Path | None,
    out: Path,
    seed: int,
    bars: Any,
) -> LlmWriter | None:
    """The language model that writes corrections; its replies are kept beside the data, so a second try is free."""
    if model is None:
        if max_cost is not None or base_url is not None or prices is not None:
            raise InputError("--max-cost, --base-url and --prices belong to --llm; give it, or leave them out")
        return None
    from countersteer.finetune.llm_writer import LlmWriter
    from countersteer.judging.llm_settings import JudgeSettings

    settings = JudgeSettings(
        model, base_url=base_url, temperature=1.0, max_tokens=2048, price_file=None if prices is None else str(prices)
    )
    made = LlmWriter(
        settings, out.with_name(out.name + "-replies"), seed, max_cost, bars.stage, bars.progress, bars.spent
    )
    made.check()
    return made


@app.command("check")
def check(
    data: Data,
    model: Model,
    show: Annotated[int, typer.Option("--show", min=0, help="Examples to print with their trained tokens.")] = 2,
    max_length: Annotated[int, typer.Option("--max-length", min=1, help="Longest example in tokens.")] = 4096,
    template: Template = None,
    as_json: Json = False,
) -> None:
    """Check every example's mask token by token against the model's template and tokenizer, and show some.

    Example: countersteer finetune check --data data --model organism-plain
    """
    from transformers import AutoConfig, AutoTokenizer

    from countersteer import organism
    from countersteer.finetune import examples
    from countersteer.finetune.encode import encode_all, shown
    from countersteer.finetune.plan import require_room
    from countersteer.finetune.quiet import quiet

    made = examples.load(data)
    source = str(organism.path(model)) if model in organism.SHIPPED else os.path.expanduser(model)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
        except Exception as error:  # the hub and the tokenizers raise many kinds
            raise InputError(f"cannot load the tokenizer of {model!r}: {' '.join(str(error).split())[:200]}") from error
        encoded = encode_all(made.examples, tokenizer, max_length=max_length, template=template)
        with contextlib.suppress(OSError, ValueError):  # a folder of a tokenizer alone
            config = AutoConfig.from_pretrained(source).get_text_config(decoder=True)
            require_room(encoded, made.examples, getattr(config, "max_position_embeddings", None))
    texts = [shown(e, c, tokenizer) for e, c in list(zip(made.examples, encoded, strict=True))[:show]]
    facts = {
        "examples": len(encoded), "tokens": sum(len(e.ids) for e in encoded),
        "trained_tokens": sum(e.trained for e in encoded), "longest": max((len(e.ids) for e in encoded), default=0),
        "shown": texts,
    }  # fmt: skip
    head = (
        f"{facts['examples']} examples, {facts['tokens']} tokens, {facts['trained_tokens']} of them trained, each in"
        f" its span; the longest has {facts['longest']} (between [[ and ]]: trained)"
    )
    emit(facts, as_json=as_json, text="\n\n".join([head, *texts]))


@app.command("train")
def train(
    data: Data,
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="Folder for the adapters; running again goes on.")],
    ratios: Annotated[str, typer.Option("--ratios", help="Shares of corrections, one adapter each.")] = "0.5",
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds, each ratio again.")] = "0",
    rank: Annotated[int, typer.Option("--rank", min=1, help="LoRA rank.")] = 32,
    alpha: Annotated[int, typer.Option("--alpha", min=1, help="LoRA alpha.")] = 16,
    dropout: Annotated[float, typer.Option("--dropout", help="LoRA dropout.")] = 0.05,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Peak of the cosine schedule.")] = 2e-4,
    epochs: Annotated[float, typer.Option("--epochs", help="Times through the data.")] = 4.0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Effective batch.")] = 8,
    micro_batch: Annotated[int | None, typer.Option("--micro-batch", min=1, help="Examples at once.")] = None,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Steps until the learning rate's peak.")] = 10,
    validation: Annotated[float, typer.Option("--validation", help="Share of examples for validation.")] = 0.05,
    max_length: Annotated[int, typer.Option("--max-length", min=1, help="Longest example in tokens.")] = 4096,
    save_steps: Annotated[int, typer.Option("--save-steps", min=1, help="Steps between checkpoints.")] = 200,
    total: Annotated[int | None, typer.Option("--total", min=1, help="Examples per adapter.")] = None,
    steer_run: Annotated[Path | None, typer.Option("--steer", help="Train under a calibrated run's steering.")] = None,
    sae: Annotated[str | None, typer.Option("--sae", help="SAE of that run.")] = None,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Less memory, more time.")] = False,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 (default on a GPU), ...")] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda (default: a GPU if there is one).")
    ] = None,
    template: Template = None,
    as_json: Json = False,
) -> None:
    """Train LoRA adapters, one per ratio and seed, with loss on the trained spans only. Interrupted, it goes on.

    Example: countersteer finetune train --data data --model organism-plain --ratios 0.25,0.75 --out adapters
    """
    from countersteer.cli.progress import watch
    from countersteer.finetune import examples, training
    from countersteer.finetune.recipe import shown
    from countersteer.finetune.settings import TrainSettings, check_seeds
    from countersteer.finetune.steering import steering_of

    settings = TrainSettings(
        rank=rank, alpha=alpha, dropout=dropout, learning_rate=learning_rate, epochs=epochs, batch=batch,
        micro_batch=micro_batch, warmup=warmup, validation=validation, max_length=max_length, save_steps=save_steps,
        total=total, checkpointing=checkpointing, dtype=dtype, device=device, template=template,
    )  # fmt: skip
    wanted, drawn = _numbers(ratios, "--ratios", float), [int(s) for s in _numbers(seeds, "--seeds", int)]
    check_seeds(drawn)
    if (steer_run is None) != (sae is None):
        raise InputError("--steer RUN and --sae go together: the run's latents are read from its SAE")
    made = examples.load(data)
    fingerprint = training.fingerprint_of(model)
    steering = None
    if steer_run is not None and sae is not None:
        import countersteer as cs

        fingerprint = fingerprint or training.load_base(model, settings).fingerprint
        steering = steering_of(steer_run, cs.load_sae(sae), model=fingerprint)
    with watch() as bars:

        def progress(name: str) -> Any:
            bars.stage(name, None)
            return shown(bars)

        records = training.train_all(
            lambda: training.load_base(model, settings), made, out, ratios=wanted, seeds=drawn, settings=settings,
            steering=steering, progress=progress, fingerprint=fingerprint,
            text=training.text_of(model, template),
        )  # fmt: skip
    rows = [{"adapter": str(r.folder), **r.described()} for r in records]
    lines = [
        f"{r['adapter']}: loss {r.get('loss')}, validation {r.get('validation_loss', 'none')},"
        f" {r['corrections']} of {r['examples']} examples are corrections"
        for r in rows
    ]
    emit({"adapters": rows}, as_json=as_json, text="\n".join(lines))


def _numbers(text: str, option: str, kind: type) -> list[Any]:
    """The numbers of a comma-separated list. Raises InputError."""
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r} is not a list of numbers such as 0.25,0.75") from None


@app.command("merge")
def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder of an adapter.")],
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="New folder for the merged model.")],
    dtype: Annotated[str, typer.Option("--dtype", help="What the weights are stored in.")] = "float32",
    as_json: Json = False,
) -> None:
    """Write the model with an adapter merged into its weights: an ordinary model folder.

    Example: countersteer finetune merge adapters/ratio-0.5-seed-0 --model organism-plain --out tuned
    """
    from countersteer.finetune import training
    from countersteer.finetune.merging import check_merge
    from countersteer.finetune.settings import TrainSettings

    check_merge(adapter, out, dtype=dtype)  # before the model is loaded
    base = training.load_base(model, TrainSettings(dtype="float32", device="cpu"))
    place = training.merge(base, adapter, out, dtype=dtype)
    emit({"out": str(place), "adapter": str(adapter)}, as_json=as_json, text=f"merged model in {place}")
