"""Paired contrasts: pairing, intervals, permutation p and Holm, against brute force and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from countersteer.core.errors import InputError
from countersteer.statistics import contrast, holm, mover, pair, rate


def test_pairs_are_the_shared_keys_in_bases_order() -> None:
    base = {(1, "a", 0): 0.0, (1, "b", 0): 1.0, (2, "a", 0): None}
    arm = {(2, "a", 0): 1.0, (1, "a", 0): 1.0, (9, "z", 0): 0.0}
    found = pair(arm, base)
    assert (found.arm, found.base) == ((1.0, 1.0), (0.0, None))
    assert (found.clusters, found.prompts, found.unpaired) == ((1, 2), ("a", "a"), 2)


def test_exact_p_equals_enumeration_over_whole_clusters() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(7), 4)
    arm, base = rng.normal(0.5, 1, 28), rng.normal(0, 1, 28)
    gaps = np.array([np.sum((arm - base)[clusters == code]) for code in range(7)])
    signs = np.array(list(itertools.product([1, -1], repeat=7)))
    expected = np.mean(np.abs(signs @ gaps) >= abs(gaps.sum()) - 1e-12)
    found = contrast(arm, base, clusters, rng, binary=False)
    assert found.p == pytest.approx(expected)
    assert found.difference == pytest.approx(arm.mean() - base.mean())
    assert found.ratio == pytest.approx(arm.mean() / base.mean())


def test_sampled_p_is_near_the_exact_one() -> None:
    rng = np.random.default_rng(1)
    gaps = rng.normal(0.35, 1, 18)
    signs = np.array(list(itertools.product([1, -1], repeat=18)))
    expected = np.mean(np.abs(signs @ gaps) >= abs(gaps.sum()) - 1e-12)
    found = contrast(gaps, np.zeros(18), list(range(18)), rng, binary=False)
    assert found.p == pytest.approx(expected, abs=4 * np.sqrt(expected / 9999))


def test_p_is_uniform_under_no_effect() -> None:
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(60), 5)
    ps = []
    for _ in range(200):
        risks = np.repeat(rng.beta(0.5, 5, 60), 5)
        arm, base = (rng.random(300) < risks).astype(int), (rng.random(300) < risks).astype(int)
        ps.append(contrast(arm, base, clusters, rng, binary=True).p)
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.10
    assert 0.35 <= np.mean(np.array(ps) < 0.5) <= 0.62


def test_a_ratio_over_zero_events_is_none_with_a_status() -> None:
    found = contrast([1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 2, 2], np.random.default_rng(0), binary=True)
    assert (found.ratio, found.ratio_interval, found.ratio_status) == (None, None, "zero-events")
    assert found.difference == 0.5 and found.interval is not None


def test_zero_events_in_both_arms_still_bound_the_difference() -> None:
    zeros = [0] * 300
    found = contrast(zeros, zeros, np.repeat(np.arange(60), 5), np.random.default_rng(0), binary=True)
    assert found.interval is not None and found.p == 1.0
    assert found.interval.low == pytest.approx(-found.interval.high)
    assert 0.005 < found.interval.high < 0.05


def test_an_empty_denominator_is_no_data() -> None:
    found = contrast([None, None], [1, 0], [1, 2], np.random.default_rng(0), binary=True)
    assert (found.difference, found.p, found.ratio_status, found.base) == (None, None, "no-data", 0.5)


def test_ratio_limits_are_fiellers_roots() -> None:
    """The limits R solve (p - R q)^2 = (distance to p's limit)^2 + R^2 (distance to q's limit)^2."""
    rng = np.random.default_rng(3)
    clusters, prompts = np.repeat(np.arange(60), 5), np.tile(np.arange(5), 60)
    for share in (0.02, 0.1, 0.5):
        arm = rate((rng.random(300) < share).astype(int), clusters, prompts)
        base = rate((rng.random(300) < 0.3).astype(int), clusters, prompts)
        p, q, (low, high), (base_low, base_high) = (
            arm.value,
            base.value,
            arm.interval.as_list(),
            base.interval.as_list(),
        )
        for r in (0.0, 0.4):
            found = mover.ratio(arm, base, correlation=r)

            def gap(x: float, own: float, other: float, r: float = r, p: float = p, q: float = q) -> float:
                return (p - x * q) ** 2 - (own**2 - 2 * r * own * x * other + (x * other) ** 2)

            assert gap(found.low, p - low, base_high - q) == pytest.approx(0, abs=1e-9)
            assert gap(found.high, high - p, q - base_low) == pytest.approx(0, abs=1e-9)
            assert found.low < p / q < found.high


@pytest.mark.parametrize(
    ("latents", "base_share", "arm_share"), [(500, 0.04, 0.02), (500, 0.005, 0.005), (60, 0.08, 0.2)]
)
def test_intervals_of_difference_and_ratio_cover(latents: int, base_share: float, arm_share: float) -> None:
    """Arms that share each latent's susceptibility (correlation 0.15), sampled afresh."""
    rng = np.random.default_rng(4)
    clusters, total = np.repeat(np.arange(latents), 5), 1 / 0.15 - 1
    differences = ratios = 0
    for _ in range(300):
        base_risk = rng.beta(base_share * total, (1 - base_share) * total, latents)
        arm_risk = rng.beta(arm_share * total, (1 - arm_share) * total, latents)
        if arm_share <= base_share:
            arm_risk = base_risk * arm_share / base_share
        base = (rng.random(5 * latents) < base_risk[clusters]).astype(int)
        arm = (rng.random(5 * latents) < arm_risk[clusters]).astype(int)
        found = contrast(arm, base, clusters, rng, binary=True)
        differences += found.interval.low <= arm_share - base_share <= found.interval.high
        limits = found.ratio_interval
        ratios += limits is None or limits.low <= arm_share / base_share <= (limits.high or np.inf)
    assert 0.915 <= differences / 300 <= 0.99
    assert 0.915 <= ratios / 300 <= 0.99


def test_bootstrap_intervals_of_scores_cover() -> None:
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(60), 5)
    hits = ratios = 0
    for _ in range(250):
        level = rng.gamma(9, 3, 60)[clusters]
        base, arm = level + rng.normal(0, 12, 300), 1.2 * level + rng.normal(0, 12, 300)
        found = contrast(arm, base, clusters, rng, binary=False)
        hits += found.interval.low <= 0.2 * 27 <= found.interval.high
        ratios += found.ratio_interval.low <= 1.2 <= found.ratio_interval.high
    assert 0.90 <= hits / 250 <= 0.985 and 0.90 <= ratios / 250 <= 0.985


def test_holm_steps_down_and_leaves_missing_tests_out() -> None:
    # Ordered 0.01 x 3, 0.02 x 2, 0.04 x 1, each at least the one before.
    assert holm([0.04, None, 0.01, 0.02]) == pytest.approx([0.04, None, 0.03, 0.04])
    assert holm([None]) == [None]


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(InputError, match="base values"):
        contrast([1, 0], [1], [1, 2], np.random.default_rng(0), binary=True)
