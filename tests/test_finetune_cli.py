"""The commands of fine-tuning: help with an example, JSON, and bad input in one line with exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
        (["merge", "{new}", "--model", "organism", "--out", "{data}x"], "is no adapter"),
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
