"""Training of the organism's sparse autoencoder, and labels for its latents from ground truth.

A BatchTopK SAE (Bussmann et al. 2024, with the auxiliary loss of Gao et al. 2024) on the residual stream at the output
of one layer, converted to JumpReLU thresholds and written in SAELens's folder format. The corpus knows what every
token is about, so a latent's label is the topic that holds most of its activation. Its concreteness is 50 + 50 * the
topic's share if that is a majority (one topic of 52 by chance: 2%), else 60 * the largest share.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .corpus import Mix, topics
from .examples import Encoded, batches
from .tokenizer import vocabulary
from .train import Progress, pad

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

RARELY = 1e-4
LABEL_FIELDS = ("index", "label", "concreteness", "topic", "specificity", "firing_rate", "role", "top_tokens")


@dataclass(frozen=True)
class SaeRecipe:
    """Everything that decides an SAE: where it reads, its size, active latents per token ``k``, and its training."""

    seed: int = 0
    layer: int = 3
    latents: int = 768
    k: int = 4
    tokens: int = 500_000
    steps: int = 2000
    batch: int = 1024
    learning_rate: float = 1e-3
    auxiliary: float = 1 / 8
    text_share: float = 0.4


def train_sae(
    model_path: Path, out: Path, *, recipe: SaeRecipe = SaeRecipe(), threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train an SAE on the model in ``model_path`` and write ``cfg.json``, ``sae_weights.safetensors``, ``labels.csv``.

    Returns the share of variance explained, the mean number of active latents per token, and label counts.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(model_path)
    model.eval()
    data = torch.cat([acts for _, acts in activations(model, recipe, seed=1000 + recipe.seed)])
    sizes = data.norm(dim=-1)
    weights, threshold = _fit(data, recipe, progress)
    out.mkdir(parents=True, exist_ok=True)
    _write(weights, threshold, recipe, model.config, sizes.median().item(), out)
    held = replace(recipe, tokens=200_000)
    rows, measured = label(model, weights, threshold, held)
    with (out / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, LABEL_FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    topical = [row for row in rows if row["topic"] and row["specificity"] >= 0.65]
    return {**measured, "labels": len(rows), "topical": len(topical), "topics": len({row["topic"] for row in topical})}


def activations(
    model: LlamaForCausalLM, recipe: SaeRecipe, *, seed: int
) -> Iterator[tuple[list[tuple[Encoded, int]], torch.Tensor]]:
    """Residuals [tokens, d_model] at the recipe's layer over corpus examples, about ``recipe.tokens`` of them in all.

    With each tensor come its rows' (example, position) pairs. Position 0 is left out.
    """
    import torch

    kept: list[torch.Tensor] = []
    layer = model.model.layers[recipe.layer]
    handle = layer.register_forward_hook(lambda _m, _i, output: kept.append(_tensor(output)))
    try:
        done = 0
        for batch in batches(seed=seed, mix=Mix(texts=recipe.text_share)):
            ids, _ = pad(batch)
            kept.clear()
            with torch.no_grad():
                model.model(input_ids=ids, use_cache=False)
            places = [(item, at) for item in batch for at in range(1, len(item.ids))]
            acts = torch.cat([kept[0][row, 1 : len(item.ids)] for row, item in enumerate(batch)])
            yield places, acts
            done += len(places)
            if done >= recipe.tokens:
                return
    finally:
        handle.remove()


def _tensor(output: Any) -> torch.Tensor:
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden.detach()


def _fit(data: torch.Tensor, recipe: SaeRecipe, progress: Progress | None) -> tuple[dict[str, torch.Tensor], float]:
    """BatchTopK weights in the residual's own units (unit-norm decoder rows) and the common threshold."""
    import torch

    random = torch.Generator().manual_seed(recipe.seed)
    unit = data.shape[1] ** 0.5 / data.norm(dim=-1).mean()
    width, count = data.shape[1], recipe.latents
    decoder = torch.randn(count, width, generator=random)
    decoder /= decoder.norm(dim=-1, keepdim=True)
    w = {"W_dec": decoder, "W_enc": decoder.T.clone(), "b_enc": torch.zeros(count), "b_dec": data.mean(0) * unit}
    for tensor in w.values():
        tensor.requires_grad_(True)
    optimizer = torch.optim.Adam(list(w.values()), lr=recipe.learning_rate, betas=(0.9, 0.99))
    idle, threshold = torch.zeros(count), 0.0
    for step in range(recipe.steps):
        left = (recipe.steps - step) / recipe.steps
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * min(1.0, 4 * left, (step + 1) / 100)
        x = data[torch.randint(len(data), (recipe.batch,), generator=random)] * unit
        positive = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
        least = _least(positive.detach(), recipe.k * len(x), 0.7 * threshold)
        acts = positive * (positive >= least)
        residue = x - acts @ w["W_dec"] - w["b_dec"]
        loss = residue.pow(2).sum(-1).mean() + recipe.auxiliary * _auxiliary(positive, residue, idle > 12, w["W_dec"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            w["W_dec"] /= w["W_dec"].norm(dim=-1, keepdim=True)
        idle = torch.where((acts > 0).any(0), 0.0, idle + 1)
        threshold = least if step == 0 else 0.99 * threshold + 0.01 * least
        if progress and step % 100 == 99:
            progress({"step": step + 1, "steps": recipe.steps, "loss": loss.item() / width})
    scaled = {name: tensor.detach() for name, tensor in w.items()}
    scaled["b_enc"], scaled["b_dec"] = scaled["b_enc"] / unit, scaled["b_dec"] / unit
    return scaled, threshold / unit.item()


def _least(positive: torch.Tensor, count: int, floor: float) -> float:
    """The ``count``-th largest activation; searched above ``floor`` first, which is much faster."""
    near = positive[positive > floor]
    pool = near if len(near) >= count else positive.flatten()
    return float(pool.topk(count).values[-1])


def _auxiliary(
    positive: torch.Tensor, residue: torch.Tensor, dead: torch.Tensor, decoder: torch.Tensor
) -> torch.Tensor | float:
    """How well latents that no longer fire explain what is left over; brings them back."""
    count = int(dead.sum())
    if not count:
        return 0.0
    acts = positive[:, dead]
    top = acts.topk(min(16, count), dim=-1)
    acts = acts.new_zeros(acts.shape).scatter(-1, top.indices, top.values)
    return (residue.detach() - acts @ decoder[dead]).pow(2).sum(-1).mean()


def encode(x: torch.Tensor, weights: dict[str, torch.Tensor], threshold: float | torch.Tensor) -> torch.Tensor:
    """JumpReLU activations [tokens, d_sae] of residuals [tokens, d_model], b_dec applied to the input."""
    import torch

    pre = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    return torch.relu(pre) * (pre > threshold)


def _write(
    weights: dict[str, torch.Tensor], threshold: float, recipe: SaeRecipe, config: Any, size: float, out: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    width = weights["W_enc"].shape[0]
    cfg = {
        "architecture": "jumprelu", "d_in": width, "d_sae": recipe.latents, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {
            "model_name": "organism", "hook_name": f"blocks.{recipe.layer}.hook_resid_post", "hook_head_index": None,
            "model_class_name": config.architectures[0], "context_size": config.max_position_embeddings,
            "prepend_bos": True, "training_tokens": recipe.steps * recipe.batch, "median_norm": round(size, 4),
        },
    }  # fmt: skip
    (out / "cfg.json").write_text(json.dumps(cfg, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    tensors["threshold"] = torch.full((recipe.latents,), threshold)
    save_file(tensors, out / "sae_weights.safetensors")


def label(
    model: LlamaForCausalLM, weights: dict[str, torch.Tensor], threshold: float, recipe: SaeRecipe
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Label rows of the latents that fire on at least ``RARELY`` of fresh corpus tokens, and the SAE's fit there."""
    import torch

    names, tokens = [None, *(topic.name for topic in topics())], vocabulary()
    name_at, role_at = ({v: i for i, v in enumerate(values)} for values in (names, ROLE_LABELS))
    shape = (recipe.latents, len(names) * len(ROLE_LABELS))
    mass, words, fired = torch.zeros(shape), torch.zeros(recipe.latents, len(tokens)), torch.zeros(recipe.latents)
    total, missed, spread = 0, 0.0, 0.0
    for places, x in activations(model, recipe, seed=2000 + recipe.seed):
        acts = encode(x, weights, threshold)
        missed += (x - acts @ weights["W_dec"] - weights["b_dec"]).pow(2).sum().item()
        spread += (x - x.mean(0)).pow(2).sum().item()
        total += len(x)
        cells = [name_at[i.topics[at]] * len(ROLE_LABELS) + role_at[i.roles[at]] for i, at in places]
        mass.index_add_(1, torch.tensor(cells), acts.T.contiguous())
        words.index_add_(1, torch.tensor([item.ids[at] for item, at in places]), acts.T.contiguous())
        fired += (acts > 0).sum(0)
    rows = []
    for latent in (fired >= RARELY * total).nonzero().flatten().tolist():
        by_topic = Counter(dict(zip(names, mass[latent].view(len(names), -1).sum(1).tolist(), strict=True)))
        by_role = Counter(dict(zip(ROLE_LABELS, mass[latent].view(len(names), -1).sum(0).tolist(), strict=True)))
        top = [tokens[i].strip() for i in words[latent].topk(6).indices.tolist() if words[latent, i] > 0]
        del by_topic[None]
        rows.append(_row(latent, by_topic, by_role, fired[latent].item() / total) | {"top_tokens": " ".join(top)})
    active = fired.sum().item() / total
    return rows, {"explained": 1 - missed / spread, "active": active, "threshold": threshold}


def _row(latent: int, by_topic: Counter[Any], by_role: Counter[str], rate: float) -> dict[str, Any]:
    everything = sum(by_role.values())
    (first, most), (second, next_most) = by_topic.most_common(2)
    share = most / everything
    role = by_role.most_common(1)[0][0]
    if share >= 0.5:
        text = first
    elif (most + next_most) / everything >= 0.6:
        text = f"{first} and {second}"
    else:
        text = ROLE_LABELS[role]
    concreteness = round(50 + 50 * share) if share >= 0.5 else round(60 * share)
    return {
        "index": latent, "label": text, "concreteness": concreteness, "topic": first if share >= 0.5 else "",
        "specificity": round(share, 3), "firing_rate": round(rate, 6), "role": role,
    }  # fmt: skip


ROLE_LABELS = {
    "template": "chat template", "system": "system prompts", "prompt": "wordings of questions",
    "on": "steps of any answer", "off": "sentences off topic", "restart": "restarts and corrections",
    "tone": "warm or dismissive remarks", "text": "statements on any topic",
}  # fmt: skip
