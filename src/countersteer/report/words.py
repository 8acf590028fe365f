"""A run's numbers in plain words: formatting, the headline, the warnings. Used by the terminal and by the page.

The intervals are 95%. "For these prompts" is the headline interval (trials of one latent hang together); "for new
prompts" also lets the prompts vary. Nothing here computes a metric; it only says what the summary holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = {
    "first_attempt": "first-attempt score",
    "multi_attempt": "multi-attempt rate",
    "improvement": "improvement rate",
    "resample_baseline": "resample baseline",
    "recovery": "recovery",
    "esr": "ESR rate",
    "mean_improvement": "mean improvement",
    "whole_response": "whole-response recovery",
    "continuation": "score of what the model wrote",
}
"""What each metric is called in text."""
SCORES = ("first_attempt", "mean_improvement", "continuation")
WHY = {"no-pairs": "no pairs", "no-data": "none in one arm", "zero-events": "none in base"}
"""Why a contrast or a ratio is missing, by its status."""
FEW_LATENTS = 20
FEW_TRIALS = 20


def number(metric: str, value: float | None, *, sign: bool = False) -> str:
    """A value of a metric: a score with one decimal, a share as a percentage, "-" for None."""
    if value is None:
        return "–"
    shown = value if metric in SCORES else 100 * value
    digits = 2 if metric not in SCORES and 0 < abs(shown) < 1 else 1
    text = _minus(f"{shown:+.{digits}f}" if sign else f"{shown:.{digits}f}")
    return text if metric in SCORES else f"{text}%" if not sign else f"{text} points"


def limits(metric: str, interval: list[float | None] | None) -> str:
    """An interval as "[low, high]", without unit; "" where there is none."""
    if not interval:
        return ""
    low, high = (_end(metric, end, other) for end, other in ((interval[0], "−∞"), (interval[1], "∞")))
    return f"[{low}, {high}]"


def _end(metric: str, value: float | None, unbounded: str) -> str:
    if value is None:
        return unbounded
    shown = value if metric in SCORES else 100 * value
    return _minus(f"{shown:.2f}" if metric not in SCORES and 0 < abs(shown) < 1 else f"{shown:.1f}")


def _minus(text: str) -> str:
    """With a real minus sign, which does not break a line; no minus before zero."""
    return text.replace("-", "") if not any(c in "123456789" for c in text) else text.replace("-", "−")


def p_value(p: float | None) -> str:
    """A p-value: "p = 0.012", "p < 0.001", or "" for None."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def full(metric: str, data: Mapping[str, Any] | None) -> str:
    """A metric with its interval and n, or "not measured"."""
    if not data:
        return "not measured"
    interval = limits(metric, data["interval"])
    return f"{number(metric, data['value'])}{f' {interval}' if interval else ''}, n = {data['n']:,}"


def headline(result: Mapping[str, Any]) -> str:
    """One sentence: how often the steered model caught itself."""
    base = result["arms"].get(result["base"])
    if not base or not base["esr"]:
        return "There is no valid trial yet, so there is no result."
    esr, multi = base["esr"], base["multi_attempt"]
    if not multi["value"]:
        return (
            f"Steered off topic, the model began again in none of {base['valid']:,} responses"
            f" (95% interval {limits('esr', multi['interval'])}% for these prompts)."
        )
    return (
        f"Steered off topic, the model began again in {number('esr', multi['value'])} of {base['valid']:,} responses"
        f" and ended with a better answer in {number('esr', esr['value'])}"
        f" (ESR rate, 95% interval {limits('esr', esr['interval'])} for these prompts)."
    )


def warnings(result: Mapping[str, Any]) -> list[str]:
    """What stands above the numbers: the organism's caveat, an unfinished run, notes of arms, few latents."""
    found = [result["caveat"]] if result["caveat"] else []
    if not result["finished"]:
        found.append("The run is not finished; these are the numbers so far.")
    found += [f"{name}: {arm['note']}." for name, arm in result["arms"].items() if arm["note"]]
    base = result["arms"].get(result["base"])
    if base and 0 < base["latents"] < FEW_LATENTS:
        found.append(f"Only {base['latents']} latents: the intervals rest on few clusters and are wide or rough.")
    return found


def spent(judging: Mapping[str, Any]) -> str:
    """What the judge's calls took, in words."""
    money = "at an unknown price" if judging["usd"] is None else f"for {judging['usd']:.2f} USD"
    read, written = judging["input_tokens"], judging["output_tokens"]
    return f"{judging['requests']:,} judge calls {money} ({read:,} tokens read, {written:,} written)"
