"""Sections about the study as a whole: every contrast, the numbers without degraded responses, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from countersteer.report.forest import Forest, dot
from countersteer.report.section import (
    METRIC,
    Cell,
    Result,
    Section,
    Table,
    gap,
    gap_cell,
    joined,
    significant,
    size,
    unseen,
    unseen_rows,
    value_cell,
)
from countersteer.report.words import NAMES, full, p_value


def degraded(result: Result) -> Section | None:
    """Does it hold without degraded responses?"""
    question = "Does it hold without degraded (repetitive) responses?"
    base = result["arms"].get(result["base"])
    if not base or not base["esr"]:
        return None
    if not any(arm["degraded"] for arm in result["arms"].values()):
        return Section("degraded", question, "", "No response of any arm is degraded.")
    rest = base["without_degraded"]["esr"]
    text = f"{base['degraded']:,} of {base['trials']:,} responses of the base arm repeat a word five times or more."
    if base["degraded"] and not rest:
        text += " None is left without them."
    elif base["degraded"]:
        text += f" Without them the ESR rate is {full('esr', rest)}; with them it is {full('esr', base['esr'])}."
    rows = []
    for name, arm in result["arms"].items():
        clean, row = arm["without_degraded"], result["contrasts_without_degraded"].get(name, {})
        against = next((r["against"] for r in row.values()), "")
        rows.append((Cell(name, (f"against {against}",) if against else ("base",), words=True),
                     Cell(f"{arm['degraded']:,}", (f"of {arm['trials']:,}",)), value_cell(METRIC, clean[METRIC]),
                     gap_cell(METRIC, row.get(METRIC)), value_cell("esr", clean["esr"]),
                     gap_cell("esr", row.get("esr"))))  # fmt: skip
    head = ("arm", "degraded", NAMES[METRIC], "difference", NAMES["esr"], "difference")
    table = Table("Every rate and contrast as if degraded responses had not been generated (Holm over the arms).",
                  head, tuple(rows))  # fmt: skip
    missed = unseen_rows([r[METRIC] for r in result["contrasts_without_degraded"].values()
                          if r[METRIC]["difference"] is not None], METRIC)  # fmt: skip
    return Section("degraded", question, "", text, missed, text, (table,), (), _clean_forest(result))


def _clean_forest(result: Result) -> Forest | None:
    rows = []
    for name, arm in result["arms"].items():
        pairs = (("with degraded", arm["esr"]), ("without", arm["without_degraded"]["esr"]))
        if arm["degraded"]:
            dots = [dot(kind, data["value"], data["interval"], 100) for kind, data in pairs if data]
            rows.append((name, tuple(d for d in dots if d is not None)))
    return Forest(tuple(rows), "ESR rate (% of valid responses)") if any(dots for _, dots in rows) else None


def missing(result: Result) -> Section:
    """What is missing?"""
    total: dict[str, int] = {}
    rows = []
    for name, arm in result["arms"].items():
        gone = {status: count for status, count in arm["statuses"].items() if status != "ok"}
        for status, count in gone.items():
            total[status] = total.get(status, 0) + count
        if gone:
            rows.append((name, arm, gone))
    if not total:
        said = "Every planned trial was generated and graded."
        return Section("missing", "What is missing?", "Nothing", said, short=said)
    planned = sum(arm["trials"] for arm in result["arms"].values())
    text = f"Of {planned:,} planned trials: {joined(f'{n:,} {s}' for s, n in sorted(total.items()))}."
    text += " They are in no denominator."
    head = ("arm", "planned", "valid", *sorted(total))
    body = tuple((Cell(name, words=True), Cell(f"{arm['trials']:,}"), Cell(f"{arm['valid']:,}"),
                  *(Cell(f"{gone.get(s, 0):,}") for s in sorted(total))) for name, arm, gone in rows)  # fmt: skip
    return Section(
        "missing", "What is missing?", "", text, short=text, tables=(Table("Trials by status.", head, body),)
    )


def against_base(result: Result) -> Section | None:
    """Which arms differ from base? Arms that are compared with another arm are named apart."""
    if not result["contrasts"]:
        return None
    base: list[str] = []
    others: list[str] = []
    for name, metrics in result["contrasts"].items():
        for metric in ("esr", METRIC):
            row: Mapping[str, Any] = metrics[metric]
            if not significant(row):
                continue
            told = f"{NAMES[metric]} {joined([gap(metric, row), p_value(row['p_holm'])])}"
            if row["against"] == result["base"]:
                base.append(f"{name} ({told})")
            else:
                others.append(f"{name} differs from {row['against']} ({told})")
    text = f"After Holm's correction, from {result['base']}: {'; '.join(base)}." if base else (
        f"None from {result['base']}, in ESR or multi-attempt rate, that this study could tell (Holm, 5%)."
    )  # fmt: skip
    text += f" Compared with another arm: {'; '.join(others)}." if others else ""
    names = list(result["contrasts"])
    short = f"{len({t.split(' (')[0] for t in base})} of {len(names)} arms differ from {result['base']}."
    return Section("differ", f"Which arms differ from {result['base']}?", "", text, unseen(result, names), short,
                   (contrasts_table(result),), ("compared",))  # fmt: skip


def contrasts_table(result: Result) -> Table:
    """Every contrast of the study, each with what it is against."""
    metrics = ("first_attempt", METRIC, "esr", "improvement")
    rows = []
    for name, found in result["contrasts"].items():
        row = found["esr"]
        ratio = Cell("–")
        if row["ratio"] is not None:
            low, high = row["ratio_interval"] or (None, None)
            ends = f"[{low:.2f}, {'∞' if high is None else f'{high:.2f}'}]" if low is not None else "no interval"
            ratio = Cell(f"{row['ratio']:.2f}", (ends,))
        small = (f"against {row['against']}", *size(row).split(", "))
        rows.append((Cell(name, small, words=True), *(gap_cell(m, found[m]) for m in metrics), ratio))
    caption = (
        "Differences with 95% intervals, rates in points; p from swapping the two arms within latents, corrected over"
        " the arms (Holm), bold below 0.05. Paired by latent, strength, prompt and seed; arms on other prompts or"
        " directions share no trial with what they are compared with: unpaired, two samples of latents."
    )
    return Table(caption, ("arm", *(NAMES[m] for m in metrics), "ratio of ESR rates"), tuple(rows))
