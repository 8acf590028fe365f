"""Paired effects against scipy and by hand; aligned curves against a loop."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from countersteer.core.errors import InputError
from countersteer.statistics.effects import aligned, cliff, paired


def test_paired_effects_are_those_of_scipy_and_by_hand() -> None:
    draw = np.random.default_rng(0)
    one, other = draw.exponential(2, 30).round(1), draw.exponential(1, 30).round(1)
    found = paired(one, other)
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(one, other, alternative="greater").pvalue)
    assert found.t_p == pytest.approx(stats.ttest_rel(one, other).pvalue)
    assert found.cohen_d == pytest.approx((one - other).mean() / (one - other).std(ddof=1))
    brute = np.mean([np.sign(a - b) for a in one for b in other])
    gap = stats.ttest_1samp(one - other, 0).confidence_interval(0.95)
    assert found.difference == pytest.approx((one - other).mean()) and found.interval == pytest.approx(tuple(gap))
    assert found.cliff_delta == pytest.approx(brute) and cliff(other, one) == pytest.approx(-brute)


def test_effects_without_difference_or_data_are_none_and_bad_input_is_refused() -> None:
    same = paired([1.0, 2.0], [1.0, 2.0])
    assert (same.wilcoxon_p, same.t_p, same.cohen_d, same.cliff_delta) == (None, None, None, 0.0)
    assert paired([], []).n == 0 and paired([], []).before is None
    with pytest.raises(InputError, match="give pairs"):
        paired([1.0], [1.0, 2.0])
    with pytest.raises(InputError, match="NaN"):
        paired([float("nan")], [1.0])


def test_aligned_curves_average_each_series_in_its_bins() -> None:
    draw = np.random.default_rng(1)
    series = [draw.normal(size=n) for n in (40, 25, 60)]
    centres = [20, 3, 50]
    found = aligned(series, centres, reach=20, bins=8, rng=draw)
    for row in found:
        means = []
        for values, centre in zip(series, centres, strict=True):
            inside = [v for t, v in enumerate(values) if row["from"] <= t - centre < row["to"]]
            means += [np.mean(inside)] if inside else []
        assert row["n"] == len(means)
        assert row["mean"] == (pytest.approx(np.mean(means)) if means else None)
        if len(means) > 1:
            assert row["low"] <= row["mean"] <= row["high"]
    assert aligned([], [], reach=5, bins=2, rng=draw)[0]["mean"] is None


def test_copies_of_a_series_in_one_cluster_leave_the_band_as_wide() -> None:
    draw = np.random.default_rng(2)
    series = [draw.normal(size=30) for _ in range(12)]
    single = aligned(series, [15] * 12, reach=15, bins=1, rng=np.random.default_rng(0), draws=4000)[0]
    many = [s for s in series for _ in range(25)]
    groups = [k for k in range(12) for _ in range(25)]
    copied = aligned(many, [15] * 300, reach=15, bins=1, rng=np.random.default_rng(0), draws=4000, clusters=groups)[0]
    assert copied["mean"] == pytest.approx(single["mean"])
    assert (copied["low"], copied["high"]) == (pytest.approx(single["low"]), pytest.approx(single["high"]))
    loose = aligned(many, [15] * 300, reach=15, bins=1, rng=np.random.default_rng(0))[0]
    assert loose["high"] - loose["low"] < 0.4 * (single["high"] - single["low"])
    alone = aligned(series, [15] * 12, reach=15, bins=1, rng=draw, clusters=[3] * 12)[0]
    assert alone["n"] == 12 and alone["low"] is None, "one cluster bounds nothing"
