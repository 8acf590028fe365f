"""The report of tuned arms: one figure over the share of corrections, and its question in words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import report_runs as planted
from countersteer.report import html
from countersteer.report.finetune_figures import dose_response, tuned
from countersteer.report.questions import questions
from countersteer.report.summary import summarise
from countersteer.studies import spec


def rate(value: float | None) -> dict[str, Any] | None:
    return None if value is None else {"value": value, "interval": [value / 2, value + 0.1], "n": 20}


def arm(multi: float, better: float | None, fresh: float | None, **settings: Any) -> dict[str, Any]:
    recovery = None if better is None or fresh is None else {"value": better - fresh, "interval": None, "n": 20}
    first = {"value": 30.0, "interval": None, "n": 20}
    return {
        "settings": settings, "multi_attempt": rate(multi), "improvement": rate(better), "first_attempt": first,
        "resample_baseline": rate(fresh), "recovery": recovery, "valid": 20,
    }  # fmt: skip


def result() -> dict[str, Any]:
    half, most = {"ratio": 0.5, "seed": 0, "name": "a"}, {"ratio": 0.9, "seed": 1, "name": "b"}
    steered, plain = {"strength_scale": 1.0, "steered": True}, {"strength": 0.0, "steered": False}
    arms = {
        "base": arm(0.0, None, None, **steered),
        "unsteered": arm(0.0, None, None, **plain),
        "sweep": arm(0.7, 0.7, 0.7, strength_scale=2.0, steered=True),
        "monitor": arm(0.7, 0.7, 0.7, suffix="x", **steered),
        "t@0.5": arm(0.1, 0.4, 0.3, adapter=half, **steered),
        "t@0.9": arm(0.2, 0.6, 0.7, adapter=most, **steered),
        "p@0.5": arm(0.02, None, None, adapter=half, **plain),
    }
    return {"arms": arms, "base": "base", "contrasts": {}, "experiments": {}}


def points(chart: Any) -> list[set[tuple[str, float, float]]]:
    """Per panel (kind, share, value) of every dot."""

    def rows(part: dict[str, Any]) -> list[dict[str, Any]]:
        own = part.get("data", {}).get("values", [])
        return [*(r for r in own if "kind" in r), *(r for layer in part.get("layer", ()) for r in rows(layer))]

    return [
        {(r["kind"], round(r["ratio"]), round(r["value"], 6)) for r in rows(panel)}
        for panel in chart.to_dict()["hconcat"]
    ]


def test_the_figure_shows_rate_improvement_and_recovery_over_the_share() -> None:
    rates, better, above = points(dose_response(result()))
    assert rates == {("steered", 0, 0.0), ("not steered", 0, 0.0), ("steered", 50, 10.0), ("steered", 90, 20.0),
                     ("not steered", 50, 2.0)}  # fmt: skip
    assert better == {("last attempt beats the first", 50, 40.0), ("a fresh attempt beats it", 50, 30.0),
                      ("last attempt beats the first", 90, 60.0), ("a fresh attempt beats it", 90, 70.0)}  # fmt: skip
    assert above == {("recovery above the baseline", 50, 10.0), ("recovery above the baseline", 90, -10.0)}


def test_arms_that_differ_in_more_than_the_adapter_are_not_drawn() -> None:
    made = spec.parse(
        '[study]\nmodel = "m"\nsae = "s"\n[finetune]\nprompts = "howto"\nratios = [0.3, 0.7]\n'
        '[trials]\nprompts = "held-out"\n'
        "[arms.base]\n[arms.plain]\nstrength = 0\n"
        '[arms.late]\nspan = "generation"\n[arms.deep]\nsteer_layer = 1\n[arms.cold]\nsampling = {temperature = 0.1}\n'
        '[arms.held]\nclamp = "detectors-held-out"\n[arms.again]\nrecalibrate = true\n'
        '[arms.tuned]\nadapter = "finetune"\nrecalibrate = true\n'
        '[arms.tuned-plain]\nadapter = "finetune"\nstrength = 0\n'
        '[arms.tuned-as-base]\nadapter = "finetune"\n[arms.tuned-half]\nadapter = "finetune"\nstrength_scale = 0.5\n'
        '[arms.tuned-asked]\nadapter = "finetune"\nsuffix = "Stay."\n[arms.tuned-cold]\nadapter = "finetune"\n'
        'sampling = {temperature = 0.1}\n[arms.tuned-elsewhere]\nadapter = "finetune"\nprompts = "tone-report"\n'
    )
    arms = {}
    for one in made.arms:
        facts = {"ratio": float(str(one.adapter).split("-")[1]), "seed": 0} if one.adapter else None
        arms[one.name] = arm(0.1, None, None, **replace(one, adapter_facts=facts).describe())

    def drawn() -> list[tuple[str, float]]:
        found = tuned({"arms": arms, "base": "base"})
        return sorted((name, ratio) for ratio, _, a in found for name in arms if arms[name] is a)

    plain = [("base", 0.0), ("plain", 0.0)]
    unsteered = [("tuned-plain@0.3", 0.3), ("tuned-plain@0.7", 0.7)]
    assert drawn() == [*plain, *unsteered, ("tuned@0.3", 0.3), ("tuned@0.7", 0.7)]
    for name in ("tuned@0.3", "tuned@0.7"):
        del arms[name]
    assert drawn() == [*plain, ("tuned-as-base@0.3", 0.3), ("tuned-as-base@0.7", 0.7), *unsteered]


def test_the_page_shows_the_figure_in_the_answer_to_its_question(tmp_path: Path) -> None:
    def arm(every: int) -> list[planted.T]:
        return [
            planted.T(k, p, (20.0, 80.0), fresh=(10.0, 15.0)) if (k + i) % every == 0 else planted.T(k, p, (20.0,))
            for k in range(20) for i, p in enumerate(("p0", "p1"))
        ]  # fmt: skip

    adapters = {f"t@{r}": {"adapter": {"ratio": r, "seed": 0, "name": str(r)}} for r in (0.1, 0.5, 0.9)}
    arms = {"base": arm(1000), "t@0.1": arm(8), "t@0.5": arm(4), "t@0.9": arm(2)}
    with planted.plant(tmp_path / "r", planted.Planted(arms, settings=adapters)) as run:
        page = html.page(run, summarise(run))
    after = page[page.index('<h2 id="trained">') :]
    section = after[: after.index("</section>")]
    svg = re.search(
        r"<figure id=\"figure-finetuned\"><h3>Trained self-correction</h3>.*?(<svg.*?</svg>)", section, re.S
    )
    assert svg is not None
    said = re.sub(r"<[^>]+>", "\n", svg[1])
    for title in ("multi-attempt rate (%)", "% of multi-attempt responses", "points above the resample baseline"):
        assert title in said, title
    assert said.count("% of corrections in training") == 3


def test_no_figure_without_adapters() -> None:
    given = result()
    given["arms"] = {name: a for name, a in given["arms"].items() if "adapter" not in a["settings"]}
    assert tuned(given) == [] and dose_response(given) is None
    given["arms"]["merged"] = arm(0.1, 0.1, 0.1, adapter={"name": "x"}, steered=True)  # no recorded share
    assert dose_response(given) is None


def test_the_answer_sets_improvement_against_a_fresh_attempt(tmp_path: Path) -> None:
    half, most = {"ratio": 0.5, "seed": 0, "name": "a"}, {"ratio": 0.9, "seed": 1, "name": "b"}

    def arm(every: int) -> list[planted.T]:
        """One response in `every` restarts and ends better, which a fresh attempt would not have."""
        return [
            planted.T(k, p, (20.0, 80.0), fresh=(10.0, 15.0)) if (k + i) % every == 0 else planted.T(k, p, (20.0,))
            for k in range(20) for i, p in enumerate(("p0", "p1"))
        ]  # fmt: skip

    arms = {"base": arm(1000), "t@0.5": arm(4), "t@0.9": arm(2), "p@0.5": arm(1000)}
    settings = {"t@0.5": {"adapter": half}, "t@0.9": {"adapter": most},
                "p@0.5": {"adapter": half, "steered": False, "strength": 0.0}}  # fmt: skip
    with planted.plant(tmp_path / "r", planted.Planted(arms, settings=settings)) as run:
        (section,) = [item for item in questions(summarise(run)) if item.name == "trained"]
    assert section.question == "Can self-correction be trained in?" and section.verdict == "Yes"
    answer = section.answer
    assert "t@0.5" in answer and "t@0.9" in answer and "p@0.5" not in answer
    assert "of which 100.0% of 20 end better (+100.0 points" in answer and "against a fresh attempt" in answer
