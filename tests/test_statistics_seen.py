"""AUC of clustered trials, levels among themselves, and what a contrast could see: against scipy and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import rng
from countersteer.statistics import Retry, among, clustered_auc, contrast, rate, resample_baseline, smallest
from countersteer.statistics.contrasts import Contrast
from countersteer.statistics.permutation import swap_test


def test_auc_is_mann_whitneys_and_its_interval_the_independent_one_without_clusters() -> None:
    draw = np.random.default_rng(0)
    one, other = draw.normal(0.6, 1, 60), draw.normal(0, 1, 90)
    kinds = np.r_[np.ones(60, bool), np.zeros(90, bool)]
    found = clustered_auc(np.r_[one, other][:, None], kinds, np.arange(150), rng(0, "a"))
    u = stats.mannwhitneyu(one, other)
    assert found.auc[0] == pytest.approx(u.statistic / 5400)
    assert found.p[0] == pytest.approx(u.pvalue, abs=0.004)
    assert found.spread[0] == pytest.approx(np.sqrt(151 / (12 * 5400)), rel=0.06), "Mann-Whitney's null variance"
    # DeLong's variance, from its own definition
    wins = (one[:, None] > other[None, :]).mean(axis=1), (one[:, None] > other[None, :]).mean(axis=0)
    error = np.sqrt(wins[0].var(ddof=1) / 60 + wins[1].var(ddof=1) / 90)
    (interval,) = found.intervals
    assert interval is not None and interval.low is not None and interval.high is not None
    assert (interval.high - interval.low) / 2 == pytest.approx(1.99 * error, rel=0.05)


def test_copies_within_a_cluster_are_no_more_evidence() -> None:
    draw = np.random.default_rng(1)
    values, kinds = draw.normal(0, 1, 24), np.arange(24) % 3 == 0
    values[kinds] += 1.1
    single = clustered_auc(values[:, None], kinds, np.arange(24), rng(0, "b"))
    copied = clustered_auc(
        np.repeat(values, 20)[:, None], np.repeat(kinds, 20), np.repeat(np.arange(24), 20), rng(0, "b")
    )
    naive = stats.mannwhitneyu(np.repeat(values[kinds], 20), np.repeat(values[~kinds], 20)).pvalue
    assert naive < 1e-6 < 0.004 < copied.p[0] and copied.p[0] == pytest.approx(single.p[0], abs=0.02)
    (one,), (other,) = single.intervals, copied.intervals
    assert one is not None and other is not None
    assert other.as_list() == pytest.approx(one.as_list(), abs=1e-9) and copied.one_clusters == 8


def test_auc_keeps_its_size_and_coverage_where_latents_differ() -> None:
    """Restarts and activations both vary by latent, independently: naive Mann-Whitney rejects far too often."""
    draw, size, naive, covered, runs = np.random.default_rng(2), 0, 0, 0, 250
    for seed in range(runs):
        risks = np.repeat(draw.beta(0.2, 0.6, 24), 5)
        kinds = draw.random(120) < risks
        values = np.repeat(draw.normal(0, 2, 24), 5) + draw.normal(0, 1, 120)
        found = clustered_auc(values[:, None], kinds, np.repeat(np.arange(24), 5), rng(seed, "c"), draws=199)
        size += found.p[0] <= 0.05
        naive += stats.mannwhitneyu(values[kinds], values[~kinds]).pvalue <= 0.05
        (interval,) = found.intervals
        assert interval is not None and interval.low is not None and interval.high is not None
        covered += interval.low <= 0.5 <= interval.high
    assert naive / runs > 0.15 and 0.01 <= size / runs <= 0.09
    assert 0.91 <= covered / runs <= 0.99


def test_auc_says_what_it_cannot_bound_and_refuses_what_it_cannot_read() -> None:
    values = np.arange(6.0)[:, None]
    kinds = np.array([False, False, False, False, True, True])
    found = clustered_auc(values, kinds, [1, 2, 3, 4, 5, 5], rng(0, "d"))
    assert found.auc[0] == 1.0 and found.intervals == (None,), "one cluster holds both of the first kind"
    found = clustered_auc(values, kinds, [1, 2, 3, 4, 5, 6], rng(0, "d"))
    (interval,) = found.intervals
    assert interval is not None and interval.low is not None and 0 < interval.low < 0.5 and interval.high == 1.0
    for bad in ((values * np.nan, kinds, range(6)), (values, kinds[:5], range(6)), (values, kinds | True, range(6))):
        with pytest.raises(InputError):
            clustered_auc(bad[0], bad[1], list(bad[2]), rng(0, "e"))


def test_levels_that_do_not_differ_are_told_apart_from_those_that_do() -> None:
    draw = np.random.default_rng(3)
    ps = []
    for seed in range(150):
        risks = draw.beta(1, 4, 20)
        levels = {
            str(k): ((draw.random((20, 4)) < risks[:, None]).ravel() * 1.0, np.repeat(np.arange(20), 4))
            for k in range(5)
        }
        ps.append(among({k: (v.tolist(), c.tolist()) for k, (v, c) in levels.items()}, rng(seed, "l"), draws=199).p)
    assert 0.01 <= np.mean(np.array(ps) <= 0.05) <= 0.10 and 0.4 <= np.mean(np.array(ps) <= 0.5) <= 0.6
    rows = {str(k): ([float(k == 2)] * 12, list(range(12))) for k in range(3)}
    found = among(rows, rng(0, "m"))
    assert found.p is not None and found.p < 0.001 and (found.levels, found.latents) == (3, 12)
    two = {k: (draw.normal(0.3 * (k == "a"), 1, 9).tolist(), list(range(9))) for k in ("a", "b")}
    totals = np.stack([np.array(two["a"][0]), np.ones(9), np.array(two["b"][0]), np.ones(9)], axis=1)
    exact = swap_test(totals, lambda t: t[..., 0] / t[..., 1] - t[..., 2] / t[..., 3], rng(0, "n"))
    assert among(two, rng(0, "o")).p == pytest.approx(exact, abs=0.025), "two levels are a swap test"
    assert among({"a": ([1.0], [1])}, rng(0, "p")).p is None


def by_hand(base: float, n: int, clusters: int, **more: object) -> Contrast:
    return Contrast(base, base, 0.0, None, None, None, "ok", 1.0, n, clusters, (n, n), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("way", "alpha"), [("rise", 0.05), ("fall", 0.05), ("rise", 0.005)])
def test_four_in_five_planted_effects_of_that_size_are_found(way: str, alpha: float) -> None:
    found = smallest(by_hand(0.3, 240, 60, effects=(1.0, 1.0), error=0.04, least_p=1e-4), alpha=alpha)
    assert found is not None
    gap = getattr(found, way)
    draw, hits, runs = np.random.default_rng(5), 0, 200
    for _ in range(runs):
        sides = [(draw.random((60, 4)) < p).sum(axis=1) for p in (0.3 + gap, 0.3)]
        totals = np.stack([sides[0], np.full(60, 4), sides[1], np.full(60, 4)], axis=1).astype(float)
        p = swap_test(totals, lambda t: t[..., 0] / t[..., 1] - t[..., 2] / t[..., 3], draw, draws=999)
        hits += p <= alpha
    assert 0.7 <= hits / runs <= 0.9


def test_few_latents_cannot_show_anything_whatever_the_effect() -> None:
    ones, clusters = [1.0] * 24, np.repeat(np.arange(6), 4)
    found = contrast(ones, [0.0] * 24, clusters, rng(0, "f"), binary=True)
    assert found.p == found.least_p == 2 / 64, "all six latents agree"
    said = smallest(found, alpha=0.05 / 26)
    assert said is not None and said.few and said.rise is None and said.fall is None
    assert smallest(found, alpha=0.05) is not None and not smallest(found, alpha=0.05).few  # type: ignore[union-attr]


def test_scores_are_seen_by_their_clustered_error() -> None:
    draw = np.random.default_rng(6)
    arm, base = draw.normal(50, 10, 40), draw.normal(50, 10, 40)
    found = contrast(arm, base, range(40), rng(0, "g"), binary=False)
    gap = arm - base
    assert found.error == pytest.approx(gap.std(ddof=1) / np.sqrt(40)) and found.sizes == (40, 40)
    said = smallest(found)
    assert said is not None and said.rise == pytest.approx((2.0227 + 0.8512) * found.error, rel=1e-3)
    assert said.fall == -said.rise
    nothing = contrast([None], [1.0], [1], rng(0, "h"), binary=False)
    assert smallest(nothing) is None and nothing.sizes == (0, 1)


def test_denominators_of_each_arm_are_told() -> None:
    found = contrast([1.0, None, None, 0.0], [None, 0.0, 1.0, 1.0], [1, 1, 2, 3], rng(0, "i"), binary=True)
    assert found.sizes == (2, 3) and found.pairs == 4
    lone = contrast([1.0, None, None], [1.0, None, None], [1, 2, 3], rng(0, "j"), binary=True)
    assert lone.clusters == 1, "latents without a value in either arm tell nothing"


def test_one_latent_bounds_no_rate_and_no_difference() -> None:
    found = rate([1, 1, 0], [7, 7, 7], ["a", "b", "c"])
    assert found.value == pytest.approx(2 / 3) and found.interval is None and found.wilson is not None
    assert contrast([1.0, 0.0], [0.0, 0.0], [7, 7], rng(0, "k"), binary=True).interval is None


def test_recovery_has_a_p_from_swapping_within_latents() -> None:
    retries = [Retry(k, "p", 20.0, 80.0 if k < 7 else 10.0, (30.0 if k >= 7 else 10.0,)) for k in range(8)]
    found = resample_baseline(retries, rng(0, "q"))
    # gaps: +1 in seven latents, -1 in one; |sum| = 6 or more: 2 * (1 + 8) of 256 sign patterns
    assert found.recovery == 6 / 8 and found.p == 18 / 256 and found.clusters == 8
    assert found.error == pytest.approx(np.array([1.0] * 7 + [-1.0]).std(ddof=1) / np.sqrt(8))
