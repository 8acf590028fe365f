"""`countersteer grade FILE --judge PROVIDER/NAME` over HTTP with faults: the same lines as offline, capped, resumed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from countersteer.cli import call
from countersteer.judging.grade_file import grade_file
from countersteer.store.replies import Replies
from fake_openai import CONTENT, PRICE, RESTART, FakeOpenAI, pieces, score
from test_llm_judge import PROMPT, key, texts  # noqa: F401

MODEL = "openai/gpt-4o"


def source(folder: Path, responses: list[str], **more: Any) -> Path:
    file = folder / "in.jsonl"
    rows = [{"prompt": PROMPT, "response": text, "id": n, **more} for n, text in enumerate(responses)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def prices(folder: Path) -> str:
    file = folder / "prices.toml"
    file.write_text(f'date = "2030-01"\n[models]\n"{MODEL}" = {list(PRICE)}\n')
    return str(file)


def grade(server: FakeOpenAI, file: Path, out: Path, *more: str) -> int:
    argv = ["grade", str(file), "--judge", MODEL, "--base-url", server.url, "--out", str(out)]
    return call([*argv, "--prices", prices(file.parent), *more])


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_lines_come_out_as_the_offline_judge_writes_them_with_every_gap_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    responses = texts(24)
    out = tmp_path / "out.jsonl"
    with FakeOpenAI(transport=0.2, content=0.3, slow=0.1) as server:
        file = source(tmp_path, responses)
        assert grade(server, file, out, "--json") == 0
        said = json.loads(capsys.readouterr().out)
        expected: Counter[str] = Counter()
        for n, (row, text) in enumerate(zip(lines(out), responses, strict=True)):
            assert (row["id"], row["prompt"], row["response"]) == (n, PROMPT, text)
            if server.content_fault(text) in CONTENT:
                expected["unparsed"] += 1
                assert row["grade"]["status"] == "unparsed" and row["grade"]["reason"]
            else:
                expected["ok"] += 1
                assert [a["score"] for a in row["grade"]["attempts"]] == [score(piece) for piece in pieces(text)]
        assert said["statuses"] == dict(expected) and set(expected) == {"ok", "unparsed"}
        assert said["requests"] == server.requests and said["usd"] >= server.billed
        assert said["multi_attempt"] == sum(len(row["grade"]["attempts"]) > 1 for row in lines(out))
    grade_file(file, tmp_path / "offline.jsonl")
    offline = lines(tmp_path / "offline.jsonl")[0]
    assert offline.keys() == lines(out)[0].keys() and offline["grade"].keys() == lines(out)[0]["grade"].keys()


def test_a_cap_stops_before_it_is_passed_and_a_higher_one_goes_on_without_paying_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeOpenAI(delay=0.005) as server:
        file, out = source(tmp_path, texts(40)), tmp_path / "out.jsonl"
        assert grade(server, file, out, "--max-cost", "0.05") == 1
        assert "--max-cost" in capsys.readouterr().err.splitlines()[-1]
        assert 0 < server.billed <= 0.05 and not out.exists()
        before = Counter(server.answered)
        assert before
        assert grade(server, file, out, "--max-cost", "5") == 0
        assert len(server.answered) == 40 and set(server.answered.values()) == {1}
        assert [row["grade"]["status"] for row in lines(out)] == ["ok"] * 40
        ledger = Replies.shared(tmp_path / "out.jsonl.replies")
        assert ledger.requests() == server.requests == 40
        ledger.close()
        content, requests = out.read_bytes(), server.requests
        assert grade(server, file, out) == 0
        assert server.requests == requests and out.read_bytes() == content, "a finished file asks nothing"


def test_whole_responses_and_episodes_are_rated_by_their_rubrics(tmp_path: Path) -> None:
    responses = [f"The sea has tides. {RESTART}Lay the shirt flat.", "Lay the shirt flat."]
    with FakeOpenAI() as server:
        file = source(tmp_path, responses)
        assert grade(server, file, tmp_path / "r.jsonl", "--rubric", "recovery") == 0
        for row, text in zip(lines(tmp_path / "r.jsonl"), responses, strict=True):
            gain = max(0, score(pieces(text)[-1]) - score(pieces(text)[0]))
            assert row["rating"]["status"] == "ok" and row["rating"]["score"] == gain // 10
        assert grade(server, file, tmp_path / "e.jsonl", "--rubric", "episodes") == 0
        first, second = (row["rating"] for row in lines(tmp_path / "e.jsonl"))
        at = responses[0].index(RESTART)
        assert (first["off_topic"], first["correction"], first["on_topic"]) == (0, at, at + len(RESTART))
        assert (second["off_topic"], second["correction"], second["on_topic"]) == (None, None, None)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rubric", "trait"], "has no 'trait'"),
        (["--rubric", "concreteness"], "rates labels, not responses"),
        (["--rubric", "recoverry"], "recovery"),
        (["--judge", "offline", "--rubric", "recovery"], "offline judge knows no rubric"),
        (
            ["--judge", "offline", "--judge-batch", "--judge-rpm", "9"],
            "so --judge-batch, --judge-rpm cannot be honoured",
        ),
        (["--judge", "gpt-4o"], "PROVIDER/NAME"),
        (["--judge", "vllm/x", "--judge-batch"], "cannot be asked in batches"),
        (["--judge", "openai/unheard-of", "--max-cost", "1"], "--max-cost needs the price"),
        (["--out", "/nowhere/at/all.jsonl"], "no folder /nowhere/at"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    with FakeOpenAI() as server:
        file = source(tmp_path, ["Lay the shirt flat."])
        assert grade(server, file, tmp_path / "out.jsonl", *more) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err and not (tmp_path / "out.jsonl").exists()


def test_a_trait_is_rated_where_the_lines_name_it(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        server.said = lambda user: (json.dumps({"score": 40, "evidence": "warm"}), "stop")  # type: ignore[method-assign]
        file = source(tmp_path, ["Lay the shirt flat, dear."], trait="warmth")
        assert grade(server, file, tmp_path / "t.jsonl", "--rubric", "trait") == 0
    assert lines(tmp_path / "t.jsonl")[0]["rating"]["score"] == 40
