"""Sections about what arms change: prefixes, spans that follow the text, prompts, directions, adapters.

Arms are recognised by what they set (their settings in the run), never by their name.
"""

from __future__ import annotations

from collections.abc import Mapping

from countersteer.report.forest import Forest, dot
from countersteer.report.section import (
    METRIC,
    Cell,
    Result,
    Section,
    Table,
    arms_table,
    arms_where,
    brief,
    gap,
    gap_cell,
    gaps_forest,
    joined,
    rates_forest,
    row_of,
    seen_cell,
    shift,
    significant,
    size,
    unseen,
    unseen_rows,
    value_cell,
)
from countersteer.report.words import NAMES, limits, number, p_value


def sustained(result: Result) -> Section | None:
    """Is it detection from the text, or sustained resistance? (prefill)"""
    names = arms_where(result, lambda s: isinstance(s.get("prefix"), Mapping) and not s.get("judged_alone"))
    if not names:
        return None
    plain = [n for n in names if not result["arms"][n]["settings"]["steered"]]
    live = [n for n in names if n not in plain]
    parts = [f"the unsteered model goes on from steered text, {shift(result, n)}" for n in plain]
    parts += [f"the steered model goes on from the same text, {shift(result, n)}" for n in live]
    first = next(
        (row for n in (*live, *plain) if (row := row_of(result, n)) and row["against"] != result["base"]), None
    )
    said = "Both go on alike, as far as can be seen" if first is not None else ""
    if first is not None and significant(first):
        said = "Steering suppresses restarts" if first["difference"] < 0 else "Steering adds restarts"
    text = (
        f"{'; '.join(parts)}. Restarts of the unsteered model on steered text are detection from the text alone; what"
        " the steered model lacks against it is what steering suppresses. Scores and attempts include the given text."
    )
    return Section(
        "sustained", "Is it detection from the text, or sustained resistance?", said, text[0].upper() + text[1:],
        unseen(result, names), brief(METRIC, first),
        (arms_table(result, names, metrics=(METRIC, "esr", "improvement")),), forest=rates_forest(result, names),
    )  # fmt: skip


def turned(result: Result) -> Section | None:
    """What if steering stops, or begins, at the first restart?"""
    names = arms_where(result, lambda s: "(restart)" in str(s.get("span")))
    if not names:
        return None
    parts, rows = [], []
    for name in names:
        arm = result["arms"][name]
        told = arm["turned"]
        share = _share(told["turned_restarts"], told["restarts"])
        elsewhere = (told["turned"] - told["turned_restarts"], told["responses"] - told["restarts"])
        parts.append(
            f"In {name} (span {arm['settings']['span']}) it turned in {share} of the responses in which the judge finds"
            f" a restart, and in {_share(*elsewhere)} of the others"
        )
        same = "–" if arm["same_as_base"] is None else f"{arm['same_as_base']:,}"
        rows.append((Cell(name, (str(arm["settings"]["span"]),), words=True), Cell(share), Cell(_share(*elsewhere)),
                     Cell(f"{arm['acted']:,}", (f"of {arm['trials']:,}",)), Cell(same)))  # fmt: skip
    text = (
        f"{'; '.join(parts)}. The engine turns at the usual phrases only, the judge knows many more: where it did not"
        " turn, steering went on as before, so the differences below measure at most that share of the restarts."
    )
    head = ("arm", "turned, of responses with a restart", "turned, of others", "acted", "same text as base")
    table = Table("Where the span turned, by the engine's receipts.", head, tuple(rows))
    low = all(a["turned"]["turned_restarts"] < 0.5 * max(a["turned"]["restarts"], 1)
              for n in names for a in [result["arms"][n]])  # fmt: skip
    said = "It cannot be said: steering hardly ever turned" if low else ""
    return Section(
        "turned", "What if steering stops, or begins, at the first restart?", said, text, unseen(result, names),
        "; ".join(f"{n}: turned in {rows[i][1].main} restarts" for i, n in enumerate(names)),
        (table, arms_table(result, names)), forest=gaps_forest(result, names),
    )  # fmt: skip


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,}" + (f" ({100 * part / whole:.0f}%)" if whole else "")


def corrective(result: Result) -> Section | None:
    """Does its own corrective text carry it back? Judged on what the model wrote, not on what it was given."""
    names = arms_where(result, lambda s: s.get("judged_alone"))
    if not names:
        return None
    question = "Does its own corrective text carry it back?"
    rows = result["matched_prefix"]
    known = [(n, row) for n, row in rows.items() if row["difference"] is not None]
    text = (
        "Steered, from a given prefix of the same length; scored is only what the model wrote after it, up to its next"
        " restart."
    )
    said, short = "It cannot be said", ""
    for name, row in known[:1]:
        own = row["against"]
        said = "Not shown"
        if significant(row):
            said = "Yes" if row["difference"] < 0 else "No, less than other on-topic text"
        text += (
            f" After its own corrective text ({own}) it scores {number('first_attempt', row['base_value'])}, after"
            f" {name} {number('first_attempt', row['arm_value'])}: {gap('first_attempt', row)} against {own}"
            f" ({joined([size(row), p_value(row['p_holm'])])})."
        )
        short = f"{joined([gap('first_attempt', row), p_value(row['p_holm'])])} for other text against its own."
    if not known:
        text += " No pair of trials has both."
    body = []
    for name in names:
        arm, row = result["arms"][name], rows.get(name)
        small = () if row is None else (f"against {row['against']}", *size(row).split(", "))
        ratio = Cell("–") if row is None or row["ratio"] is None else Cell(f"{row['ratio']:.2f}")
        body.append((Cell(name, small, words=True), value_cell("continuation", arm["continuation"]),
                     gap_cell("continuation", row), seen_cell("continuation", row), ratio,
                     value_cell("first_attempt", arm["first_attempt"])))  # fmt: skip
    head = ("arm", NAMES["continuation"], "difference", "would be found", "ratio", "score with the given text")
    caption = (
        "Scores of what the model wrote after the prefix, judged by itself; paired by latent, prompt and seed. The last"
        " column includes the given text, which decides most of it: it says nothing about the model."
    )
    dots = [(n, tuple(d for d in [dot(NAMES["continuation"], a["value"], a["interval"], 1)] if d))
            for n in names if (a := result["arms"][n]["continuation"])]  # fmt: skip
    return Section(
        "corrective", question, said, text, unseen_rows([r for _, r in known], "continuation"), short,
        (Table(caption, head, tuple(body)),), forest=Forest(tuple(dots), "score (0 to 100)") if dots else None,
    )  # fmt: skip


def prompts(result: Result) -> Section | None:
    """Do prompts help?"""
    names = arms_where(result, lambda s: (s.get("suffix") or s.get("system")) and s.get("steered")
                       and not s.get("recalibrate"))  # fmt: skip
    if not names:
        return None
    helped = [
        n for n in names for row in [row_of(result, n, "esr")] if significant(row) and row and row["difference"] > 0
    ]
    more = [n for n in names for row in [row_of(result, n)] if significant(row) and row and row["difference"] > 0]
    said = "Yes" if helped else "More restarts, not shown to be better ones" if more else "Not shown"
    text = "; ".join(shift(result, n) for n in names)
    best = max(
        (n for n in names if row_of(result, n)), key=lambda n: (row_of(result, n) or {})["difference"], default=None
    )
    return Section(
        "prompts", "Do prompts help?", said, f"Multi-attempt rate, {text}.", unseen(result, names),
        "" if best is None else f"Most: {best}, {brief(METRIC, row_of(result, best))}",
        (arms_table(result, names),), forest=gaps_forest(result, names),
    )  # fmt: skip


def elsewhere(result: Result) -> Section | None:
    """Does it hold for other prompts and other directions?"""
    names = arms_where(result, lambda s: s.get("prompts") or s.get("directions"))
    if not names:
        return None
    plain = [n for n in names if not result["arms"][n]["settings"].get("clamp") and result["arms"][n]["esr"]]
    seen = [n for n in plain if (result["arms"][n]["esr"]["interval"] or [0])[0]]
    said = f"Seen in {len(seen)} of {len(plain)} arms" if plain else ""
    text = "; ".join(shift(result, n) for n in names)
    short = joined((f"{n}: ESR rate {number('esr', result['arms'][n]['esr']['value'])}" for n in plain), "; ")
    return Section(
        "elsewhere", "Does it hold for other prompts and other directions?", said, f"Multi-attempt rate, {text}.",
        unseen(result, names), short, (arms_table(result, names),), forest=rates_forest(result, names),
    )  # fmt: skip


def trained(result: Result) -> Section | None:
    """Can self-correction be trained in?"""
    names = arms_where(result, lambda s: s.get("adapter") and s.get("steered"))
    if not names:
        return None
    parts = []
    for name in names:
        better, above = result["arms"][name]["improvement"], result["arms"][name]["recovery"]
        text = shift(result, name)
        if better and better["value"] is not None:
            text += f", of which {number('esr', better['value'])} of {better['n']:,} end better"
        if above and above["value"] is not None:
            gain = joined([number("recovery", above["value"], sign=True), limits("recovery", above["interval"])], " ")
            text += f" ({joined([f'{gain} against a fresh attempt', p_value(above['p_holm'])])})"
        parts.append(text)
    gains = [
        n for n in names for a in [result["arms"][n]["recovery"]] if a and (a["p_holm"] or 1) < 0.05 and a["value"] > 0
    ]
    more = [n for n in names for row in [row_of(result, n)] if significant(row) and row and row["difference"] > 0]
    said = "Yes" if gains else "Restarts can, correction is not shown" if more else "Not shown"
    told = (
        f"Multi-attempt rate under steering: {'; '.join(parts)}. More restarts are not yet correction: only what lies"
        " above a fresh attempt is."
    )
    return Section(
        "trained", "Can self-correction be trained in?", said, told, unseen(result, names), "",
        (arms_table(result, names),), ("finetuned",), gaps_forest(result, names),
    )  # fmt: skip
