"""Fit the restart model's weights to labelled texts, and say how well it does on texts it was not fitted on.

    python bench/fit_restarts.py [--check] [--out src/countersteer/judging/restart_model.json]

Reads the labelled responses in tests/data (never `restarts_fresh.jsonl`, which tests it) and the wordings in
bench/data/restart_phrases.txt, which it puts into the answers of those responses. Cross-validation leaves out whole
responses; the wordings are in every fold's training part. Deterministic.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from countersteer.judging.attempts import restarts_among
from countersteer.judging.observed import Observation, observe
from countersteer.judging.restart_model import RestartModel

ROOT = Path(__file__).resolve().parent.parent
LABELLED = ("restarts.jsonl", "restarts_train.jsonl")
PHRASES = ROOT / "bench" / "data" / "restart_phrases.txt"
FICTION = ROOT / "bench" / "data" / "restart_fiction.txt"
OUT = ROOT / "src" / "countersteer" / "judging" / "restart_model.json"
_ASKING = re.compile(
    r"^(?:how (?:do|can|should|would|to|does|did)(?: i| you| we| one)?|what(?:'s| is| are| was| were)|explain|"
    r"describe|tell me about|give me|why (?:do|does|is|are|did)|who|when|where|can you|could you|please|should i|"
    r"write|summari[sz]e|is|are|does|do|list)\b\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Case:
    """A response with the offsets at which its restarts begin; `weight`: how much it counts in the fit."""

    prompt: str
    response: str
    boundaries: tuple[int, ...]
    weight: float
    source: str


def labelled(name: str) -> list[Case]:
    """The hand-labelled responses of a file in tests/data."""
    rows = [json.loads(line) for line in (ROOT / "tests" / "data" / name).read_text("utf-8").splitlines()]
    return [Case(r["prompt"], r["response"], tuple(r["boundaries"]), 1.0, f"{name}:{r['split']}") for r in rows]


def ordinary(path: Path, *, half: bool) -> list[Case]:
    """Real answers ({"prompt", "response", "attempts", "boundary"}) of a file; half: of every other prompt."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    prompts = set(sorted({row["prompt"] for row in rows})[:: 2 if half else 1])
    return [
        Case(r["prompt"], r["response"], (r["boundary"],) if r["attempts"] > 1 else (), 0.5, "ordinary")
        for r in rows
        if r["prompt"] in prompts
    ]


def _topic(prompt: str) -> str:
    return _ASKING.sub("", prompt.strip().rstrip("?.!")).strip()[:60] or prompt


def _word(text: str, rng: random.Random) -> str:
    """One of the longer words of a text."""
    words = re.findall(r"[a-zA-Z]{4,}", text) or ["that"]
    return rng.choice(sorted(words, key=len)[-4:]).lower()


def in_other_voices(*, rounds: int, seed: int = 1) -> list[Case]:
    """Restart wordings spoken inside stories, letters and scenes written on request: no restarts of the answer."""
    rng = random.Random(seed)
    lines = FICTION.read_text("utf-8").splitlines()[1:]
    requests = [(a[2:], b.split(" | ")) for a, b in zip(lines[::2], lines[1::2], strict=True)]
    phrases = [line[2:] for line in PHRASES.read_text("utf-8").splitlines() if line[:2] == "+ " and "{" not in line]
    made = []
    for prompt, story in requests:
        for phrase in rng.sample(phrases, 6 * rounds):
            if any(word in phrase.lower() for word in ("question", "asked", "topic", "above", "answer")):
                continue
            at = rng.randint(1, len(story) - 1)
            made.append(Case(prompt, " ".join([*story[:at], phrase, *story[at:]]), (), 0.6, "fiction"))
    return made


def _answers(cases: Sequence[Case]) -> list[tuple[str, list[str]]]:
    """Prompts with the sentences of an answer: the last attempt of each response."""
    found = []
    for case in cases:
        text = case.response[case.boundaries[-1] :] if case.boundaries else case.response
        sentences = [s for s in re.split(r"(?<=[.!?])\s+", text) if len(s.split()) > 4]
        if case.boundaries:
            sentences = sentences[1:]
        if sentences and "```" not in text:
            found.append((case.prompt, sentences))
    return found


def composed(cases: Sequence[Case], *, rounds: int, seed: int = 0) -> list[Case]:
    """The wordings of the phrase file put into answers: off topic before, or on topic, whole or broken off."""
    rng = random.Random(seed)
    answers = _answers(cases)
    made = []
    for line in PHRASES.read_text("utf-8").splitlines() * rounds:
        if line[:2] not in ("+ ", "- "):
            continue
        positive, phrase = line[0] == "+", line[2:]
        (prompt, right), (other, wrong) = rng.choice(answers), rng.choice(answers)
        off = rng.random() < (0.65 if positive else 0.1)
        first = (wrong if off else right)[: rng.randint(1, 2)]
        phrase = phrase.replace("{topic}", _topic(prompt)).replace("{wrong}", _topic(other))
        phrase = phrase.replace("{word}", _word(" ".join(first), rng)).replace("{key}", _word(_topic(prompt), rng))
        if phrase[:1].islower() and line[2] == "{":
            phrase = phrase[0].upper() + phrase[1:]
        after = right[-rng.randint(1, 2) :]
        join = rng.choice([" ", " ", " ", "\n\n"])
        lead = " ".join(first)
        if positive and rng.random() < 0.3:
            words = lead.split()
            lead = " ".join(words[: rng.randint(max(3, len(words) // 2), max(4, len(words) - 2))]).rstrip(".,;:")
            join = rng.choice(["... ", " - ", " — ", "— ", "—", "… ", ", "])
            if rng.random() < 0.6:
                phrase = phrase[0].lower() + phrase[1:] if not phrase.startswith(("I ", "I'", "EDIT")) else phrase
        elif positive and rng.random() < 0.1:
            phrase = phrase.lower().replace("'", "")
        if rng.random() < 0.15:
            phrase = phrase.replace("'", "\u2019")
        rest = " ".join(after)
        if phrase.endswith((":", ",")) and rng.random() < 0.5:
            rest = rest[0].lower() + rest[1:]
        response = f"{lead}{join}{phrase} {rest}"
        boundary = (len(lead) + len(join),) if positive else ()
        known = prompt if rng.random() < 0.8 else ""
        made.append(Case(known, response, boundary, 0.6, "phrases"))
    return made


def rows_of(case: Case, seen: Observation) -> list[tuple[tuple[str, ...], int]]:
    """Features and labels of a case's places; those between a restart's first piece and its content are left out."""
    made = []
    doubtful = -1
    held = -1
    for place in seen.places:
        piece = place.piece
        begins = any(piece.start - 2 <= b < piece.end and b > held for b in case.boundaries)
        if begins:
            held = max(b for b in case.boundaries if b < piece.end)
            doubtful = piece.end + 90
            made.append((place.names, 1))
        elif piece.start < doubtful and (place.evidence.weight > 0 or piece.end - piece.start < 60):
            continue
        else:
            made.append((place.names, 0))
    return [row for row in made if row[0]]


def fit(cases: Sequence[Case], seen: Sequence[Observation], *, penalty: float, least: int) -> RestartModel:
    """Logistic regression with an L2 penalty on features that at least `least` places have."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    rows = [(n, y, c.weight) for c, s in zip(cases, seen, strict=True) for n, y in rows_of(c, s)]
    counts: dict[str, int] = {}
    for names, _, _ in rows:
        for name in names:
            counts[name] = counts.get(name, 0) + 1
    index = {name: k for k, name in enumerate(sorted(n for n, c in counts.items() if c >= least))}
    indices, starts = [], [0]
    for names, _, _ in rows:
        indices += [index[name] for name in names if name in index]
        starts.append(len(indices))
    matrix = csr_matrix((np.ones(len(indices)), indices, starts), shape=(len(rows), len(index)))
    model = LogisticRegression(C=penalty, solver="liblinear", max_iter=400, fit_intercept=False, random_state=0)
    model.fit(matrix, [y for _, y, _ in rows], sample_weight=[w for _, _, w in rows])
    weights = {name: round(float(model.coef_[0, k]), 4) for name, k in index.items()}
    return RestartModel({n: w for n, w in weights.items() if abs(w) >= 0.02}, 0.0)


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


def validate(
    cases: Sequence[Case],
    seen: Sequence[Observation],
    extra: Sequence[Case],
    seen_extra: Sequence[Observation],
    *,
    penalty: float,
    least: int,
    thresholds: Sequence[float],
    folds: int = 8,
) -> dict[float, list[list[int]]]:
    """Restarts found in each case by a model fitted without it, by threshold."""
    order = list(range(len(cases)))
    random.Random(1).shuffle(order)
    found: dict[float, list[list[int]]] = {t: [[] for _ in cases] for t in thresholds}
    for fold in range(folds):
        held = set(order[fold::folds])
        kept = [k for k in range(len(cases)) if k not in held]
        model = fit(
            [*(cases[k] for k in kept), *extra], [*(seen[k] for k in kept), *seen_extra], penalty=penalty, least=least
        )
        for k in held:
            for t in thresholds:
                decided = restarts_among(cases[k].response, seen[k], RestartModel(model.weights, t))
                found[t][k] = [start for start, _ in decided]
    return found


def main() -> None:
    """Cross-validate, fit on everything, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--also", type=Path, help="real answers to fit on too")
    parser.add_argument("--half", action="store_true", help="of those, only every other prompt")
    parser.add_argument("--check", action="store_true", help="only cross-validate")
    parser.add_argument("--penalty", type=float, default=0.3)
    parser.add_argument("--least", type=int, default=2)
    parser.add_argument("--threshold", type=float, default=-0.9)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cases = [case for name in LABELLED for case in labelled(name)]
    extra = [*composed(cases, rounds=args.rounds), *in_other_voices(rounds=args.rounds)]
    extra += ordinary(args.also, half=args.half) if args.also else []
    seen = [observe(case.response, case.prompt) for case in cases]
    seen_extra = [observe(case.response, case.prompt) for case in extra]
    thresholds = sorted({args.threshold, -1.5, -1.0, -0.5, 0.0})
    found = validate(cases, seen, extra, seen_extra, penalty=args.penalty, least=args.least, thresholds=thresholds)
    report = {}
    for source in dict.fromkeys(case.source for case in cases):
        picked = [k for k, case in enumerate(cases) if case.source == source]
        for t in thresholds:
            report[f"{source} at {t}"] = measured([found[t][k] for k in picked], [cases[k] for k in picked])
    print(json.dumps(report, indent=1))
    if not args.check:
        model = fit([*cases, *extra], [*seen, *seen_extra], penalty=args.penalty, least=args.least)
        data = {"threshold": args.threshold, "weights": dict(sorted(model.weights.items()))}
        args.out.write_text(json.dumps(data, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
