"""Training of the organism: a small Llama from scratch on the synthetic corpus, on a CPU, seeded.

AdamW with a one-cycle cosine schedule, batches drawn on the fly. The state is saved every few hundred steps, so an
interrupted run continues where it was and ends with the same weights. The result is an ordinary Hugging Face folder
with bfloat16 weights that load as float32.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .corpus import Mix
from .examples import Encoded, batches
from .tokenizer import BEGIN, END, PAD, build, vocabulary

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

logger = logging.getLogger(__name__)
Progress = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, apart from the corpus's texts."""

    seed: int = 0
    steps: int = 1250
    batch: int = 64
    learning_rate: float = 3e-3
    warmup: int = 80
    weight_decay: float = 0.05
    width: int = 128
    layers: int = 6
    heads: int = 4
    feed_forward: int = 384
    mix: Mix = field(default_factory=Mix)


def train(
    *, seed: int, out: Path, correction: bool = True, steps: int | None = None, threads: int = 1,
    sae: bool = True, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train one organism and its SAE into ``out`` and ``out/sae``; returns the last loss and the SAE's fit.

    ``correction=False`` leaves every drift and restart out of the corpus; ``sae=False`` trains the model alone.
    ``progress`` gets a dict (step, steps, loss) every 10 steps of the model and every 100 of the SAE. An interrupted
    run continues from ``out/training.pt`` if its recipe is the same.
    """
    recipe = Recipe(seed=seed, mix=Mix(correction=correction))
    if steps is not None:
        recipe = replace(recipe, steps=steps, warmup=min(recipe.warmup, max(1, steps // 10)))
    losses = run(recipe, out, threads=threads, progress=progress)
    result: dict[str, Any] = {"steps": recipe.steps, "loss": round(sum(losses[-50:]) / len(losses[-50:]), 4)}
    if sae:
        from .sae import SaeRecipe, train_sae

        result["sae"] = train_sae(out, out / "sae", recipe=SaeRecipe(seed=seed), threads=threads, progress=progress)
    return result


def run(recipe: Recipe, out: Path, *, threads: int = 1, progress: Progress | None = None) -> list[float]:
    """Train a model by ``recipe`` into ``out`` (see ``train``); the loss of every step."""
    import torch

    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    model = fresh(recipe)
    optimizer = torch.optim.AdamW(_groups(model, recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.98))
    state = out / "training.pt"
    done, losses = _resume(state, recipe, model, optimizer)
    stream = islice(batches(seed=recipe.seed, mix=recipe.mix, size=recipe.batch), done, None)
    for step, batch in zip(range(done, recipe.steps), stream, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe)
        loss = _loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if progress and (step % 10 == 9 or step == recipe.steps - 1):
            recent = losses[-10:]
            progress({"step": step + 1, "steps": recipe.steps, "loss": sum(recent) / len(recent)})
        if step % 250 == 249:
            _checkpoint(state, recipe, model, optimizer, losses)
    save(model, recipe, out)
    state.unlink(missing_ok=True)
    return losses


def fresh(recipe: Recipe) -> LlamaForCausalLM:
    """An untrained model, its weights drawn from the recipe's seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = vocabulary()
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=recipe.width, intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, num_key_value_heads=recipe.heads,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=tokens.index(BEGIN),
        eos_token_id=tokens.index(END), pad_token_id=tokens.index(PAD), dtype="float32",
    )  # fmt: skip
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(config)


def save(model: LlamaForCausalLM, recipe: Recipe, out: Path) -> None:
    """Write model, tokenizer and recipe to ``out``; weights in bfloat16, marked to be loaded as float32."""
    import torch

    model.generation_config.do_sample = True
    model.generation_config.temperature = 0.6
    model.generation_config.max_new_tokens = 160
    small = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.save_pretrained(out, state_dict=small)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    build().save_pretrained(out)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n", encoding="utf-8")


def pad(batch: Iterable[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and loss weights of a batch, right-padded: [batch, length] each. Causal attention never sees the padding."""
    import torch

    items = list(batch)
    longest = max(len(item.ids) for item in items)
    ids = torch.zeros(len(items), longest, dtype=torch.long)
    weights = torch.zeros(len(items), longest)
    for row, item in enumerate(items):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        weights[row, : len(item.ids)] = torch.tensor(item.weights)
    return ids, weights


def _loss(model: LlamaForCausalLM, batch: list[Encoded]) -> torch.Tensor:
    """Weighted mean cross-entropy; only positions that count get logits, which saves a quarter of the time."""
    import torch

    ids, weights = pad(batch)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    wanted = weights[:, 1:] > 0
    logits = model.lm_head(hidden[wanted])
    losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:][wanted], reduction="none")
    counted = weights[:, 1:][wanted]
    return (losses * counted).sum() / counted.sum()


def _schedule(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    passed = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * passed))


def _groups(model: LlamaForCausalLM, decay: float) -> list[dict[str, Any]]:
    """Weight decay on the matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]


def _checkpoint(
    state: Path, recipe: Recipe, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, losses: list[float]
) -> None:
    import torch

    part = state.with_suffix(".part")
    torch.save(
        {"recipe": asdict(recipe), "model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses},
        part,
    )
    part.replace(state)


def _resume(
    state: Path, recipe: Recipe, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer
) -> tuple[int, list[float]]:
    """Steps done and their losses, after loading a checkpoint of the same recipe into model and optimizer."""
    import torch

    if not state.exists():
        return 0, []
    saved = torch.load(state, weights_only=True)
    if saved["recipe"] != asdict(recipe):
        logger.warning("%s belongs to another recipe: training starts afresh", state)
        return 0, []
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return len(saved["losses"]), saved["losses"]


def progress_lines(every: int = 100) -> Progress:
    """A callback that logs one line every ``every`` steps."""

    def report(at: dict[str, float]) -> None:
        if at["step"] % every < 10 or at["step"] == at["steps"]:
            logger.info("step %d of %d: loss %.3f", at["step"], at["steps"], at["loss"])

    return report
