"""Fit the restart model to labelled texts, and say how well it does on authors it was not fitted on.

    python bench/fit_restarts.py [--check] [--only FILE ...] [--test FILE ...]

Reads the labelled responses tests/data/restarts*.jsonl that are not tests, and the wordings in bench/data, which it
puts into the answers of those responses. `--check` leaves out one file, that is one author, at a time. Deterministic
for a version of torch; a few minutes of CPU time per network.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from restart_texts import ROOT, Case, begun_otherwise, composed, in_other_voices, labelled
from torch import nn

from countersteer.judging.attempts import restarts_among
from countersteer.judging.observed import Observation, observe
from countersteer.judging.restart_input import AFTER, BEFORE, CLASSES, FLAGS, NUMBERS, WITHIN, Encoded, encode
from countersteer.judging.restart_model import RestartModel
from countersteer.judging.word_vectors import vectors

DATA = ROOT / "tests" / "data"
TESTS = ("restarts_test.jsonl",)
OUT = ROOT / "src" / "countersteer" / "judging" / "restart_model.safetensors"
BATCH, RATE, DECAY = 24, 2.5e-3, 0.02


@dataclass(frozen=True)
class Row:
    """A response ready to be learnt from: labels 1 restart, 0 none, -1 not asked, one for each word."""

    case: Case
    seen: Observation
    encoded: Encoded
    labels: list[int]


def row_of(case: Case) -> Row:
    """A case with its input and labels; the words of restart language after its first are not asked."""
    seen = observe(case.response, case.prompt)
    encoded = encode(seen)
    labels = [0] * len(encoded.words)
    for boundary in case.boundaries:
        stop = boundary + 12
        for place in seen.places:
            piece = place.piece
            ruled = place.evidence.weight > 0 or piece.end - piece.start < 60
            if (boundary - 2 <= piece.start < boundary + 90 and ruled) or piece.start <= boundary + 2 < piece.end:
                stop = max(stop, min(piece.end, boundary + 150))
        first = next((k for k, start in enumerate(encoded.starts) if start >= boundary - 2), None)
        if first is None:
            continue
        for k, start in enumerate(encoded.starts):
            if boundary - 2 <= start < stop and labels[k] == 0:
                labels[k] = -1
        labels[first] = 1
    return Row(case, seen, encoded, labels)


class Network(nn.Module):
    """The network of `restart_model.py`, with dropout, over a batch of responses laid end to end."""

    def __init__(self, features: int, *, width: int = 48, hidden: int = 64, drop: float = 0.4) -> None:
        super().__init__()
        self.classes = nn.Embedding(len(CLASSES) + 1, 12)
        self.project = nn.Linear(vectors().shape[1] + 12 + FLAGS, width)
        self.near = nn.Conv1d(width, width, 3)
        self.wide = nn.Conv1d(width, width // 2, 3, dilation=2)
        self.around = nn.Linear(width, width // 2)
        self.context = nn.Linear(features, 24)
        self.hidden = nn.Linear(6 * width + width // 2 + 24 + NUMBERS, hidden)
        self.out = nn.Linear(hidden, 1)
        self.drop, self.blur = nn.Dropout(drop), nn.Dropout(0.15)
        self.register_buffer("table", torch.tensor(vectors()), persistent=False)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits [B, T] of a batch whose words [B, T] are padded with -1."""
        known = (batch["words"] >= 0).float()[:, None, :]
        words = batch["words"].clamp(min=0)
        x = torch.cat([self.blur(self.table[words]), self.classes(batch["classes"]), batch["flags"]], -1)
        x = torch.tanh(self.project(x)).transpose(1, 2) * known
        near = torch.relu(self.near(nn.functional.pad(x, (1, 1)))) * known
        wide = torch.relu(self.wide(nn.functional.pad(near, (2, 2)))) * known
        y = torch.cat([near, wide], 1)
        around = torch.cat([torch.relu(self.around(x.transpose(1, 2))).transpose(1, 2) * known, wide], 1)

        def most(values: torch.Tensor, start: int, count: int) -> torch.Tensor:
            """Largest of the `count` words from word t + start on."""
            padded = nn.functional.pad(values, (max(0, -start), max(0, start + count - 1)))
            return nn.functional.max_pool1d(padded, count, 1)[:, :, max(0, start) :][:, :, : values.shape[2]]

        seen = torch.relu(self.context(batch["context"]))[batch["pieces"]]
        rows = y.transpose(1, 2).flatten(0, 1)
        whole = torch.zeros(len(batch["context"]), rows.shape[1])
        whole = whole.scatter_reduce(0, batch["pieces"].flatten()[:, None].expand_as(rows), rows, "amax")
        inputs = [
            whole[batch["pieces"]],
            y.transpose(1, 2),
            most(y, 0, WITHIN).transpose(1, 2),
            most(around, -BEFORE, BEFORE).transpose(1, 2),
            most(around, WITHIN, AFTER).transpose(1, 2),
            seen,
            batch["numbers"],
        ]
        hidden = torch.relu(self.hidden(self.drop(torch.cat(inputs, 2))))
        logits: torch.Tensor = self.out(self.drop(hidden))[:, :, 0]
        return logits


def collate(rows: Sequence[Row], features: dict[str, int]) -> dict[str, torch.Tensor]:
    """Responses as one batch."""
    longest = max(len(row.encoded.words) for row in rows)
    made: dict[str, Any] = {
        "words": np.full((len(rows), longest), -1, np.int64),
        "classes": np.zeros((len(rows), longest), np.int64),
        "flags": np.zeros((len(rows), longest, FLAGS), np.float32),
        "numbers": np.zeros((len(rows), longest, NUMBERS), np.float32),
        "pieces": np.full((len(rows), longest), sum(len(row.encoded.names) for row in rows), np.int64),
        "labels": np.full((len(rows), longest), -1, np.int64),
        "context": np.zeros((sum(len(row.encoded.names) for row in rows) + 1, len(features)), np.float32),
        "split": np.array([float(bool(row.case.boundaries)) for row in rows], np.float32),
        "weights": np.array([row.case.weight for row in rows], np.float32),
    }
    base = 0
    for b, row in enumerate(rows):
        e, count = row.encoded, len(row.encoded.words)
        for name in ("words", "classes", "flags", "numbers"):
            made[name][b, :count] = getattr(e, name)
        made["pieces"][b, :count][e.pieces >= 0] = e.pieces[e.pieces >= 0] + base
        made["labels"][b, :count] = np.where(e.pieces >= 0, row.labels, -1)
        for k, names in enumerate(e.names):
            made["context"][base + k, [features[n] for n in names if n in features]] = 1
        base += len(e.names)
    return {name: torch.from_numpy(value) for name, value in made.items()}


def loss_of(logits: torch.Tensor, batch: dict[str, torch.Tensor], *, whole: float) -> torch.Tensor:
    """Cross-entropy of the words, per response, and of "this response has a restart" by its likeliest word."""
    cross = nn.functional.binary_cross_entropy_with_logits
    weights, labels = batch["weights"], batch["labels"]
    words = cross(logits, labels.clamp(min=0).float(), reduction="none") * (labels >= 0)
    later = (labels >= 0) & (torch.arange(labels.shape[1]) > 0)
    best = logits.masked_fill(~later, -20.0).max(1)[0]
    responses = words.sum(1) + whole * cross(best, batch["split"], reduction="none")
    return (responses * weights).sum() / weights.sum()


def fit(rows: Sequence[Row], *, networks: int, epochs: int, whole: float = 1.0, threshold: float = 0.0) -> RestartModel:
    """Networks that differ in their seed, fitted one by one."""
    counts = Counter(name for row in rows for names in row.encoded.names for name in names)
    features = {name: k for k, name in enumerate(sorted(name for name, n in counts.items() if n >= 20))}
    rows = [row for row in rows if row.labels]
    made = []
    for seed in range(networks):
        torch.manual_seed(seed)
        network = Network(len(features))
        steps = epochs * (len(rows) // BATCH + 1)
        descent = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
        plan = torch.optim.lr_scheduler.OneCycleLR(descent, RATE, total_steps=steps)
        network.train()
        for _ in range(epochs):
            for picked in torch.randperm(len(rows)).split(BATCH):
                batch = collate([rows[int(k)] for k in picked], features)
                loss = loss_of(network(batch), batch, whole=whole)
                descent.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                descent.step()
                plan.step()
        made.append({name: value.detach().half().float().numpy() for name, value in network.state_dict().items()})
    return RestartModel(tuple(made), features, threshold)


def save(model: RestartModel, path: Path) -> None:
    """The networks in half precision, their features and threshold in the file's metadata."""
    from safetensors.numpy import save_file

    tensors = {f"{k}.{n}": np.asarray(v, np.float16) for k, w in enumerate(model.networks) for n, v in w.items()}
    names = sorted(model.features, key=lambda name: model.features[name])
    held = {"networks": str(len(model.networks)), "threshold": str(model.threshold), "features": json.dumps(names)}
    save_file(tensors, path, metadata=held)


def measured(found: Sequence[Sequence[int]], cases: Sequence[Case]) -> dict[str, Any]:
    """Precision, recall and F1 of "more than one attempt" per response, and how many boundaries are exact."""
    hits = sum(bool(f) and bool(c.boundaries) for f, c in zip(found, cases, strict=True))
    split, truth = sum(bool(f) for f in found), sum(bool(c.boundaries) for c in cases)
    exact = sum(len(set(f) & set(c.boundaries)) for f, c in zip(found, cases, strict=True))
    return {
        "cases": len(cases),
        "f1": round(2 * hits / max(1, split + truth), 3),
        "precision": round(hits / max(1, split), 3),
        "recall": round(hits / max(1, truth), 3),
        "boundaries_near": round(
            sum(any(abs(b - a) <= 10 for a in f) for f, c in zip(found, cases, strict=True) for b in c.boundaries)
            / max(1, sum(len(c.boundaries) for c in cases)),
            3,
        ),
        "boundaries_exact": round(exact / max(1, sum(len(c.boundaries) for c in cases)), 3),
    }


def evaluate(model: RestartModel, rows: Sequence[Row], thresholds: Sequence[float]) -> dict[str, Any]:
    """`measured` at each threshold."""
    logits = [model.logits(row.seen) for row in rows]
    report = {}
    for threshold in thresholds:
        found = [
            [start for start, _ in restarts_among(row.case.response, row.seen, logit, threshold)]
            for row, logit in zip(rows, logits, strict=True)
        ]
        report[str(threshold)] = measured(found, [row.case for row in rows])
    return report


def fitted_on(cases: Sequence[Case], *, rounds: int) -> list[Row]:
    """All rows to fit on for some labelled cases."""
    extra = [replace(case, prompt="", weight=0.3) for case in cases]
    extra += [*composed(cases, rounds=rounds), *in_other_voices(rounds=rounds), *begun_otherwise(cases)]
    return [row_of(case) for case in [*cases, *extra]]


def main() -> None:
    """Leave authors out, or fit on everything and write the weights."""
    parser = argparse.ArgumentParser(description="Fit the restart model to labelled texts.")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--check", action="store_true", help="only leave one author out at a time")
    parser.add_argument("--only", nargs="*", help="with --check: only these files")
    parser.add_argument("--test", nargs="*", type=Path, default=[], help="measure the fitted model on these files too")
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threshold", type=float, default=0.1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted(path.name for path in DATA.glob("restarts*.jsonl") if path.name not in TESTS)
    thresholds = sorted({args.threshold, -1.5, -1.0, -0.5, 0.0})
    if args.check:
        for held in args.only or files:
            began = time.process_time()
            kept = [case for name in files if name != held for case in labelled(name)]
            model = fit(fitted_on(kept, rounds=args.rounds), networks=args.networks, epochs=args.epochs)
            report = evaluate(model, [row_of(case) for case in labelled(held)], thresholds)
            print(json.dumps({"left out": held, "cpu_s": round(time.process_time() - began), **report}), flush=True)
        return
    cases = [case for name in files for case in labelled(name)]
    rows = fitted_on(cases, rounds=args.rounds)
    model = fit(rows, networks=args.networks, epochs=args.epochs, threshold=args.threshold)
    save(model, args.out)
    for path in args.test:
        texts = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        tests = [Case(r["prompt"], r["response"], tuple(r["boundaries"]), 1.0, path.name) for r in texts]
        print(json.dumps({"test": path.name, **evaluate(model, [row_of(case) for case in tests], thresholds)}))


if __name__ == "__main__":
    main()
