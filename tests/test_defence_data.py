"""Contrast data: the shipped traits, the file format, and leaks between splits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from countersteer import organism
from countersteer.cli import call
from countersteer.core.errors import InputError
from countersteer.defence import data, leakage
from countersteer.organism import corpus
from countersteer.studies import trait_texts

HEAD = {"name": "n", "threat": "t", "description": "d"}
OWN = {"aligned": "Be good.", "malicious": "Be bad."}


def text(*rows: dict[str, Any], **head: Any) -> str:
    return "\n".join(json.dumps(row) for row in ({"trait": {**HEAD, **head}}, *rows))


def row(name: str, split: str, user: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "split": split, "user": user, **OWN, **more}


def test_shipped_threats_have_the_papers_sizes_and_do_not_leak() -> None:
    loaded = {name: data.load(name) for name in data.SHIPPED}
    counts = {name: Counter(s.split for s in one.scenarios) for name, one in loaded.items()}
    lies, cold = loaded["dishonesty"], loaded["dismissiveness"]
    assert counts["dishonesty"]["fit"] == 50 and counts["dishonesty"]["report"] == 112
    assert Counter(s.category for s in lies.split("report")) == Counter({c: 14 for c in {
        "sales", "finance", "health", "facts", "self", "work", "tech", "everyday"}})  # fmt: skip
    assert len({(s.aligned, s.malicious) for s in lies.split("fit")}) == 50
    assert counts["dismissiveness"]["fit"] == 50 * 5 and counts["dismissiveness"]["report"] == 40
    by_prompt = Counter(s.user for s in cold.split("fit"))
    assert len(by_prompt) == 50 and set(by_prompt.values()) == {5}
    assert len({(s.aligned, s.malicious) for s in cold.split("fit")}) == 5
    for one in loaded.values():
        assert not [leak for leak in leakage.check(one) if leak.grave]
        assert all(s.aligned != s.malicious for s in one.scenarios)


def test_the_organisms_splits_are_whole_topics_of_its_corpus_in_its_tones() -> None:
    loaded = data.load("organism")
    assert [len(loaded.split(split)) for split in data.SPLITS] == [56, 72, 112]
    topics = {split: {s.group for s in loaded.split(split)} for split in data.SPLITS}
    assert not (
        topics["fit"] & topics["choose"] | topics["fit"] & topics["report"] | topics["choose"] & topics["report"]
    )
    known = {topic.name: topic.goals for topic in corpus.topics()}
    wordings = [*corpus.wordings()["questions"], *corpus.wordings()["questions_held_out"]]
    for scenario in loaded.scenarios:
        assert scenario.aligned in organism.systems("warm") and scenario.malicious in organism.systems("dismissive")
        assert scenario.user in {w.format(goal=goal) for w in wordings for goal in known[scenario.group]}
    assert len({scenario.user for scenario in loaded.scenarios}) == 56 + 72 + 112
    learned = {q.prompt for q in trait_texts.asked()}
    assert not {scenario.user for scenario in loaded.scenarios} & learned, "the trait judge was trained on a question"
    assert not {s.user for s in loaded.scenarios} & set(loaded.follow_ups)


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([row("a", "fit", "How do I bake bread?"), row("b", "report", "how do I bake  BREAD")], "same"),
        ([row("a", "choose", "I lost my job last week and my wife does not know."),
          row("b", "report", "Well, I lost my job last week and my wife does not know.")], "near"),
        ([row("a", "fit", "One two three.", group="g"), row("b", "choose", "Seven eight nine.", group="g")], "group"),
    ],
)  # fmt: skip
def test_planted_leaks_are_found_and_refused(rows: list[dict[str, Any]], kind: str) -> None:
    loaded = data.parse(text(*rows), where="x.jsonl")
    assert [leak.kind for leak in leakage.check(loaded) if leak.grave] == [kind]
    with pytest.raises(InputError, match=kind):
        leakage.refuse_leaks(loaded)


@pytest.mark.parametrize("split", data.SPLITS)
def test_a_question_that_the_offline_judge_was_trained_on_is_refused_in_every_split(split: str) -> None:
    learned = "Can you tell me how to bake bread?"
    assert learned in {q.prompt for q in trait_texts.asked()}
    rows = [row("a", split, f"{learned[:-1]}!"), row("b", "choose", "How do I iron a shirt?")]
    mine = data.parse(text(*rows, name="warmth"), where="x.jsonl")
    with pytest.raises(InputError, match=r"1 leaks .*judge: a and the offline judge's training"):
        leakage.refuse_leaks(mine)
    leakage.refuse_leaks(data.parse(text(*rows, name="calm"), where="x.jsonl"))  # another trait has another judge


def test_what_only_looks_alike_is_no_leak() -> None:
    rows = [row("a", "fit", "What is the best way to plant a tree?"),
            row("b", "report", "What is the best way to bake a cake?"),
            row("c", "choose", "Thanks."), row("d", "fit", "Hello.")]  # fmt: skip
    found = leakage.check(data.parse(text(*rows), where="x"))
    assert {leak.kind for leak in found} == {"system"} and not any(leak.grave for leak in found)


def test_overlap_is_the_share_of_common_word_triples() -> None:
    one, two = leakage.triples("a b c d"), leakage.triples("b c d e")
    assert len(one & two) / len(one | two) == pytest.approx(1 / 3)
    assert leakage.triples("Hi, you") == frozenset({("hi", "you")})


def test_pairs_are_crossed_in_fit_and_taken_in_turn_elsewhere() -> None:
    pairs = [{"aligned": f"good {i}", "malicious": f"bad {i}"} for i in range(3)]
    rows = [{"id": f"{split}{i}", "split": split, "user": f"{split} {i}"} for split in data.SPLITS for i in range(4)]
    loaded = data.parse(text(*rows, pairs=pairs), where="x")
    assert [s.id for s in loaded.split("fit")][:4] == ["fit0/0", "fit0/1", "fit0/2", "fit1/0"]
    assert {s.group for s in loaded.split("fit")} == {f"fit{i}" for i in range(4)}
    assert [s.aligned for s in loaded.split("report")] == ["good 0", "good 1", "good 2", "good 0"]
    turned = data.parse(text(*rows, pairs=pairs, fit_pairs="turn"), where="x")
    assert [s.malicious for s in turned.split("fit")] == ["bad 0", "bad 1", "bad 2", "bad 0"]


def test_scenarios_seen_by_an_earlier_step_are_refused_whatever_they_are_called() -> None:
    seen = data.Scenario("a", "fit", "How do I bake bread?", "x", "y")
    again = data.Scenario("z", "report", "how do i bake bread", "other", "prompts")
    with pytest.raises(InputError, match="already used by the fit, z for one"):
        leakage.refuse_seen([again], [seen.digest], where="fit")
    leakage.refuse_seen([data.Scenario("q", "report", "How do I bake rye bread?", "", "")], [seen.digest], where="fit")


BAD = {
    "": "is empty",
    "[]": "must be a JSON object",
    "{": "line 1 is not JSON",
    json.dumps(row("a", "fit", "hi")): "first line must be",
    text(row("a", "test", "hi")): "line 2: split must be one of fit, choose, report",
    text(row("a", "fit", " ")): "'user' must be a text",
    text(row("a", "fit", "hi", aligned="")): "'aligned' must be a text",
    text(row("a", "fit", "hi", alinged="x")): "unknown key 'alinged' .did you mean 'aligned'",
    text(row("a", "fit", "hi"), row("a", "fit", "ho")): "id 'a' is used twice",
    text({"id": "a", "split": "fit", "user": "hi"}): "or 'pairs' in the first line",
    text(row("a", "fit", "hi"), user_attacks=["no slot"]): "lacks the slot",
    text(row("a", "fit", "hi"), fit_pairs="some"): "fit_pairs must be",
    text(row("a", "fit", "hi"), pairs=[{"aligned": "x"}]): "'malicious' must be a text",
}


@pytest.mark.parametrize("given", BAD)
def test_bad_files_are_refused_in_one_line(given: str, tmp_path: Path) -> None:
    path = tmp_path / "trait.jsonl"
    path.write_text(given)
    with pytest.raises(InputError, match=BAD[given]) as refused:
        data.load(path)
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_a_mistyped_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["defence", "data", "dishonestly"]) == 2
    assert "did you mean 'dishonesty'" in capsys.readouterr().err
    loaded = data.parse(text(row("a", "fit", "hi")), where="x")
    with pytest.raises(InputError, match="no scenario in split 'report'"):
        loaded.split("report")


def test_the_command_counts_and_exits_2_on_a_leak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["defence", "data", "dishonesty", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"] == {"fit": 50, "choose": 32, "report": 112}
    path = tmp_path / "trait.jsonl"
    path.write_text(text(row("a", "fit", "hi there you"), row("b", "report", "Hi there, you!")))
    assert call(["defence", "data", str(path)]) == 2
    assert "leak: same: a and b" in capsys.readouterr().out
