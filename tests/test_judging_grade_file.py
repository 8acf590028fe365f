"""A file of responses is graded against references built from all of it, line for line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from countersteer.core.errors import InputError
from countersteer.judging.grade_file import grade_file

ROOT = Path(__file__).resolve().parent.parent
EPISODES = ROOT.parent / "shared" / "data" / "self_correction_episodes.jsonl"
needs_episodes = pytest.mark.skipif(
    not EPISODES.exists(), reason="2026-11: the episode texts are not in the repository"
)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@needs_episodes
def test_real_episodes(tmp_path: Path) -> None:
    rows = read(EPISODES)[::3]  # bench/judge.py --episodes reads all of them
    bare = [{"prompt": row["prompt"], "response": row["response"]} for row in rows]
    summary = grade_file(write(tmp_path / "in.jsonl", bare), tmp_path / "out.jsonl")
    graded = [row["grade"]["attempts"] for row in read(tmp_path / "out.jsonl")]
    truth = [row["attempts"] > 1 for row in rows]
    found = [len(attempts) > 1 for attempts in graded]
    hits = sum(a and b for a, b in zip(truth, found, strict=True))
    assert 2 * hits / (sum(truth) + sum(found)) >= 0.99
    both = [(row, attempts) for row, attempts in zip(rows, graded, strict=True) if row["attempts"] > 1 < len(attempts)]
    near = sum(abs(attempts[1]["start"] - row["boundary"]) <= 10 for row, attempts in both)
    assert near / sum(truth) >= 0.97
    better = sum(attempts[1]["score"] > attempts[0]["score"] for _, attempts in both)
    assert better / len(both) >= 0.98
    assert summary["multi_attempt"] == sum(found)
    assert summary["lines"] == len(rows)


def sample() -> list[dict]:
    """Six prompts with three answers each that share their topic's words."""
    words = [
        "iron collar steam sleeve",
        "garlic clove soil mulch",
        "string peg pitch fret",
        "flour dough yeast loaf",
        "tyre tube patch pump",
        "puppy treat leash reward",
    ]
    return [
        {"prompt": f"How do I handle {w.split()[0]}?", "response": f"Take the {w}. Use {w} {extra}.", "id": i * 3 + k}
        for i, w in enumerate(words)
        for k, extra in enumerate(("slowly", "gently", "twice"))
    ]


def test_one_line_per_line_in_order_with_other_fields_kept(tmp_path: Path) -> None:
    rows = sample()
    seen = []
    summary = grade_file(
        write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", progress=lambda a, b: seen.append((a, b))
    )
    out = read(tmp_path / "out.jsonl")
    assert [{k: v for k, v in row.items() if k != "grade"} for row in out] == rows
    assert set(out[0]["grade"]["attempts"][0]) == {"start", "end", "score", "restart"}
    assert seen[-1] == (18, 18)
    assert summary["statuses"] == {"ok": 18}


def test_response_is_not_its_own_reference(tmp_path: Path) -> None:
    rows = sample()
    rows[0]["response"] = "Zebras zigzag across quiet savannas, watched by lions near the shrinking waterhole."
    grade_file(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    out = read(tmp_path / "out.jsonl")
    assert out[0]["grade"]["attempts"][0]["score"] <= 10
    assert min(row["grade"]["attempts"][0]["score"] for row in out[3:]) >= 60


def test_given_references_decide(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": "How?",
            "response": "Knead the dough with flour.",
            "references": ["Knead flour into dough. Bake the loaf."],
        },
        {"prompt": "How?", "response": "Comets have tails of dust and gas."},
    ]
    grade_file(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    good, bad = (row["grade"] for row in read(tmp_path / "out.jsonl"))
    assert good["status"] == bad["status"] == "ok"
    assert good["attempts"][0]["score"] > 60 > 10 >= bad["attempts"][0]["score"]


def test_few_prompts_without_references_are_split_only(tmp_path: Path) -> None:
    rows = [
        {"prompt": "How do I bake?", "response": "Comets have tails and go far. Scratch that. Knead the dough well."},
        {"prompt": "Why?", "response": ""},
    ]
    summary = grade_file(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    first, second = (row["grade"] for row in read(tmp_path / "out.jsonl"))
    assert (first["status"], second["status"]) == ("no-reference", "no-attempt")
    assert [a["score"] for a in first["attempts"]] == [None, None]
    assert summary["statuses"] == {"no-attempt": 1, "no-reference": 1}


GOOD = b'{"prompt": "a?", "response": "b"}\n'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["no lines"]),
        (b"\n \n", ["no lines"]),
        (GOOD + b"{\n", ["line 2", "not JSON"]),
        (GOOD + b"[1]\n", ["line 2", "not a JSON object"]),
        (GOOD + b'{"prompt": "a?"}\n', ["line 2", "'response'"]),
        (GOOD + b'{"promt": "a?", "response": "b"}\n', ["line 2", "promt"]),
        (GOOD + b'{"prompt": 1, "response": "b"}\n', ["line 2", "int"]),
        (GOOD + b'{"prompt": " ", "response": "b"}\n', ["line 2", "empty"]),
        (GOOD + b'{"prompt": "a", "response": null}\n', ["line 2", "NoneType"]),
        (GOOD + b'{"prompt": "a", "response": "b", "references": "c"}\n', ["line 2", "list"]),
        (GOOD + b'{"prompt": "a", "response": "b", "label": 3}\n', ["line 2", "label"]),
        (GOOD + b'{"prompt": "\xff", "response": "b"}\n', ["line 2", "UTF-8"]),
        (b'{"prompt": "a", "response": "' + b"b" * (8 * 1024 * 1024) + b'"}\n', ["line 1", "longer"]),
    ],
)
def test_bad_input_is_one_line_with_its_number_and_writes_nothing(
    tmp_path: Path, content: bytes, words: list[str]
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(content)
    out.write_text("before")
    with pytest.raises(InputError) as error:
        grade_file(source, out)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words)
    assert out.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_missing_files_and_unknown_judge_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", sample())
    with pytest.raises(InputError, match="no file"):
        grade_file(tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(InputError, match="cannot write"):
        grade_file(source, tmp_path / "none" / "out.jsonl")
    with pytest.raises(InputError, match="did you mean 'offline'"):
        grade_file(source, tmp_path / "out.jsonl", judge="ofline")
