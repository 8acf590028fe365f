"""Rates of rare clustered events: formulas against statsmodels and brute force, coverage against simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint

from countersteer.core.errors import InputError
from countersteer.statistics import design_effect, mean, rate, wilson
from countersteer.statistics.variance import cluster_variance, crossed_variance

CORRELATION = 0.15


def beta_binomial(rng: np.random.Generator, share: float, sizes: np.ndarray) -> np.ndarray:
    """Events of clusters of the given sizes with intra-cluster correlation 0.15, one per trial."""
    total = 1.0 / CORRELATION - 1.0
    risks = rng.beta(share * total, (1.0 - share) * total, sizes.size)
    return (rng.random(int(sizes.sum())) < np.repeat(risks, sizes)).astype(np.int64)


def test_wilson_equals_the_closed_form() -> None:
    n, k, z = 37, 5, stats.norm.ppf(0.975)
    centre = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n * n)) / (1 + z**2 / n)
    found = wilson(k, n)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_wilson_with_degrees_of_freedom_uses_students_quantile() -> None:
    n, k, t = 37.5, 5.25, stats.t.ppf(0.975, 12)
    centre = (k / n + t**2 / (2 * n)) / (1 + t**2 / n)
    half = t * math.sqrt(k / n * (1 - k / n) / n + t**2 / (4 * n * n)) / (1 + t**2 / n)
    found = wilson(k, n, freedom=12)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_plain_interval_of_a_rate_is_wilson_of_statsmodels() -> None:
    found = rate([1, 0, 0, 1, 0, 0, 0, 0], [1, 1, 2, 2, 3, 3, 4, 4], list("abcdabcd"))
    low, high = proportion_confint(2, 8, method="wilson")
    assert found.wilson is not None
    assert (found.wilson.low, found.wilson.high) == pytest.approx((low, high))


def test_one_way_variance_is_the_leverage_corrected_sandwich() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(12), rng.integers(1, 9, 12))
    values = rng.random(group.size)
    total = 0.0
    for code in range(12):
        members = values[group == code]
        residual = sum(member - values.mean() for member in members)
        total += residual**2 / (1 - members.size / values.size)
    variance, freedom = cluster_variance(values, group)
    assert variance == pytest.approx(total / values.size**2)
    sizes = np.array([np.sum(group == code) for code in range(12)])
    assert freedom == pytest.approx(values.size**2 / np.sum(sizes**2) - 1)


def test_one_way_variance_of_equal_clusters_is_the_clustered_ols_variance() -> None:
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(30), 5)
    values = rng.random(150)
    robust = OLS(values, np.ones(150)).fit(cov_type="cluster", cov_kwds={"groups": group, "use_correction": False})
    variance, _ = cluster_variance(values, group)
    assert variance == pytest.approx(robust.bse[0] ** 2 * 30 / 29)


def test_two_way_variance_is_latents_plus_prompts_less_cells() -> None:
    rng = np.random.default_rng(2)
    latents, prompts = np.repeat(np.arange(20), 6), np.tile(np.arange(6), 20)
    values = rng.normal(0, 1, 20)[latents] + rng.normal(0, 1, 6)[prompts] + rng.normal(0, 0.1, 120)
    centred = (values - values.mean()).reshape(20, 6)
    by_latent = np.sum(centred.sum(axis=1) ** 2) / (1 - 1 / 20)
    by_prompt = np.sum(centred.sum(axis=0) ** 2) / (1 - 1 / 6)
    by_cell = np.sum(centred**2) / (1 - 1 / 120)
    found, freedom = crossed_variance(values, latents, prompts)
    assert found == pytest.approx((by_latent + by_prompt - by_cell) / 120**2)
    assert freedom == pytest.approx(5.0)


def test_design_effect_of_perfectly_correlated_clusters_is_their_size() -> None:
    events = np.repeat((np.arange(200) % 2 == 0).astype(int), 5)
    assert design_effect(events, np.repeat(np.arange(200), 5)) == pytest.approx(5.0, rel=0.01)


def test_design_effect_never_falls_below_one() -> None:
    # One event in every cluster: less varied than independent trials.
    events = np.tile([1, 0, 0, 0, 0], 100)
    assert design_effect(events, np.repeat(np.arange(100), 5)) >= 1.0


def test_zero_events_use_the_design_effect_passed_in() -> None:
    clusters, prompts = np.repeat(np.arange(60), 5), np.tile(np.arange(5), 60)
    narrow = rate(np.zeros(300, dtype=int), clusters, prompts, deff_at_zero=2.0)
    wide = rate(np.zeros(300, dtype=int), clusters, prompts, deff_at_zero=4.0)
    assert narrow.interval is not None and wide.interval is not None and narrow.wilson is not None
    assert narrow.value == 0.0 and narrow.interval.low == 0.0
    t = stats.t.ppf(0.975, 59)
    assert narrow.interval.high == pytest.approx(t**2 / (150 + t**2))
    assert wide.interval.high == pytest.approx(t**2 / (75 + t**2))
    assert narrow.wilson.high is not None and narrow.wilson.high < narrow.interval.high


def test_an_empty_denominator_has_no_value() -> None:
    found = rate([None, None], [1, 2], ["a", "b"])
    assert found.as_dict() == {"value": None, "interval": None, "interval_new_prompts": None, "wilson": None, "n": 0}


def test_trials_outside_the_denominator_change_nothing() -> None:
    rng = np.random.default_rng(3)
    events: list[int | None] = [int(x) for x in rng.random(100) < 0.4]
    clusters, prompts = np.repeat(np.arange(20), 5).tolist(), np.tile(np.arange(5), 20).tolist()
    kept = [i for i in range(100) if i % 3]
    thinned = [event if i % 3 else None for i, event in enumerate(events)]
    whole = rate(thinned, clusters, prompts)
    subset = rate([events[i] for i in kept], [clusters[i] for i in kept], [prompts[i] for i in kept])
    assert whole == subset and whole.n == len(kept)


def test_text_labels_and_numbers_give_the_same_intervals_and_plain_json() -> None:
    rng = np.random.default_rng(4)
    events = (rng.random(60) < 0.3).astype(int)
    clusters, prompts = np.repeat(np.arange(12), 5), np.tile(np.arange(5), 12)
    texts = rate(events.tolist(), [f"latent {c}" for c in clusters], [f"prompt {p}" for p in prompts])
    assert texts.as_dict() == rate(events, clusters, prompts).as_dict()
    assert json.loads(json.dumps(texts.as_dict())) == texts.as_dict()


@pytest.mark.parametrize(
    ("events", "clusters", "prompts", "says"),
    [([1, 0], [1], [1, 2], "clusters"), ([0.5], [1], [1], "neither 0 nor 1"), ([float("nan")], [1], [1], "NaN")],
)
def test_bad_input_is_refused_in_one_line(events: list, clusters: list, prompts: list, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        rate(events, clusters, prompts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("latents", [500, 60])
@pytest.mark.parametrize("share", [0.001, 0.005, 0.01, 0.04, 0.08])
def test_headline_interval_covers(latents: int, share: float) -> None:
    """93-97% by simulation with unequal clusters; here within Monte Carlo error (3 SE of 1,000 draws)."""
    rng = np.random.default_rng([latents, round(share * 1000)])
    sizes = rng.integers(1, 10, latents)
    clusters = np.repeat(np.arange(latents), sizes)
    prompts = np.concatenate([rng.choice(38, size, replace=False) for size in sizes])
    hits = 0
    for _ in range(1000):
        found = rate(beta_binomial(rng, share, sizes), clusters, prompts, deff_at_zero=1.8).interval
        assert found is not None and found.low is not None and found.high is not None
        hits += found.low <= share <= found.high
    assert 0.93 - 0.024 <= hits / 1000 <= 0.97 + 0.016


def test_plain_wilson_undercovers_where_the_effective_one_holds() -> None:
    rng = np.random.default_rng(5)
    sizes = np.full(500, 5)
    clusters, prompts = np.repeat(np.arange(500), 5), np.tile(np.arange(5), 500)
    plain = effective = 0
    for _ in range(400):
        found = rate(beta_binomial(rng, 0.04, sizes), clusters, prompts)
        plain += found.wilson.low <= 0.04 <= found.wilson.high
        effective += found.interval.low <= 0.04 <= found.interval.high
    assert plain / 400 < 0.92 < effective / 400


def test_interval_for_new_prompts_covers_what_the_headline_one_misses() -> None:
    """Prompts that multiply every latent's risk: 38 of them, 500 latents x 5, rate 8%."""
    rng = np.random.default_rng(6)
    clusters, total = np.repeat(np.arange(500), 5), 1.0 / CORRELATION - 1.0
    one_way = two_way = 0
    for _ in range(300):
        prompts = np.argsort(rng.random((500, 38)), axis=1)[:, :5].ravel()
        effects = np.exp(rng.normal(-0.18, 0.6, 38))
        risks = rng.beta(0.08 * total, 0.92 * total, 500)[clusters] * effects[prompts]
        found = rate((rng.random(2500) < risks).astype(int), clusters, prompts)
        # E[min(risk, 1)] differs from 0.08 by less than 0.0002.
        one_way += found.interval.low <= 0.08 <= found.interval.high
        two_way += found.interval_new_prompts.low <= 0.08 <= found.interval_new_prompts.high
    assert one_way / 300 < 0.9
    assert 0.91 <= two_way / 300 <= 0.98


def test_mean_of_scores_covers_and_equals_numpys() -> None:
    rng = np.random.default_rng(7)
    clusters, prompts = np.repeat(np.arange(60), 5), np.tile(np.arange(5), 60)
    hits = 0
    for _ in range(300):
        scores = 30.0 + rng.normal(0, 8, 60)[clusters] + rng.normal(0, 20, 300)
        found = mean(scores.tolist(), clusters, prompts, rng)
        assert found.value == pytest.approx(scores.mean())
        hits += found.interval.low <= 30.0 <= found.interval.high
    assert 0.91 <= hits / 300 <= 0.98
