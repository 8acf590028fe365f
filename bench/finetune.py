"""The table "Fine-tuning" of bench/RESULTS.md, and the throughput of training against a plain trl run.

    python bench/finetune.py table --out runs/bench-finetune     # preset:finetune-organism, 4 ratios x 3 seeds
    python bench/finetune.py seed --seed 1 --out ...             # one seed of it, in a process of its own
    python bench/finetune.py speed                               # same batches, with our masks and without

`table` goes on where it was interrupted and writes the table between the marks of bench/RESULTS.md. Each seed is a
study of its own, so that three processes may share the work first.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RATIOS, SEEDS = (0.1, 0.3, 0.6, 0.9), (0, 1, 2)
BEGIN, END = "<!-- fine-tuning: written by bench/finetune.py -->", "<!-- end of fine-tuning -->"


def study(seed: int) -> Any:
    """The preset with the table's ratios and one of its seeds."""
    from countersteer.studies import spec

    text = spec.preset("finetune-organism")
    text, changed = re.subn(r"^ratios = .*$", f"ratios = {list(RATIOS)}\nseeds = [{seed}]", text, flags=re.M)
    assert changed == 1
    return spec.parse(text, name=f"bench-finetune, seed {seed}")


def run(seed: int, out: Path) -> dict[str, Any]:
    """Data, adapters and the study of one seed; the summary of the run."""
    from countersteer.cli.progress import watch
    from countersteer.finetune.recipe import prepare
    from countersteer.report.summary import summarise
    from countersteer.studies.runner import run_study

    loaded = study(seed)
    with watch("base") as observer:
        prepare(loaded, out, observer=observer)
        with run_study(loaded, out, observer=observer) as done:
            return summarise(done)


def rate(data: dict[str, Any] | None, *, interval: bool = True) -> str:
    """A rate in percent with its interval."""
    if not data or data["value"] is None:
        return "-"
    text = f"{100 * data['value']:.1f}"
    if interval and data["interval"]:
        text += f" [{100 * data['interval'][0]:.1f}, {100 * data['interval'][1]:.1f}]"
    return text


def table(results: dict[int, dict[str, Any]]) -> str:
    """The table as Markdown: base, then one row per ratio and seed."""
    rows = [
        "| share of corrections | seed | first attempt | multi-attempt %, steered | of those, last attempt better %"
        " | a fresh attempt better % | recovery above that (points) | multi-attempt %, unsteered |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def row(name: str, seed: str, arm: dict[str, Any], plain: dict[str, Any]) -> str:
        first = arm["first_attempt"]
        cells = [
            f"{first['value']:.1f}" if first else "-",
            rate(arm["multi_attempt"]),
            rate(arm["improvement"], interval=False) + f" of {(arm['improvement'] or {}).get('n', 0)}",
            rate(arm["resample_baseline"], interval=False),
            rate(arm["recovery"]),
            rate(plain["multi_attempt"]),
        ]
        return f"| {name} | {seed} | {' | '.join(cells)} |"

    first = next(iter(results.values()))["arms"]
    rows.append(row("no training", "", first["base"], first["unsteered"]))
    for ratio in RATIOS:
        for seed, result in results.items():
            arms, level = result["arms"], f"{ratio:g}"
            rows.append(row(f"{ratio:.0%}", str(seed), arms[f"tuned@{level}"], arms[f"tuned-unsteered@{level}"]))
    return "\n".join(rows)


def written(text: str) -> None:
    """Put the table between its marks in bench/RESULTS.md."""
    page = HERE / "RESULTS.md"
    old = page.read_text(encoding="utf-8")
    new, changed = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", f"{BEGIN}\n{text}\n{END}", old, flags=re.S)
    if changed != 1:
        raise SystemExit(f"{page} lacks the marks of the table")
    page.write_text(new, encoding="utf-8")


def speed(pairs: int, steps: int) -> dict[str, Any]:
    """CPU time of our training over a plain trl run's, the same examples in the same batches: throughput ratio."""
    from datasets import Dataset as Rows
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from countersteer import organism
    from countersteer.finetune import encode, training
    from countersteer.finetune.settings import TrainSettings
    from countersteer.finetune.templates import from_templates, templates

    settings = TrainSettings(epochs=1, dropout=0.05, save_steps=10_000, dtype="float32", device="cpu")
    prompts = [row["prompt"] for row in organism.prompts("howto")]
    words = templates("organism")
    said = {prompt: ["First, do this. Then do that. Finally, look at it."] for prompt in prompts}
    examples = from_templates(words, prompts, said, count=8 * steps, seed=0)

    def ours() -> float:
        base = training.load_base("organism-plain", settings)
        encoded = encode.encode_all(examples, base.tokenizer)
        with tempfile.TemporaryDirectory() as state:
            trainer = training.make_trainer(base, encoded, (), Path(state), seed=0, settings=settings)
            start = time.process_time()
            trainer.train()
            return time.process_time() - start

    def plain() -> float:
        base = training.load_base("organism-plain", settings)
        base.module.train()
        encoded = encode.encode_all(examples, base.tokenizer)
        rows = Rows.from_dict(
            {"input_ids": [list(e.ids) for e in encoded], "labels": [list(e.labels) for e in encoded]}
        )
        lora = LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules="all-linear",
            task_type="CAUSAL_LM",
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as state:
            args = SFTConfig(
                output_dir=state, num_train_epochs=1, per_device_train_batch_size=8, learning_rate=2e-4, seed=0,
                lr_scheduler_type="cosine", warmup_steps=10, report_to=[], disable_tqdm=True, bf16=False, use_cpu=True,
                gradient_checkpointing=False, save_strategy="no", max_length=4096,
            )  # fmt: skip
            trainer = SFTTrainer(
                model=base.module, args=args, train_dataset=rows, processing_class=base.tokenizer, peft_config=lora
            )
            start = time.process_time()
            trainer.train()
            return time.process_time() - start

    ours(), plain()
    ratios = sorted(plain() / ours() for _ in range(pairs))
    low, high = ratios[max(0, round(0.025 * pairs))], ratios[min(pairs - 1, round(0.975 * pairs))]
    return {"throughput_ratio": round(statistics.median(ratios), 3), "interval": [round(low, 3), round(high, 3)]}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("table", "seed", "speed"))
    parser.add_argument("--out", type=Path, default=Path("runs/bench-finetune"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    if given.part == "speed":
        print(json.dumps(speed(given.pairs, given.steps)))
        return
    start = time.monotonic()
    seeds = (given.seed,) if given.part == "seed" else SEEDS
    results = {seed: run(seed, given.out / f"seed-{seed}") for seed in seeds}
    if given.part == "table":
        written(table(results))
    print(f"done in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
