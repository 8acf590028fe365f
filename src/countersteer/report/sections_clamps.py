"""Sections about clamps: are the detectors causal, and do random latents in their place do as much?"""

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
    gap_cell,
    gaps_forest,
    rates_forest,
    row_of,
    seen_cell,
    shift,
    significant,
    size,
    unseen,
    unseen_rows,
    verdict,
)
from countersteer.report.words import NAMES, number


def causal(result: Result) -> Section | None:
    """Does clamping the detectors reduce restarts?"""
    names = arms_where(result, lambda s: isinstance(s.get("clamp_rule"), str))
    if not names:
        return None
    row = row_of(result, names[0])
    text = f"Multi-attempt rate with the detectors clamped, {shift(result, names[0])}."
    text += " The other arms that clamp them are in the table." if len(names) > 1 else ""
    tables = [arms_table(result, names)]
    acted = _acted(result, names)
    tables += [acted] if acted else []
    return Section(
        "causal", "Is detection causal: does clamping the detectors reduce restarts?", verdict(row, falls=True), text,
        unseen(result, names), brief(METRIC, row), tuple(tables), forest=gaps_forest(result, names),
    )  # fmt: skip


def _acted(result: Result, names: list[str]) -> Table | None:
    """How often the clamps of some arms changed a token, and by how much they moved the residual."""
    rows = []
    for name in names:
        held = result["arms"][name].get("clamp")
        if held:
            moved = "–" if held["perturbation"] is None else f"{held['perturbation']:.3g}"
            acted = Cell(f"{held['acted']:,}", (f"of {held['responses']:,}",))
            rows.append((Cell(name, words=True), acted, Cell(moved)))
    caption = "As measured by the receipts: responses in which the clamp changed a token, and how far it moved them."
    return Table(caption, ("arm", "responses clamped", "|h' − h| / |h|"), tuple(rows)) if rows else None


def random(result: Result) -> Section | None:
    """Is that more than clamping random latents does?"""
    names = arms_where(result, lambda s: isinstance(s.get("clamp_rule"), Mapping))
    known = [n for n in names if result["arms"][n][METRIC]]
    if not known:
        return None
    rates = [result["arms"][n][METRIC]["value"] for n in known]
    span = f"between {number(METRIC, min(rates))} and {number(METRIC, max(rates))}"
    direct = {n: rows[METRIC] for n, rows in result["detectors_against_random"].items()
              if rows[METRIC]["difference"] is not None}  # fmt: skip
    said, short, own = "It cannot be said", "", None
    text = f"{len(known)} random sets have multi-attempt rates {span}; sets are rows, not more trials of one arm."
    if direct:
        own = next(iter(direct.values()))["arm"]
        lower = [n for n, row in direct.items() if significant(row) and row["difference"] < 0]
        rate = result["arms"][own][METRIC]["value"]
        below = sum(rate < r for r in rates)
        said = "Yes" if len(lower) == len(direct) else "Not shown"
        text = (
            f"{own} has {number(METRIC, rate)}, below {below} of {len(known)} random sets, which lie {span};"
            f" against each set directly it is lower by more than chance in {len(lower)} of {len(direct)} (paired, Holm"
            f" over the sets). Sets are rows, not more trials of one arm."
        )
        short = f"{number(METRIC, rate)} against {span} (multi-attempt rate)."
    tables = [arms_table(result, known)]
    tables += [_direct(result)] if direct else []
    tables += [t for t in (_acted(result, known), _matches(result)) if t]
    rows = [("detectors − " + n, tuple(d for d in [dot(NAMES[METRIC], r["difference"], r["interval"], 100)] if d))
            for n, r in direct.items()]  # fmt: skip
    forest = Forest(tuple(rows), "difference in points", zero=True) if rows else rates_forest(result, known)
    return Section(
        "random", "Is that more than clamping random latents does?", said, text,
        unseen_rows(list(direct.values()), METRIC) or unseen(result, known), short, tuple(tables), forest=forest,
    )  # fmt: skip


def _direct(result: Result) -> Table:
    """Detectors clamped against every random set clamped."""
    rows = []
    for name, found in result["detectors_against_random"].items():
        cells = [Cell(name, tuple(size(found[METRIC]).split(", ")), words=True)]
        for metric in (METRIC, "esr", "first_attempt"):
            cells.append(gap_cell(metric, found[metric]))
            cells += [seen_cell(metric, found[metric])] if metric == METRIC else []
        rows.append(tuple(cells))
    own = next(iter(result["detectors_against_random"].values()))[METRIC]["arm"]
    head = ("against set", NAMES[METRIC], "would be found", NAMES["esr"], NAMES["first_attempt"])
    return Table(f"{own} against each random set, paired; p corrected over the sets (Holm).", head, tuple(rows))


def _matches(result: Result) -> Table | None:
    """How well each random set matches the latents it stands in for."""
    rows = []
    for name, sets in (result["experiments"]["random_sets"] or {}).items():
        for number_of, one in enumerate(sets, 1):
            cells = [Cell(f"{name}@set{number_of}", (f"{len(one['latents'])} latents",), words=True)]
            for measure in ("firing-rate", "mean-activation", "perturbation"):
                m = one["match"].get(measure)
                small = () if not m or m["targets"] is None else (f"targets {m['targets']:.3g}",)
                cells.append(Cell("–" if not m or m["set"] is None else f"{m['set']:.3g}", small))
            rows.append(tuple(cells))
    head = ("set", "firing rate", "mean activation", "|h' − h| / |h| of ablating it")
    return Table("The achieved match, measured on the base arm's responses.", head, tuple(rows)) if rows else None
