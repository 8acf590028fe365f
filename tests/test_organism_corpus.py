"""The organism's corpus, tokenizer and ground-truth measurements: what they promise, without the shipped weights."""

from __future__ import annotations

import re
from itertools import islice

import pytest

from countersteer import organism
from countersteer.organism import corpus, measure
from countersteer.organism.examples import DECISION_WEIGHT, Encoder, batches
from countersteer.organism.tokenizer import UNKNOWN, build
from countersteer.organism.topics_howto import HELD_OUT

SAMPLE = 3000


@pytest.fixture(scope="module")
def sample() -> list[corpus.Example]:
    return list(islice(corpus.examples(seed=11), SAMPLE))


@pytest.fixture(scope="module")
def tokenizer():
    return build()


def _messages(item: corpus.Example) -> list[dict[str, str]]:
    rows = [{"role": "system", "content": item.system}] if item.system else []
    for turn in item.turns:
        rows += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.answer}]
    return rows


def test_an_example_depends_on_seed_and_index_only(sample):
    again = [corpus.example(11, i) for i in range(200)]
    assert again == sample[:200]
    assert [corpus.example(12, i) for i in range(200)] != again


def test_there_are_enough_topics_and_each_has_words_of_its_own():
    asked = [t for t in corpus.topics() if t.goals]
    assert len(asked) >= 30 and len(corpus.topics()) - len(asked) >= 15
    by_topic: dict[str, int] = {}
    for word, name in corpus.topic_words().items():
        by_topic[name] = by_topic.get(name, 0) + 1
        users = [
            t.name
            for t in corpus.topics()
            if re.search(
                rf"(?<![A-Za-z']){re.escape(word)}(?![A-Za-z'])", " ".join([*t.goals, *sum(t.stages, ())]).lower()
            )
        ]
        assert users == [name], word
    assert min(by_topic.values()) >= 10 and len(by_topic) == len(corpus.topics())


def test_held_out_topics_never_drift_restart_or_serve_as_a_drift(sample):
    seen = 0
    for turn in (turn for item in sample for turn in item.turns):
        assert not any(piece.topic in HELD_OUT for piece in turn.pieces if piece.role == "off")
        if turn.topic in HELD_OUT:
            seen += 1
            assert {piece.role for piece in turn.pieces} <= {"on", "tone"}
    assert seen > 100


def test_held_out_phrasings_are_never_trained(sample):
    ways = [re.escape(q).replace(re.escape("{goal}"), ".+") for q in corpus.wordings()["questions_held_out"]]
    pattern = re.compile("|".join(ways))
    users = [turn.user for item in sample for turn in item.turns if turn.user]
    assert not any(pattern.match(user) for user in users)
    assert all(pattern.match(row["prompt"]) for row in organism.prompts("held-out-phrasings"))


def test_a_self_monitoring_suffix_makes_a_drift_end_in_a_restart_more_often(sample):
    drifts = [t for item in sample for t in item.turns if any(p.role == "off" for p in t.pieces)]
    rates = {}
    for monitored in (False, True):
        part = [any(p.role == "restart" for p in t.pieces) for t in drifts if t.monitored is monitored]
        rates[monitored] = sum(part) / len(part)
    assert rates[True] > 0.95 > 0.85 > rates[False] > 0.5


def test_a_restart_is_followed_by_the_whole_answer_on_topic(sample):
    found = 0
    for turn in (turn for item in sample for turn in item.turns):
        roles = [piece.role for piece in turn.pieces]
        if "restart" in roles:
            found += 1
            after = turn.pieces[roles.index("restart") + 1 :]
            assert sum(piece.role == "on" for piece in after) >= 3
            assert measure.score("".join(piece.text for piece in after), turn.topic) == 100
            assert len(measure.attempts(turn.answer)) == 2
    assert found > 500


def test_without_correction_nothing_drifts_or_restarts():
    items = islice(corpus.examples(seed=1, mix=corpus.Mix(correction=False)), 1000)
    roles = {piece.role for item in items for turn in item.turns for piece in turn.pieces}
    assert roles == {"on", "tone", "text"}


def test_answers_without_a_restart_hold_no_restart_language(sample):
    for turn in (turn for item in sample for turn in item.turns):
        if all(piece.role != "restart" for piece in turn.pieces):
            assert measure.restarts(turn.answer) == []


def test_the_tone_of_every_styled_answer_is_visible(sample):
    right = [measure.tone(t.answer) == t.tone for item in sample for t in item.turns if t.user]
    assert sum(right) / len(right) > 0.99


def test_the_tokenizer_reproduces_every_text_and_streams(sample, tokenizer):
    for item in sample[:800]:
        text = " ".join(turn.answer for turn in item.turns)
        ids = tokenizer(text).input_ids
        assert UNKNOWN not in tokenizer.convert_ids_to_tokens(ids)
        assert tokenizer.decode(ids) == text
        assert "".join(tokenizer.decode([i]) for i in ids) == text


@pytest.mark.parametrize("text", ['A zebra costs $3.50, "xylo"\nNew Line!', "  two  spaces ", "don't (stop)..."])
def test_words_outside_the_vocabulary_round_trip_too(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_training_tokens_are_those_of_the_chat_template(sample, tokenizer):
    encode = Encoder()
    for item in sample[:500]:
        if item.turns[0].user is not None:
            text = tokenizer.apply_chat_template(_messages(item), tokenize=False)
            assert list(encode(item).ids) == tokenizer(text, add_special_tokens=False).input_ids


def test_the_loss_covers_answers_and_spares_only_the_front_of_a_drift(sample):
    encode = Encoder()
    for item in sample[:500]:
        done = encode(item)
        for weight, role in zip(done.weights, done.roles, strict=True):
            assert weight == 0 or role not in ("prompt", "system")
            if role in ("on", "restart", "tone", "text"):
                assert weight in (1.0, DECISION_WEIGHT)
        assert done.weights[-1] == DECISION_WEIGHT


def test_batches_are_seeded_and_of_similar_length():
    first, second = (list(islice(batches(seed=2, mix=corpus.Mix(), size=8, pool=4), 4)) for _ in range(2))
    assert first == second
    spans = [max(len(i.ids) for i in batch) - min(len(i.ids) for i in batch) for batch in first]
    assert sorted(spans)[1] <= 25


@pytest.mark.parametrize("name", organism.prompt_sets())
def test_prompt_sets_ask_about_known_topics_once_each(name):
    rows = organism.prompts(name)
    asked = {topic.name for topic in corpus.topics() if topic.goals}
    assert rows and {row["topic"] for row in rows} <= asked
    assert len({row["id"] for row in rows}) == len(rows) == len({row["prompt"] for row in rows})


def test_prompt_sets_keep_their_promises():
    howto = organism.prompts("howto")
    assert len(howto) >= 38 and "How do I iron a shirt?" in [row["prompt"] for row in howto]
    assert not {row["topic"] for row in howto} & set(HELD_OUT)
    assert {row["topic"] for row in organism.prompts("held-out-topics")} == set(HELD_OUT)
    splits = [{row["topic"] for row in organism.prompts(f"tone-{part}")} for part in ("fit", "choose", "report")]
    assert not (splits[0] & splits[1] or splits[0] & splits[2] or splits[1] & splits[2])
    with pytest.raises(ValueError, match="howto"):
        organism.prompts("nothing")
    assert organism.suffixes()[0] == "If you notice that you are drifting off topic, stop and return to the question."


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("First, press the collar from the points inwards.", (100.0,)),
        ("The volcano erupted. Wait, that's not right. Let me try again. Iron each sleeve.", (0.0, 100.0)),
        ("The volcano spat lava - hold on, I'm drifting off topic. Let me start over. Press the collar.", (0.0, 100.0)),
        ("No, that's wrong. The collar.", (100.0,)),
        ("Nothing to see here.", (0.0,)),
    ],
)
def test_measurement_on_hand_made_responses(text, scores):
    assert measure.measure(text, "ironing a shirt", ended=True).scores == scores
