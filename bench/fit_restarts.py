"""Fit the restart model of the offline judge to labelled texts, and say how well it does on others.

    python bench/fit_restarts.py BASE [--test FILE ...]              # from the published encoder
    python bench/fit_restarts.py BASE --continue [--recent]          # one more pass from the weights in the package

BASE: a folder with all-MiniLM-L6-v2 (config.json, model.safetensors, tokenizer.json), as sentence-transformers
publishes it. Reads the labelled responses tests/data/restarts*.jsonl that are not tests, and the wordings, answers and
passages in bench/data, of which it composes more. Deterministic for a version of torch; an hour on two quiet cores, a
third of that with `--continue`.
The shipped weights were fitted before restarts_train_15 ... 18 were written, and continued with them; then for word
salad with `--continue --seed 7` and `--continue --recent --seed 8`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from restart_texts import ROOT, Case, babbled, begun_otherwise, composed, drifted, in_other_voices, labelled
from torch import nn
from transformers import BertConfig, BertModel

from countersteer.judging.attempts import restarts_in
from countersteer.judging.restart_model import PROMPT, WINDOW, RestartModel, loaded, prepared, shipped, tokenizer_of

DATA = ROOT / "tests" / "data"
OUT = ROOT / "src" / "countersteer" / "judging"
TESTS = ("restarts_test.jsonl", "restarts_test_2.jsonl", "restarts_test_3.jsonl")
FREQUENT = 12_000
"""BERT's vocabulary lies in order of frequency; so many of its entries are kept, and those that the texts use."""
RECENT = ("restarts_steered.jsonl",)
BATCH, RATES, GENTLE = 24, (6e-5, 1e-3), (5e-5, 2e-4)
"""Texts per step; learning rates of encoder and head, from the published encoder and for a fitted one."""
_SENTENCE = re.compile(r"[^.!?\n]*[.!?\n]+\s*")


@dataclass(frozen=True)
class Row:
    """A case as word pieces. Labels per piece, 1, 0 or -1 (not asked): a restart begins; it is restart language."""

    case: Case
    prompt: list[int]
    ids: list[int]
    begins: list[int]
    language: list[int]


def vocabulary(base: Path, cases: Sequence[Case], fitted: Any = None) -> dict[str, int]:
    """The base's entries that are kept (if a model is fitted already: its word pieces), with their numbers there."""
    held: dict[str, int] = json.loads((base / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    if fitted is not None:
        words = fitted.get_vocab()
        return {word: held.get(word, held["[unused0]"]) for word in sorted(words, key=words.__getitem__)}
    pieces = tokenizer_of(held)
    used = {token for case in cases for text in (case.prompt, case.response) for token in pieces.encode(text).tokens}
    plain = [word for word in sorted(held, key=held.__getitem__) if word.isascii() and not word.startswith("[unused")]
    kept = {word for word in plain if held[word] < FREQUENT or len(word.removeprefix("##")) == 1}
    kept |= (used & set(held)) | {"[UNK]", "[CLS]", "[SEP]", "¶"}
    return {word: held[word] for word in sorted(kept, key=held.__getitem__)}


def _unasked_until(text: str, boundary: int) -> int:
    """Where a restart's language may still go on, for a boundary whose end is not known: a sentence or two."""
    at = stop = boundary + 12
    for match in _SENTENCE.finditer(text, boundary):
        if match.end() - match.start() >= 60 and stop > at:
            break
        stop = max(stop, match.end())
        if stop >= boundary + 90:
            break
    return min(stop, boundary + 150)


def row_of(case: Case, pieces: Any) -> Row:
    """A case with its word pieces and labels."""
    found = pieces.encode(prepared(case.response))
    starts = [start for start, _ in found.offsets]
    words = [any(character.isalnum() for character in token) for token in found.tokens]
    begins = [0] * len(starts)
    known = bool(case.ends) or not case.boundaries
    language = [0] * len(starts)
    for number, boundary in enumerate(case.boundaries):
        stop = case.ends[number] if case.ends else _unasked_until(case.response, boundary)
        first = next((k for k, (_, end) in enumerate(found.offsets) if end > boundary and words[k]), None)
        if first is None:
            continue
        for k, start in enumerate(starts):
            if boundary - 2 <= start < stop:
                begins[k] = -1 if begins[k] == 0 else begins[k]
                language[k] = 1 if known else -1
            elif not known and stop <= start < boundary + 260:
                language[k] = -1
        begins[first] = language[first] = 1
    asked = pieces.encode(prepared(case.prompt)).ids[:PROMPT] if case.prompt else []
    return Row(case, asked, found.ids, begins, language)


class Network(nn.Module):
    """The encoder of `restart_model.py` with two outputs per word piece; its word vectors are not fitted."""

    def __init__(self, base: Path, layers: int, kept: Sequence[int]) -> None:
        super().__init__()
        config = BertConfig.from_pretrained(base, hidden_act="gelu_pytorch_tanh")
        self.bert = BertModel.from_pretrained(base, config=config, add_pooling_layer=False)
        self.bert.encoder.layer = self.bert.encoder.layer[:layers]
        words = self.bert.embeddings.word_embeddings.weight.detach()[list(kept)]
        self.bert.embeddings.word_embeddings = nn.Embedding.from_pretrained(words, freeze=True)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(config.hidden_size, 2)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Log odds [B, T, 2]."""
        hidden = self.bert(
            input_ids=batch["ids"], token_type_ids=batch["types"], attention_mask=batch["known"]
        ).last_hidden_state
        logits: torch.Tensor = self.out(self.drop(hidden))
        return logits


def windowed(row: Row, rng: random.Random) -> Row:
    """A row no longer than a window: a random one, around one of its restarts if it has any."""
    spare = len(row.ids) - WINDOW
    if spare <= 0:
        return row
    at = rng.randint(0, spare)
    places = [k for k, label in enumerate(row.begins) if label == 1]
    if places:
        at = max(0, min(spare, rng.choice(places) - rng.randint(20, WINDOW - 40)))
    cut = slice(at, at + WINDOW)
    return replace(row, ids=row.ids[cut], begins=row.begins[cut], language=row.language[cut])


def collate(rows: Sequence[Row], opening: int, closing: int) -> dict[str, torch.Tensor]:
    """Rows as one padded batch."""
    longest = max(len(row.prompt) + len(row.ids) + 3 for row in rows)
    made = {name: np.zeros((len(rows), longest), np.int64) for name in ("ids", "types", "known")}
    made |= {name: np.full((len(rows), longest), -1, np.int64) for name in ("begins", "language")}
    for b, row in enumerate(rows):
        whole, front = [opening, *row.prompt, closing, *row.ids, closing], len(row.prompt) + 2
        made["ids"][b, : len(whole)] = whole
        made["types"][b, front : len(whole)] = 1
        made["known"][b, : len(whole)] = 1
        made["begins"][b, front : front + len(row.ids)] = row.begins
        made["language"][b, front : front + len(row.ids)] = row.language
    batch = {name: torch.from_numpy(value) for name, value in made.items()}
    return batch | {"weights": torch.tensor([row.case.weight for row in rows])}


def loss_of(logits: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of both outputs, summed over word pieces, and of "there is a restart" by its likeliest piece."""
    cross = nn.functional.binary_cross_entropy_with_logits
    begins, language = batch["begins"], batch["language"]
    found = (cross(logits[..., 0], (begins == 1).float(), reduction="none") * (begins >= 0)).sum(1)
    spoken = (cross(logits[..., 1], (language == 1).float(), reduction="none") * (language >= 0)).sum(1)
    best = logits[..., 0].masked_fill(begins < 0, -20.0).max(1)[0]
    whole = cross(best, (begins == 1).any(1).float(), reduction="none")
    weights = batch["weights"]
    return ((found + 0.3 * spoken + whole) * weights).sum() / weights.sum()


def batches(rows: Sequence[Row], rng: random.Random) -> list[list[Row]]:
    """Rows in random batches of like length."""
    shuffled = [windowed(row, rng) for row in rng.sample(rows, len(rows))]
    made = []
    for k in range(0, len(shuffled), BATCH * 20):
        alike = sorted(shuffled[k : k + BATCH * 20], key=lambda row: len(row.ids))
        made += [alike[j : j + BATCH] for j in range(0, len(alike), BATCH)]
    return rng.sample(made, len(made))


def fit(
    network: Network,
    plan: Callable[[int], list[Row]],
    *,
    epochs: int,
    rates: tuple[float, float],
    marks: tuple[int, int],
    seed: int,
    note: Any,
) -> None:
    """Fit a network to the rows `plan(epoch)`; `rates`: of the encoder and the head; `note`: is told the loss."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    made = [batch for epoch in range(epochs) for batch in batches(plan(epoch), rng)]
    head = list(network.out.parameters())
    body = [value for name, value in network.bert.named_parameters() if value.requires_grad and "pooler" not in name]
    groups = [{"params": body, "lr": rates[0]}, {"params": head, "lr": rates[1]}]
    descent = torch.optim.AdamW(groups, weight_decay=0.01)
    course = torch.optim.lr_scheduler.OneCycleLR(descent, list(rates), total_steps=len(made) + 1, pct_start=0.1)
    network.train()
    began, mean = time.time(), 0.0
    for step, rows in enumerate(made, start=1):
        batch = collate(rows, *marks)
        loss = loss_of(network(batch), batch)
        descent.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*body, *head], 1.0)
        descent.step()
        course.step()
        mean = 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0 or step == len(made):
            note(step, len(made), mean / (1 - 0.98**step), time.time() - began)
    network.eval()


def _places(layers: int) -> Iterator[tuple[str, list[str], bool]]:
    """The names of `restart_model.py`, each with the network's (several: one below the other), and if transposed."""
    embedded = "bert.embeddings."
    yield "words", [f"{embedded}word_embeddings.weight"], False
    yield "positions", [f"{embedded}position_embeddings.weight"], False
    yield "types", [f"{embedded}token_type_embeddings.weight"], False
    names = {
        "attend": [f"attention.self.{name}" for name in ("query", "key", "value")],
        "mix": ["attention.output.dense"],
        "mixed": ["attention.output.LayerNorm"],
        "widen": ["intermediate.dense"],
        "narrow": ["output.dense"],
        "narrowed": ["output.LayerNorm"],
    }
    for part in ("weight", "bias"):
        yield f"norm.{part}", [f"{embedded}LayerNorm.{part}"], False
        yield f"out.{part}", [f"out.{part}"], part == "weight"
        for layer in range(layers):
            for name, theirs in names.items():
                front = f"bert.encoder.layer.{layer}."
                yield f"{layer}.{name}.{part}", [f"{front}{their}.{part}" for their in theirs], part == "weight"


def _tensors(network: Network, layers: int) -> dict[str, np.ndarray]:
    """The network's weights by the names of `restart_model.py`, matrices as [in, out]."""
    held = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    made = {}
    for name, theirs, turned in _places(layers):
        value = np.concatenate([held[their] for their in theirs])
        made[name] = np.ascontiguousarray(value.T if turned else value)
    made["positions"] = made["positions"][: PROMPT + WINDOW + 3]
    return made


def take(network: Network, model: RestartModel) -> None:
    """Give a network the weights of a fitted model with the same word pieces; the reverse of `_tensors`."""
    held = network.state_dict()
    with torch.no_grad():
        for name, theirs, turned in _places(model.layers):
            value = torch.from_numpy(np.ascontiguousarray(model.tensors[name].T if turned else model.tensors[name]))
            for their, part in zip(theirs, value.chunk(len(theirs)), strict=True):
                held[their][: len(part)].copy_(part)


def save(network: Network, words: Sequence[str], folder: Path, *, layers: int, threshold: float) -> RestartModel:
    """Write the model: a byte per number of a matrix with a scale per row, half precision for the rest."""
    from safetensors.numpy import save_file

    stored: dict[str, np.ndarray] = {}
    for name, value in _tensors(network, layers).items():
        if value.ndim == 2 and name not in ("positions", "types", "out.weight"):
            scale = np.abs(value).max(1, keepdims=True) / 127
            stored[name] = np.round(value / scale).astype(np.int8)
            stored[f"{name}.scale"] = scale.astype(np.float32)
        else:
            stored[name] = value.astype(np.float16)
    heads = network.bert.config.num_attention_heads
    held = {"layers": str(layers), "heads": str(heads), "threshold": str(threshold)}
    path = folder / "restart_model.safetensors"
    save_file(stored, path, metadata=held)
    (folder / "restart_words.txt").write_text("\n".join(words), encoding="utf-8")
    return loaded(path.read_bytes(), list(words))


def measured(found: Sequence[Sequence[int]], cases: Sequence[Case]) -> dict[str, Any]:
    """Precision, recall and F1 of "more than one attempt" per response, and how many boundaries are near."""
    hits = sum(bool(f) and bool(c.boundaries) for f, c in zip(found, cases, strict=True))
    split, truth = sum(map(bool, found)), sum(bool(c.boundaries) for c in cases)
    near = [any(abs(b - a) <= 10 for a in f) for f, c in zip(found, cases, strict=True) for b in c.boundaries]
    return {
        "f1": round(2 * hits / max(1, split + truth), 3),
        "precision": round(hits / max(1, split), 3),
        "recall": round(hits / max(1, truth), 3),
        "near": round(sum(near) / max(1, len(near)), 3),
    }


def evaluate(model: RestartModel, cases: Sequence[Case]) -> dict[str, Any]:
    """`measured` at several thresholds."""
    read = [model.read(case.response, case.prompt) for case in cases]
    return {
        str(at): measured(
            [[a for a, _ in restarts_in(c.response, r, at)] for c, r in zip(cases, read, strict=True)], cases
        )
        for at in (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
    }


def _noted(step: int, steps: int, loss: float, seconds: float) -> None:
    print(f"step {step} of {steps}: loss {loss:.4f}, {seconds:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    """Fit, write the weights, and measure."""
    parser = argparse.ArgumentParser(description="Fit the restart model to labelled texts.")
    parser.add_argument("base", type=Path, help="a folder with all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--test", nargs="*", type=Path, default=[], help="measure the fitted model on these files")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--epochs", type=int, help="3, or 1 with --continue")
    parser.add_argument("--continue", dest="go_on", action="store_true", help="start from the weights in the package")
    parser.add_argument("--recent", action="store_true", help="the files of RECENT and a third of the others")
    parser.add_argument("--threshold", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    files = sorted(path.name for path in DATA.glob("restarts*.jsonl") if path.name not in TESTS)
    cases = [case for name in files for case in labelled(name)]
    extra = [replace(case, prompt="", weight=0.3) for case in cases]
    begun = shipped() if args.go_on else None
    kept = vocabulary(args.base, [*cases, *composed(cases)], begun and begun.pieces)
    pieces = tokenizer_of({word: number for number, word in enumerate(kept)})
    rows = [row for case in cases if (row := row_of(case, pieces)).ids]

    def plan(epoch: int) -> list[Row]:
        rng = random.Random(f"{args.seed} {epoch}")
        more = [*extra, *composed(cases, seed=epoch), *in_other_voices(seed=epoch), *begun_otherwise(cases, seed=epoch)]
        more += drifted(cases, seed=epoch)
        salad = babbled(cases, seed=epoch)
        if args.recent:
            more = rng.sample(more, len(more) // 12) + rng.sample(salad, len(salad) // 3)
        else:
            more = rng.sample([*more, *salad], (len(more) + len(salad)) // 4)
        picked = [row_of(case, pieces) for case in more]
        older = [row for row in rows if row.case.source not in RECENT]
        held = older if not args.recent else rng.sample(older, len(older) // 3)
        newer = [row for row in rows if row.case.source in RECENT]
        return held + newer + [row for row in picked if row.ids]

    network = Network(args.base, args.layers, list(kept.values()))
    marks = (pieces.token_to_id("[CLS]"), pieces.token_to_id("[SEP]"))
    if begun:
        take(network, begun)
    epochs, rates = args.epochs or (1 if begun else 3), GENTLE if begun else RATES
    fit(network, plan, epochs=epochs, rates=rates, marks=marks, seed=args.seed, note=_noted)
    model = save(network, list(kept), args.out, layers=args.layers, threshold=args.threshold)
    for path in args.test:
        texts = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        tests = [Case(r["prompt"], r["response"], tuple(r["boundaries"]), 1.0, path.name) for r in texts]
        print(json.dumps({"test": path.name, **evaluate(model, tests)}))


if __name__ == "__main__":
    main()
