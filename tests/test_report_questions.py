"""The report's answers to experiments are read off planted runs; arms are compared with the arm they name."""

from __future__ import annotations

from pathlib import Path

import report_runs as planted
from countersteer.report import html, terminal
from countersteer.report.questions import questions
from countersteer.report.summary import summarise


def said(folder: Path, *, ablated: float, random: float) -> dict[str, str]:
    """A run of 40 latents x 2: base restarts always, the other arms on a share of the latents."""

    def arm(share: float) -> list[planted.T]:
        return [planted.T(k, p, (20.0, 80.0) if k < share * 40 else (20.0,)) for k in range(40) for p in ("p0", "p1")]

    settings = {
        "cut": {"clamp": [1], "clamp_rule": "detectors"},
        "chance@set1": {"clamp": [2], "clamp_rule": {"random": 1, "sets": 1, "set": 1}},
        "later": {"suffix": "Stop.", "against": "cut"},
    }
    arms = {"base": arm(1.0), "cut": arm(ablated), "chance@set1": arm(random), "later": arm(ablated)}
    run = planted.plant(folder, planted.Planted(arms, settings=settings))
    result = summarise(run)
    run.close()
    assert result["contrasts"]["later"]["multi_attempt"]["against"] == "cut"
    assert result["contrasts"]["later"]["multi_attempt"]["difference"] == 0.0
    assert result["contrasts"]["cut"]["multi_attempt"]["against"] == "base"
    return {item.question: item.text for item in questions(result)}


def test_a_planted_effect_is_said_to_be_causal_and_more_than_chance(tmp_path: Path) -> None:
    answers = said(tmp_path / "run", ablated=0.25, random=1.0)
    causal = next(a for q, a in answers.items() if "causal" in q)
    assert causal.startswith("Yes.") and "cut: 25.0% of 80 (−75.0 points" in causal and "against base" in causal
    assert next(a for q, a in answers.items() if "random" in q).startswith(
        "Yes. cut has 25.0%, below 1 of 1 random sets"
    )
    assert "against cut" in answers["Do prompts help?"]


def test_no_effect_is_not_shown_and_questions_without_arms_are_not_asked(tmp_path: Path) -> None:
    answers = said(tmp_path / "run", ablated=1.0, random=1.0)
    assert next(a for q, a in answers.items() if "causal" in q).startswith("Not shown.")
    assert next(a for q, a in answers.items() if "random" in q).startswith("Not shown. cut has 100.0%, below 0 of 1")
    assert not any(word in q for q in answers for word in ("directions", "judges", "correction?", "sustained"))


def test_an_arm_against_another_is_never_said_to_differ_from_base(tmp_path: Path) -> None:
    """`half` is far below the arm it is compared with, and above base: nothing may say that it is below base."""

    def arm(share: float) -> list[planted.T]:
        return [planted.T(k, p, (20.0, 80.0) if k < share * 40 else (20.0,)) for k in range(40) for p in ("p0", "p1")]

    arms = {"base": arm(0.0), "all": arm(1.0), "half": arm(0.5)}
    with planted.plant(tmp_path / "r", planted.Planted(arms, settings={"half": {"against": "all"}})) as run:
        result = summarise(run)
        (differ,) = [item for item in questions(result) if item.name == "differ"]
        assert result["contrasts"]["half"]["multi_attempt"]["difference"] == -0.5
        own, _, others = differ.answer.partition("Compared with another arm: ")
        assert "half" not in own and "all (" in own
        assert others.startswith("half differs from all (") and "−50.0 points" in others
        (table,) = differ.tables
        assert {row[0].main: row[0].small[0] for row in table.rows} == {"all": "against base", "half": "against all"}
        assert "against all" in terminal.render(result, width=160)
        assert "<small>against all</small>" in html.page(run, result)
