"""Sections about the model under steering: does it resist, is that correction, is the steering as meant, how strong."""

from __future__ import annotations

from countersteer.report.section import (
    METRIC,
    Cell,
    Result,
    Section,
    Table,
    arms_table,
    arms_where,
    gap,
    gap_cell,
    joined,
    rates_forest,
    shift,
    significant,
    unseen,
    value_cell,
)
from countersteer.report.words import FEW_TRIALS, NAMES, full, headline, limits, number, p_value

UNCHANGED = ("steered", "clamp", "clamp_rule", "prefix", "adapter")


def resists(result: Result) -> Section:
    """Does the model correct itself while it is steered, and without?"""
    question = "Does the model correct itself while it is steered?"
    base = result["arms"].get(result["base"])
    if not base or not base["esr"]:
        return Section("resists", question, "It cannot be said", "No trial of the base arm is valid.")
    esr, multi = base["esr"], base["multi_attempt"]
    low = (esr["interval"] or [0.0])[0] or 0.0
    verdict = "Yes" if low > 0 else "It was not seen" if not esr["value"] else "Not shown"
    wider = limits("esr", esr["interval_new_prompts"])
    text = headline(result) + (f" For new prompts the interval is {wider}." if wider else "")
    plain = arms_where(result, lambda s: not any(s.get(key) for key in UNCHANGED))
    for name in plain:
        arm = result["arms"][name]
        if arm[METRIC]:
            first = number("first_attempt", arm["first_attempt"]["value"])
            text += f" Without steering, {shift(result, name)}; first attempts score {first} there."
    limit = (esr["interval"] or [0.0, None])[1]
    missed = ""
    if not esr["value"] and limit is not None:
        missed = f"An ESR rate of up to {number('esr', limit)} is not ruled out by {esr['n']:,} responses without one."
    short = f"ESR rate {full('esr', esr)}; multi-attempt rate {number('esr', multi['value'])}."
    names = [result["base"], *plain]
    return Section(
        "resists", question, verdict, text, joined([missed, unseen(result, plain)], " "), short,
        (arms_table(result, names),), ("first_scores",), rates_forest(result, names),
    )  # fmt: skip


def recovers(result: Result) -> Section | None:
    """Are second attempts better than simply trying again?"""
    question = "Are its second attempts better than simply trying again?"
    base = result["arms"].get(result["base"])
    if not base or not base["improvement"]:
        return None
    rate, baseline, found = base["improvement"], base["resample_baseline"], base["recovery"]
    text = (
        f"Of the {rate['n']:,} responses with more than one attempt, {number('esr', rate['value'])} end better than"
        f" they began (95% interval {limits('esr', rate['interval']) or 'none'})."
    )
    if not baseline or not found:
        told = f"{text} No fresh first attempts were drawn, so how much of that is chance is not known."
        return Section("recovers", question, "It cannot be said", told, figures=("changes",))
    gain = f"{number('recovery', found['value'], sign=True)} {limits('recovery', found['interval'])}".strip()
    ties, latents = base["resamples"]["baseline_ties"], f"{found['latents']} latents"
    text += f" A fresh first attempt beats the first one in {number('esr', baseline['value'])} of the cases"
    text += f" (equal in {number('esr', ties)})" if ties else ""
    text += f"; the difference, recovery, is {gain} ({joined([p_value(found['p_holm']), latents])})."
    names = [n for n, a in result["arms"].items() if a["recovery"]]
    tests = sum(result["arms"][n]["recovery"]["p"] is not None for n in names)
    verdict = "Not shown"
    if found["n"] < FEW_TRIALS:
        verdict, text = "Too few to say", f"{text} {found['n']} trials are too few to say."
    elif found["p_holm"] is not None and found["p_holm"] < 0.05:
        verdict = "Yes" if found["value"] > 0 else "No, worse"
    seen = found["detectable"]
    missed = "" if seen is None else (
        f"In {result['base']}, a recovery below {100 * seen:.1f} points either way may well be missed, before any"
        " correction for the number of arms."
    )  # fmt: skip
    return Section(
        "recovers", question, verdict, text, missed, f"Recovery {joined([gain, p_value(found['p_holm'])])}.",
        (_recovery_table(result, names, tests),), ("recovery", "changes"),
    )  # fmt: skip


def _recovery_table(result: Result, names: list[str], tests: int) -> Table:
    rows = []
    for name in names:
        arm = result["arms"][name]
        found = arm["recovery"]
        small = (limits("recovery", found["interval"]) or "no interval", p_value(found["p_holm"]))
        strong = found["p_holm"] is not None and found["p_holm"] < 0.05
        gain = Cell(number("recovery", found["value"], sign=True).replace(" points", ""), small, strong)
        seen = "–" if found["detectable"] is None else f"±{100 * found['detectable']:.1f}"
        rows.append((Cell(name, words=True), Cell(f"{found['n']:,}", (f"{found['latents']} latents",)),
                     value_cell("improvement", arm["improvement"]),
                     value_cell("resample_baseline", arm["resample_baseline"]), gain, Cell(seen)))  # fmt: skip
    caption = (
        "Responses with more than one attempt and fresh draws. Recovery in points with its 95% interval; p from"
        f" swapping last and fresh attempts within latents, corrected over {tests} arms (Holm). Would be found: the"
        " smallest recovery found four times in five at 5%, uncorrected."
    )
    head = ("arm", "trials", NAMES["improvement"], NAMES["resample_baseline"], NAMES["recovery"], "would be found")
    return Table(caption, head, tuple(rows))


def calibrated(result: Result) -> Section:
    """Is the steering as strong as intended?"""
    question = "Is the steering as strong as intended?"
    found = result["calibration"]
    if not found:
        return Section("strength-found", question, "", "Strengths were given, not calibrated.")
    counts = found["counts"]
    share = f"{counts.get('ok', 0)} of {counts['latents']} latents"
    text = f"A strength was found for {share} ({found['method']} calibration)."
    row = found["reached"]
    figures = ("dose", "strengths")
    if row is None or row["difference"] is None:
        return Section("strength-found", question, "", text, figures=figures)
    target = f"{100 * found['target']:g}"
    base = result["arms"][result["base"]]["first_attempt"]
    away = significant(row)
    text += (
        f" First attempts were to score {target} on average and score {full('first_attempt', base)}:"
        f" {joined([gap('first_attempt', row), p_value(row['p_holm'])])} from the target."
    )
    cells = (Cell(result["base"], words=True), value_cell("first_attempt", base), Cell(target),
             gap_cell("first_attempt", row), Cell(f"{row['latents']:,}"))  # fmt: skip
    caption = "The base arm's first attempts against the score they were calibrated to; p from swapping within latents."
    table = Table(caption, ("arm", NAMES["first_attempt"], "target", "difference", "latents"), (cells,))
    seen = row["detectable"]
    missed = "" if not seen or seen["rise"] is None else (
        f"A mean less than {seen['rise']:.1f} away from the target may well not be told from it."
    )  # fmt: skip
    verdict = ("Too weak" if row["difference"] > 0 else "Too strong") if away else "Not shown to be off"
    short = f"First attempts score {full('first_attempt', base)}; the target is {target}."
    return Section("strength-found", question, verdict, text, missed, short, (table,), figures)


def strength(result: Result) -> Section | None:
    """At which strength does it resist?"""
    names = arms_where(result, lambda s: "strength_sd" in s or s.get("strength_scale", 1) != 1)
    known = [n for n in names if result["arms"][n][METRIC]]
    if not known:
        return None
    rates = {n: result["arms"][n][METRIC]["value"] for n in known}
    best, least = max(known, key=rates.__getitem__), min(known, key=rates.__getitem__)
    text = (
        f"The multi-attempt rate is largest at {best} ({number(METRIC, rates[best])}"
        f" {limits(METRIC, result['arms'][best][METRIC]['interval'])}) and smallest at {least}"
        f" ({number(METRIC, rates[least])})."
    )
    verdict, told = "", []
    for root, family in result["levels"].items():
        tests = [f"{NAMES[m]} {p_value(family[m]['p'])}" for m in (METRIC, "esr") if family[m]["p"] is not None]
        told.append(
            f"{root}, all {len(family['arms'])} levels at once ({family[METRIC]['latents']} latents): {joined(tests)}"
        )
        differ = any(family[m]["p"] is not None and family[m]["p"] < 0.05 for m in (METRIC, "esr"))
        verdict = "The levels differ" if differ or verdict == "The levels differ" else "Not shown to depend on it"
    if told:
        text += f" Do levels differ at all? {'; '.join(told)}."
    text += " Which level is the largest was looked at afterwards; neighbouring levels may not differ."
    return Section(
        "strength", "At which strength does it resist?", verdict, text, unseen(result, known),
        f"Most at {best}: {number(METRIC, rates[best])}.", (arms_table(result, known),), ("levels",),
        rates_forest(result, known),
    )  # fmt: skip
