"""The detector search finds what was planted, and nothing where nothing was; its formulas against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from countersteer.core.errors import InputError
from countersteer.statistics import detectors


def pairs(count: int, wanted: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    shuffles = detectors.derangements(count, wanted, np.random.default_rng(seed))
    left = np.concatenate([np.arange(count)] * (1 + len(shuffles)))
    return left, np.concatenate([np.arange(count), *shuffles])


def test_derangements_have_no_fixed_point_and_share_no_pair() -> None:
    for count in (2, 3, 10, 38):
        found = detectors.derangements(count, 5, np.random.default_rng(count))
        assert found.shape == (min(5, count - 1), count)
        seen = set()
        for row in found:
            assert sorted(row) == list(range(count)) and not (row == np.arange(count)).any()
            seen |= set(enumerate(row.tolist()))
        assert len(seen) == found.size


def test_auc_and_cohen_d_are_those_of_scipy_and_by_hand() -> None:
    left, right = pairs(9, 4)
    values = np.random.default_rng(1).integers(0, 4, (len(left), 30)).astype(np.float32)
    found = detectors.separation(values, left, right, np.random.default_rng(0), draws=20)
    matched = left == right
    for k in range(30):
        one, other = values[matched, k].astype(float), values[~matched, k].astype(float)
        u = stats.mannwhitneyu(other, one).statistic
        assert found.auc[k] == pytest.approx(u / (len(one) * len(other)))
        pooled = (8 * one.var(ddof=1) + 35 * other.var(ddof=1)) / 43
        assert found.cohen_d[k] == pytest.approx((other.mean() - one.mean()) / np.sqrt(pooled))
        assert found.strict[k] == (one.max() == 0 and (other > 0).mean() >= 0.8)


def test_planted_detectors_are_found_and_nothing_else() -> None:
    left, right = pairs(20, 5)
    draw = np.random.default_rng(2)
    effect_of_response = draw.normal(size=(20, 400))
    values = np.maximum(effect_of_response[right] + draw.normal(size=(len(left), 400)), 0).astype(np.float32)
    planted = [7, 100, 399]
    values[:, planted] += 4.0 * (left != right)[:, None]
    found = detectors.separation(values, left, right, np.random.default_rng(0), draws=300)
    assert sorted(np.flatnonzero(found.p <= 0.05)) == planted
    assert sorted(detectors.top(found, 3)) == planted


def test_the_null_holds_where_latents_depend_on_the_response_alone() -> None:
    wrong = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        left, right = pairs(12, 4, seed)
        values = (draw.normal(size=(12, 60))[right] + 0.3 * draw.normal(size=(len(left), 60))).astype(np.float32)
        wrong += bool((detectors.separation(values, left, right, draw, draws=99).p <= 0.05).any())
    assert wrong <= stats.binom.ppf(0.999, 60, 0.05)


def test_silent_latents_are_never_chosen_and_one_prompt_is_refused() -> None:
    left, right = pairs(4, 2)
    found = detectors.separation(np.zeros((len(left), 5), np.float32), left, right, np.random.default_rng(0), draws=9)
    assert detectors.top(found, 3).size == 0 and (found.auc == 0.5).all()
    with pytest.raises(InputError, match="at least 2 prompts"):
        detectors.derangements(1, 3, np.random.default_rng(0))
    with pytest.raises(InputError, match="one matched pair"):
        detectors.separation(np.zeros((2, 1), np.float32), [0, 1], [1, 0], np.random.default_rng(0))
