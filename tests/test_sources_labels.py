"""Labels under the usual column names, and errors that name the line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from countersteer.core.errors import InputError
from countersteer.sources.labels import Label, load_labels
from countersteer.sources.sae import load_sae

GOLDEN = Path(__file__).parent / "data" / "saelens"


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "index,label\n3,cats\n17,dogs\n"),
        ("a.csv", "feature_index,explanation\r\n3,cats\r\n17,dogs\r\n"),
        ("a.csv", "\ufeffIndex, Label\n3,cats\n17,dogs\n"),
        ("a.csv", "description,latent\ncats,3\ndogs,17\n"),
        ("a.csv", 'id,name\n3,"cats"\n17," dogs "\n5,\n'),
        ("a.tsv", "feature\tdescription\n3\tcats\n17\tdogs\n"),
        ("a.jsonl", '{"index": 3, "label": "cats"}\n\n{"index": 17, "label": "dogs"}'),
        ("a.jsonl", '{"feature": "3", "explanation": "cats"}\n{"feature": 17.0, "explanation": "dogs"}\n'),
    ],
)
def test_the_usual_column_names_are_understood(tmp_path, name, text):
    labels = load_labels(write(tmp_path / name, text))
    assert {index: label.text for index, label in labels.items()} == {3: "cats", 17: "dogs"}


def test_concreteness_and_other_columns_are_kept(tmp_path):
    text = 'index,label,concreteness,topic\n1,"tea, green",88.5,drinks\n2,style,,\n'
    labels = load_labels(write(tmp_path / "l.csv", text))
    assert labels[1] == Label("tea, green", 88.5, {"topic": "drinks"})
    assert labels[2] == Label("style", None, {"topic": ""})
    jsonl = write(tmp_path / "l.jsonl", '{"index": 1, "label": "a\u2028b", "concreteness": 0, "density": 0.5}\n')
    assert load_labels(jsonl) == {1: Label("a\u2028b", 0.0, {"density": 0.5})}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("l.csv", "index,label\n1,a\nx,b\n", ["line 3", "'x'", "whole number"]),
        ("l.csv", "index,label\n1.5,a\n", ["line 2", "'1.5'"]),
        ("l.csv", "index,label\n-1,a\n", ["line 2", "-1", "0 to 31"]),
        ("l.csv", "index,label\n32,a\n", ["line 2", "32", "0 to 31"]),
        ("l.csv", "index,label\n1,a\n2,b\n1,c\n", ["line 4", "latent 1", "twice"]),
        ("l.csv", "index,label\n1,a,b\n", ["line 2", "2 columns"]),
        ("l.csv", "index,label\n1\n", ["line 2", "2 columns"]),
        ("l.csv", "number,label\n1,a\n", ["no index column", "feature_index"]),
        ("l.csv", "index,wording\n1,a\n", ["no label column", "description"]),
        ("l.csv", "index,label,concreteness\n1,a,150\n", ["line 2", "'150'", "0 to 100"]),
        ("l.csv", "index,label,concreteness\n1,a,nan\n", ["line 2", "'nan'"]),
        ("l.csv", "", ["empty", "index,label"]),
        ("l.csv", b"index,label\n1,\xff\n", ["UTF-8", "byte 14"]),
        ("l.jsonl", '{"index": 1, "label": "a"}\n{"index": 2,\n', ["line 2", "not valid JSON"]),
        ("l.jsonl", "[1]\n", ["line 1", "JSON object"]),
        ("l.jsonl", '{"index": true, "label": "a"}\n', ["line 1", "True"]),
        ("l.jsonl", '{"index": 1e400, "label": "a"}\n', ["line 1", "whole number"]),
        ("l.txt", "1 a", [".csv", ".jsonl"]),
    ],
)
def test_errors_are_one_line_and_name_the_line(tmp_path, name, text, words):
    with pytest.raises(InputError) as caught:
        load_labels(write(tmp_path / name, text), count=32)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_labels_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: No such file"):
        load_labels(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "index,label,concreteness\n3,cats,90\n4,tone,\n"),
        ("labels.jsonl", '{"index":3,"label":"cats","concreteness":90}\n{"index":4,"label":"tone"}\n'),
    ],
)
def test_a_folder_s_own_labels_come_with_the_sae(tmp_path, name, text):
    shutil.copytree(GOLDEN / "relu-plain", tmp_path / "sae")
    assert load_sae(tmp_path / "sae").labels == {}
    plain = load_sae(tmp_path / "sae").fingerprint
    write(tmp_path / "sae" / name, text)
    sae = load_sae(tmp_path / "sae")
    assert sae.labels == {3: "cats", 4: "tone"} and sae.concreteness == {3: 90.0}
    assert sae.latent(3).label == "cats" and sae.latent(5).label is None and sae.direction(4).label == "tone"
    assert sae.fingerprint == plain  # a label decides nothing
    write(tmp_path / "sae" / name, text.replace("3", "32"))
    with pytest.raises(InputError, match="32"):
        load_sae(tmp_path / "sae")
