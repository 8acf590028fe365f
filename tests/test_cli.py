"""The command line: exit codes, one line per error, one JSON object with --json, and nothing lost when interrupted."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import studies_world as world
from countersteer.cli import call
from countersteer.cli.app import app
from countersteer.core.errors import InputError, StoreError
from countersteer.store import Run, export
from countersteer.studies import runner, spec


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The names of all commands, groups opened."""
    if not getattr(command, "commands", None):
        yield " ".join(path)
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


COMMANDS = tuple(commands(typer.main.get_command(app)))
MAIN = "from countersteer.cli import main; main()"
ORGANISM = """[study]
model = "organism"
sae = "organism"
[engine]
dtype = "float64"
[latents]
count = 4
[trials]
per_latent = 4
resample = 2
[sampling]
max_tokens = 64
repetition_penalty = 1.0
[judge]
references = 2
[arms.base]
[arms.unsteered]
strength = 0
[arms.self-monitor]
suffix = "If you notice that you are drifting off topic, stop and return to the question."
"""


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = call([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a command that must fail as bad input: exit code 2, nothing on stdout, one line on stderr."""
    code, out, err = said(capsys, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out, len(lines)) == (2, "", 1), (code, out, err)
    assert "Traceback" not in err
    return lines[0]


def child(*arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = said(capsys, *command.split(), "--help")
    assert code == 0 and f"Example: countersteer {command}" in " ".join(out.split()) and "--json" in out


def test_every_command_has_a_row_in_the_documentation() -> None:
    page = (Path(__file__).parent.parent / "docs" / "cli.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    first = [row.replace("\\|", "/").split("|")[1] for row in rows]
    assert len(COMMANDS) > 25
    for command in COMMANDS:
        group, _, name = command.partition(" ")
        words = [cell for cell in first if re.search(rf"`{group}\b", cell)]
        assert words and (not name or any(re.search(rf"\b{name}\b", cell) for cell in words)), command


def test_help_costs_little_more_cpu_than_the_library_it_is_written_with() -> None:
    """Least of five, as a ratio: other work on the machine slows both. The time itself is `help_cpu_s` in bench/."""

    def cost(start: Any) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert start().wait() == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    plain = [sys.executable, "-c", "import typer, rich.console"]
    pairs = [(cost(lambda: child("--help")), cost(lambda: subprocess.Popen(plain))) for _ in range(5)]
    assert min(help for help, _ in pairs) <= 2.5 * min(bare for _, bare in pairs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "No such command 'rum'. Did you mean 'run'?"),
        (["run", "preset:demo"], "Missing option '--out'"),
        (["plan"], "Missing argument 'STUDY'"),
        (["plan", "--josn", "x"], "No such option: --josn"),
        (["plan", "preset:dmo"], "no preset 'dmo' (did you mean 'demo'?)"),
        (["plan", "nowhere.toml"], "cannot read study nowhere.toml"),
        (["run", "preset:demo", "--out", "x", "--in-flight", "0"], "Invalid value for '--in-flight'"),
        (["report", "nowhere"], "nowhere holds no run"),
        (["export", "nowhere", "--out", "x"], "nowhere holds no run"),
        (["grade", "nowhere.jsonl", "--out", "x"], "nowhere.jsonl"),
    ],
)
def test_usage_errors(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, *arguments)
    assert list(tmp_path.iterdir()) == [], "nothing was written"


def written(folder: Path, **study: str) -> Path:
    """A study file on the organism with some text replaced."""
    path = folder / "study.toml"
    text = ORGANISM
    for old, new in study.items():
        text = text.replace(old, new) if old != "more" else text + new
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[trails]\nper_latent = 3\n", "unknown section [trails] (did you mean 'trials'?)"),
        ("[arms.x]\nstrenght = 3\n", "unknown key 'strenght' in [arms.x] (did you mean 'strength'?)"),
        ('[arms.x]\nstrength = "much"\n', "[arms.x] strength: must be a finite number"),
        ("[arms.x]\nstrength = nan\n", "[arms.x] strength: must be a finite number"),
        ("[arms.x]\nstrength = inf\n", "[arms.x] strength: must be a finite number"),
        ("[arms.x]\nclamp = [99999]\n", "clamp names latent 99999, but the SAE has"),
        ("[arms.x]\nsteer_layer = 77\n", "layer 77 is out of range: the model has"),
    ],
)
def test_bad_studies_leave_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, more: str, message: str) -> None:
    path = written(tmp_path, more=more)
    assert message in error_of(capsys, "run", path, "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "run.db").exists() or not Run.open(tmp_path / "run").arms()


def test_a_corrected_study_may_use_the_folder_of_the_refused_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bad = world.study(tmp_path, arms="[arms.base]\nsteer_layer = 9\n")
    given = world.tools(tmp_path / "sae")
    with pytest.raises(InputError, match="layer 9 is out of range"):
        runner.run_study(spec.load(bad), tmp_path / "run", tools=lambda _: given)
    good = world.study(tmp_path, arms="[arms.base]\nstrength = 2\n", latents="ids = [1]\n")
    with runner.run_study(spec.load(good), tmp_path / "run", tools=lambda _: given) as run:
        assert run.finished and run.study == spec.load(good).text == (tmp_path / "run" / "study.toml").read_text()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "is empty"),
        ("latin.txt", b"caf\xe9?\n", "not UTF-8"),
        (None, b"", "cannot read prompt file"),
    ],
)
def test_bad_prompt_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str | None, content: bytes, message: str
) -> None:
    if name:
        (tmp_path / name).write_bytes(content)
    path = written(tmp_path, more="")
    path.write_text(ORGANISM.replace("per_latent = 4", f'per_latent = 4\nprompts = "{name or "missing.txt"}"'))
    for command in (["plan", path], ["run", path, "--out", tmp_path / "run"]):
        assert message in error_of(capsys, *command)
    assert not (tmp_path / "run").exists()


def test_sae_of_the_wrong_width(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    world.write_sae(tmp_path / "sae", d_model=24)
    path = written(tmp_path)
    path.write_text(ORGANISM.replace('sae = "organism"', 'sae = "sae"'))
    assert "24 wide" in error_of(capsys, "run", path, "--out", tmp_path / "run")


def test_latent_out_of_range(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(ORGANISM.replace("count = 4", "ids = [70000]"))
    assert "latent 70000" in error_of(capsys, "run", path, "--out", tmp_path / "run")


def test_more_tokens_than_the_model_has_positions(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(ORGANISM.replace("max_tokens = 64", "max_tokens = 5000"))
    message = error_of(capsys, "run", path, "--out", tmp_path / "run")
    assert "max_tokens 5000" in message and "positions" in message


def test_missing_model_and_sae(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(ORGANISM.replace('sae = "organism"', 'sae = "no-such-folder"'))
    assert "no SAE folder at no-such-folder" in error_of(capsys, "run", path, "--out", tmp_path / "run")


def test_plan_says_what_a_study_takes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = said(capsys, "plan", written(tmp_path), "--json")
    data = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    each = 4 * 4
    assert data["generations"] == {
        "references": 2 * data["prompts"], "calibration": 25 * 4, "trials base": each, "trials unsteered": each,
        "trials self-monitor": each, "resamples (at most)": 2 * each * 2,
    }  # fmt: skip
    certain = 2 * data["prompts"] + 25 * 4 + 3 * each
    assert data["generations_certain"] == certain
    assert data["tokens_at_most"] == (certain + 4 * each) * 64 == sum(data["tokens"].values())
    assert data["tokens"]["trials base"] == each * 64 and data["tokens"].keys() == data["generations"].keys()
    assert [d["base_rate"] for d in data["detectable"]] == [0.01, 0.05, 0.2]
    code, out, _ = said(capsys, "plan", written(tmp_path))
    assert code == 0 and "16 trials in each of 3 arms" in out
    assert re.search(rf"trials base +{each} +{each * 64:,}\n", out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the organism's study and its finished run, made through the command line."""
    folder = tmp_path_factory.mktemp("cli")
    written(folder)
    process = child("run", folder / "study.toml", "--out", folder / "run", "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (folder / "result.json").write_text(out)
    return folder


def test_run_prints_one_json_object_of_the_contract(finished: Path) -> None:
    out = (finished / "result.json").read_text()
    data = json.loads(out)
    assert out.count("\n") == 1
    assert {"run", "arms", "contrasts", "calibration", "tokens", "seconds"} <= set(data)
    assert list(data["arms"]) == ["base", "unsteered", "self-monitor"]
    metrics = {"first_attempt", "multi_attempt", "improvement", "resample_baseline", "esr"}
    with Run.open(finished / "run") as run:
        for name, arm in data["arms"].items():
            assert {"trials", "valid", "statuses", "acted", *metrics} <= set(arm)
            trials = list(run.trials(name))
            assert arm["trials"] == len(trials) == 16
            valid = [t for t in trials if t.status == "ok"]
            assert arm["valid"] == len(valid)
            multi = sum(len(t.scores) > 1 for t in valid)
            assert arm["multi_attempt"]["value"] == (pytest.approx(multi / len(valid)) if valid else None)
    assert (finished / "run" / "report.html").is_file()


def test_a_finished_run_prints_its_result_again_without_loading_the_model(
    capsys: pytest.CaptureFixture[str], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "load_tools", None)
    code, out, err = said(capsys, "run", finished / "study.toml", "--out", finished / "run", "--json")
    assert code == 0 and json.loads(out) == json.loads((finished / "result.json").read_text()), err
    code, out, _ = said(capsys, "report", finished / "run", "--json")
    assert code == 0 and json.loads(out) == json.loads((finished / "result.json").read_text())
    code, out, _ = said(capsys, "report", finished / "run")
    assert code == 0 and "self-monitor" in out


def test_export_writes_every_trial(capsys: pytest.CaptureFixture[str], finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "trials.jsonl"
    code, printed, _ = said(capsys, "export", finished / "run", "--format", "jsonl", "--out", out, "--json")
    assert code == 0 and json.loads(printed) == {"out": str(out), "format": "jsonl", "trials": 48}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 48 and {x["arm"] for x in lines} == {"base", "unsteered", "self-monitor"}
    steered = [x for x in lines if x["arm"] != "unsteered" and x["status"] != "uncalibrated"]
    assert steered and all(x["receipt"]["layers"][0]["mean_relative"] > 0.05 for x in steered)
    code, printed, _ = said(capsys, "export", finished / "run", "--format", "jsonl")
    assert code == 0 and printed == out.read_text()
    for arguments, message in (
        (("--format", "csv", "--out", out), "unknown export format 'csv'"),
        (("--format", "parquet"), "--format parquet needs a file"),
        (("--out", tmp_path), "is a folder; name a file in it"),
        (("--out", "."), "is a folder; name a file in it"),
    ):
        assert message in error_of(capsys, "export", finished / "run", *arguments)


def test_run_folder_of_another_study(capsys: pytest.CaptureFixture[str], finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(ORGANISM.replace("references = 2", "references = 3"))
    message = error_of(capsys, "run", other, "--out", finished / "run")
    assert "run of another study" in message and "references = 2 there, 3 here" in message and "--out" in message


def test_demo_refuses_a_folder_of_another_study(capsys: pytest.CaptureFixture[str], finished: Path) -> None:
    assert "run of another study" in error_of(capsys, "demo", "--out", finished / "run")


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="2026-11: needs root to drop its rights")
def test_read_only_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = written(tmp_path)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(folder, 0o755)
    "".encode("utf-8-sig")  # what is imported later may not be readable any more
    os.seteuid(65534)
    try:
        assert "Permission denied" in error_of(capsys, "run", path, "--out", tmp_path / "run")
    finally:
        os.seteuid(0)


def progressed(folder: Path, trials: int) -> bool:
    """Whether at least that many trials of the run have a response."""
    if not Run.exists(folder):
        return False
    with Run.open(folder) as run:
        return sum(run.trial_counts().values()) - run.missing() >= trials if run.arms() else False


@pytest.mark.slow
def test_ctrl_c_exits_130_and_kill_9_loses_nothing(finished: Path, tmp_path: Path) -> None:
    """Interrupted while it generates and killed twice, the run goes on to the export of the uninterrupted one."""
    folder = tmp_path / "run"
    path = finished / "study.toml"
    process = child("run", path, "--out", folder)
    waiting(process, lambda: Run.exists(folder) and has_answers(folder, 30))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert err.splitlines()[-1] == (
        "error: interrupted; what was finished is kept, run the same command again to go on"
    )
    for ready in (lambda: has_answers(folder, 70), lambda: progressed(folder, 5)):
        process = child("run", path, "--out", folder)
        waiting(process, ready)
        process.kill()
        process.wait()
    process = child("run", path, "--out", folder, "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    with Run.open(folder) as ours, Run.open(finished / "run") as theirs:
        export(ours, tmp_path / "a")
        export(theirs, tmp_path / "b")
        assert ours.calibration() == theirs.calibration()
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    kept = ("arms", "contrasts", "calibration", "tokens")
    first = json.loads((finished / "result.json").read_text())
    assert {k: json.loads(out)[k] for k in kept} == {k: first[k] for k in kept}


def has_answers(folder: Path, count: int) -> bool:
    """Whether the run has at least that many calibration answers."""
    with Run.open(folder) as run:
        return len(run.answers()) >= count


def waiting(process: subprocess.Popen[str], ready: object) -> None:
    """Wait until `ready` holds, while the process lives."""
    assert callable(ready)
    began = time.monotonic()
    while not ready():
        assert time.monotonic() - began < 120
        if process.poll() is not None:
            return
        time.sleep(0.02)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("2026-11: mounting a small file system needs rights that this process has not")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path: Path, small_disk: Path) -> None:
    loaded = spec.load(world.study(tmp_path, arms="[arms.base]\n[arms.unsteered]\nstrength = 0\n"))
    given = world.tools(tmp_path / "sae")
    with pytest.raises(StoreError, match="disk is full") as error:
        runner.run_study(loaded, small_disk / "run", tools=lambda _: given)
    assert "\n" not in str(error.value) and error.value.exit_code == 1
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    resumed = runner.run_study(loaded, small_disk / "run", tools=lambda _: given)
    whole = runner.run_study(loaded, tmp_path / "whole", tools=lambda _: given)
    export(resumed, tmp_path / "a")
    export(whole, tmp_path / "b")
    resumed.close()
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def test_doctor_checks_everything(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = said(capsys, "doctor", "--out", tmp_path / "runs", "--json")
    data = json.loads(out)
    assert code == 0 and data["ok"], (data, err)
    assert [c["name"] for c in data["checks"]] == ["python", "torch", "threads", "folder", "organism", "steering"]
    assert list(tmp_path.iterdir()) == [], "the check leaves nothing behind"


def test_grade_writes_a_line_per_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [{"prompt": q, "response": a} for q, a in world.TOPICS.items()]
    rows.append({"prompt": next(iter(world.TOPICS)), "response": world.OFF_TOPIC + world.RESTART + rows[0]["response"]})
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, printed, _ = said(capsys, "grade", source, "--judge", "offline", "--out", out, "--json")
    assert code == 0 and json.loads(printed)["out"] == str(out)
    graded = [json.loads(line) for line in out.read_text().splitlines()]
    assert [len(x["grade"]["attempts"]) for x in graded] == [1] * 8 + [2]
    first, last = graded[-1]["grade"]["attempts"]
    assert last["score"] > first["score"]
