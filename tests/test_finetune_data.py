"""Examples with exact borders from three sources, a split that is kept, and mixtures with constant totals."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import countersteer as cs
from countersteer.core.errors import InputError, RefusedError
from countersteer.finetune import answers as answering
from countersteer.finetune import compose, data, examples, mix
from countersteer.finetune.examples import CORRECTION, NORMAL, Dataset
from countersteer.finetune.templates import from_templates, general, templates
from countersteer.organism import corpus, prompts
from finetune_tokenizers import MADE
from helpers_text import talking

ASKED = [row["prompt"] for row in prompts("howto")]


def small(count: int = 20, overlap: bool = False) -> Dataset:
    made = [compose.normal(p, f"Answer {i}.", source="t") for i, p in enumerate(ASKED[:10])] * (count // 10)
    made += [compose.correction(p, "Off.", "Wait.", f"On {i}.", source="t") for i, p in enumerate(ASKED[:10])]
    return Dataset(tuple(made), tuple(ASKED[:10]), tuple(ASKED[5:12] if overlap else ASKED[10:12]), {}, overlap)


def test_borders_are_exact_by_construction() -> None:
    one = compose.correction("Why?", "  Off topic. ", "Wait. ", " Because.\n\nSo.  ", source="t")
    ((start, stop),) = one.spans
    assert one.answer[:start] == "Off topic." and one.answer[start:stop] == " Wait. Because.\n\nSo." and one.end
    whole = compose.normal("Why?", " So. ", source="t")
    assert whole.answer == "So." and whole.spans == ((0, 3),)
    for parts in (("", "b", "c"), ("a", " ", "c"), ("a", "b", "\n")):
        with pytest.raises(InputError, match="has an empty"):
            compose.correction("Why?", *parts, source="t")


def test_stretches_end_with_whole_sentences() -> None:
    draw = np.random.default_rng(0)
    text = "One is 1.5 metres. Two! Three? Four. Five and no end"
    found = {compose.stretch_of(text, draw) for _ in range(60)}
    assert found == {"One is 1.5 metres.", "One is 1.5 metres. Two!", "One is 1.5 metres. Two! Three?",
                     "One is 1.5 metres. Two! Three? Four."}  # fmt: skip
    assert compose.stretch_of("no sentence at all", draw) is None


def test_templates_have_fifty_subjects_and_avoid_the_one_asked_about() -> None:
    found = general()
    assert len(found.subjects) == 50 and all(len(s.sentences) >= 4 for s in found.subjects)
    assert len({s for subject in found.subjects for s in subject.sentences}) == 200
    draw = np.random.default_rng(0)
    for prompt, name in (
        ("How do volcanoes erupt?", "volcanoes"), ("How does a volcano erupt?", "volcanoes"),
        ("Can a wolf be tamed?", "wolves"), ("Where is the nearest library?", "libraries"),
        ("How is TEA served?", "tea ceremonies"), ("What does an octopus eat?", "octopuses"),
    ):  # fmt: skip
        own = next(s for s in found.subjects if s.name == name)
        assert own.asked_by(prompt) and sum(s.asked_by(prompt) for s in found.subjects) == 1
        for _ in range(300):
            assert not any(s in found.stretch(prompt, draw) for s in own.sentences)
    assert not any(s.asked_by("How have I been wasting time on steady searches?") for s in found.subjects)
    made = from_templates(found, ASKED, {p: ["So."] for p in ASKED[:4]}, count=40, seed=1)
    assert Counter(Counter(e.prompt for e in made).values()) == {10: 4}
    assert made == from_templates(found, ASKED, {p: ["So."] for p in ASKED[:4]}, count=40, seed=1)
    assert made != from_templates(found, ASKED, {p: ["So."] for p in ASKED[:4]}, count=40, seed=2)


def test_organism_templates_drift_to_another_topic_and_restart_as_its_corpus_does() -> None:
    which = templates("organism")
    draw, notices = np.random.default_rng(0), corpus.wordings()["restart_notice"]
    own = {row["prompt"]: row["topic"] for row in prompts("howto")}
    for prompt in ASKED:
        off, said = corpus.word_topics(which.stretch(prompt, draw)), which.acknowledgement(prompt, draw)
        assert own[prompt] not in off and sum(off.values()) > 0
        assert any(said.startswith(notice) for notice in notices)
    with pytest.raises(InputError, match="do not know what 'Who are you\\?' asks"):
        which.stretch("Who are you?", draw)
    with pytest.raises(InputError, match=r"no templates 'generel' \(did you mean 'general'\?\)"):
        templates("generel")


def test_a_folder_keeps_everything_and_says_where_it_is_wrong(tmp_path: Path) -> None:
    made = small()
    folder = examples.save(made, tmp_path / "data")
    assert examples.load(folder) == made and examples.load(folder).digest == made.digest
    assert (folder / "eval-prompts.txt").read_text().split("\n")[:-1] == list(made.held_out)
    line = json.loads((folder / "examples.jsonl").read_text().split("\n")[-2])
    assert [m["role"] for m in line["messages"]] == ["user", "assistant"] and line["spans"] == [[4, 16]]
    with pytest.raises(InputError, match="exists already"):
        examples.save(made, folder)
    lines = (folder / "examples.jsonl").read_text().split("\n")
    for broken, said in (
        ('{"messages": []}', "line 3: messages must be"),
        (lines[2].replace("[0, ", "[-1, "), "line 3: span"),
        (lines[2].replace('"spans": [[', '"spans": [["x", '), 'line 3: "spans" must be'),
        (lines[2][:-3], "line 3: "),
        (lines[2].replace('"end": true', '"end": "false"'), "line 3: \"end\" must be true or false, got 'false'"),
        (lines[2][:-1] + ', "steer": "abc"}', 'line 3: "steer" must be an object'),
        (lines[2][:-1] + ', "steer": {"latent": 3}}', 'line 3: "steer" needs "strength", a number; got None'),
        (lines[2][:-1] + ', "steer": {"latent": "3", "strength": 1}}', 'line 3: "steer" needs "latent", a whole'),
        (lines[2].replace("Answer", "\\ud83d Answer"), "line 3: an example's answer holds half a character"),
    ):
        (folder / "examples.jsonl").write_text("\n".join([*lines[:2], broken, *lines[3:]]))
        with pytest.raises(InputError, match=said):
            examples.load(folder)
    with pytest.raises(InputError, match="no folder of training data"):
        examples.load(tmp_path)


def test_what_the_folder_is_blamed_for_is_in_the_file_that_is_named(tmp_path: Path) -> None:
    made = small()
    folder = examples.save(made, tmp_path / "data")
    for name in ("data.json", "examples.jsonl"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(b"\xef\xbb\xbf" + good)
        assert examples.load(folder) == made, "a byte order mark"
        (folder / name).write_bytes(good[:9] + b"\xff" + good[9:])
        with pytest.raises(InputError, match=rf"{name} is not UTF-8 \(byte 9\)"):
            examples.load(folder)
        (folder / name).write_bytes(good)
    header = json.loads((folder / "data.json").read_text())
    for side in ("train_prompts", "eval_prompts"):
        for wrong in (None, "Why?", [3]):
            (folder / "data.json").write_text(json.dumps({**header, side: wrong}))
            with pytest.raises(InputError, match=f'data.json: "{side}" must be a list of texts'):
                examples.load(folder)


@pytest.mark.parametrize("sae", [{}, {"sae": None}, {"sae": "f" * 32}])
def test_an_examples_steering_comes_back(sae: dict[str, Any], tmp_path: Path) -> None:
    steer = {"latent": 3, "strength": -2, "layer": 0, "span": "all", **sae}
    one = compose.correction("Why?", "Off.", "Wait.", "On.", source="t", steer=steer)
    assert examples.load(examples.save(Dataset((one,), ("Why?",), ()), tmp_path / "data")).examples == (one,)


def test_half_a_character_is_refused_before_it_is_trained_on_or_saved() -> None:
    for parts in (("a \ud83d b.", "Wait.", "On."), ("Off.", "Wait.", "\udc00.")):
        with pytest.raises(InputError, match="an example's answer holds half a character"):
            compose.correction("Why?", *parts, source="t")
    with pytest.raises(InputError, match="a prompt holds half a character"):
        Dataset((), ("Why\ud800?",), ())


def test_prompts_on_both_sides_are_refused_unless_it_is_meant() -> None:
    with pytest.raises(InputError, match="5 prompts are on both sides of the split"):
        Dataset((), tuple(ASKED[:10]), tuple(ASKED[5:12]))
    assert small(overlap=True).overlap
    with pytest.raises(InputError, match="not on the train side"):
        Dataset((compose.normal("Else?", "So.", source="t"),), tuple(ASKED), ())
    train, kept = examples.split_prompts(ASKED, 0.3, seed=4)
    assert len(kept) == 12 and set(train) | set(kept) == set(ASKED) and not set(train) & set(kept)
    assert (train, kept) == examples.split_prompts(ASKED, 0.3, seed=4) != examples.split_prompts(ASKED, 0.3, seed=5)
    for share in (0.0, 1.0, 0.001):
        with pytest.raises(InputError):
            examples.split_prompts(ASKED, share, seed=0)


def test_ratios_share_a_total_and_nest() -> None:
    made = small(40)  # 40 normal, 10 corrections
    assert mix.total_for(made, [0.1, 0.5]) == 20 and mix.total_for(made, [0.1]) == 44
    assert mix.total_for(made, [0.0]) == 40 and mix.total_for(made, [1.0]) == 10
    chosen = {}
    for ratio in (0.0, 0.1, 0.5):
        one = mix.mix(made, ratio, total=20, seed=3)
        both = [*one.train, *one.validation]
        assert Counter(e.kind for e in both)[CORRECTION] == round(20 * ratio) and len(both) == 20
        assert not {e.prompt for e in one.train} & {e.prompt for e in one.validation} and one.validation
        chosen[ratio] = {e.answer for e in both if e.kind == CORRECTION}
    assert chosen[0.1] < chosen[0.5]
    assert mix.mix(made, 0.5, total=20, seed=3) == mix.mix(made, 0.5, total=20, seed=3)
    assert mix.mix(made, 0.5, total=20, seed=3).train != mix.mix(made, 0.5, total=20, seed=4).train
    assert mix.mix(made, 0.5, total=20, seed=3, validation=0).validation == ()


def test_an_empty_class_and_impossible_ratios_are_refused() -> None:
    normal = Dataset(tuple(small().of_kind(NORMAL)), tuple(ASKED[:10]), ())
    with pytest.raises(InputError, match=r"ratio 0\.5 needs correction examples, but the data has none"):
        mix.total_for(normal, [0.5])
    with pytest.raises(InputError, match="needs normal examples"):
        mix.total_for(Dataset(tuple(small().of_kind(CORRECTION)), tuple(ASKED[:10]), ()), [0.5])
    with pytest.raises(InputError, match="there are 10"):
        mix.mix(small(), 0.5, total=40, seed=0)
    with pytest.raises(InputError, match="leaves no correction example"):
        mix.mix(small(), 0.01, total=10, seed=0)
    for ratios, said in (([], "at least one ratio"), ([1.5], "between 0 and 1"), ([0.5, 0.5], "given twice")):
        with pytest.raises(InputError, match=said):
            mix.check_ratios(ratios)


def test_stop_strings_of_a_study_do_not_end_own_answers() -> None:
    """What a stop string cut is no end of the model's own, and its end of turn would be trained."""
    prompt = ASKED[0]
    with cs.load_engine("organism-plain") as engine:
        given: dict[str, Any] = {"each": 2, "seed": 0}
        plain = answering.own_answers(engine, [prompt], sampling=cs.Sampling(max_tokens=120), **given)
        cut = cs.Sampling(max_tokens=120, stop=("the", "."))
        assert engine.run([cs.Request(prompt=prompt, sampling=cut)])[0].finish == "stop"
        assert answering.own_answers(engine, [prompt], sampling=cut, **given) == plain


def test_an_interrupted_call_asks_only_for_the_answers_that_are_missing(tmp_path: Path) -> None:
    asked: list[str] = []

    def said(request: cs.Request) -> str:
        if len(asked) == 3:
            raise RuntimeError("killed")
        asked.append(request.prompt or "")
        return f"First this, {request.prompt}. Then that."

    kept = tmp_path / "answers.jsonl"
    given: dict[str, Any] = {"train": ASKED[:2], "held_out": ASKED[2:4], "corrections": 2, "normals": 4, "keep": kept}
    monkey = pytest.MonkeyPatch()
    monkey.setattr(answering, "_CHUNK", 2)
    with monkey.context(), pytest.raises(InputError, match="gave no answer"):
        data.make(cs.ScriptedEngine(said), sources=data.Sources("general"), **given)
    monkey.undo()
    lines = kept.read_text()
    assert len(lines.split("\n")) == 3, "the first two answers are kept"
    kept.write_text(lines + '{"key": "ha')  # killed in the middle of a line
    before, rest = list(asked), []

    def goes_on(request: cs.Request) -> str:
        rest.append(request.prompt or "")
        return f"First this, {request.prompt}. Then that."

    made = data.make(cs.ScriptedEngine(goes_on), sources=data.Sources("general"), **given)
    assert len(before) == 3 and len(rest) == 2 and not kept.exists()
    whole = data.make(cs.ScriptedEngine(goes_on), sources=data.Sources("general"), **{**given, "keep": None})
    assert made == whole
    kept.write_text("[1]\n")
    with pytest.raises(InputError, match=r"answers\.jsonl is not a file of kept answers"):
        data.make(cs.ScriptedEngine(goes_on), sources=data.Sources("general"), **given)


def test_answers_that_the_template_does_not_keep_are_refused_when_the_first_comes() -> None:
    asked: list[str] = []

    class Thinking(cs.ScriptedEngine):
        """Answers as a model does that thinks first."""

        tokenizer = MADE["qwen3"]()

    def said(request: cs.Request) -> str:
        asked.append(request.prompt or "")
        return "<think>\nThe user asks.\n</think>\n\nFirst this. Then that."

    with pytest.raises(RefusedError, match=r"drops or rewrites part of the answer .* no reasoning tags.*'no-thinking'"):
        data.make(Thinking(said), train=ASKED, held_out=(), sources=data.Sources("general"), normals=4000)
    assert len(asked) == 256, "the rest is not asked for"


def test_the_longest_answer_is_what_fits() -> None:
    with cs.load_engine("organism-plain") as engine:
        longest = max(len(engine.encode(cs.Request(prompt=prompt))) for prompt in ASKED)
        assert data._sampling(engine, ASKED).max_tokens == min(512, engine.model.max_positions - longest + 1)
    assert data._sampling(cs.ScriptedEngine("x"), ASKED).max_tokens == 512


def test_the_file_is_what_trls_loader_and_trainer_take(tmp_path: Path) -> None:
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer
    from trl.data_utils import is_conversational

    steer = {"latent": 3, "strength": 2.5, "layer": 1, "span": "all"}
    made = [compose.correction(p, "Off.", "Wait, no.", "On.", source="t", steer=steer) for p in ASKED[:3]]
    made += [compose.normal(p, "First this.", source="t", system="Be kind.") for p in ASKED[:3]]
    folder = examples.save(Dataset(tuple(made), tuple(ASKED[:3]), ("Else?",)), tmp_path / "data")
    rows = load_dataset("json", data_files=str(folder / "examples.jsonl"), split="train", cache_dir=str(tmp_path / "c"))
    assert is_conversational(rows[0]) and [row["messages"] for row in rows] == [e.messages for e in made]
    assert [row["spans"] for row in rows] == [[list(s) for s in e.spans] for e in made]
    assert rows[0]["steer"] == steer and rows[5]["steer"] is None
    module, tokenizer = talking(0, dtype=torch.float32)
    args = SFTConfig(output_dir=str(tmp_path / "trl"), max_steps=1, report_to=[], use_cpu=True, bf16=False,
                     per_device_train_batch_size=6)  # fmt: skip
    trainer = SFTTrainer(model=module, args=args, train_dataset=rows, processing_class=tokenizer)
    for row, example in zip(trainer.train_dataset, made, strict=True):
        said = tokenizer.decode(row["input_ids"])
        assert said.strip() == tokenizer.apply_chat_template(example.messages, tokenize=False).strip()


def test_the_models_own_answers_are_taken_whole() -> None:
    engine = cs.ScriptedEngine(lambda r: "First this. Then that." if "iron" in r.prompt else "word " * 50)
    with pytest.raises(InputError, match="corrections need a source"):
        data.Sources(None)
    made = data.make(engine, train=ASKED[:2], held_out=ASKED[2:4], sources=data.Sources("general"), corrections=6,
                     normals=4, sampling=cs.Sampling(max_tokens=20))  # fmt: skip
    assert {e.prompt for e in made.examples} == {ASKED[0]}, "an answer that was cut at the limit was kept"
    assert Counter(e.kind for e in made.examples) == {CORRECTION: 6, NORMAL: 4}
    assert all(e.answer.endswith("First this. Then that.") for e in made.examples)
    with pytest.raises(InputError, match="no prompt has an answer that ends"):
        data.make(engine, train=ASKED[1:3], held_out=(), sources=data.Sources("general"),
                  sampling=cs.Sampling(max_tokens=20))  # fmt: skip
    with pytest.raises(InputError, match="both sides"):
        data.make(engine, train=ASKED[:2], held_out=ASKED[:1], sources=data.Sources("general"))
