"""What a study's judge will cost before it starts: calls and money per stage and arm, from the price table.

Two figures: `usd`, for answers as long as they may be and replies of usual length, without fresh draws (their number is
not known before); and `usd_at_most`, with every reply at its longest and every trial drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from countersteer.judging.rubrics import load
from countersteer.studies.judges import JudgeOptions, known_price, settings
from countersteer.studies.plan import calibration_tokens
from countersteer.studies.selection import CANDIDATES
from countersteer.studies.spec import Spec

_CHARACTERS = 4.2
"""Characters per generated token of English prose."""
_REPLY = 160
"""Tokens of a usual reply: one or two attempts with shortened quotations."""
_FRESH = "resamples (at most)"
_LABELS = "labels (if they carry no concreteness)"
_LABEL, _RATING = 60, 40
"""Characters of a usual label, tokens of a usual rating."""


def judge_costs(
    spec: Spec, prompts: Sequence[str], stages: Mapping[str, int], options: JudgeOptions
) -> dict[str, Any] | None:
    """{"model", "price", "calls", "usd", "usd_at_most", "stages": {...}}; None for the offline judge.

    `stages`: generations per stage as `plan.estimate` gives them. Money is None where the price is not known.
    """
    section = spec.settings.judge
    if section.offline:
        return None
    how = settings(section, options)
    price = known_price(section, options)
    rubric = load(section.rubric or "attempts")
    schema = len(str(rubric.schema)) if how.structured else 0
    fixed = len(rubric.system) + len(rubric.user) + schema + sum(map(len, prompts)) / max(len(prompts), 1)
    longest = {f"trials {arm.name}": arm.sampling.max_tokens for arm in spec.arms}
    longest["calibration"] = calibration_tokens(spec)
    longest[_FRESH] = max((arm.sampling.max_tokens for arm in spec.arms), default=0)
    rows: dict[str, dict[str, Any]] = {}
    for stage, calls in stages.items():
        if stage == "references" or not calls:
            continue
        characters = fixed + _CHARACTERS * longest.get(stage, spec.settings.sampling.max_tokens)
        usual = most = None
        if price is not None:
            usual = calls * price.expected(characters=characters, output=_REPLY)
            most = calls * price.expected(characters=1.5 * characters, output=how.max_tokens)
        rows[stage] = {"calls": calls, "usd": usual, "usd_at_most": most}
    for arm in spec.arms:
        if arm.judged_alone and (whole := rows.get(f"trials {arm.name}")):
            rows[f"trials {arm.name}, what the model wrote"] = dict(whole)
    latents = spec.settings.latents
    if latents.ids is None and latents.concreteness > 0:
        rating = load("concreteness")
        characters = len(rating.system) + len(rating.user) + len(str(rating.schema)) + _LABEL
        calls = CANDIDATES * latents.count
        usual = None if price is None else calls * price.expected(characters=characters, output=_RATING)
        most = None if price is None else calls * price.expected(characters=1.5 * characters, output=how.max_tokens)
        rows[_LABELS] = {"calls": calls, "usd": usual, "usd_at_most": most}
    certain = {stage: row for stage, row in rows.items() if stage not in (_FRESH, _LABELS)}
    return {
        "model": section.model,
        "price": None if price is None else {"input": price.input, "output": price.output, "source": price.source},
        "calls": sum(row["calls"] for row in certain.values()),
        "usd": None if price is None else sum(row["usd"] for row in certain.values()),
        "usd_at_most": None if price is None else sum(row["usd_at_most"] for row in rows.values()),
        "stages": rows,
    }


def words(costs: Mapping[str, Any]) -> list[str]:
    """The costs in lines for people."""
    price = costs["price"]
    if price is None:
        lines = [f"judge {costs['model']}: {costs['calls']:,} calls; its price is not known (give --prices FILE)"]
    else:
        lines = [
            f"judge {costs['model']}: {costs['calls']:,} calls, about {costs['usd']:.2f} USD, at most"
            f" {costs['usd_at_most']:.2f} USD ({price['input']:g} / {price['output']:g} USD per million tokens,"
            f" {price['source']})"
        ]
    for stage, row in costs["stages"].items():
        money = "" if row["usd"] is None else f", about {row['usd']:.2f} USD, at most {row['usd_at_most']:.2f}"
        lines.append(f"  {stage}: {row['calls']:,} calls{money}")
    return lines
