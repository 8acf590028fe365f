"""Resample baseline, agreement of judges and power: hand-worked values, other libraries, simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from countersteer.core.errors import InputError
from countersteer.statistics import Design, Retry, agreement, detectable, resample_baseline
from countersteer.statistics.power import standard_error


def test_resample_baseline_by_hand() -> None:
    retries = [
        Retry(1, "a", first=20, last=80, fresh=(10, 30, 20)),  # improved; fresh 1/3, tie 1/3
        Retry(1, "b", first=50, last=50, fresh=(60, None, 70)),  # tie; fresh 2/2
        Retry(2, "a", first=30, last=10, fresh=(5, 30, None)),  # worse; fresh 0, tie 1/2
        Retry(3, "c", first=30, last=90, fresh=(None, None, None)),  # nothing to compare with
    ]
    found = resample_baseline(retries, np.random.default_rng(0))
    assert found.improved.value == pytest.approx(1 / 3)
    assert found.baseline.value == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert found.recovery == pytest.approx(1 / 3 - 4 / 9)
    assert found.improved_ties == pytest.approx(1 / 3)
    assert found.baseline_ties == pytest.approx((1 / 3 + 0 + 1 / 2) / 3)
    assert (found.trials, found.without_fresh, found.missing_fresh) == (3, 1, 5)


def test_no_retries_is_no_recovery_rather_than_zero() -> None:
    found = resample_baseline([], np.random.default_rng(0))
    assert (found.recovery, found.recovery_interval, found.improved.value, found.trials) == (None, None, None, 0)


def test_regression_to_the_mean_alone_gives_no_recovery() -> None:
    """Last attempts that are but fresh draws: improvement far above half, recovery around 0 and covered."""
    rng = np.random.default_rng(1)
    hits, improved = 0, []
    for _ in range(60):
        retries = []
        for latent in range(60):
            level = rng.normal(40, 6)
            scores = rng.normal(level, 20, (40, 5))
            for first, last, *fresh in scores[scores[:, 0] < 25][:5]:
                retries.append(Retry(latent, "p", float(first), float(last), tuple(map(float, fresh))))
        found = resample_baseline(retries, rng)
        improved.append(found.improved.value)
        hits += found.recovery_interval.low <= 0 <= found.recovery_interval.high
    assert np.mean(improved) > 0.75
    assert hits / 60 >= 0.87


def test_a_score_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(InputError, match="NaN"):
        resample_baseline([Retry(1, "a", float("nan"), 3.0, (1.0,))], np.random.default_rng(0))


def test_kappa_equals_sklearns_and_raw_agreement_the_mean() -> None:
    rng = np.random.default_rng(2)
    one = rng.integers(0, 3, 200).tolist()
    other = [x if rng.random() < 0.7 else int(rng.integers(0, 3)) for x in one]
    found = agreement.labels([*one, None], [*other, 1], [i // 4 for i in range(201)], rng)
    assert found.kappa.value == pytest.approx(cohen_kappa_score(one, other))
    assert found.raw.value == pytest.approx(np.mean(np.array(one) == np.array(other)))
    assert found.kappa.n == 200
    assert found.kappa.interval.low < found.kappa.value < found.kappa.interval.high


def test_kappa_is_undefined_where_only_one_label_was_given() -> None:
    found = agreement.labels([0, 0, 0], [0, 0, 0], [1, 2, 3], np.random.default_rng(0))
    assert found.raw.value == 1.0 and found.kappa.value is None and found.kappa.interval is None


def test_correlations_equal_scipys_and_their_interval_covers() -> None:
    rng = np.random.default_rng(3)
    one = rng.normal(0, 1, 80)
    other = (one + rng.normal(0, 1, 80)).round(1)
    found = agreement.scores(one, other, list(range(80)), rng)
    assert found.pearson.value == pytest.approx(stats.pearsonr(one, other).statistic)
    assert found.spearman.value == pytest.approx(stats.spearmanr(one, other).statistic)
    assert found.pearson.interval.low < 2**-0.5 < found.pearson.interval.high


def test_standard_error_of_independent_pairs_is_the_textbooks() -> None:
    design = Design(latents=400, per_latent=1, base_rate=0.1)
    assert standard_error(design, 0.2) == pytest.approx(np.sqrt((0.1 * 0.9 + 0.2 * 0.8) / 400))


@pytest.mark.parametrize(("latents", "base", "pairing"), [(500, 0.04, 0.0), (60, 0.2, 0.0), (300, 0.08, 0.3)])
def test_stated_power_is_reached_in_simulation(latents: int, base: float, pairing: float) -> None:
    """Draw paired, clustered outcomes at the detectable rise; a z-test on cluster differences finds it in 80%.

    Cluster correlation of the difference: each arm's risks are beta with correlation 0.15 (independent arms);
    with pairing, a share of trials copies a common uniform number in both arms.
    """
    correlation = 0.15 if pairing == 0 else 0.0
    design = Design(latents, 5, base, correlation=correlation, pair_correlation=0.0)
    rng = np.random.default_rng(4)
    if pairing:
        rise, draws = 0.05, rng.random((400_000, 3))
        same = draws[:, 2] < pairing
        arm, control = draws[:, 0] < base + rise, np.where(same, draws[:, 0], draws[:, 1]) < base
        design = Design(latents, 5, base, correlation=0.0, pair_correlation=float(np.corrcoef(arm, control)[0, 1]))
    target = base + detectable(design).rise
    rejections = 0
    for _ in range(1500):
        if pairing:
            shared = rng.random((latents, 5))
            own = np.where(rng.random((latents, 5)) < pairing, shared, rng.random((latents, 5)))
            gaps = ((shared < target).astype(float) - (own < base)).sum(axis=1)
        else:
            total = 1 / correlation - 1
            ours = rng.binomial(5, rng.beta(target * total, (1 - target) * total, latents))
            gaps = ours - rng.binomial(5, rng.beta(base * total, (1 - base) * total, latents)).astype(float)
        rejections += abs(gaps.mean()) > stats.norm.ppf(0.975) * gaps.std(ddof=1) / np.sqrt(latents)
    assert 0.75 <= rejections / 1500 <= 0.86


def test_power_says_none_where_nothing_can_be_detected() -> None:
    found = detectable(Design(latents=60, per_latent=5, base_rate=0.001))
    assert found.fall is None and found.fall_ratio is None and found.rise > 0.01
    assert found.expected_events == pytest.approx(0.3)


def test_impossible_designs_are_refused() -> None:
    with pytest.raises(InputError, match="base_rate"):
        Design(latents=60, per_latent=5, base_rate=0.0)
    with pytest.raises(InputError, match="no design"):
        Design(latents=1, per_latent=5, base_rate=0.1)
