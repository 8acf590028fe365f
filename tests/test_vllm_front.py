"""The vLLM engine's front where vLLM is not needed: what is refused, what a server is started with, bundles by name."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import countersteer as cs
from countersteer.cli import main
from countersteer.cli.serve_vllm import server_command
from countersteer.core.errors import EngineError
from countersteer.edits.bundle import Bundle
from countersteer.engines.vllm.store import Store, check_made_for

STEER = cs.add(cs.direction([1.0, 2.0, 3.0], layer=1), 2.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cs.load_engine(), "needs a model"),
        (lambda: cs.load_engine("organism", tensor_parallel_size=2), "is no option of the embedded"),
        (lambda: cs.load_engine("organism", api_key="k"), "together with urls"),
        (lambda: cs.load_engine("vllm:"), "needs a model after it"),
        (lambda: cs.load_engine("vllm:organism", device="cuda"), "device is no option with vLLM"),
        (lambda: cs.load_engine("vllm:organism", adapter="folder"), "folder is no adapter"),
        (lambda: cs.load_engine("vllm:organism", adapter="a", adapters={"b": "b"}), "not both"),
        (lambda: cs.load_engine("organism", template="nothing"), "no template 'nothing'"),
        (lambda: cs.load_engine(urls=[]), "a list of servers"),
        (lambda: cs.load_engine(urls="http://a:1"), "a list of servers"),
        (lambda: cs.load_engine(urls=["a:1"]), "'a:1' is no address of a server"),
        (lambda: cs.load_engine(urls=["http://a:1"], dtype="float32"), "dtype is no option with urls"),
        (lambda: cs.load_engine(3, urls=["http://a:1"]), "the model is on the servers"),
    ],
)  # fmt: skip
def test_what_an_engine_does_not_take_is_one_line(call: Any, words: str) -> None:
    with pytest.raises(cs.InputError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)


class Facts(BaseHTTPRequestHandler):
    """Answers as a steered server of one model does, to whoever has the key."""

    fingerprint = "f" * 32

    def do_GET(self) -> None:
        right = self.headers["Authorization"] == "Bearer secret"
        facts = {"engine": "vllm-1", "model": "m", "model_fingerprint": self.fingerprint, "layers": 6, "d_model": 128}
        body = json.dumps({"facts": facts} if right else {}).encode()
        self.send_response(200 if right else 401)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def test_servers_must_serve_the_model_that_is_named_and_get_the_key(monkeypatch: Any) -> None:
    server = HTTPServer(("127.0.0.1", 0), Facts)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    urls = [f"http://127.0.0.1:{server.server_port}"]
    try:
        with pytest.raises(cs.InputError, match="another API key"):
            cs.load_engine("m", urls=urls)
        monkeypatch.setenv("VLLM_API_KEY", "secret")
        with cs.load_engine("m", urls=urls) as engine:
            assert (engine.family, engine.n_layers, engine.model_fingerprint) == ("vllm-1", 6, Facts.fingerprint)
        with pytest.raises(cs.InputError, match="serve 'm', not 'other'"):
            cs.load_engine("other", urls=urls)
        with pytest.raises(cs.InputError, match="whose weights are not those of organism"):
            cs.load_engine("organism", urls=urls)
        with cs.load_engine("organism") as own:
            monkeypatch.setattr(Facts, "fingerprint", own.model_fingerprint)
        cs.load_engine("organism", urls=urls).close()
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(EngineError, match="no server answers"):
        cs.load_engine(urls=urls)


def test_a_server_is_started_with_steering_and_its_bundles(tmp_path: Path) -> None:
    cs.save_bundle(STEER, tmp_path / "warm.safetensors", name="anything")
    command, environment = server_command(
        "m", bundles=tmp_path, port=9, api_key="secret", more=["--max-model-len", "8"]
    )
    assert "secret" not in " ".join(command) and environment["VLLM_API_KEY"] == "secret"
    assert command[-2:] == ["--max-model-len", "8"] and command[command.index("--host") + 1] == "127.0.0.1"
    settings = json.loads(command[command.index("--additional-config") + 1])["countersteer"]
    assert settings == json.loads(environment["COUNTERSTEER_SETTINGS"]) and settings["rows"] == [128]
    store = Store(environment["COUNTERSTEER_STORE"])
    assert store.names() == {"warm": STEER.fingerprint} and store.get("warm").fingerprint == STEER.fingerprint


@pytest.mark.parametrize("option", ["--worker-cls=x", "--worker_cls", "--host", "--api-key=k"])
def test_what_steering_decides_cannot_be_given_to_vllm(option: str) -> None:
    with pytest.raises(cs.InputError, match="cannot be given to vLLM"):
        server_command("m", more=[option])


def test_other_machines_are_let_in_with_a_key_only(monkeypatch: Any) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(cs.InputError, match="without a key"):
        server_command("m", host="0.0.0.0")
    server_command("m", host="0.0.0.0", api_key="k")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["organism", "--engine", "vlm"], "unknown engine"),
        (["organism", "--rows", "3"], "--rows: not with --engine embedded"),
        (
            ["organism", "--engine", "vllm", "--mode", "canary"],
            "--mode: not with --engine vllm; a policy on vLLM needs",
        ),
        (
            ["organism", "--engine", "vllm", "--bundle", "b", "--bundles", "d"],
            "--bundles: not with --bundle or --policy",
        ),
        (["organism", "--engine", "vllm", "--url", "http://a:1", "--rows", "3"], "--rows: not with --url"),
        (["organism", "--engine", "vllm", "--bundle", "b", "--device", "cpu"], "--device: not with"),
        (["organism", "--url", "http://a:1"], "--url: not with --engine embedded"),
        (["organism", "--engine", "vllm", "--adapters", "warm"], "NAME=FOLDER"),
        (["vllm:organism"], "without 'vllm:'"),
    ],
)
def test_serve_takes_each_engines_own_options(arguments: list[str], words: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as done:
        main(["serve", *arguments])
    error = capsys.readouterr().err.strip()
    assert done.value.code == 2 and words in error and "\n" not in error


def test_a_bundle_of_another_model_is_refused_before_it_serves(tmp_path: Path) -> None:
    made_for = {"model_fingerprint": "a" * 32, "template_hash": "t", "model": "one"}
    cs.save_bundle(Bundle("b", STEER, meta=made_for), tmp_path / "b.safetensors")
    store = Store(tmp_path / "store")
    store.preload(tmp_path)
    store.check_model(model_fingerprint="a" * 32, template_hash="t")
    for print_, template in (("c" * 32, "t"), ("a" * 32, "u")):
        with pytest.raises(cs.RefusedError, match="bundle 'b'"):
            store.check_model(model_fingerprint=print_, template_hash=template)
    check_made_for(Bundle("plain", STEER), model_fingerprint="c" * 32, template_hash=None)
