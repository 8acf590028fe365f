"""A run's numbers in plain words: formatting, and one answer per question. Used by the terminal and by the page.

The intervals are 95%. "For these prompts" is the headline interval (trials of one latent hang together); "for new
prompts" also lets the prompts vary. Nothing here computes a metric; it only says what the summary holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
}
"""What each metric is called in text."""
SCORES = ("first_attempt", "mean_improvement")
WHY = {"no-pairs": "no pairs", "no-data": "none in one arm", "zero-events": "none in base"}
"""Why a contrast or a ratio is missing, by its status."""
FEW_LATENTS = 20
FEW_TRIALS = 20


@dataclass(frozen=True)
class Said:
    """A question about the run and its answer, one or two sentences."""

    question: str
    answer: str


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


def answers(result: Mapping[str, Any]) -> list[Said]:
    """The questions a reader has, in order, each answered from the summary."""
    made = [
        Said("Does the model correct itself while it is steered?", _resists(result)),
        Said("Does it without steering?", _unsteered(result)),
        Said("Are its second attempts better than simply trying again?", _recovers(result)),
        Said("Is the steering as strong as intended?", _calibrated(result)),
        Said("Which arms differ from base?", _differs(result)),
        Said("Does it hold without degraded (repetitive) responses?", _without_degraded(result)),
        Said("What is missing?", _missing(result)),
        Said("What could this study not have seen?", _power(result)),
    ]
    return [said for said in made if said.answer]


def _resists(result: Mapping[str, Any]) -> str:
    base = result["arms"].get(result["base"])
    if not base or not base["esr"]:
        return "No trial of the base arm is valid, so this cannot be said."
    esr = base["esr"]
    low = (esr["interval"] or [0.0])[0] or 0.0
    wider = limits("esr", esr["interval_new_prompts"])
    verdict = "Yes" if low > 0 else "It was not seen" if not esr["value"] else "Not shown"
    text = f"{verdict}. {headline(result)}"
    return text + (f" For new prompts the interval is {wider}." if wider else "")


def _unsteered(result: Mapping[str, Any]) -> str:
    parts = []
    for name, arm in result["arms"].items():
        settings, multi = arm["settings"], arm["multi_attempt"]
        if not any(settings.get(key) for key in ("steered", "clamp", "prefix")) and multi:
            parts.append(
                f"In {name}, {number('esr', multi['value'])} of {multi['n']:,} responses have more than one attempt"
                f" (95% interval {limits('esr', multi['interval'])}), and first attempts score"
                f" {number('first_attempt', arm['first_attempt']['value'])} on average."
            )
    return " ".join(parts)


def _recovers(result: Mapping[str, Any]) -> str:
    base = result["arms"].get(result["base"])
    if not base or not base["improvement"]:
        return ""
    rate = base["improvement"]
    text = (
        f"Of the {rate['n']:,} responses with more than one attempt, {number('esr', rate['value'])} end better than"
        f" they began (95% interval {limits('esr', rate['interval'])})."
    )
    baseline, recovery = base["resample_baseline"], base["recovery"]
    if not baseline or not recovery:
        return f"{text} No fresh first attempts were drawn, so how much of that is chance is not known."
    interval = recovery["interval"]
    text += f" A fresh first attempt beats the first one in {number('esr', baseline['value'])} of the cases"
    ties = base["resamples"]["baseline_ties"]
    text += f" (equal in {number('esr', ties)})." if ties else "."
    gap = f"{number('recovery', recovery['value'], sign=True)} {limits('recovery', interval)}".strip()
    if recovery["n"] < FEW_TRIALS:
        return f"{text} The difference is {gap}, from only {recovery['n']} trials: too few to say."
    if interval and interval[0] is not None and interval[0] > 0:
        return f"{text} Correcting itself gains {gap} over that: more than trying again would."
    if interval and interval[1] is not None and interval[1] < 0:
        return f"{text} Correcting itself does worse than trying again would ({gap})."
    return f"{text} The difference is {gap}: not shown to be more than trying again would give."


def _calibrated(result: Mapping[str, Any]) -> str:
    found = result["calibration"]
    base = result["arms"].get(result["base"])
    if not found:
        return "Strengths were given, not calibrated."
    counts = found["counts"]
    share = f"{counts.get('ok', 0)} of {counts['latents']} latents"
    text = f"A strength was found for {share} ({found['method']} calibration)."
    if found["target"] is not None and base and base["first_attempt"]:
        reached = full("first_attempt", base["first_attempt"])
        text += f" First attempts were to score {100 * found['target']:g} on average and score {reached}."
    return text


def _differs(result: Mapping[str, Any]) -> str:
    parts = []
    for name, metrics in result["contrasts"].items():
        for metric in ("esr", "multi_attempt"):
            row = metrics[metric]
            if row["p_holm"] is not None and row["p_holm"] < 0.05:
                shift = number(metric, row["difference"], sign=True)
                parts.append(
                    f"{name} ({NAMES[metric]} {shift} {limits(metric, row['interval'])}, {p_value(row['p_holm'])})"
                )
    if parts:
        return f"After Holm's correction: {'; '.join(parts)}."
    return "None, in ESR or multi-attempt rate, that this study could tell (Holm, 5%)." if result["contrasts"] else ""


def _without_degraded(result: Mapping[str, Any]) -> str:
    base = result["arms"].get(result["base"])
    if not base or not base["esr"]:
        return ""
    if not base["degraded"]:
        return "No response of the base arm is degraded."
    rest = base["without_degraded"]["esr"]
    if not rest:
        return f"All {base['degraded']} valid responses of the base arm are degraded."
    return (
        f"{base['degraded']} of {base['trials']:,} responses of the base arm repeat a word five times or more."
        f" Without them the ESR rate is {full('esr', rest)}."
    )


def _missing(result: Mapping[str, Any]) -> str:
    total: dict[str, int] = {}
    for arm in result["arms"].values():
        for status, count in arm["statuses"].items():
            if status != "ok":
                total[status] = total.get(status, 0) + count
    if not total:
        return "Nothing: every planned trial was generated and graded."
    planned = sum(arm["trials"] for arm in result["arms"].values())
    listed = ", ".join(f"{count:,} {status}" for status, count in sorted(total.items()))
    return f"Of {planned:,} planned trials: {listed}. They are in no denominator."


def _power(result: Mapping[str, Any]) -> str:
    from countersteer.statistics import Design, detectable

    base = result["arms"].get(result["base"])
    if not base or not base["multi_attempt"] or base["latents"] < 2 or not result["contrasts"]:
        return ""
    rate = base["multi_attempt"]["value"]
    if not 0 < rate < 1:
        return ""
    found = detectable(Design(base["latents"], max(round(base["valid"] / base["latents"]), 1), rate))
    rise = "no rise" if found.rise is None else f"a rise by {100 * found.rise:.1f} points"
    fall = "no fall" if found.fall is None else f"a fall by {100 * -found.fall:.1f} points"
    return (
        f"With {base['latents']} latents and {base['valid']:,} valid trials per arm, {rise} and {fall} of the"
        f" multi-attempt rate ({number('esr', rate)}) would be found four times in five; smaller effects may well be"
        " missed."
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
