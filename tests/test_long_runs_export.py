"""Exports of a run, read back by the readers they are meant for, and the merging of shards."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path
from statistics import fmean

import inspect_ai.log as log_file
import pyarrow.parquet as pq
import pytest

import studies_world as world
from countersteer.cli import call
from countersteer.core.errors import InputError
from countersteer.store import Run, RunRefusedError, export
from countersteer.store.export_inspect import SCORERS, export_inspect
from countersteer.store.export_parquet import COLUMNS, export_parquet
from countersteer.store.merge import merge
from countersteer.studies import runner, spec

ARMS = '[arms.base]\n[arms.unsteered]\nstrength = 0\n[arms.self-monitor]\nsuffix = "If you are drifting, stop."\n'


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done")
    loaded = spec.load(world.study(folder, arms=ARMS))
    with runner.run_study(loaded, folder / "run", tools=lambda _: world.tools(folder / "sae")):
        pass
    return folder / "run"


def test_inspects_own_reader_finds_every_trial_with_its_attempts_scores_and_receipt(done: Path, tmp_path: Path) -> None:

    file = tmp_path / "demo.eval"
    with Run.open(done) as run:
        assert export_inspect(run, file) == sum(run.trial_counts().values())
        log = log_file.read_eval_log(str(file))
        trials = list(run.trials())
        assert (
            log.status == "success" and log.eval.task == "study" and log.eval.task_args["study"]["study"]["seed"] == 0
        )
        by_id = {sample.id: sample for sample in log.samples}
        assert len(by_id) == len(trials) == log.results.total_samples
        for trial in trials:
            sample = by_id[f"{trial.plan.arm}-{trial.plan.ordinal}"]
            assert sample.input == trial.plan.user and sample.output.completion == trial.text
            assert sample.metadata["receipt"] == trial.receipt and sample.metadata["key"] == trial.plan.key
            found = trial.scores
            assert sample.scores["first_attempt"].value == found[0]
            assert sample.scores["esr"].value == float(len(found) > 1 and found[-1] > found[0])
            spans = [e for e in sample.events if e.event == "span_begin"]
            assert [(e.metadata["start"], e.metadata["end"]) for e in spans] == [
                (a["start"], a["end"]) for a in trial.grade["attempts"]
            ]
            said = [e.data["text"] for e in sample.events if e.event == "info"]
            assert "".join(said) == trial.text[spans[0].metadata["start"] :]
        for score in log.results.scores:
            for arm, metric in score.metrics.items():
                value = {name: [] for name in SCORERS}
                for trial in (t for t in trials if t.plan.arm == arm):
                    found = trial.scores
                    value["first_attempt"].append(found[0])
                    value["last_attempt"].append(found[-1])
                    value["attempts"].append(len(found))
                    value["esr"].append(len(found) > 1 and found[-1] > found[0])
                assert metric.value == pytest.approx(fmean(value[score.name]))
        one = log_file.read_eval_log_sample(str(file), id="base-0", epoch=1)
        assert one.uuid == by_id["base-0"].uuid
        assert len(log_file.read_eval_log_sample_summaries(str(file))) == len(trials)
        again = tmp_path / "again.eval"
        export_inspect(run, again)
    with zipfile.ZipFile(file) as a, zipfile.ZipFile(again) as b:
        assert {n: a.read(n) for n in a.namelist()} == {n: b.read(n) for n in b.namelist()}


def test_the_inspect_command_line_opens_the_log(done: Path, tmp_path: Path) -> None:

    file = tmp_path / "demo.eval"
    with Run.open(done) as run:
        export_inspect(run, file)
    program = Path(sys.executable).parent / "inspect"
    shown = subprocess.run([program, "log", "dump", "--header-only", file], capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout)["eval"]["task"] == "study"


def test_an_unfinished_run_with_gaps_exports_too(done: Path, tmp_path: Path) -> None:

    shutil.copytree(done, tmp_path / "run")
    with sqlite3.connect(tmp_path / "run" / "run.db") as db:
        keys = [k for (k,) in db.execute("SELECT key FROM trials WHERE arm = 'base' ORDER BY ordinal LIMIT 2")]
        db.execute("DELETE FROM completions WHERE key = ?", (keys[0],))
        db.execute("UPDATE completions SET status = 'error', reason = 'out of memory' WHERE key = ?", (keys[1],))
        db.execute("UPDATE facts SET value = 'false' WHERE name = 'finished'")
    with Run.open(tmp_path / "run") as run:
        export_inspect(run, tmp_path / "x.eval")
        export_parquet(run, tmp_path / "x.parquet")
    log = log_file.read_eval_log(str(tmp_path / "x.eval"))
    assert log.status == "started"
    gaps = {s.metadata["status"]: s for s in log.samples if s.metadata["status"] != "ok"}
    assert set(gaps) == {"pending", "error"} and gaps["error"].metadata["reason"] == "out of memory"
    assert all(sample.scores is None for sample in gaps.values())


def test_parquet_holds_what_the_documented_columns_say(done: Path, tmp_path: Path) -> None:

    with Run.open(done) as run:
        assert export_parquet(run, tmp_path / "x.parquet") == sum(run.trial_counts().values())
        table = pq.read_table(tmp_path / "x.parquet")
        assert table.column_names == [name for name, _, _ in COLUMNS]
        assert table.schema.field("arm").metadata[b"meaning"] == b"arm, level included"
        assert table.schema.metadata[b"study"].decode() == run.study
        rows = {(r["arm"], r["ordinal"]): r for r in table.to_pylist()}
        for trial in run.trials():
            made = rows[trial.plan.arm, trial.plan.ordinal]
            assert made["text"] == trial.text and made["strength"] == trial.plan.strength
            assert made["attempts"] == trial.grade["attempts"]
            assert (made["first_score"], made["last_score"]) == (trial.scores[0], trial.scores[-1])
            assert json.loads(made["receipt"]) == trial.receipt
            assert made["tokens_changed"] == sum(layer["tokens_changed"] for layer in trial.receipt["layers"])
    keys = list(zip(table["arm"].to_pylist(), table["key"].to_pylist(), strict=True))
    assert keys == sorted(keys)


def test_the_documentation_lists_every_column() -> None:
    text = (Path(__file__).parent.parent / "docs" / "long-runs.md").read_text()
    for name, kind, meaning in COLUMNS:
        assert f"| `{name}` | {kind} | {meaning} |" in text


def test_an_inspect_log_needs_its_ending(done: Path, tmp_path: Path) -> None:
    with Run.open(done) as run, pytest.raises(InputError, match=r"must end in \.eval"):
        export_inspect(run, tmp_path / "x.json")


def shard(done: Path, folder: Path, keep: int, of: int) -> Path:
    """A copy of a run that holds every `of`-th response and grade only."""
    shutil.copytree(done, folder)
    with sqlite3.connect(folder / "run.db") as db:
        db.execute("CREATE TEMP TABLE gone AS SELECT key FROM trials WHERE ordinal % ? <> ?", (of, keep))
        db.execute("DELETE FROM completions WHERE key IN gone")
        db.execute("DELETE FROM resamples WHERE ordinal % ? <> ?", (of, keep))
        db.execute("UPDATE facts SET value = 'false' WHERE name = 'finished'")
    return folder


def exported(folder: Path, out: Path) -> str:
    with Run.open(folder) as run:
        export(run, out)
    return out.read_text()


def test_merged_shards_are_the_run_they_were_cut_from(done: Path, tmp_path: Path) -> None:
    shards = [shard(done, tmp_path / f"shard{i}", i, 3) for i in range(3)]
    result = merge(shards, tmp_path / "whole")
    assert result["finished"] and result["missing"] == 0 and result["shards"] == 3
    assert exported(tmp_path / "whole", tmp_path / "a") == exported(done, tmp_path / "b")
    with Run.open(done) as a, Run.open(tmp_path / "whole") as b:
        assert list(a.resamples()) == list(b.resamples())


def other_hardware(folder: Path) -> world.Tools:
    """The same model where every answer comes out with another last word, as other rounding may make it."""
    return world.tools(folder / "sae", script=lambda request: world.answer(request) + " Amen.")


def test_shards_on_different_hardware_share_one_calibration(done: Path, tmp_path: Path) -> None:
    folder = tmp_path
    path = world.study(folder, arms=ARMS, latents="count = 3\n")
    loaded = spec.load(path)
    first = runner.run_study(loaded, folder / "1", tools=lambda _: world.tools(folder / "sae"), shard=(1, 2))
    with first, pytest.raises(RunRefusedError, match="only shards of one run can merge"):
        runner.run_study(loaded, folder / "alone", tools=lambda _: other_hardware(folder), shard=(2, 2)).close()
        merge([folder / "1", folder / "alone"], folder / "x")
    made: list[str] = []
    tools = other_hardware(folder)
    original = tools.engine.generate

    async def generate(request):
        made.append(request.prompt)
        return await original(request)

    tools.engine.generate = generate  # type: ignore[method-assign]
    how = {"tools": lambda _: tools, "shard": (2, 2), "calibration": folder / "1"}
    with runner.run_study(loaded, folder / "2", **how) as second, Run.open(folder / "1") as one:
        assert second.calibration() == one.calibration() and second.fact("judge") == one.fact("judge")
        assert second.latents() == one.latents() and list(second.planned()) == list(one.planned())
        mine = {t.plan.key for t in second.trials() if t.status == "ok"}
        planned = {p.key for p in second.planned() if p.ordinal % 2 == 1}
        assert mine == planned, "nothing but its own trials was done"
        assert len(made) == len(planned) + len({r.key for r in second.resamples()})
    result = merge([folder / "1", folder / "2"], folder / "whole")
    assert result["finished"] and result["missing"] == 0
    runner.run_study(loaded, folder / "2", **how).close()
    with pytest.raises(RunRefusedError, match="begun without the calibration of"):
        runner.run_study(loaded, folder / "alone", **how)


def test_a_calibration_is_taken_over_from_a_run_of_the_same_study_only(done: Path, tmp_path: Path) -> None:
    folder = tmp_path
    loaded = spec.load(world.study(folder, arms=ARMS, latents="count = 3\n"))
    with pytest.raises(RunRefusedError, match="run of another study"):
        runner.run_study(loaded, folder / "a", tools=lambda _: world.tools(folder / "sae"), calibration=done)
    assert not (folder / "a").exists()
    Run.create(folder / "new", loaded.text, {"inputs": {}}).close()
    with pytest.raises(RunRefusedError, match="has not begun; let it run until its trials begin"):
        runner.run_study(loaded, folder / "a", tools=lambda _: world.tools(folder / "sae"), calibration=folder / "new")
    with pytest.raises(RunRefusedError, match="holds no run"):
        runner.run_study(loaded, folder / "a", tools=lambda _: world.tools(folder / "sae"), calibration=folder / "none")


def test_a_missing_shard_leaves_the_merged_run_unfinished_and_resumable(done: Path, tmp_path: Path) -> None:
    shards = [shard(done, tmp_path / f"shard{i}", i, 3) for i in range(2)]
    result = merge(shards, tmp_path / "whole")
    assert not result["finished"] and result["missing"] > 0
    folder = done.parent
    loaded = spec.load(folder / "study.toml")
    with runner.run_study(loaded, tmp_path / "whole", tools=lambda _: world.tools(folder / "sae")) as run:
        assert run.finished
    assert exported(tmp_path / "whole", tmp_path / "a") == exported(done, tmp_path / "b")


def test_runs_that_do_not_belong_together_are_refused(done: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(done, other)
    with sqlite3.connect(other / "run.db") as db:
        db.execute("UPDATE trials SET seed = seed + 1 WHERE arm = 'base'")
    with pytest.raises(RunRefusedError, match="has another trials"):
        merge([done, other], tmp_path / "x")
    with sqlite3.connect(other / "run.db") as db:
        db.execute("UPDATE trials SET seed = seed - 1 WHERE arm = 'base'")
        db.execute("UPDATE completions SET text = 'another text' WHERE key = (SELECT MIN(key) FROM trials)")
    with pytest.raises(RunRefusedError, match="another entry in completions"):
        merge([done, other], tmp_path / "x")
    assert not Run.exists(tmp_path / "x"), "nothing half merged is left"
    with pytest.raises(RunRefusedError, match="holds a run already"):
        merge([done, other], done)
    with pytest.raises(InputError, match="at least two"):
        merge([done], tmp_path / "x")
    with pytest.raises(InputError, match="given twice"):
        merge([done, done], tmp_path / "x")


def test_exports_and_merges_say_how_far_they_are(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run.open(done) as run:
        total = sum(run.trial_counts().values())
        for form, name in (("jsonl", "x.jsonl"), ("parquet", "x.parquet"), ("inspect", "x.eval")):
            seen: list[tuple[int, int]] = []
            export(run, tmp_path / name, form=form, progress=lambda *at, seen=seen: seen.append(at))
            assert seen == sorted(seen) and seen[-1] == (total, total), form
    shards = [shard(done, tmp_path / f"shard{i}", i, 3) for i in range(3)]
    monkeypatch.setattr("countersteer.cli.progress._EVERY", 0.0)
    assert call(["merge", *map(str, shards), "--out", str(tmp_path / "whole"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["finished"] and "merging: 3/3" in said.err
    assert call(["export", str(done), "--out", str(tmp_path / "y.jsonl"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["trials"] == total and f"exporting: {total}/{total}" in said.err


def test_an_exported_gap_says_why(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path / "run")
    with sqlite3.connect(tmp_path / "run" / "run.db") as db:
        key = db.execute("SELECT key FROM trials WHERE arm = 'base' ORDER BY ordinal").fetchone()[0]
        db.execute("UPDATE completions SET status = 'error', reason = 'out of memory' WHERE key = ?", (key,))
    rows = [json.loads(line) for line in exported(tmp_path / "run", tmp_path / "x").splitlines()]
    assert {row["reason"] for row in rows if row["status"] == "error"} == {"out of memory"}
    assert all("reason" not in row for row in rows if row["status"] == "ok")
