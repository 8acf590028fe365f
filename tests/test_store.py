"""The run on disk: what is written comes back, one writer at a time, errors in one line, nothing half-written."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from countersteer.core.errors import InputError, StoreError
from countersteer.core.trial import Attempt, Grade
from countersteer.store import (
    Answer,
    LatentRow,
    Planned,
    Reference,
    Resample,
    Response,
    Run,
    RunRefusedError,
    export,
)
from countersteer.store.database import on_network
from countersteer.store.schema import MIGRATIONS

STUDY = '[study]\nmodel = "m"\n'
JUDGE = "judge-1"


def planned(arm: str, ordinal: int, **changes: object) -> Planned:
    values: dict[str, object] = {
        "arm": arm,
        "ordinal": ordinal,
        "key": f"key-{arm}-{ordinal}",
        "latent": 7,
        "label": "tides",
        "strength": 1.5,
        "prompt": "How?",
        "user": "How? Stay on topic.",
        "system": None,
        "prefix": None,
        "seed": 2**40,
        "planned_status": None,
    }
    return Planned(**{**values, **changes})  # type: ignore[arg-type]


def grade(*scores: float) -> Grade:
    attempts = tuple(Attempt(i, i + 1, s, "wait" if i else None) for i, s in enumerate(scores))
    return Grade("ok" if scores else "no-attempt", attempts, JUDGE)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run.create(tmp_path / "run", STUDY, {"device": "cpu"})
    made.set_facts(judge={"key": JUDGE})
    yield made
    made.close()


def test_what_is_written_comes_back(run: Run) -> None:
    run.plan_references([Reference(0, "How?", 5, "ref-0")])
    run.plan_latents([LatentRow(0, 7, "tides", 90.0), LatentRow(1, 9, None)])
    run.add_answer(Answer(0, 7, "How?", 0.8, "cal-0", "ok", 0.25, "text"))
    run.freeze_calibration({"digest": "d"}, [LatentRow(0, 7, "tides", 90.0, 2.0, 1.5, 1.0, 2.0, "ok")])
    run.plan_trials([planned("base", 0), planned("base", 1, planned_status="uncalibrated", strength=None)],
                    {"base": {"strength_scale": 1.0}}, "base")  # fmt: skip
    run.add_response(Response("key-base-0", "ok", "so.", (1, 2**20), 9, "stop", {"layers": []}))
    run.add_grade("How?", "tides", "so.", grade(20.0, 90.0), judge=JUDGE)
    run.add_resamples([Resample("base", 0, 0, "again", 11)])
    run.add_response(Response("again", "ok", "new.", (3,), 9, "length", None))
    run.add_grade("How?", "tides", "new.", grade(40.0), judge=JUDGE)
    run.note("one")
    run.note("one")
    folder = run.folder
    run.close()

    with Run.open(folder) as read:
        assert read.header == {"format": 1, "device": "cpu"}
        assert read.study == STUDY == (folder / "study.toml").read_text()
        assert read.references() == [Reference(0, "How?", 5, "ref-0")]
        assert read.latents() == [LatentRow(0, 7, "tides", 90.0, 2.0, 1.5, 1.0, 2.0, "ok"), LatentRow(1, 9, None)]
        assert read.answers() == [Answer(0, 7, "How?", 0.8, "cal-0", "ok", 0.25, "text")]
        first, second = read.trials("base")
        assert (first.status, first.text, first.scores, first.tokens) == ("ok", "so.", [20.0, 90.0], 2)
        assert first.plan == planned("base", 0)
        assert second.status == "uncalibrated" and second.text is None
        (fresh,) = read.fresh_attempts("base")
        assert (fresh.draw, fresh.first, fresh.text) == (0, 40.0, "new.")
        assert read.tokens() == {"prompt": 18, "generated": 3}
        assert read.notes == ["one"] and read.base_arm == "base" and read.trial_counts() == {"base": 2}
        assert read.missing() == 0


def test_statuses_say_why_a_trial_is_missing(run: Run) -> None:
    run.plan_trials([planned("a", i) for i in range(5)], {"a": {}}, "a")
    run.add_response(Response("key-a-1", "error", reason="the engine stumbled"))
    run.add_response(Response("key-a-2", "no-op", "text", (1,), 1, "stop", {"layers": []}, "nothing changed"))
    run.add_response(Response("key-a-3", "ok", "?", (1,), 1, "stop"))
    run.add_grade("How?", "tides", "?", grade(), judge=JUDGE)
    run.add_response(Response("key-a-4", "ok", "ungraded", (1,), 1, "stop"))
    assert [t.status for t in run.trials()] == ["pending", "error", "no-op", "no-attempt", "pending"]
    assert [t.reason for t in run.trials()][1:3] == ["the engine stumbled", "nothing changed"]
    assert run.missing() == 1


def test_one_response_serves_an_identical_trial_in_two_arms(run: Run) -> None:
    run.plan_trials([planned("a", 0, key="same"), planned("b", 0, key="same")], {"a": {}, "b": {}}, "a")
    assert run.missing() == 1
    run.add_response(Response("same", "ok", "text", (1,), 1, "stop"))
    run.add_response(Response("same", "ok", "another", (2,), 1, "stop"))
    assert [t.text for t in run.trials()] == ["text", "text"], "the first response of a key stays"


def test_given_prefix_is_part_of_the_graded_text(run: Run) -> None:
    run.plan_trials([planned("a", 0, prefix="Begin ")], {"a": {}}, "a")
    run.add_response(Response("key-a-0", "ok", "end.", (1,), 1, "stop"))
    run.add_grade("How?", "tides", "Begin end.", grade(50.0), judge=JUDGE)
    (trial,) = run.trials()
    assert (trial.text, trial.status) == ("Begin end.", "ok")


def test_export_is_sorted_by_arm_and_key_and_whole(run: Run, tmp_path: Path) -> None:
    keys = {"b": ["2", "1"], "a": ["9", "8"]}
    run.plan_trials([planned(arm, i, key=k) for arm in keys for i, k in enumerate(keys[arm])], {"b": {}, "a": {}}, "b")
    run.add_response(Response("1", "ok", "zwölf\nline", (1,), 1, "stop", {"layers": []}))
    run.add_grade("How?", "tides", "zwölf\nline", grade(10.0), judge=JUDGE)
    out = tmp_path / "trials.jsonl"
    assert export(run, out) == 4
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [(x["arm"], x["key"]) for x in lines] == [("a", "8"), ("a", "9"), ("b", "1"), ("b", "2")]
    names = ["key", "arm", "latent", "label", "strength", "prompt", "seed", "text", "status", "grade", "receipt"]
    assert all(list(x) == names for x in lines)
    assert lines[2]["text"] == "zwölf\nline" and lines[2]["grade"]["attempts"][0]["score"] == 10.0
    assert list(tmp_path.glob("*.part")) == []
    with pytest.raises(InputError, match=r"unknown export format 'jsonk' .*did you mean 'jsonl'"):
        export(run, out, form="jsonk")


def test_text_beyond_bounds_is_an_error_not_a_truncation(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("countersteer.store.run.MAX_TEXT", 10)
    stored = run.add_response(Response("k", "ok", "x" * 11, (1,), 1, "stop"))
    assert stored.status == "error" and "11 characters" in (stored.reason or "") and run.response("k") == stored


def test_second_process_is_refused_with_the_first_ones_pid(run: Run) -> None:
    code = (
        "import sys\nfrom countersteer.store import Run\n"
        "try:\n    Run.open(sys.argv[1], write=True)\nexcept Exception as e:\n    print(e.exit_code, e)"
    )
    said = subprocess.run([sys.executable, "-c", code, run.folder], capture_output=True, text=True, check=True).stdout
    assert said.startswith("2 ") and f"process {os.getpid()};" in said and said.count("\n") == 1
    with Run.open(run.folder) as reader:
        assert reader.header["device"] == "cpu", "reading is not writing"


def _hold(folder: str) -> None:
    run = Run.open(folder, write=True)
    run.set_facts(held=True)
    time.sleep(60)


def test_lock_and_results_survive_kill_9_of_the_holder(run: Run) -> None:
    run.close()
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(str(run.folder),))
    process.start()
    for _ in range(300):
        with Run.open(run.folder) as reader:
            if reader.fact("held"):
                break
        time.sleep(0.05)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    with Run.open(run.folder, write=True) as again:
        assert again.fact("held") is True


def test_a_run_is_not_made_over_another(run: Run) -> None:
    run.set_facts(header={**run.header, "inputs": {}})
    run.close()
    with pytest.raises(RunRefusedError, match="holds a run already") as error:
        Run.create(run.folder, STUDY, {})
    assert error.value.exit_code == 2


def test_newer_version_is_refused_and_untouched(run: Run) -> None:
    run.close()
    with sqlite3.connect(run.path) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    for write in (False, True):
        with pytest.raises(RunRefusedError, match="newer countersteer"):
            Run.open(run.folder, write=write)


def test_a_run_killed_before_its_header_can_be_started_again(tmp_path: Path) -> None:
    tmp_path.joinpath("run.db").write_bytes(b"")
    assert not Run.exists(tmp_path)
    with Run.create(tmp_path, STUDY, {}) as run:
        assert run.study == STUDY and Run.exists(tmp_path)


def test_a_failed_transaction_leaves_nothing(run: Run) -> None:
    run.plan_trials([planned("a", 0)], {"a": {}}, "a")
    with pytest.raises(StoreError):
        run.plan_trials([planned("b", 0), planned("a", 0)], {"b": {}}, "b")
    assert run.trial_counts() == {"a": 1} and run.base_arm == "a"


def test_full_disk_is_one_line_and_keeps_what_was_there(run: Run) -> None:
    run.add_response(Response("kept", "ok", "text", (1,), 1, "stop"))
    pages = run._db.execute("PRAGMA page_count").fetchone()[0]
    run._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreError, match="disk is full; free some space") as error:
        for number in range(100):
            run.add_response(Response(f"k{number}", "ok", "x" * 5000, (1,), 1, "stop"))
    assert error.value.exit_code == 1 and "\n" not in str(error.value)
    run.close()
    with Run.open(run.folder) as reader:
        kept = reader.response("kept")
        assert kept is not None and kept.text == "text"


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough to look like one" * 40, b"SQLite format 3\0"]
)
def test_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    tmp_path.joinpath("run.db").write_bytes(content)
    with pytest.raises(StoreError) as error:
        Run.open(tmp_path)
    assert "\n" not in str(error.value) and "run.db" in str(error.value)


def test_missing_run_is_refused_for_reading_and_writing(tmp_path: Path) -> None:
    for write in (False, True):
        with pytest.raises(RunRefusedError, match="holds no run"):
            Run.open(tmp_path / "nowhere", write=write)


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath("run").write_text("x")
    with pytest.raises(StoreError):
        Run.create(tmp_path / "run", STUDY, {})


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="2026-11: needs root to drop its rights")
def test_read_only_folder_is_refused_and_still_readable(run: Run) -> None:
    run.close()
    for path in (run.folder, run.path, run.folder / "run.lock", *run.folder.parents[:4]):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
    os.seteuid(65534)
    try:
        with pytest.raises(RunRefusedError, match=r"Permission denied|read-only"):
            Run.open(run.folder, write=True)
        with pytest.raises(RunRefusedError, match="Permission denied"):
            Run.create(run.folder / "new", STUDY, {})
        with Run.open(run.folder) as reader:
            assert reader.header["device"] == "cpu"
    finally:
        os.seteuid(0)


def test_rollback_journal_is_used_where_shared_memory_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("countersteer.store.database.on_network", lambda path: True)
    with Run.create(tmp_path, STUDY, {}) as run:
        assert run._db.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
        run.set_facts(x=1)
        assert not list(tmp_path.glob("*-wal"))
    with Run.open(tmp_path) as reader:
        assert reader.fact("x") == 1


def test_local_folder_is_not_a_network_one(tmp_path: Path) -> None:
    kinds = {line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()}
    assert kinds and on_network(tmp_path) in (True, False)
    with Run.create(tmp_path, STUDY, {}) as run:
        mode = run._db.execute("PRAGMA journal_mode").fetchone()[0]
        assert mode == ("delete" if on_network(tmp_path) else "wal")
