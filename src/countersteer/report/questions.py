"""The questions that the experiments of a study answer, in plain words with their numbers, and the tables behind them.

Arms are recognised by what they set (their settings in the run), never by their name. All of it is in the summary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from countersteer.report.agreement import agreements
from countersteer.report.words import Said, limits, number, p_value
from countersteer.store.reading import RunReader

METRIC = "multi_attempt"
MOST_ARMS = 12


def experiments(run: RunReader) -> dict[str, Any]:
    """What the run found beyond its arms: detectors, random sets, trace, agreement of judges; None where not done."""
    found = run.fact("detectors")
    return {
        "detectors": None if found is None else {**found, "table": found["table"][:60]},
        "detectors_steered": run.fact("detectors_steered"),
        "random_sets": run.fact("random_sets"),
        "trace": run.fact("trace"),
        "agreement": agreements(run) or None,
    }


def questions(result: Mapping[str, Any]) -> list[Said]:
    """One question per experiment that the run has arms for, each with its answer."""
    made = [
        Said("At which strength does it resist?", _strength(result)),
        Said("Is detection causal: does clamping the detectors reduce restarts?", _causal(result)),
        Said("Is that more than clamping random latents does?", _random(result)),
        Said("Are the detectors about content or about the decision to restart?", _content(result)),
        Said("Is it detection from the text, or sustained resistance?", _sustained(result)),
        Said("What if steering stops, or begins, at the first restart?", _turned(result)),
        Said("Does its own corrective text carry it back?", _corrective(result)),
        Said("Do prompts help?", _prompts(result)),
        Said("Does it hold for other prompts and other directions?", _elsewhere(result)),
        Said("What do the latents do around a correction?", _trace(result)),
        Said("Do responses recover when read as a whole?", _whole(result)),
        Said("Can self-correction be trained in?", _trained(result)),
        Said("Do judges agree?", _judges(result)),
    ]
    # each answer is empty where the run has no such arm
    return [said for said in made if said.answer]


def _arms(result: Mapping[str, Any], test: Any) -> list[tuple[str, Mapping[str, Any]]]:
    return [(n, a) for n, a in result["arms"].items() if n != result["base"] and test(a["settings"])]


def shift(result: Mapping[str, Any], name: str, metric: str = METRIC) -> str:
    """An arm's rate and its difference from what it is compared with: interval, pairs, p (Holm)."""
    arm, row = result["arms"][name], result["contrasts"].get(name, {}).get(metric)
    if not arm[metric]:
        return f"{name}: no valid trial"
    rate = f"{name}: {number(metric, arm[metric]['value'])} of {arm[metric]['n']:,}"
    if not row or row["difference"] is None:
        return f"{rate} (no comparison)"
    against = row.get("against") or result["base"]
    compared = f"{row['pairs']:,} pairs" if row["paired"] else f"unpaired, {row['base_trials']:,} there"
    facts = [f"{number(metric, row['difference'], sign=True)} {limits(metric, row['interval'])} against {against}",
             compared, p_value(row["p_holm"])]  # fmt: skip
    return f"{rate} ({', '.join(f for f in facts if f)})"


def _verdict(row: Mapping[str, Any] | None, *, falls: bool) -> str:
    if not row or row["difference"] is None:
        return "It cannot be said."
    if row["p_holm"] is None or row["p_holm"] >= 0.05:
        return "Not shown."
    return "Yes." if (row["difference"] < 0) == falls else "No, the other way round."


def _strength(result: Mapping[str, Any]) -> str:
    arms = _arms(result, lambda s: "strength_sd" in s or s.get("strength_scale", 1) != 1)
    known = [(n, a) for n, a in arms if a[METRIC]]
    if not known:
        return ""
    best = max(known, key=lambda item: item[1][METRIC]["value"])
    rows = "; ".join(
        f"{n}: {number(METRIC, a[METRIC]['value'])} {limits(METRIC, a[METRIC]['interval'])}, first attempt"
        f" {number('first_attempt', a['first_attempt']['value'])}"
        for n, a in known
    )
    return f"Multi-attempt rate by level: {rows}. The largest is at {best[0]}; neighbouring levels may not differ."


def _causal(result: Mapping[str, Any]) -> str:
    arms = _arms(result, lambda s: isinstance(s.get("clamp_rule"), str))
    if not arms:
        return ""
    row = result["contrasts"].get(arms[0][0], {}).get(METRIC)
    acted = "; ".join(_acted(n, a) for n, a in arms if a.get("clamp"))
    told = f"{_verdict(row, falls=True)} Multi-attempt rate: {'; '.join(shift(result, n) for n, _ in arms)}."
    return f"{told} As measured by the receipts: {acted}." if acted else told


def _acted(name: str, arm: Mapping[str, Any]) -> str:
    """How often an arm's clamps changed a token, and by how much they moved the residual."""
    held = arm["clamp"]
    moved = "" if held["perturbation"] is None else f", |h' - h| / |h| {held['perturbation']:.3g} on average"
    return f"{name} clamped something in {held['acted']:,} of {held['responses']:,} responses{moved}"


def _random(result: Mapping[str, Any]) -> str:
    arms = _arms(result, lambda s: isinstance(s.get("clamp_rule"), Mapping))
    known = [(n, a) for n, a in arms if a[METRIC]]
    if not known:
        return ""
    rates = [a[METRIC]["value"] for _, a in known]
    span = f"between {number(METRIC, min(rates))} and {number(METRIC, max(rates))}"
    own = [a[METRIC]["value"] for _, a in _arms(result, lambda s: isinstance(s.get("clamp_rule"), str)) if a[METRIC]]
    verdict = ""
    if own:
        verdict = "Below all of them. " if own[0] < min(rates) else "No: it lies within or above the random sets. "
    listed = "; ".join(shift(result, n) for n, _ in known)
    acted = "; ".join(_acted(n, a) for n, a in known if a.get("clamp"))
    listed += f". As measured by the receipts: {acted}" if acted else ""
    direct = "; ".join(
        f"{name} {number(METRIC, row['difference'], sign=True)} {limits(METRIC, row['interval'])}"
        f" ({row['pairs']:,} pairs, {p_value(row['p_holm'])})"
        for name, rows in result["detectors_against_random"].items()
        if (row := rows[METRIC])["difference"] is not None
    )
    listed += f". Detectors clamped against random latents clamped, set by set: {direct}" if direct else ""
    return f"{verdict}{len(known)} random sets lie {span}: {listed}. Sets are rows, not more trials of one arm."


def _content(result: Mapping[str, Any]) -> str:
    found = result["experiments"]["detectors_steered"]
    if not found:
        return ""
    counts = f"{found['restarts']:,} steered responses with a restart and {found['single']:,} without"
    if found["status"] != "ok":
        return f"Too few to say: {counts}."
    more = [r for r in found["rows"] if r["p_holm"] is not None and r["p_holm"] < 0.05 and r["auc"] > 0.5]
    middle = sorted(r["auc"] for r in found["rows"])[len(found["rows"]) // 2]
    return (
        f"Over {counts}, {len(more)} of {len(found['rows'])} detectors are more active with a restart (Mann-Whitney,"
        f" Holm, 5%; median AUC {middle:.2f}). Those that are not fire on off-topic text whether it is noticed or not."
    )


def _sustained(result: Mapping[str, Any]) -> str:
    arms = _arms(result, lambda s: isinstance(s.get("prefix"), Mapping) and s["prefix"]["part"] != "corrective"
                 and not s["prefix"].get("matched"))  # fmt: skip
    if not arms:
        return ""
    parts = []
    for name, arm in arms:
        how = "steered" if arm["settings"]["steered"] else "unsteered"
        rate = arm["improvement"]
        better = f", of which {number('esr', rate['value'])} end better" if rate else ""
        parts.append(f"{how} continuation of the same text, {shift(result, name)}{better}")
    return (
        f"{'; '.join(parts)}. Restarts of the unsteered model on steered text are detection from the text alone; what"
        " the steered model lacks against it is what steering suppresses."
    )


def _turned(result: Mapping[str, Any]) -> str:
    parts = []
    for name, arm in _arms(result, lambda s: "(restart)" in str(s.get("span"))):
        rate = arm["improvement"]
        better = f", of which {number('esr', rate['value'])} of {rate['n']:,} end better" if rate else ""
        parts.append(f"span {arm['settings']['span']}, {shift(result, name)}{better}")
    return f"{'; '.join(parts)}." if parts else ""


def _corrective(result: Mapping[str, Any]) -> str:
    arms = _arms(result, lambda s: isinstance(s.get("prefix"), Mapping)
                 and (s["prefix"]["part"] == "corrective" or s["prefix"].get("matched")))  # fmt: skip
    known = [(n, a) for n, a in arms if a["first_attempt"]]
    if not known:
        return ""
    told = "; ".join(
        f"{n}: score {number('first_attempt', a['first_attempt']['value'])}"
        f" {limits('first_attempt', a['first_attempt']['interval'])} of {a['valid']:,}"
        for n, a in known
    )
    return f"Under steering, from a prefix of the same length: {told}."


def _prompts(result: Mapping[str, Any]) -> str:
    arms = _arms(result, lambda s: s.get("suffix") and s.get("steered") and not s.get("recalibrate"))
    return f"Multi-attempt rate: {'; '.join(shift(result, n) for n, _ in arms)}." if arms else ""


def _elsewhere(result: Mapping[str, Any]) -> str:
    arms = _arms(result, lambda s: s.get("prompts") or s.get("directions"))
    return f"Multi-attempt rate: {'; '.join(shift(result, n) for n, _ in arms)}." if arms else ""


def _trace(result: Mapping[str, Any]) -> str:
    found = result["experiments"]["trace"]
    return str(found["sentence"]) if found else ""


def _whole(result: Mapping[str, Any]) -> str:
    found = result["whole_response"]
    rated = [(n, a["whole_response"]) for n, a in result["arms"].items() if a["whole_response"]] if found else []
    if not rated:
        return ""
    told = "; ".join(
        f"{n}: {number('esr', m['value'])} {limits('esr', m['interval'])} of {m['n']:,}" for n, m in rated[:MOST_ARMS]
    )
    return f"Of the multi-attempt responses ({found['rule']}, by {found['judge']}): {told}. {found['caution']}"


def _trained(result: Mapping[str, Any]) -> str:
    arms = _arms(result, lambda s: s.get("adapter") and s.get("steered"))
    if not arms:
        return ""
    parts = []
    for name, arm in arms:
        better, above = arm["improvement"], arm["recovery"]
        text = shift(result, name)
        if better and better["value"] is not None:
            text += f", of which {number('esr', better['value'])} of {better['n']:,} end better"
        if above and above["value"] is not None:
            text += f" ({number('multi_attempt', above['value'], sign=True)} against a fresh attempt)"
        parts.append(text)
    return (
        f"Multi-attempt rate under steering: {'; '.join(parts)}. More restarts are not yet correction: only what lies"
        " above a fresh attempt is."
    )


def _judges(result: Mapping[str, Any]) -> str:
    parts = []
    for found in result["experiments"]["agreement"] or []:
        multi = found["multi_attempt"]
        kappa = multi["kappa"]
        text = f"{found['judge']}: raw agreement on multi-attempt {number('esr', multi['raw']['value'])}"
        if kappa["value"] is None:
            text += ", kappa undefined (one label only)"
        else:
            low_high = kappa["interval"]
            interval = f" [{low_high[0]:.2f}, {low_high[1]:.2f}]" if low_high else ""
            text += f", kappa {kappa['value']:.2f}{interval}"
        parts.append(f"{text}, n = {found['n']:,}, {found['disagreements']} to look at")
    return f"{'; '.join(parts)}. Raw agreement is inflated where restarts are rare." if parts else ""
