"""`countersteer serve`: bad input in one line before a model is loaded, `--check`, a real process that ends cleanly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from countersteer import organism
from countersteer.cli import call
from countersteer.engines import load
from countersteer.engines.embedded.fingerprint import folder_fingerprint
from serving_world import USE, lines
from test_serving_rules import save


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for the organism, without loading it."""
    from transformers import AutoTokenizer

    from countersteer.core.fingerprint import fingerprint

    template = AutoTokenizer.from_pretrained(organism.path()).chat_template
    facts = {"model_fingerprint": folder_fingerprint(organism.path()), "template_hash": fingerprint(template)}
    return save(tmp_path_factory.mktemp("cli"), "warm", layer=2, width=128, **facts)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--bundle", "missing.safetensors"], "missing.safetensors does not exist"),
        (["--bundle", "B", "--mode", "canry"], "unknown mode 'canry'"),
        (["--bundle", "B", "--mode", "canary"], "needs --share"),
        (["--bundle", "B", "--share", "0.1"], "belongs to --mode canary"),
        (["--mode", "shadow"], "give --bundle"),
        (["--policy", "p.toml", "--bundle", "B"], "give one or the other"),
        (["--policy", "missing.toml"], "cannot read policy"),
        (["--bundle", "B", "--bundle", "B"], "two bundles are named"),
        (["--bundle", "B", "--host", "0.0.0.0"], "no keys"),
        (["--bundle", "B", "--keys", "missing.toml"], "cannot read keys"),
        (["--audit-text"], "needs --audit"),
        (["--audit", "a.jsonl", "--audit-sync", "often"], "always, interval, never"),
        (["--port", "70000"], "'--port'"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_loaded(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: list[str], said: str
) -> None:
    monkeypatch.setattr(load, "load_engine", None)
    monkeypatch.chdir(bundle.parent)
    assert call(["serve", "organism", *(str(bundle) if g == "B" else g for g in given)]) == 2
    out = capsys.readouterr()
    assert said in out.err and out.err.count("\n") == 1 and out.out == ""


def test_check_says_what_would_be_served(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["serve", "organism", "--bundle", str(bundle), "--mode", "canary", "--share", "0.25", "--check"]
    assert call([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["policy"]["mode"], data["policy"]["share"], data["keys"]) == ("canary", 0.25, 0)
    assert data["policy"]["bundles"]["warm"]["sites"] == ["resid_post.2"]


def test_a_process_serves_and_ends_on_sigterm(bundle: Path, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    command = [sys.executable, "-m", "countersteer", "serve", "organism", "--bundle", str(bundle), "--port", "0"]
    command += ["--audit", str(audit), "--json"]
    environment = {**os.environ, "COUNTERSTEER_KEYS": f"app:use:{USE}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        try:
            assert child.stdout is not None and child.stderr is not None
            said = json.loads(child.stdout.readline())
            body = {"model": "organism", "messages": [{"role": "user", "content": "How do I sew?"}], "max_tokens": 4}
            answer = httpx.post(f"{said['url']}/v1/chat/completions", json=body, timeout=60, trust_env=False,
                                headers={"Authorization": f"Bearer {USE}"})  # fmt: skip
            assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] <= 4
        finally:
            child.send_signal(signal.SIGTERM)
        rest, errors = child.communicate(timeout=60)
    assert rest == "" and "Traceback" not in errors and USE not in errors
    assert [r["event"] for r in lines(audit)] == ["started", "request", "stopped"]
