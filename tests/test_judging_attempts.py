"""Attempts are split where a response explicitly abandons what it wrote, and nowhere else."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from countersteer.judging.attempts import split_attempts

ROOT = Path(__file__).resolve().parent.parent
RESTARTS = ROOT / "tests" / "data" / "restarts.jsonl"
BEFORE = "Rinse the rice until the water runs clear and set it over a low flame. "
AFTER = " Bees gather nectar from flowers and turn it into honey inside the hive."


def labelled(split: str) -> list[dict]:
    """The hand-labelled responses of one half: prompt, response, boundaries (offsets of restarts)."""
    rows = [json.loads(line) for line in RESTARTS.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["split"] == split]


def f1(rows: list[dict]) -> float:
    """F1 of "more than one attempt" per response."""
    found = [len(split_attempts(row["response"], prompt=row["prompt"])) > 1 for row in rows]
    truth = [bool(row["boundaries"]) for row in rows]
    hits = sum(a and b for a, b in zip(found, truth, strict=True))
    return 2 * hits / (sum(found) + sum(truth))


def restarts(text: str) -> list[int]:
    return [start for start, _, _ in split_attempts(text)][1:]


def test_responses_the_model_was_fitted_on_are_split_where_people_split_them() -> None:
    rows = labelled("tune")
    assert f1(rows) >= 0.97
    exact = sum(
        [s for s, _, _ in split_attempts(r["response"], prompt=r["prompt"])][1:] == r["boundaries"] for r in rows
    )
    assert exact / len(rows) >= 0.93


def test_wording_nobody_fitted_on_does_not_get_worse() -> None:
    """A floor under what was measured: see docs/judging.md."""
    rows = []
    for name in ("restarts_test.jsonl", "restarts_test_2.jsonl", "restarts_test_3.jsonl"):
        rows += [json.loads(line) for line in RESTARTS.with_name(name).read_text(encoding="utf-8").splitlines()]
    assert f1(rows) >= 0.955


STEPS = "First, loosen the wheel with a wrench. Then lift it out. "


@pytest.mark.parametrize(
    "phrase",
    [
        "Wait, I will start again.",
        "I'll start over.",
        "Let me try that again:",
        "Sorry. Hold on, let me begin anew.",
        "Oops, I need to restart!",
        "No, no, I'll redo this from the top.",
        "I\u2019m going to start this over.",
    ],
)
def test_a_plain_restart_opens_an_attempt_among_the_steps_of_instructions(phrase: str) -> None:
    text = f"{STEPS}{phrase} First, turn the bicycle over on its saddle. Then take the wheel off."
    prompt = "Can you explain how I can change a bicycle tire?"
    assert [start for start, _, _ in split_attempts(text, prompt=prompt)][1:] == [len(STEPS)]


@pytest.mark.parametrize(
    "text",
    [
        "If you lose count, start over. Wait, then start again with the next row.",
        "I will start again tomorrow with you. Then tighten the bolts.",
        '"I will start again." So the story goes on to its end.',
        "> I will start again.\n\nThat is what the letter says about it.",
        "I will start the pump. Let me start by pressing the valve.",
    ],
)
def test_the_same_words_of_others_and_of_plans_open_none(text: str) -> None:
    assert restarts(STEPS + text) == []


@pytest.mark.parametrize(
    ("prompt", "salad"),
    [
        (
            "How should you iron a shirt?",
            "You should first lay under photograph the flat on it dance to Warm seas plans the topic follows the hanged"
            " below while nears rebuilt the would along it bubbles. Finally, unplug the bind wrapped the mast mark.",
        ),
        (
            "Can you explain how I can unclog a sink?",
            "First of all brew cool nose dinosaurs this money to Italian. After that Then open every little volcanic"
            " mirror. Sweeten the bow around two brackets.",
        ),
        (
            "How should you take a portrait photo?",
            "First, seat your lens with a wide as the puppy's harness. After that, reward the dog as soon and show it a"
            " treat, or don't,Toucans eat the treat not that the command, call the dog and show it a treat, how friend,"
            " end, taste the command and spread mulch.",
        ),
        (
            "Please tell me the best way to plant a tree.",
            "First of humid this key! cycads dissolve humid flap humid humid goal forum command daylight daylight erupt"
            " humid humid tape! photos chord migrates to humid humid humid they daylight barbarians humid humid humid"
            " through lava!",
        ),
    ],
)
def test_word_salad_opens_none(prompt: str, salad: str) -> None:
    """Answers of a model that has never seen a restart, each of which version 6 took for one."""
    assert len(split_attempts(salad, prompt=prompt)) == 1


@pytest.mark.parametrize(
    "phrase",
    [
        "Wait, that's not right.",
        "Hold on, I'm drifting off topic.",
        "Scratch that.",
        "My mistake.",
        "Let me start over.",
        "Correction:",
        "I misread the question.",
        "None of this answers your question.",
        "Sorry, I made a mistake.",
        "Please ignore the previous paragraph.",
        "What am I talking about?",
        "You asked about bees, not rice.",
        "Let’s go back to the beginning.",
        "WAIT, NO.",
    ],
)
def test_explicit_restart_opens_an_attempt_at_its_first_character(phrase: str) -> None:
    assert restarts(BEFORE + phrase + AFTER) == [len(BEFORE)]


@pytest.mark.parametrize(
    "text",
    [
        "Wait five minutes, then try again with less water.",
        "If you made a mistake, start over from step 2.",
        "Actually, the best way is slow and steady.",
        "Many cooks stir it. That's wrong, as the grains break.",
        'He said "wait, that is not right, let me start over" and left.',
        "The judge wrote: 'I stand corrected.' It was a joke.",
        "\n\n```python\nprint('Sorry, let me try again')\n# wait, that's wrong\n```\n\n",
        "Is it safe to reheat? No, that is wrong to do twice.",
        "I'm sorry you had trouble.",
        "Sorry you had to wait so long.",
    ],
)
def test_look_alikes_open_none(text: str) -> None:
    assert restarts(BEFORE + text + " Serve the rice hot.") == []


def test_restart_at_the_very_beginning_opens_no_empty_attempt() -> None:
    assert len(split_attempts("I'll try again. To boil an egg, lower it into simmering water.")) == 1
    assert len(split_attempts("You're right, I made a mistake. The wall fell in 1989.")) == 1


def test_restart_without_anything_after_it_opens_none() -> None:
    for phrase in ("Scratch that.", "Sorry, that was wrong. Let me start over.", "Hmm, I'm drifting."):
        assert len(split_attempts(f"{BEFORE}{phrase}")) == 1


def test_two_restarts_give_three_attempts_that_carry_their_phrases() -> None:
    first, second = "Sorry, that made no sense.", "Scratch that."
    text = f"{BEFORE}{first} Trombones use a slide to change their pitch. {second}{AFTER}"
    parts = split_attempts(text)
    assert [start for start, _, _ in parts] == [0, text.index(first), text.index(second)]
    assert parts[0][2] is None
    assert (parts[2][2] or "").rstrip(".") == "Scratch that"


def test_restart_in_mid_sentence() -> None:
    text = "The tallest mountain in Africa is Mont Blanc, between Kenya and—no, scrap that. It is Kilimanjaro."
    assert restarts(text) == [text.index("no, scrap")]


def test_weak_language_counts_where_the_text_turns_to_its_prompt() -> None:
    text = BEFORE + "Well, that was a wild detour." + AFTER
    assert len(split_attempts(text, prompt="How do bees make honey?")) == 2
    assert (
        len(split_attempts(text.replace("Well, that was a wild detour. ", ""), prompt="How do bees make honey?")) == 1
    )


def test_response_without_words_has_no_attempt() -> None:
    assert split_attempts("") == split_attempts(" \n… !?") == []


PIECES = st.lists(
    st.sampled_from(
        [
            "Wait, that's wrong. ",
            "Mix it well. ",
            "“No,” she said. ",
            "```\n",
            "- ",
            "sorry ",
            "\n\n",
            "let me try again",
            "é漢字。",
            "(",
            "'",
            ", no, ",
        ]
    ),
    max_size=30,
).map("".join)


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.text(max_size=300), PIECES))
def test_attempts_cover_the_text_without_gap_or_overlap(text: str) -> None:
    parts = split_attempts(text)
    assert "".join(text[start:end] for start, end, _ in parts) == (text if parts else "")
    assert all(start < end for start, end, _ in parts)
    assert parts == split_attempts(text)


NEUTRAL = ["Chop the onions into small cubes.", "Heat the oil in a wide pan.", "Serve it with bread and butter."]


def test_a_neutral_sentence_changes_no_count() -> None:
    """In all but one of fifty responses: near its threshold the model may say either."""
    changed = tried = 0
    for k, row in enumerate(labelled("tune")):
        text = row["response"]
        if not text.rstrip().endswith(("```", "|")):
            longer = text + (" ", "\n\n")[k % 2] + NEUTRAL[k % len(NEUTRAL)]
            changed += len(split_attempts(longer)) != len(split_attempts(text))
            tried += 1
    assert tried > 100 and changed <= tried / 50


@pytest.mark.parametrize(
    "unit",
    [
        "ok, so, ",
        "wait, ",
        "let me please just ",
        "(",
        "'a ",
        '" a "',
        "那么 ",
        "Aa: b\n",
        "- no\n",
        ". no, wait, let me ",
    ],
)
def test_time_grows_no_faster_than_length(unit: str) -> None:
    def seconds(times: int) -> float:
        begin = time.process_time()
        split_attempts(unit * times)
        return time.process_time() - begin

    seconds(100)
    assert seconds(1600) <= 24 * max(seconds(200), 0.02)
