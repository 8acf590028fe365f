"""Rates of rare, clustered events, with three intervals: for these prompts, for new prompts, and the plain one.

The headline interval is Wilson's on the *effective* number of trials n / deff, deff being the design effect of
clustering by latent. Beside it stands the same with the two-way (latent x prompt) variance, which is what a
reader needs who would use other prompts. Plain Wilson ignores both and is given for comparison with papers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from countersteer.core.errors import InputError
from countersteer.statistics.groups import codes, numbers, require_binary
from countersteer.statistics.variance import cluster_variance, crossed_variance, effect


@dataclass(frozen=True)
class Interval:
    """An interval and how it was made. `None` for an end that the data do not bound."""

    low: float | None
    high: float | None
    method: str

    def as_list(self) -> list[float | None]:
        """[low, high], for JSON."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Rate:
    """A share of trials, or a mean (then `wilson` is None and `events` the sum).

    `value` and the intervals are None where nothing is in the denominator (n = 0).
    """

    value: float | None
    interval: Interval | None
    interval_new_prompts: Interval | None
    wilson: Interval | None
    n: int
    events: float
    design_effect: float | None
    clusters: int

    def as_dict(self) -> dict[str, object]:
        """The JSON form used by reports: value, interval, interval_new_prompts, wilson, n."""
        parts = (self.interval, self.interval_new_prompts, self.wilson)
        names = ("interval", "interval_new_prompts", "wilson")
        listed = {name: part.as_list() if part else None for name, part in zip(names, parts, strict=True)}
        return {"value": self.value, **listed, "n": self.n}


def check_confidence(confidence: float) -> None:
    """Raise InputError unless 0 < confidence < 1."""
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence {confidence} is not between 0 and 1: use for example 0.95")


def wilson(events: float, n: float, *, confidence: float = 0.95, freedom: float | None = None) -> Interval:
    """Wilson's score interval for `events` out of `n`; both may be fractional (effective numbers).

    With `freedom`, Student's t quantile at that many degrees of freedom replaces the normal one: the variance
    was itself estimated. Wilson, J. Am. Stat. Assoc. 22 (1927) 209. Computed by statsmodels.
    """
    from statsmodels.stats.proportion import proportion_confint  # a second of import time, paid when used

    check_confidence(confidence)
    alpha = 1.0 - confidence
    if freedom is not None:
        alpha = 2.0 * float(special.ndtr(special.stdtrit(freedom, alpha / 2.0)))
    low, high = proportion_confint(events, n, alpha=alpha, method="wilson")
    low = 0.0 if events <= 0 else float(low)
    high = 1.0 if events >= n else float(high)
    return Interval(low, high, "wilson" if freedom is None else "wilson, effective n")


def design_effect(events: Sequence[float | int | bool | None], clusters: Sequence[Hashable]) -> float:
    """Design effect (>= 1) of clustering: variance of the rate over that of as many independent trials.

    1.0 if there are no trials. With no events it is the effect of the assumed within-cluster correlation
    (statistics.variance): pass the value of the arm with most events to `rate` as `deff_at_zero` instead.
    """
    values = numbers(events)
    group = codes(clusters, expected=values.size, what="clusters")
    kept = np.isfinite(values)
    values, group = values[kept], group[kept]
    if values.size == 0:
        return 1.0
    require_binary(values)
    return effect(values, group, cluster_variance(values, group)[0])


def rate(
    events: Sequence[float | int | bool | None],
    clusters: Sequence[Hashable],
    prompts: Sequence[Hashable],
    *,
    deff_at_zero: float = 1.0,
    confidence: float = 0.95,
) -> Rate:
    """Share of trials with an event, clustered by latent and crossed with prompts.

    `events` [n]: 0 or 1, or None for a trial outside the denominator (for the improvement rate: a trial with
    one attempt; the clustering is then that of the subset). `clusters`, `prompts` [n]: labels. `deff_at_zero`:
    the design effect to use where this arm has no event, best that of the arm with most events.
    One cluster alone does not say how clusters vary, so it bounds nothing: `interval` is None. Raises InputError for
    lengths that differ or events that are not 0, 1 or None.
    """
    check_confidence(confidence)
    if not np.isfinite(deff_at_zero) or deff_at_zero < 1.0:
        raise InputError(f"deff_at_zero {deff_at_zero} is below 1: clustering cannot add information, use 1 or more")
    values = numbers(events)
    group = codes(clusters, expected=values.size, what="clusters")
    crossed = codes(prompts, expected=values.size, what="prompts")
    kept = np.isfinite(values)
    values, group, crossed = values[kept], group[kept], crossed[kept]
    if values.size == 0:
        return Rate(None, None, None, None, 0, 0.0, None, 0)
    require_binary(values)
    n, count = int(values.size), float(values.sum())

    one_way, freedom = cluster_variance(values, group)
    deff = effect(values, group, one_way, at_zero=deff_at_zero)
    clusters_seen = int(np.unique(group).size)
    interval = None
    if clusters_seen > 1:
        interval = wilson(count / deff, n / deff, confidence=confidence, freedom=freedom)

    two_way, crossed_freedom = crossed_variance(values, group, crossed)
    new_prompts = None
    if not np.isnan(two_way):
        wide = max(effect(values, group, two_way, at_zero=deff), deff)
        new_prompts = wilson(count / wide, n / wide, confidence=confidence, freedom=crossed_freedom)
    return Rate(
        value=count / n,
        interval=interval,
        interval_new_prompts=new_prompts,
        wilson=wilson(count, n, confidence=confidence),
        n=n,
        events=count,
        design_effect=deff,
        clusters=clusters_seen,
    )
