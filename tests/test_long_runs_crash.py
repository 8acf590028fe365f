"""What a run survives: kills at random moments, a second process, full and network disks, clocks, other versions."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import studies_world as world
from countersteer.core.errors import StoreError
from countersteer.core.trial import Grade
from countersteer.report.summary import summarise
from countersteer.store import Run, RunRefusedError, database, export, schema
from countersteer.studies import runner, spec

HERE = Path(__file__).parent
DATA = HERE / "data"
VERSIONS = sorted(int(file.stem.split("-")[1]) for file in DATA.glob("schema-*.sql"))
ARMS = "[arms.base]\nstrength = 3.0\n[arms.unsteered]\nstrength = 0\n"


def begin(path: Path, out: Path, *, delay: float = 0.02) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "long_runs_child.py"), str(path), str(out), str(delay)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE)


def exported(folder: Path, out: Path) -> str:
    with Run.open(folder) as run:
        export(run, out)
    return out.read_text()


def holder(folder: Path) -> int:
    """The process that holds the run, by its lock file."""
    try:
        return int((folder / "run.lock").read_text().split()[0])
    except (OSError, IndexError, ValueError):
        return 0


def forked(path: Path, out: Path, *, delay: float) -> int:
    """The study in a fork of this process, which has loaded everything already; its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sae = path.parent / "sae"
            runner.run_study(spec.load(path), out, tools=lambda _: world.tools(sae, delay=delay), in_flight=32).close()
            code = 0
        finally:
            os._exit(code)
    return child


@pytest.mark.slow
def test_fifty_kills_in_two_thousand_trials_change_nothing(tmp_path: Path) -> None:
    """A run is killed at a random moment after it has the folder, fifty times, then left to finish."""
    latents = "ids = [" + ", ".join(map(str, range(40))) + "]\n"
    path = world.study(tmp_path, arms=ARMS, latents=latents)
    arms = ["base", *(f"more{i}" for i in range(6))]
    text = path.read_text().replace("[arms.unsteered]\nstrength = 0\n", "")
    text = text.replace("per_latent = 4", "per_latent = 8")
    text += "".join(f"[arms.{name}]\nstrength = {1.0 + i}\n" for i, name in enumerate(arms[1:]))
    path.write_text(text)
    assert os.waitpid(forked(path, tmp_path / "whole", delay=0.0), 0)[1] == 0
    with Run.open(tmp_path / "whole") as run:
        assert run.finished and sum(run.trial_counts().values()) == 40 * 8 * 7 >= 2000
    draw = random.Random(5)
    stored = []
    for _ in range(50):
        child = forked(path, tmp_path / "killed", delay=0.4)
        until = time.monotonic() + 60
        while holder(tmp_path / "killed") != child and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 2.0))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it finished before it was killed fifty times: work more slowly"
        stored.append(sum(file.stat().st_size for file in (tmp_path / "killed").iterdir()))
    assert len(set(stored)) > 3, "the kills hit a run at work"
    assert os.waitpid(forked(path, tmp_path / "killed", delay=0.0), 0)[1] == 0
    assert exported(tmp_path / "killed", tmp_path / "a") == exported(tmp_path / "whole", tmp_path / "b")


def test_a_second_process_is_refused_with_the_first_ones_number_and_what_to_do(tmp_path: Path) -> None:
    path = world.study(tmp_path, arms=ARMS)
    first = begin(path, tmp_path / "run", delay=30)
    until = time.monotonic() + 60
    while not Run.exists(tmp_path / "run") and time.monotonic() < until:
        time.sleep(0.05)
    second = begin(path, tmp_path / "run", delay=0)
    _, err = second.communicate(timeout=60)
    first.kill()
    first.wait()
    assert second.returncode == 2
    assert f"in use by process {first.pid}" in err and "wait for it to finish" in err and "Traceback" not in err
    third = begin(path, tmp_path / "run", delay=0)
    out, err = third.communicate(timeout=120)
    assert out.strip() == "finished", err


def test_a_full_disk_stops_with_one_line_and_nothing_finished_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own page limit stands for the disk: the same error, at a place of our choosing."""
    import countersteer.store.run as module

    folder = tmp_path
    loaded = spec.load(world.study(folder, arms=ARMS))
    out = folder / "run"
    with runner.run_study(loaded, folder / "whole", tools=lambda _: world.tools(folder / "sae")):
        pass
    Run.create(folder / "blank", "", {}).close()
    sizes = [pages(folder / name / "run.db") for name in ("blank", "whole")]
    limit = sum(sizes) // 2
    assert sizes[0] < limit < sizes[1]
    original = database.connect

    def small(where: Path, *, write: bool) -> sqlite3.Connection:
        connection = original(where, write=write)
        if write:
            connection.execute(f"PRAGMA max_page_count = {limit}")
        return connection

    with monkeypatch.context() as patched:
        patched.setattr(module, "connect", small)
        with pytest.raises(StoreError, match="the disk is full; free some space and run the same command") as caught:
            runner.run_study(loaded, out, tools=lambda _: world.tools(folder / "sae"))
    assert "\n" not in str(caught.value)
    with Run.open(out) as run:
        kept = run.tokens()["generated"]
        assert not run.finished
    with runner.run_study(loaded, out, tools=lambda _: world.tools(folder / "sae")) as run:
        assert run.finished and run.tokens()["generated"] >= kept
    assert exported(out, tmp_path / "a") == exported(folder / "whole", tmp_path / "b")


def pages(file: Path) -> int:
    with sqlite3.connect(file) as db:
        return int(db.execute("PRAGMA page_count").fetchone()[0])


def test_a_clock_that_goes_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = world.study(tmp_path, arms=ARMS)
    loaded = spec.load(path)
    with runner.run_study(loaded, tmp_path / "whole", tools=lambda _: world.tools(tmp_path / "sae")):
        pass
    now = {"t": 2e9}

    def backwards() -> float:
        now["t"] -= 3600.0
        return now["t"]

    monkeypatch.setattr(time, "time", backwards)
    with runner.run_study(loaded, tmp_path / "run", tools=lambda _: world.tools(tmp_path / "sae")) as run:
        assert run.fact("seconds") >= 0
    monkeypatch.undo()
    for offset in (3600, -3600):
        os.utime(tmp_path / "run" / "run.db", (time.time() + offset,) * 2)
        with runner.run_study(loaded, tmp_path / "run", tools=lambda _: world.tools(tmp_path / "sae")) as run:
            assert run.finished
    assert exported(tmp_path / "run", tmp_path / "a") == exported(tmp_path / "whole", tmp_path / "b")


def test_a_database_of_a_newer_version_is_refused_untouched(tmp_path: Path) -> None:
    path = world.study(tmp_path, arms=ARMS)
    with runner.run_study(spec.load(path), tmp_path / "run", tools=lambda _: world.tools(tmp_path / "sae")):
        pass
    file = tmp_path / "run" / "run.db"
    with sqlite3.connect(file) as db:
        db.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    content = file.read_bytes()
    for write in (False, True):
        with pytest.raises(RunRefusedError, match="written by a newer countersteer"):
            Run.open(tmp_path / "run", write=write)
    with pytest.raises(RunRefusedError, match="upgrade"):
        runner.run_study(spec.load(path), tmp_path / "run", tools=lambda _: world.tools(tmp_path / "sae"))
    assert file.read_bytes() == content


def tables(db: sqlite3.Connection) -> dict[str, str]:
    return dict(db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))


def written_by(version: int, folder: Path) -> Path:
    """A run as the version with this schema wrote it."""
    folder.mkdir()
    with closing(sqlite3.connect(folder / "run.db")) as db:
        db.executescript((DATA / f"schema-{version}.sql").read_text())
        study = json.loads(db.execute("SELECT value FROM facts WHERE name = 'study'").fetchone()[0])
    (folder / "study.toml").write_text(study)
    return folder


def test_every_schema_that_was_ever_written_has_its_run() -> None:
    assert VERSIONS[-1] == len(schema.MIGRATIONS), "the schema grew: run tests/schema_fixture.py and commit its files"
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript((DATA / f"schema-{VERSIONS[-1]}.sql").read_text())
        kept = tables(db)
    with closing(sqlite3.connect(":memory:")) as db:
        schema.migrate(db, Path("memory"))
        assert tables(db) == kept, "a migration was changed after a version had written it"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_of_every_older_version_reads_as_that_version_read_it(tmp_path: Path, version: int) -> None:
    folder = written_by(version, tmp_path / "run")
    with closing(sqlite3.connect(folder / "run.db")) as db:
        count = {
            name: db.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in ("refs", "latents", "grades")
        }
    expected = (DATA / f"schema-{version}.jsonl").read_text()
    assert exported(folder, tmp_path / "a.jsonl") == expected and expected.count("\n") == 27
    with Run.open(folder, write=True) as run:
        assert run.finished and run.judging()["requests"] == 0
        assert (len(run.references()), len(run.latents())) == (count["refs"], count["latents"]) == (8, 3)
        assert summarise(run)["arms"]["base"]["trials"] == 9
        run.add_grade("How?", None, "So.", Grade("ok", (), "another"), judge="another")
        assert run.grade("How?", None, "So.", judge="another")["status"] == "ok"
        run.replies.end(run.replies.begin("k", "j", 0.5), "refused", 0.0)
    with closing(sqlite3.connect(folder / "run.db")) as db, closing(sqlite3.connect(":memory:")) as blank:
        schema.migrate(blank, Path("memory"))
        assert tables(db) == tables(blank) and schema.version(db) == len(schema.MIGRATIONS)
        assert db.execute("SELECT COUNT(*) FROM grades").fetchone()[0] == count["grades"] + 1
    assert exported(folder, tmp_path / "b.jsonl") == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unfinished_run_in_an_older_schema_goes_on(tmp_path: Path, version: int) -> None:
    """A run of this program in the tables of the older one: its study and its judge have to be this program's."""
    loaded = spec.load(world.study(tmp_path, arms=ARMS))
    with runner.run_study(loaded, tmp_path / "whole", tools=lambda _: world.tools(tmp_path / "sae")):
        pass
    folder = tmp_path / "run"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "run.db", isolation_level=None)) as db:
        dump = (DATA / f"schema-{version}.sql").read_text()
        db.executescript("".join(part + ";" for part in dump.split(";\n") if part.lstrip().startswith("CREATE")))
        db.execute("ATTACH ? AS whole", (str(tmp_path / "whole" / "run.db"),))
        for (name,) in db.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall():
            db.execute(f"INSERT INTO main.{name} SELECT * FROM whole.{name}")
        db.execute("UPDATE facts SET value = 'false' WHERE name = 'finished'")
        gone = "SELECT key FROM trials WHERE ordinal > 5"
        assert db.execute(f"DELETE FROM completions WHERE key IN ({gone})").rowcount > 5
        db.execute(f"PRAGMA user_version = {version}")
    with runner.run_study(loaded, folder, tools=lambda _: world.tools(tmp_path / "sae")) as run:
        assert run.finished
    assert exported(folder, tmp_path / "a") == exported(tmp_path / "whole", tmp_path / "b")


def test_a_run_begun_before_a_setting_existed_goes_on_but_not_with_another_value(tmp_path: Path) -> None:
    loaded = spec.load(world.study(tmp_path, arms=ARMS))
    with runner.run_study(loaded, tmp_path / "run", tools=lambda _: world.tools(tmp_path / "sae")):
        pass
    whole = exported(tmp_path / "run", tmp_path / "a")
    assert "derangements = 5\n" in loaded.text

    def keep(text: str) -> None:
        with sqlite3.connect(tmp_path / "run" / "run.db") as db:
            db.execute("UPDATE facts SET value = ? WHERE name = 'study'", (json.dumps(text),))
            db.execute("UPDATE facts SET value = 'false' WHERE name = 'finished'")
            db.execute("DELETE FROM completions WHERE key IN (SELECT key FROM trials WHERE ordinal > 5)")

    keep(loaded.text.replace("derangements = 5\n", ""))
    with runner.run_study(loaded, tmp_path / "run", tools=lambda _: world.tools(tmp_path / "sae")) as run:
        assert run.finished and "derangements" not in run.study
    assert exported(tmp_path / "run", tmp_path / "b") == whole
    for other in ("references = 4\n", "reference = 3\n"):
        keep(loaded.text.replace("references = 3\n", other))
        with pytest.raises(RunRefusedError, match="run of another study"):
            runner.run_study(loaded, tmp_path / "run", tools=lambda _: world.tools(tmp_path / "sae"))


def test_a_file_system_without_a_working_log_gets_a_rollback_journal_under_an_exclusive_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world.study(tmp_path, arms=ARMS)
    loaded = spec.load(path)
    monkeypatch.setattr(database, "on_network", lambda where: True)
    out = tmp_path / "run"
    with runner.run_study(loaded, out, tools=lambda _: world.tools(tmp_path / "sae")) as run:
        assert run.finished
    assert not (out / "run.db-wal").exists()
    with sqlite3.connect(out / "run.db") as db:
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
    with Run.open(out, write=True) as writer:
        writer.set_facts(held=True)
        other = sqlite3.connect(out / "run.db", timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("SELECT * FROM facts").fetchall()
        other.close()
    monkeypatch.undo()
    with runner.run_study(loaded, tmp_path / "whole", tools=lambda _: world.tools(tmp_path / "sae")):
        pass
    assert exported(out, tmp_path / "a") == exported(tmp_path / "whole", tmp_path / "b")


def test_where_shared_memory_does_not_work_the_journal_is_used_whatever_the_mount_table_says(tmp_path: Path) -> None:
    """A folder in the place of the log's shared memory, so that SQLite cannot open it."""
    path = world.study(tmp_path, arms=ARMS)
    loaded = spec.load(path)
    out = tmp_path / "run"
    (out / "run.db-shm").mkdir(parents=True)
    with runner.run_study(loaded, out, tools=lambda _: world.tools(tmp_path / "sae")) as run:
        assert run.finished
    with Run.open(out, write=True) as run, pytest.raises(sqlite3.OperationalError, match="locked"):
        run.set_facts(held=True)
        with closing(sqlite3.connect(out / "run.db", timeout=0)) as other:
            other.execute("SELECT * FROM facts").fetchall()
    (out / "run.db-shm").rmdir()
    with closing(sqlite3.connect(out / "run.db")) as db:
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
    with runner.run_study(loaded, tmp_path / "whole", tools=lambda _: world.tools(tmp_path / "sae")):
        pass
    assert exported(out, tmp_path / "a") == exported(tmp_path / "whole", tmp_path / "b")


def test_a_full_disk_leaves_no_half_written_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = world.study(tmp_path, arms=ARMS)
    with runner.run_study(spec.load(path), tmp_path / "run", tools=lambda _: world.tools(tmp_path / "sae")):
        pass

    def full(done: int, total: int) -> None:
        if done == 5:
            raise OSError(28, "No space left on device")

    before = sorted(file.name for file in tmp_path.iterdir())
    with Run.open(tmp_path / "run") as run:
        for name, form in (("x.jsonl", "jsonl"), ("x.eval", "inspect")):
            with pytest.raises(StoreError, match=r"cannot write .*No space left on device"):
                export(run, tmp_path / name, form=form, progress=full)
    assert sorted(file.name for file in tmp_path.iterdir()) == before
