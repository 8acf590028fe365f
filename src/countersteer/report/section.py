"""A section of the page: a question, its answer in plain words, figures, tables, what the design could not have seen.

Cells are text, made here and escaped by the template. Arms are recognised by what they set (their settings in the run),
never by their name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from countersteer.report.forest import Dot, Forest, dot
from countersteer.report.words import NAMES, SCORES, WHY, limits, number, p_value

METRIC = "multi_attempt"
PAIR = ("multi_attempt", "esr")
Result = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A value with small print under it; `strong` is bold, `words` is text (aligned left)."""

    main: str
    small: tuple[str, ...] = ()
    strong: bool = False
    words: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under `head`; the first cell of a row names it."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Section:
    """`verdict` is the answer in a word or two, `short` one line for the top of the page, `answer` the whole of it.

    `unseen`: what the design could not have seen. `figures` names figures of the run that are drawn elsewhere,
    `forest` is a plot of this section's own.
    """

    name: str
    question: str
    verdict: str
    answer: str
    unseen: str = ""
    short: str = ""
    tables: tuple[Table, ...] = ()
    figures: tuple[str, ...] = ()
    forest: Forest | None = None
    note: str = ""

    @property
    def text(self) -> str:
        """Verdict and answer as one text."""
        return f"{self.verdict}. {self.answer}" if self.verdict else self.answer

    @property
    def line(self) -> str:
        """The answer in one line."""
        return f"{self.verdict}. {self.short}".strip() if self.verdict else self.short or self.answer


def arms_where(result: Result, test: Callable[[Mapping[str, Any]], Any]) -> list[str]:
    """Names of the arms beside base whose settings pass a test."""
    return [n for n, a in result["arms"].items() if n != result["base"] and test(a["settings"])]


def row_of(result: Result, name: str, metric: str = METRIC) -> Row | None:
    """An arm's contrast on a metric, or None where there is none to speak of."""
    row: Row | None = result["contrasts"].get(name, {}).get(metric)
    return row if row and row["difference"] is not None else None


def significant(row: Row | None) -> bool:
    """Whether a contrast's corrected p is below 5%."""
    return bool(row) and row is not None and row["p_holm"] is not None and row["p_holm"] < 0.05


def verdict(row: Row | None, *, falls: bool) -> str:
    """Whether a contrast shows what was asked for, in a word or two."""
    if row is None:
        return "It cannot be said"
    if not significant(row):
        return "Not shown"
    return "Yes" if (row["difference"] < 0) == falls else "No, the other way round"


def joined(parts: Iterable[str], separator: str = ", ") -> str:
    """The parts that are not empty."""
    return separator.join(part for part in parts if part)


def size(row: Row) -> str:
    """How many trials and latents a contrast rests on."""
    if row["paired"]:
        return f"{row['pairs']:,} pairs, {row['latents']:,} latents"
    return f"unpaired: {row['arm_trials']:,} and {row['base_trials']:,} trials"


def gap(metric: str, row: Row) -> str:
    """A difference with its interval: "+8.8 points [−3.4, 19.9]"."""
    return f"{number(metric, row['difference'], sign=True)} {limits(metric, row['interval'])}".strip()


def shift(result: Result, name: str, metric: str = METRIC) -> str:
    """An arm's value and its difference from what it is compared with: interval, pairs, p (Holm)."""
    arm, row = result["arms"][name], row_of(result, name, metric)
    if not arm[metric]:
        return f"{name}: no valid trial"
    rate = f"{name}: {number(metric, arm[metric]['value'])} of {arm[metric]['n']:,}"
    if row is None:
        return f"{rate} (no comparison)"
    compared = f"{gap(metric, row)} against {row['against']}"
    return f"{rate} ({joined([compared, size(row), p_value(row['p_holm'])])})"


def brief(metric: str, row: Row | None) -> str:
    """A contrast in a few words for the top of the page."""
    return "" if row is None else f"{joined([gap(metric, row), p_value(row['p_holm'])])} ({NAMES[metric]})"


def value_cell(metric: str, data: Mapping[str, Any] | None, *, why: str = "") -> Cell:
    """A metric's value, interval and n."""
    if not data:
        return Cell("–", (why,) if why else ())
    sign = metric == "recovery"
    shown = number(metric, data["value"], sign=sign).replace(" points", "")
    return Cell(shown, (limits(metric, data["interval"]) or "no interval", f"n = {data['n']:,}"))


def gap_cell(metric: str, row: Row | None) -> Cell:
    """A difference with interval, p and, where they differ, the sizes of the two denominators."""
    if not row:
        return Cell("–")
    if row["difference"] is None:
        return Cell(WHY[row["status"]])
    sizes = "" if row["arm_n"] == row["base_n"] == row["pairs"] else f"n = {row['arm_n']:,}, {row['base_n']:,}"
    small = (limits(metric, row["interval"]) or "no interval", p_value(row["p_holm"]), sizes)
    shown = number(metric, row["difference"], sign=True).replace(" points", "")
    return Cell(shown, tuple(s for s in small if s), strong=significant(row))


def seen_cell(metric: str, row: Row | None) -> Cell:
    """The smallest rise and fall that a contrast would have found."""
    seen = row["detectable"] if row else None
    if not seen or (row is not None and row["difference"] is None):
        return Cell("–")
    if seen["few_latents"]:
        return Cell("nothing", ("too few latents",))
    ends = [number(metric, seen[way], sign=True).replace(" points", "") for way in ("rise", "fall")]
    return Cell("", tuple(f"no {way}" if end == "–" else end for way, end in zip(("rise", "fall"), ends, strict=True)))


def named(result: Result, name: str) -> Cell:
    """An arm's name with what it is compared with and on how much."""
    row = row_of(result, name)
    against = [] if row is None else [f"against {row['against']}", *size(row).split(", ")]
    return Cell(name, tuple(against) if name != result["base"] else ("base",), words=True)


def arms_table(result: Result, names: Sequence[str], *, metrics: Sequence[str] = PAIR, caption: str = "") -> Table:
    """Arms with their rates, differences and what could have been seen; what they are compared with stands first."""
    rows = [row for n in names if (row := row_of(result, n)) is not None]
    others = [str(r["against"]) for r in rows] or [result["base"]]
    order = [n for n in dict.fromkeys([*others, *names]) if n in result["arms"]]
    head = ["arm"]
    for metric in metrics:
        head += [NAMES[metric], "difference", "would be found"]
    head += ["first-attempt score", "difference"]
    body = []
    for name in order:
        arm, cells = result["arms"][name], [named(result, name)]
        contrasts = result["contrasts"].get(name, {})
        for metric in metrics:
            row = contrasts.get(metric)
            cells += [value_cell(metric, arm[metric]), gap_cell(metric, row), seen_cell(metric, row)]
        cells += [
            value_cell("first_attempt", arm["first_attempt"]),
            gap_cell("first_attempt", contrasts.get("first_attempt")),
        ]
        body.append(tuple(cells))
    told = (
        "95% intervals for these prompts; differences in points, p corrected over the arms of the study (Holm), bold"
        " below 0.05. Would be found: the smallest rise and fall that this contrast finds four times in five."
    )
    return Table(f"{caption} {told}".strip(), tuple(head), tuple(body))


def unseen(result: Result, names: Sequence[str], metric: str = METRIC) -> str:
    """What the contrasts of some arms could not have seen, in one sentence; "" where that is not known."""
    return unseen_rows([row for n in names if (row := row_of(result, n, metric)) is not None], metric)


def unseen_rows(rows: Sequence[Row], metric: str) -> str:
    """The same of rows that are one family."""
    known = [row for row in rows if row.get("detectable")]
    if not known:
        return ""
    arms = known[0]["detectable"]["arms"]
    holm = f" after Holm's correction over {arms} contrasts" if arms > 1 else ""
    able = [row for row in known if not row["detectable"]["few_latents"]]
    if not able:
        latents = max(row["latents"] for row in known)
        return (
            f"With {latents} latents, not even a difference on which all of them agree reaches p < 0.05{holm}: no"
            " effect, however large, could have been shown."
        )
    parts = [_range(metric, way, [row["detectable"][way] for row in able]) for way in ("rise", "fall")]
    few = f" ({len(known) - len(able)} of the arms have too few latents for any.)" if len(able) < len(known) else ""
    return (
        f"Of the {NAMES[metric]}, only {parts[0]} and {parts[1]} would be found four times in five{holm}; smaller"
        f" effects may well be missed.{few}"
    )


def _range(metric: str, way: str, values: Sequence[float | None]) -> str:
    known = sorted(abs(v) for v in values if v is not None)
    if not known:
        return f"no {way}, however large,"
    ends = list(dict.fromkeys(number(metric, v, sign=True).lstrip("+").removesuffix(" points") for v in known))
    span = ends[0] if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"
    some = " (by arm; in some none)" if len(known) < len(values) else " (by arm)" if len(ends) > 1 else ""
    return f"a {way} of {span} points or more{some}"


def rates_forest(result: Result, names: Sequence[str], metrics: Sequence[str] = PAIR) -> Forest | None:
    """Rates of some arms with their intervals; None without any."""
    rows = []
    for name in names:
        arm = result["arms"][name]
        rows.append((name, _dots([(NAMES[m], arm[m]["value"], arm[m]["interval"], 100) for m in metrics if arm[m]])))
    return Forest(tuple(rows), "% of valid responses") if any(dots for _, dots in rows) else None


def gaps_forest(result: Result, names: Sequence[str], metrics: Sequence[str] = PAIR) -> Forest | None:
    """Differences of some arms with their intervals; None without any."""
    rows = []
    for name in names:
        found = [(m, row_of(result, name, m)) for m in metrics]
        against = next((row["against"] for _, row in found if row), result["base"])
        label = name if against == result["base"] else f"{name} − {against}"
        rows.append(
            (
                label,
                _dots([(NAMES[m], r["difference"], r["interval"], 1 if m in SCORES else 100) for m, r in found if r]),
            )
        )
    return Forest(tuple(rows), "difference in points", zero=True) if any(dots for _, dots in rows) else None


def _dots(given: Iterable[tuple[str, float | None, Any, float]]) -> tuple[Dot, ...]:
    return tuple(d for one in given if (d := dot(*one)) is not None)
