"""An offline judge of a trait: a classifier of texts, learned from answers whose tone is known, never from activations.

Word pairs and words, weighted by their rarity (TF-IDF), in a logistic regression; 100 is the trait, 0 its opposite. It
is trained on unsteered answers under both system prompts, on prompts used nowhere else, and it holds for texts of that
kind only: the shipped one judges the organism, nothing else. No word of it was chosen by hand.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint

VERSION = 1
"""Changes whenever the same text may be scored differently by the same weights."""
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")


def features(text: str) -> Counter[str]:
    """Words and pairs of neighbouring words of a text, in lower case."""
    words = [word.replace("\u2019", "'") for word in _WORD.findall(text.lower())]
    return Counter([*words, *(f"{a} {b}" for a, b in pairwise(words))])


@dataclass(frozen=True)
class TraitJudge:
    """A trained classifier. `weights`: per feature (rarity, weight); `about`: what it was trained on and how well."""

    trait: str
    intercept: float
    weights: Mapping[str, tuple[float, float]]
    about: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """Name, version and hash of the weights: what a stored score is valid for."""
        return f"trait-{self.trait}-{VERSION}:{fingerprint([VERSION, self.trait, self.intercept, dict(self.weights)])}"

    def logit(self, text: str) -> float | None:
        """Log-odds that a text shows the trait; None if it has no word that the classifier knows."""
        known = {f: n * self.weights[f][0] for f, n in features(text).items() if f in self.weights}
        length = math.sqrt(sum(v * v for v in known.values()))
        if not length:
            return None
        return self.intercept + sum(v / length * self.weights[f][1] for f, v in known.items())

    def score(self, text: str) -> float | None:
        """The trait in a text, 0-100; None (no evidence) if it has no word that the classifier knows."""
        value = self.logit(text)
        return None if value is None else round(100.0 / (1.0 + math.exp(-max(-700.0, min(700.0, value)))), 2)

    def save(self, path: str | Path) -> None:
        """Write the classifier as JSON."""
        data = {
            "version": VERSION,
            "trait": self.trait,
            "about": dict(self.about),
            "intercept": self.intercept,
            "weights": {f: list(pair) for f, pair in sorted(self.weights.items())},
        }
        Path(path).write_text(json.dumps(data, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def load(source: str | Path) -> TraitJudge:
    """The shipped judge "warm" (of the organism), or one from a file that `save` wrote. Raises InputError."""
    if str(source) == "warm":
        return _shipped()
    try:
        return _read(Path(source).read_text(encoding="utf-8"), str(source))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read trait judge {source}: {error}; use 'warm' or a file that save wrote") from error


@cache
def _shipped() -> TraitJudge:
    text = (resources.files("countersteer.judging") / "trait_warm.json").read_text(encoding="utf-8")
    return _read(text, "warm")


def _read(text: str, where: str) -> TraitJudge:
    try:
        data = json.loads(text)
        if data["version"] != VERSION:
            raise InputError(f"trait judge {where} is not of version {VERSION}; train it again")
        weights = {str(f): (float(a), float(b)) for f, (a, b) in data["weights"].items()}
        return TraitJudge(str(data["trait"]), float(data["intercept"]), weights, data["about"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where} is not a trait judge: {error}; train one again") from error


def train(texts: Sequence[str], shows: Sequence[bool], *, trait: str, about: Mapping[str, Any]) -> TraitJudge:
    """A judge trained on texts that show the trait or its opposite. Raises InputError for a one-sided set.

    Features of at least two texts; ridge penalty C = 1 as the coherence paper's probes have it.
    """
    import numpy as np
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    if len(texts) != len(shows) or len(set(map(bool, shows))) < 2:
        raise InputError("a trait judge needs texts of both kinds, each with its kind")
    counted = [features(text) for text in texts]
    spread = Counter(f for one in counted for f in one)
    names = sorted(f for f, n in spread.items() if n >= 2)
    index = {f: i for i, f in enumerate(names)}
    rarity = [math.log((1 + len(texts)) / (1 + spread[f])) + 1.0 for f in names]
    rows, columns, values = [], [], []
    for r, one in enumerate(counted):
        known = {f: n * rarity[index[f]] for f, n in one.items() if f in index}
        length = math.sqrt(sum(v * v for v in known.values())) or 1.0
        for f, v in known.items():
            rows.append(r)
            columns.append(index[f])
            values.append(v / length)
    matrix = csr_matrix((values, (rows, columns)), shape=(len(texts), len(names)))
    fitted = LogisticRegression(C=1.0, max_iter=2000).fit(matrix, np.asarray(shows, dtype=int))
    weights = {f: (round(rarity[i], 5), round(float(fitted.coef_[0, i]), 5)) for f, i in index.items()}
    return TraitJudge(trait, round(float(fitted.intercept_[0]), 5), weights, dict(about))
