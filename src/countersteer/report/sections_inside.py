"""Sections about what happens inside and who judges: the detector search, detectors in steered responses, the trace,
whole responses, agreement of judges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from countersteer.report.forest import Dot, Forest, dot
from countersteer.report.section import Cell, Result, Section, Table, joined, value_cell
from countersteer.report.words import limits, number, p_value

MOST_ROWS = 60
MOST_ARMS = 12
Found = Mapping[str, Any]


def _bounds(interval: Any, digits: int = 2) -> str:
    """An interval of a plain number."""
    if not interval or None in interval:
        return ""
    return f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]".replace("-", "−")


def _one(kind: str, value: float | None, interval: Any) -> tuple[Dot, ...]:
    """One dot, or none without a value."""
    found = dot(kind, value, interval, 1)
    return () if found is None else (found,)


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _num(value: float | None, form: str = ".3g") -> str:
    return "–" if value is None else f"{value:{form}}".replace("-", "−")


def search(result: Result) -> Section | None:
    """Which latents tell a mismatched answer?"""
    found = result["experiments"]["detectors"]
    if not found:
        return None
    chosen = len(found["selected"])
    text = (
        f"{chosen} of {found['latents']:,} latents were chosen by the rule “{found['settings']['rule']}” at layer"
        f" {found['layer']}, from {found['prompts']} prompts and {found['pairs']:,} pairs of prompt and response."
        f" {found['significant']:,} latents beat the permutation null at 5%, for all latents at once;"
        f" {found['strict']:,} pass the strict rule (silent on every matched pair, active on 80% of shuffled ones)."
    )
    rows = []
    for r in found["table"][:MOST_ROWS]:
        cells = (f"{r['auc']:.3f}", _num(r["cohen_d"], ".2f"), _num(r["matched"]), _num(r["shuffled"]), _p(r["p"]),
                 "yes" if r["selected"] else "")  # fmt: skip
        rows.append((Cell(f"{r['latent']}", (r["label"] or "",) if r["label"] else (), words=True), *map(Cell, cells)))
    head = ("latent", "AUC", "Cohen’s d", "matched", "shuffled", "p, all latents at once", "chosen")
    caption = (
        f"AUC of shuffled against matched pairs (n = {found['pairs']:,} pairs of {found['prompts']} prompts), mean"
        " activations; p by the largest AUC over all latents under the permutation null."
    )
    missed = (
        f"With {found['prompts']} prompts, chance alone gives some latent an AUC of {found['null_95']:.3f} one time in"
        " twenty: what lies below cannot be told from chance."
    )
    said = "Some do" if found["significant"] else "None is shown to"
    return Section("detectors", "Which latents tell an answer to another question?", said, text, missed,
                   f"{found['significant']:,} of {found['latents']:,} beat chance; {chosen} chosen.",
                   (Table(caption, head, tuple(rows)),), ("detectors",))  # fmt: skip


def content(result: Result) -> Section | None:
    """Are the detectors about content or about the decision to restart?"""
    found = result["experiments"]["detectors_steered"]
    if not found:
        return None
    question = "Are the detectors about content or about the decision to restart?"
    counts = f"{found['restarts']:,} steered responses with a restart and {found['single']:,} without"
    if found["status"] != "ok":
        return Section("content", question, "Too few to say", f"There are {counts}.", short=counts)
    rows, shown = found["rows"], found["rows"][:MOST_ROWS]
    more, less = (sum(_holds(r) and way * (r["auc"] - 0.5) > 0 for r in rows) for way in (1, -1))
    top = max(rows, key=lambda r: r["auc"])
    text = (
        f"Over {counts}, by {found['latents']} steering latents ({found['restart_latents']} with a restart): {more} of"
        f" {len(rows)} detectors are shown to be more active with a restart and {less} to be less active (AUC, p by"
        f" whole steering latents, Holm, 5%). The largest AUC is {top['auc']:.2f} {_bounds(top['interval'])}"
        f" ({p_value(top['p_holm'])}, latent {top['latent']})."
    )
    if more < len(rows):
        text += (
            " For the others a link to restarts is not shown, which is not the same as shown to be absent: their"
            " intervals say how large it may be."
        )
    known = sorted(r["detectable"] for r in rows if r["detectable"] is not None)
    missed = "With so few responses no AUC, however large, would be found four times in five."
    if known:
        missed = (
            f"With {found['restarts']:,} restarts under {found['restart_latents']} latents, an AUC below"
            f" {known[0]:.2f} to {known[-1]:.2f} (by detector) may well be missed."
        )
    said = f"{more} of {len(rows)} fire more with a restart" if more else "Not shown to be about the decision"
    short = f"Largest AUC {top['auc']:.2f} {_bounds(top['interval'])}, {p_value(top['p_holm'])}."
    dots = tuple((_latent(r), _one("AUC", r["auc"], r["interval"])) for r in shown)
    forest = Forest(dots, "AUC, with a restart against without", reference=0.5)
    table = _content_table(shown, counts)
    return Section("content", question, said, text, missed, short, (table,), forest=forest)


def _holds(row: Found) -> bool:
    return row["p_holm"] is not None and row["p_holm"] < 0.05


def _latent(row: Found) -> str:
    return f"{row['latent']} {row.get('label') or ''}".strip()


def _named(row: Found) -> Cell:
    """A latent with its label."""
    return Cell(f"{row['latent']}", (row["label"],) if row.get("label") else (), words=True)


def _content_table(shown: Sequence[Found], counts: str) -> Table:
    body = []
    for r in shown:
        auc = Cell(f"{r['auc']:.2f}", (_bounds(r["interval"]) or "no interval",), strong=_holds(r))
        seen = "nothing" if r["detectable"] is None else f"{r['detectable']:.2f}"
        facts = (_p(r["p_holm"]), _num(r["restart_mean"]), _num(r["single_mean"]), seen)
        body.append((_named(r), auc, *map(Cell, facts)))
    caption = (
        f"Max-pooled activation in {counts}; an AUC of 0.5 is no difference. Would be found: the smallest AUC above 0.5"
        " that is found four times in five after Holm’s correction."
    )
    head = ("detector", "AUC", "p (Holm)", "mean with a restart", "mean without", "would be found")
    return Table(caption, head, tuple(body))


def trace(result: Result) -> Section | None:
    """What do the latents do around a correction?"""
    found = result["experiments"]["trace"]
    if not found:
        return None
    question = "What do the latents do around a correction?"
    if found["status"] != "ok":
        return Section("trace", question, "No episode", str(found["sentence"]))
    rows = found["latents"]
    falls, n = sum(map(_holds, rows)), rows[0]["n"]
    text = (
        f"{found['sentence']} Beside them stand {found['matched']} matched single-attempt responses, and"
        f" {found['baseline']} single-attempt ones that score 50 or more."
    )
    missed = f"With {n} steering latents and {len(rows)} latents tested, no fall, however large, could be shown."
    if found["smallest_d"] is not None:
        missed = f"With {n} steering latents, a fall below {found['smallest_d']:.2f} SD (Cohen’s d) may well be missed."
    said = f"{falls} of {len(rows)} fall after it" if falls else "Not shown to fall after it"
    short = f"{found['episodes']} episodes under {n} steering latents."
    table = _trace_table(rows[:MOST_ROWS])
    return Section("trace", question, said, text, missed, short, (table,), ("traced",))


def _trace_table(shown: Sequence[Found]) -> Table:
    body = []
    for r in shown:
        gap = Cell(_num(r["difference"]), (_bounds(r["interval"], 3) or "no interval",), strong=_holds(r))
        ratios = " / ".join(_num(r[k], ".2g") for k in ("before_ratio", "after_ratio"))
        regions = (_num(r[k]) for k in ("before", "correction", "after"))
        tests = (_p(r["p_holm"]), _p(r["t_p"]), _num(r["cohen_d"], ".2f"), _num(r["cliff_delta"], ".2f"))
        size, calm = Cell(f"{r['n']}", (f"{r['episodes']} episodes",)), Cell(_num(r["baseline"]), (ratios,))
        body.append((_named(r), size, *map(Cell, regions), gap, *map(Cell, tests), calm))
    head = (
        "latent", "n", "off topic", "correcting", "after", "difference", "Wilcoxon p (Holm)", "t-test p", "Cohen’s d",
        "Cliff’s δ", "baseline; ratios to it",
    )  # fmt: skip
    caption = (
        "Mean activation per region of an unsteered forward; n counts steering latents, each the mean of its episodes."
        " Wilcoxon one-sided (off topic above after), corrected over the latents; t two-sided, uncorrected. Ratios: off"
        " topic and after, over single-attempt responses that score 50 or more."
    )
    return Table(caption, head, tuple(body))


def whole(result: Result) -> Section | None:
    """Do responses recover when read as a whole?"""
    found = result["whole_response"]
    rated = [(n, a["whole_response"]) for n, a in result["arms"].items() if a["whole_response"]] if found else []
    if not rated:
        return None
    told = "; ".join(
        f"{n}: {number('esr', m['value'])} {limits('esr', m['interval'])} of {m['n']:,}" for n, m in rated[:MOST_ARMS]
    )
    base = dict(rated).get(result["base"])
    text = f"Of the multi-attempt responses ({found['rule']}, by {found['judge']}): {told}. {found['caution']}"
    rows = tuple((Cell(n, words=True), value_cell("whole_response", m),
                  value_cell("improvement", result["arms"][n]["improvement"])) for n, m in rated)  # fmt: skip
    head = ("arm", "recover as a whole", "last attempt beats the first")
    caption = (
        f"Share of multi-attempt responses of which {found['rule']}. Arms are not tested against each other on it."
    )
    dots = tuple(
        (n, tuple(d for d in [dot("as a whole", m["value"], m["interval"], 100)] if d is not None)) for n, m in rated
    )
    return Section("whole", "Do responses recover when read as a whole?", "", text,
                   "Nothing is corrected for trying again here: low first attempts rise by themselves.",
                   "" if base is None else f"{number('esr', base['value'])} of {base['n']:,} do. {found['caution']}",
                   (Table(caption, head, rows),), forest=Forest(dots, "% of multi-attempt responses"))  # fmt: skip


WHAT = {"multi_attempt": "more than one attempt", "direction": "better, worse or same", "first_score": "first score"}


def judges(result: Result) -> Section | None:
    """Do judges agree?"""
    every = result["experiments"]["agreement"]
    if not every:
        return None
    parts, notes, kappas = [], [], []
    for found in every:
        kappa = found["multi_attempt"]["kappa"]
        text = f"{found['judge']}: raw agreement on multi-attempt"
        text += f" {number('esr', found['multi_attempt']['raw']['value'])}"
        if kappa["value"] is None:
            text += ", kappa undefined (one label only)"
        else:
            kappas.append(joined([f"{kappa['value']:.2f}", _bounds(kappa["interval"])], " "))
            text += f", kappa {kappas[-1]}"
        parts.append(f"{text}, n = {found['n']:,}, {found['disagreements']} to look at")
        if kappa["interval"] and kappa["interval"][0] is not None:
            notes.append(f"a kappa of {kappa['interval'][0]:.2f} with {found['judge']} is not ruled out")
    forest = Forest(tuple(_agreement_dots(every)), "agreement or correlation")
    return Section(
        "judges", "Do judges agree?", "", f"{'; '.join(parts)}. Raw agreement is inflated where restarts are rare.",
        f"With as many responses as these, {joined(notes, '; ')}." if notes else "",
        f"Kappa {joined(kappas)} on more than one attempt." if kappas else parts[0], (_agreement_table(every),),
        forest=forest if any(dots for _, dots in forest.rows) else None,
    )  # fmt: skip


def _agreement_dots(every: Sequence[Found]) -> list[tuple[str, tuple[Dot, ...]]]:
    return [
        (f"{what}, {found['judge']}", _one(measure, one["value"], one["interval"]))
        for found in every for group, what in WHAT.items() for measure, one in found[group].items()
    ]  # fmt: skip


def _agreement_table(every: Sequence[Found]) -> Table:
    rows = []
    for found in every:
        for group, what in WHAT.items():
            for measure, one in found[group].items():
                facts = (_num(one["value"], ".3f"), _bounds(one["interval"], 3) or "–", f"{one['n']:,}")
                rows.append((Cell(found["judge"], (f"{what}: {measure}",), words=True), *map(Cell, facts)))
    several = "; ".join(
        f"{f['multi_first']:,} of {f['n']:,} by the run’s judge, {f['multi_other']:,} by {f['judge']}" for f in every
    )
    caption = f"95% intervals over whole latents. Responses with more than one attempt: {several}."
    return Table(caption, ("judge", "value", "95% interval", "n"), tuple(rows))
