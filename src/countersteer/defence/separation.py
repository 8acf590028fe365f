"""Directions that separate aligned from malicious responses at one layer, and how well they do. Pure numpy.

One embedding per response: the mean residual over its tokens. Logistic regression (L-BFGS, C = 1, aligned = 1, nothing
standardised) gives w, b; then v = w/|w| and the boundary m = -b/|w|. mu and sigma are mean and sample SD of the
responses' projections on v, D = mu+ - mu-. Coherence paper (arXiv 2604.08169), section on steering vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from countersteer.core.errors import InputError

Floats = NDArray[np.float64]
KINDS = ("logistic", "mean-difference", "caa", "lat")
"""Directions that a fit has: of the classifier; of the means; of the means at the last token; of a PCA of pairs."""


@dataclass(frozen=True)
class Along:
    """Where the two classes lie along a unit direction: `boundary` m, means and SDs (mu+, sigma+, mu-, sigma-)."""

    boundary: float
    aligned_mean: float
    aligned_spread: float
    malicious_mean: float
    malicious_spread: float

    @property
    def separation(self) -> float:
        """D = mu+ - mu-."""
        return self.aligned_mean - self.malicious_mean

    @property
    def cohen_d(self) -> float | None:
        """D over the pooled SD of the responses; None where both spreads are 0."""
        pooled = float(np.sqrt((self.aligned_spread**2 + self.malicious_spread**2) / 2))
        return self.separation / pooled if pooled > 0 else None

    def flipped(self) -> Along:
        """The same numbers along -v with the classes exchanged: a push towards the malicious side."""
        return Along(-self.boundary, -self.malicious_mean, self.malicious_spread, -self.aligned_mean,
                     self.aligned_spread)  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain data with D and d."""
        return {**asdict(self), "separation": self.separation, "cohen_d": self.cohen_d}


@dataclass(frozen=True)
class HeldOut:
    """Cross-validated separation of responses: accuracy and AUC, and Cohen's d of the signed distances."""

    accuracy: float
    auc: float
    cohen_d: float | None
    folds: int


def logistic(aligned: Floats, malicious: Floats) -> tuple[Floats, float]:
    """(v [d_model], m): unit normal of the classifier of embeddings [n, d_model], boundary along it."""
    from sklearn.linear_model import LogisticRegression

    x = np.concatenate([aligned, malicious]).astype(np.float64)
    y = np.concatenate([np.ones(len(aligned)), np.zeros(len(malicious))])
    fitted = LogisticRegression(C=1.0, solver="lbfgs", max_iter=10_000).fit(x, y)
    w, b = fitted.coef_[0], float(fitted.intercept_[0])
    size = float(np.linalg.norm(w))
    if not size > 0:
        raise InputError("the two kinds of responses cannot be told apart: their embeddings are the same")
    return w / size, -b / size


def mean_difference(aligned: Floats, malicious: Floats) -> Floats:
    """The unit difference of the means [d_model]. Raises InputError where they are equal."""
    return _unit(aligned.mean(0) - malicious.mean(0), "the two kinds of responses have the same mean")


def lat(aligned: Floats, malicious: Floats, rng: np.random.Generator) -> Floats:
    """First principal component of the pairs' differences with random signs; its sign is the data's. RepE, 2310.01405.

    Embeddings [n, d_model], paired by row. The random signs make the component an axis of variation, not the mean.
    """
    pairs = aligned - malicious
    signed = pairs * rng.choice([-1.0, 1.0], size=(len(pairs), 1))
    axis = np.linalg.svd(signed - signed.mean(0), full_matrices=False)[2][0]
    axis = _unit(axis, "the pairs of responses do not differ")
    return axis if float((pairs @ axis).mean()) >= 0 else -axis


def along(direction: Floats, aligned: Floats, malicious: Floats, *, boundary: float | None = None) -> Along:
    """The classes along a unit direction; without `boundary` it is half-way between their means."""
    p, n = aligned @ direction, malicious @ direction
    middle = (float(p.mean()) + float(n.mean())) / 2 if boundary is None else boundary
    return Along(middle, float(p.mean()), _sd(p), float(n.mean()), _sd(n))


def held_out(
    aligned: Floats, malicious: Floats, groups: Sequence[str], rng: np.random.Generator, *, folds: int = 5
) -> HeldOut:
    """Cross-validated separation of the logistic direction, whole groups left out. `groups` [n], one per pair."""
    names = sorted(set(groups))
    folds = min(folds, len(names))
    if folds < 2:
        raise InputError("held-out separation needs scenarios of at least two groups")
    order = rng.permutation(len(names))
    fold_of = {names[i]: k % folds for k, i in enumerate(order)}
    member = np.array([fold_of[g] for g in groups])
    p, n = np.zeros(len(aligned)), np.zeros(len(malicious))
    for fold in range(folds):
        out = member == fold
        v, m = logistic(aligned[~out], malicious[~out])
        p[out], n[out] = aligned[out] @ v - m, malicious[out] @ v - m
    pooled = float(np.sqrt((_sd(p) ** 2 + _sd(n) ** 2) / 2))
    right = float((np.concatenate([p > 0, n <= 0])).mean())
    return HeldOut(right, auc(p, n), float(p.mean() - n.mean()) / pooled if pooled > 0 else None, folds)


def auc(above: Floats, below: Floats) -> float:
    """P(a value of `above` exceeds one of `below`), ties half."""
    gaps = above[:, None] - below[None, :]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def _sd(values: Floats) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _unit(vector: Floats, problem: str) -> Floats:
    size = float(np.linalg.norm(vector))
    if not size > 0:
        raise InputError(f"{problem}: there is no direction from one to the other")
    return vector / size
