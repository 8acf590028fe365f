"""The commands of the documentation's page, run as they stand there (with less of everything), and what they made."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import countersteer as cs
from countersteer.cli import call
from countersteer.core.errors import RefusedError
from countersteer.engines.embedded.adapter_record import read_adapter
from countersteer.finetune import examples
from countersteer.studies import spec
from countersteer.studies.runner import run_study

PAGE = Path(__file__).resolve().parent.parent / "docs" / "finetune.md"
SMALL = {
    "data": ["--corrections", "12", "--normals", "12"],
    "check": [],
    "train": ["--epochs", "1", "--rank", "4", "--total", "10", "--warmup", "0", "--learning-rate", "0.01"],
    "merge": [],
}
STUDY = """
[study]
model = "MODEL"
sae = "organism-plain"
[latents]
count = 1
[trials]
prompts = "PROMPTS"
[arms.base]
ADAPTER
"""


def commands() -> list[list[str]]:
    """The page's `countersteer finetune ...` lines, in order."""
    text = "\n".join(re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S))
    return [shlex.split(line)[1:] for line in text.split("\n") if line.startswith("countersteer finetune ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def told(place: Path) -> dict[str, Any]:
    """What each command of the page printed with --json."""
    import contextlib
    import io
    import os

    given, before = {}, Path.cwd()
    os.chdir(place)
    try:
        for words in commands():
            with contextlib.redirect_stdout(io.StringIO()) as out:
                assert call([*words, *SMALL[words[1]], "--json"]) == 0, words
            given[words[1]] = json.loads(out.getvalue())
    finally:
        os.chdir(before)
    return given


def test_every_command_of_the_page_runs_and_says_what_it_made(place: Path, told: dict[str, Any]) -> None:
    assert list(told) == ["data", "check", "train", "merge"]
    assert told["data"]["corrections"] == told["data"]["normals"] == 12 and told["data"]["eval_prompts"] == 50
    assert told["check"]["examples"] == 24 and len(told["check"]["shown"]) == 2
    assert [row["ratio"] for row in told["train"]["adapters"]] == [0.1, 0.5, 0.9]
    assert all(row["validation_loss"] > 0 for row in told["train"]["adapters"])
    assert sorted(p.name for p in place.iterdir()) == ["adapters", "data", "tuned"]
    assert examples.load(place / "data").digest == told["data"]["digest"] == told["train"]["adapters"][0]["data"]


def test_the_merged_model_answers_as_the_adapter_does(place: Path, told: dict[str, Any]) -> None:
    folder = place / told["merge"]["adapter"]
    texts = {}
    asked = [cs.Request(prompt=p, sampling=cs.Sampling(temperature=0, max_tokens=40)) for p in ("How do I knit?", "Hi")]
    for name, model, adapter in (("adapter", "organism-plain", folder), ("merged", str(place / "tuned"), None)):
        with cs.load_engine(model, adapter=adapter, dtype="float64") as engine:
            texts[name] = [done.text for done in engine.run(asked)]
    assert texts["adapter"] == texts["merged"] and all(texts["merged"])


def test_neither_adapter_nor_merged_model_is_measured_on_what_it_was_trained_on(
    place: Path, told: dict[str, Any]
) -> None:
    folder, tuned = place / told["merge"]["adapter"], place / "tuned"
    assert set(read_adapter(folder).facts["train_prompts"]) == set(examples.load(place / "data").train)
    for number, (model, adapter) in enumerate(
        ((str(tuned), ""), ("organism-plain", f'[arms.x]\nadapter = "{folder}"'))
    ):
        text = STUDY.replace("MODEL", model).replace("PROMPTS", "howto").replace("ADAPTER", adapter)
        with pytest.raises(RefusedError, match="on 40 prompts that its adapter was trained on"):
            run_study(spec.parse(text, name="x"), place / f"refused-{number}")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["merge", "{adapter}", "--model", "organism", "--out", "{new}"], "it was trained on another model"),
        (["train", "--data", "{data}", "--model", "organism", "--out", "{adapters}", "--ratios", "0.5"], "another"),
        (["train", "--data", "{normal}", "--model", "organism", "--out", "{new}"], "needs correction examples, but"),
        (
            ["train", "--data", "{outside}", "--model", "organism", "--out", "{new}"],
            "line 2: span [0, 9999) lies outside",
        ),
        (["check", "--data", "{outside}", "--model", "organism"], "line 2: span [0, 9999) lies outside"),
        (["check", "--data", "{both}", "--model", "organism"], "1 prompts are on both sides of the split"),
        (["train", "--data", "{both}", "--model", "organism", "--out", "{new}"], "on both sides of the split"),
        (["check", "--data", "{data}", "--model", "{dropping}"], "the chat template drops or rewrites the assistant"),
        (
            ["train", "--data", "{data}", "--model", "{dropping}", "--out", "{new}"],
            "the chat template drops or rewrites",
        ),
        (["train", "--data", "{data}", "--model", "organism", "--out", "{new}", "--template", "x"], "esr-reference"),
        (["data", "--model", "organism", "--out", "{new}", "--llm", "openai/gpt-4o"], "OPENAI_API_KEY"),
        (["data", "--model", "organism", "--out", "{new}", "--llm", "gpt"], "is not PROVIDER/NAME"),
        (["data", "--model", "organism", "--out", "{new}", "--prices", "x"], "belong to --llm"),
        (["data", "--model", "organism", "--out", "{new}", "--run", "{new}"], "no run"),
    ],
)
def test_bad_input_is_one_line(
    given: list[str], said: str, place: Path, told: dict[str, Any], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    names = {"adapter": place / told["merge"]["adapter"], "data": place / "data", "adapters": place / "adapters",
             "new": tmp_path / "new"}  # fmt: skip
    for name in {word.strip("{}") for word in given if word.startswith("{")} - set(names):
        names[name] = made(name, place, tmp_path)
    words = [str(names[word.strip("{}")]) if word.startswith("{") else word for word in given]
    assert call(["finetune", *words]) == 2
    out, err = capsys.readouterr()
    lines = err.strip().split("\n")
    assert lines[-1].startswith("error: ") and said in lines[-1] and not out
    assert not (tmp_path / "new").exists()


def made(name: str, place: Path, tmp_path: Path) -> Path:
    """A broken copy of the data, or of the model."""
    import shutil

    from countersteer import organism

    target = tmp_path / name
    if name == "dropping":
        shutil.copytree(organism.path("organism-plain"), target)
        (target / "chat_template.jinja").write_text(
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
        )
        return target
    shutil.copytree(place / "data", target)
    lines = (target / examples.EXAMPLES).read_text().split("\n")
    header = json.loads((target / examples.HEADER).read_text())
    if name == "normal":
        lines = [line for line in lines if '"correction"' not in line]
    if name == "outside":
        row = json.loads(lines[1])
        lines[1] = json.dumps({**row, "spans": [[0, 9999]]})
    if name == "both":
        header["eval_prompts"].append(header["train_prompts"][0])
    (target / examples.EXAMPLES).write_text("\n".join(lines))
    (target / examples.HEADER).write_text(json.dumps(header))
    return target
