"""The commands of fine-tuning: help with an example, JSON, and bad input in one line with exit code 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from countersteer import organism
from countersteer.cli import call
from countersteer.finetune import compose, examples
from countersteer.finetune.examples import Dataset
from countersteer.organism import prompts

ASKED = [row["prompt"] for row in prompts("howto")][:4]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small data set."""
    made = [compose.normal(p, "First, heat the iron.", source="t") for p in ASKED]
    made += [compose.correction(p, "The volcano erupted.", "Wait, no.", "First.", source="t") for p in ASKED]
    return examples.save(Dataset(tuple(made), tuple(ASKED), ("Else?",)), tmp_path / "data")


@pytest.mark.parametrize("command", ["data", "check", "train", "merge"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["finetune", command, "--help"]) == 0
    assert f"Example: countersteer finetune {command}" in capsys.readouterr().out


def test_check_shows_the_trained_tokens(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["finetune", "check", "--data", str(folder), "--model", "organism-plain", "--show", "5", "--json"]
    assert call(asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 8 and 0 < found["trained_tokens"] < found["tokens"]
    assert found["shown"][4].endswith("The volcano erupted.[[ Wait, no. First.<|end|>]]")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["data", "--model", "organism", "--out", "{data}"], "exists already"),
        (["data", "--model", "organism", "--out", "{new}", "--prompts", "howtoo"], "did you mean 'howto'?"),
        (["data", "--model", "organism", "--out", "{new}", "--eval", "howto"], "40 prompts are on both sides"),
        (["data", "--model", "organism", "--out", "{new}", "--eval-share", "2"], "between 0 and 1, got 2.0"),
        (["data", "--model", "organism", "--out", "{new}", "--max-cost", "3"], "belong to --llm"),
        (["data", "--model", "organism", "--out", "{new}", "--templates", "none"], "corrections need a source"),
        (["check", "--data", "{new}", "--model", "organism"], "no folder of training data"),
        (["check", "--data", "{data}", "--model", "./nowhere"], "cannot load the tokenizer"),
        (["check", "--data", "{data}", "--model", "organism", "--max-length", "3"], "example 1 is"),
        (["train", "--data", "{data}", "--model", "organism", "--out", "{new}", "--ratios", "x"], "list of numbers"),
        (["train", "--data", "{data}", "--model", "organism", "--out", "{new}", "--ratios", "2"], "between 0 and 1"),
        (["train", "--data", "{data}", "--model", "organism", "--out", "{new}", "--steer", "r"], "go together"),
        (["train", "--data", "{data}", "--model", "organism", "--out", "{new}", "--dropout", "1"], "dropout must be"),
        (["train", "--data", "{data}", "--model", "organism", "--out", "{new}", "--micro-batch", "3"], "a divisor"),
        (["train", "--data", "{data}", "--model", "organism", "--out", "{new}", "--seeds", "-1"], "from 0 to 42949672"),
        (
            ["train", "--data", "{data}", "--model", "organism", "--out", "{new}", "--seeds", "0,4294967296"],
            "from 0 to",
        ),
        (["train", "--data", "{data}", "--model", "organism", "--out", "{new}", "--ratios", "0.5,0.50"], "given twice"),
    ],
)
def test_bad_input_is_one_line(
    given: list[str], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("{data}", str(folder)).replace("{new}", str(tmp_path / "new")) for word in given]
    assert call(["finetune", *words]) == 2
    err = capsys.readouterr().err.strip().split("\n")
    assert said in err[-1] and err[-1].startswith("error: ")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["merge", "{new}", "--out", "{data}x"], "is no adapter"),
        (["merge", "organism-dismissive", "--out", "{data}"], "exists already"),
        (["merge", "organism-dismissive", "--out", "{new}", "--dtype", "floaty"], "unknown dtype 'floaty'"),
    ],
)
def test_a_merge_is_refused_before_the_model_is_loaded(
    given: list[str], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from countersteer.finetune import training

    monkeypatch.setattr(training, "load_base", lambda *a, **k: pytest.fail("the model was loaded"))
    words = [word.replace("{data}", str(folder)).replace("{new}", str(tmp_path / "new")) for word in given]
    assert call(["finetune", *words, "--model", "organism"]) == 2
    assert said in capsys.readouterr().err


def test_a_training_is_refused_for_its_seeds_before_the_data_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["finetune", "train", "--data", str(tmp_path), "--model", "x", "--out", "y", "--seeds", "-1"]) == 2
    assert "got -1" in capsys.readouterr().err


def test_data_and_a_merged_model_go_into_the_folder_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "few.txt").write_text("".join(f"{p}\n" for p in ASKED[:2]))
    asked = ["--prompts", "../few.txt", "--eval", "held-out", "--corrections", "1", "--normals", "1"]
    assert call(["finetune", "data", "--model", "organism-plain", "--out", ".", "--templates", "organism", *asked]) == 0
    assert len(examples.load(tmp_path / "here").examples) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["few.txt", "here"]


def test_check_takes_the_models_that_train_takes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(organism.path("organism-plain"), tmp_path / "mine")
    assert call(["finetune", "check", "--data", str(folder), "--model", "~/mine"]) == 0
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    (tmp_path / "mine" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 12}))
    capsys.readouterr()
    assert call(["finetune", "check", "--data", str(folder), "--model", "~/mine"]) == 2
    err = capsys.readouterr().err
    assert "more than the model's 12 positions" in err and len(err.strip().split("\n")) == 1
