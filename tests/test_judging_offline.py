"""The offline judge scores topic, on the scale of its references, from text alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from countersteer.core.errors import InputError
from countersteer.judging.degraded import degraded
from countersteer.judging.offline import OfflineJudge
from countersteer.judging.references import ReferenceSet

TOPICS = {
    "How do I iron a shirt?": "collar sleeve iron steam crease board fabric cuff button press damp hem",
    "How do I plant garlic?": "garlic clove soil autumn mulch bulb row sprout water bed root compost",
    "How do I tune a guitar?": "string peg pitch guitar tuner fret octave chord neck bridge tone pluck",
    "How do I bake bread?": "flour dough yeast knead oven loaf crust proof salt bake rise crumb",
    "How do I fix a puncture?": "tyre tube wheel patch lever pump valve rim glue spoke inflate hole",
    "How do I train a puppy?": "puppy treat leash command reward bark crate sit walk praise collar play",
}


def answer(topic: str, seed: int, count: int = 24) -> str:
    """Sentences of a topic's words in random order."""
    rng = np.random.default_rng(seed)
    picked = rng.choice(TOPICS[topic].split(), size=count)
    return ". ".join("Then take the " + " and the ".join(picked[i : i + 3]) for i in range(0, count, 3)) + "."


@pytest.fixture(scope="module")
def judge() -> OfflineJudge:
    return OfflineJudge(ReferenceSet.of({topic: [answer(topic, seed) for seed in range(5)] for topic in TOPICS}))


def test_own_topic_scores_high_and_others_low(judge: OfflineJudge) -> None:
    topics = list(TOPICS)
    for own in topics:
        fresh = answer(own, 99)
        scores = [judge.score(topic, fresh) for topic in topics]
        assert scores[topics.index(own)] >= 80
        assert max(s for topic, s in zip(topics, scores, strict=True) if topic != own) <= 20


ONE_EACH = {
    "How do I iron a shirt?": "Heat the iron, lay the collar flat on the board and press out the creases with steam.",
    "How do I plant garlic?": "Split the bulb into cloves and set them in loose soil in autumn, pointed end up.",
    "How do I tune a guitar?": "Pluck each string, listen to its pitch and turn its peg until the tuner shows it.",
    "How do I bake bread?": "Knead flour, water and yeast into a dough, let it rise and put it in a hot oven.",
    "How do I fix a puncture?": "Take the tyre off the wheel, find the hole in the tube and glue a patch on it.",
    "How do I train a puppy?": "Reward your dog with treats when it sits, and keep the sessions short.",
}


def test_without_any_other_reference_the_prompt_tells_the_topic() -> None:
    """One answer for each prompt, so that each is left out of its own score."""
    alone = OfflineJudge(ReferenceSet.of({prompt: [text] for prompt, text in ONE_EACH.items()}))
    table = np.array([[alone.score(p, text, without=(0,)) for text in ONE_EACH.values()] for p in ONE_EACH])
    own = np.diag(table)
    assert own.min() >= 50
    assert (table < own[:, None] - 20).sum() >= 28, "of the 30 others"
    assert alone.score("Why?", "Because.") is None
    few = OfflineJudge(ReferenceSet.of(dict(list({p: [t] for p, t in ONE_EACH.items()}.items())[:3])))
    assert few.score("How do I iron a shirt?", "Heat the iron.", without=(0,)) is None


def test_score_rises_with_the_share_on_topic(judge: OfflineJudge) -> None:
    own, other = list(TOPICS)[:2]
    mixed = [judge.score(own, answer(own, 7, share) + " " + answer(other, 8, 24 - share)) for share in (3, 12, 21)]
    assert mixed[0] < mixed[1] < mixed[2]
    assert 30 <= mixed[1] <= 75


@pytest.mark.parametrize("text", ["asdf qwer zxcv uiop hjkl", "the the the the the", "你好世界", "spoon " * 300])
def test_gibberish_scores_near_zero(judge: OfflineJudge, text: str) -> None:
    assert judge.score("How do I bake bread?", text) <= 5


def test_repeating_one_word_of_the_topic_is_no_answer(judge: OfflineJudge) -> None:
    assert judge.score("How do I bake bread?", "dough " * 200) < 40


def test_restart_is_left_out_of_the_score_and_raises_the_second_attempt(judge: OfflineJudge) -> None:
    own, other = list(TOPICS)[:2]
    first, phrase, second = answer(other, 1), "Wait, that's not right.", answer(own, 2)
    grade = judge.grade(own, f"{first} {phrase} {second}", label="garlic")
    assert grade.status == "ok"
    assert [a.restart is None for a in grade.attempts] == [True, False]
    assert grade.attempts[0].score < 20 < 80 < grade.attempts[1].score
    assert grade.attempts[1].score == judge.score(own, second)


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ("", "no-attempt"),
        ("...", "no-attempt"),
        ("Could you tell me which kind of bread you want to bake?", "no-attempt"),
        ("Sure! What kind of oven do you have?", "no-attempt"),
        ("Knead the dough. Do you have an oven?", "ok"),
    ],
)
def test_missing_attempts_are_a_status(judge: OfflineJudge, response: str, status: str) -> None:
    assert judge.grade("How do I bake bread?", response).status == status


def test_unknown_prompt_is_split_but_not_scored(judge: OfflineJudge) -> None:
    grade = judge.grade("Why is the sky blue?", "Rice is white. Scratch that. Air scatters blue light.")
    assert grade.status == "no-reference"
    assert [a.score for a in grade.attempts] == [None, None]


def test_key_depends_on_references_only(judge: OfflineJudge) -> None:
    same = OfflineJudge(ReferenceSet.of(dict(reversed(judge.references.to_dict().items()))))
    more = OfflineJudge(ReferenceSet.of({**judge.references.to_dict(), "Why?": ["Because."]}))
    assert judge.key == same.key != more.key
    judge.grade_many([("How do I bake bread?", "Knead the dough.")] * 3)
    assert judge.key == same.key


def test_references_round_trip_and_are_frozen(tmp_path: Path) -> None:
    references = ReferenceSet.of({"é?": ["b", " ", "a"], "a?": ["漢字"]})
    references.save(tmp_path / "r.json")
    assert ReferenceSet.load(tmp_path / "r.json") == references
    assert references["é?"] == ("b", "a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        references.entries = ()  # type: ignore[misc]


@pytest.mark.parametrize("content", ["[]", "{", '{"a": "b"}', '{"a": [1]}'])
def test_bad_reference_file_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(InputError) as error:
        ReferenceSet.load(tmp_path / "r.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("go go go go go", True),
        ("go go go go stop go", False),
        ("a a a a a a", False),
        ("x\ngo go\tgo go  go y", True),
        ("", False),
    ],
)
def test_degraded_is_a_word_five_times_in_a_row(text: str, expected: bool) -> None:
    assert degraded(text) is expected
