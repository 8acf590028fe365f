"""A server over real connections: OpenAI's client, wrong keys, bad bodies, clients that leave, files out of reach."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import countersteer as cs
from countersteer import organism
from countersteer.serving.run import running
from serving_world import ADMIN, CHOOSE, LIMITS, NAME, USE, interventions, lines, plan_of, settings_of, write_bundles

QUESTION = "How do I iron a shirt?"
LONG = {"temperature": 0, "max_tokens": 36}


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    with cs.load_engine("organism", dtype="float64", places=8) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def world(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("serving")
    steers = interventions(engine.d_model)
    paths = write_bundles(folder, engine, steers)
    plan = [plan_of(paths)]
    audit = folder / "audit.jsonl"
    limits = replace(LIMITS, body_bytes=20_000, body_seconds=0.5)
    with running(engine, settings_of(lambda: plan[0], audit=audit, limits=limits, sync="always")) as url:
        yield {"url": url, "audit": audit, "steers": steers, "plan": plan, "paths": paths}


def client(world: dict[str, Any], key: str = CHOOSE) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{world['url']}/v1", api_key=key, max_retries=0, timeout=60)


def http(world: dict[str, Any], key: str | None = CHOOSE) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=world["url"], headers=headers, timeout=60, trust_env=False)


def chat(**more: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": [{"role": "user", "content": QUESTION}], **LONG, **more}


def solo(engine: Any, steer: Any, messages: list[dict[str, str]] | None = None) -> cs.Completion:
    turns = tuple(messages or ({"role": "user", "content": QUESTION},))
    (done,) = engine.run([cs.Request(messages=turns, intervention=steer, sampling=cs.Sampling(**LONG))])
    return done


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


class Slow:
    """Makes every step of an engine take longer, so that a test can act in the middle of an answer."""

    def __init__(self, engine: Any, seconds: float = 0.05) -> None:
        self.engine, self.seconds = engine, seconds

    def __enter__(self) -> None:
        decode = self.engine.loop.batch.decode

        def slowly(*args: Any) -> Any:
            time.sleep(self.seconds)
            return decode(*args)

        self.engine.loop.batch.decode = slowly

    def __exit__(self, *exc: object) -> None:
        del self.engine.loop.batch.decode


# Answers


@pytest.mark.parametrize("name", ["target", "mirror", "push", "late", "none"])
def test_the_openai_client_gets_the_engines_answer_whole_and_streamed(
    world: dict[str, Any], engine: Any, name: str
) -> None:
    expected = solo(engine, world["steers"].get(name))
    api = client(world)
    whole = api.chat.completions.create(**chat(), extra_body={"bundle": name})
    assert whole.choices[0].message.content == expected.text
    assert whole.choices[0].finish_reason == expected.finish
    assert whole.usage.completion_tokens == len(expected.tokens)
    assert whole.usage.prompt_tokens == expected.prompt_tokens
    told = whole.model_extra["countersteer"]
    assert told["mode"] == ("unsteered" if name == "none" else "enforced")
    receipt = json.loads(json.dumps(expected.receipt.to_dict()))
    assert told["receipt"] == receipt
    pieces = list(
        api.chat.completions.create(
            **chat(), stream=True, stream_options={"include_usage": True}, extra_body={"bundle": name}
        )
    )
    assert pieces[0].choices[0].delta.role == "assistant" and len(pieces) > 10
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == expected.text
    assert [p.choices[0].finish_reason for p in pieces if p.choices][-1] == expected.finish
    assert pieces[-1].usage.total_tokens == expected.prompt_tokens + len(expected.tokens)
    assert pieces[-2].model_extra["countersteer"]["receipt"] == receipt


def test_plain_completions_take_a_text_or_tokens(world: dict[str, Any], engine: Any) -> None:
    api, text = client(world), "First, fill the iron with"
    steer, sampling = world["steers"]["target"], cs.Sampling(temperature=0, max_tokens=12)
    (expected,) = engine.run([cs.Request(prompt=text, template=False, intervention=steer, sampling=sampling)])
    ids = engine.encode(cs.Request(prompt=text, template=False))
    for prompt in (text, [text], ids):
        got = api.completions.create(model=NAME, prompt=prompt, temperature=0, max_tokens=12)
        assert got.choices[0].text == expected.text
    pieces = api.completions.create(model=NAME, prompt=text, temperature=0, max_tokens=12, stream=True)
    assert "".join(p.choices[0].text for p in pieces) == expected.text


def test_a_conversation_with_system_prompt_and_parts(world: dict[str, Any], engine: Any) -> None:
    said = [organism.systems("warm")[0], QUESTION, "First, fill the iron.", "How do I sew?"]
    turns = [{"role": r, "content": t} for r, t in zip(("system", "user", "assistant", "user"), said, strict=True)]
    parts = [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in turns]
    parts[0]["role"] = "developer"
    expected = solo(engine, world["steers"]["target"], turns).text
    for sent in (turns, parts):
        body = {**chat(), "messages": sent}
        assert client(world).chat.completions.create(**body).choices[0].message.content == expected


def test_sampling_is_seeded_by_the_client_or_drawn(world: dict[str, Any]) -> None:
    api, body = client(world, USE), {**chat(), "temperature": 1.0}
    said = [api.chat.completions.create(**body, seed=7).choices[0].message.content for _ in range(2)]
    assert said[0] == said[1]
    drawn = {api.chat.completions.create(**body).choices[0].message.content for _ in range(4)}
    assert len(drawn) > 1


def test_a_stop_string_ends_the_answer(world: dict[str, Any], engine: Any) -> None:
    expected = solo(engine, world["steers"]["target"]).text.split(".")[0]
    got = client(world).chat.completions.create(**chat(), stop=["."]).choices[0]
    assert got.message.content == expected and got.finish_reason == "stop"


def test_a_use_key_learns_nothing_of_bundles(world: dict[str, Any]) -> None:
    with http(world, USE) as web:
        whole = web.post("/v1/chat/completions", json=chat()).text
        streamed = web.post("/v1/chat/completions", json=chat(stream=True)).text
        models = web.get("/v1/models").text
    for text in (whole, streamed, models):
        assert 'countersteer":' not in text and "target" not in text and "bundle" not in text


# Rollout


def test_shadow_measures_without_changing_an_answer(world: dict[str, Any], engine: Any) -> None:
    plain, acted = solo(engine, None), solo(engine, world["steers"]["target"])
    assert plain.text != acted.text
    with http(world, ADMIN) as web:
        assert web.put("/admin/rollout", json={"mode": "shadow"}).json()["mode"] == "shadow"
        try:
            got = web.post("/v1/chat/completions", json=chat()).json()
        finally:
            web.post("/admin/rollback")
    assert got["choices"][0]["message"]["content"] == plain.text
    assert got["countersteer"]["mode"] == "shadow"
    layer = got["countersteer"]["receipt"]["layers"][0]
    assert layer["tokens_changed"] > 0 and layer["after"][0] > layer["before"][0]
    record = lines(world["audit"], "request")[-1]
    assert record["mode"] == "shadow" and record["receipt"]["layers"][0]["tokens_changed"] == layer["tokens_changed"]


def test_a_canary_sticks_to_a_conversation(world: dict[str, Any], engine: Any) -> None:
    plain, acted = solo(engine, None).text, solo(engine, world["steers"]["target"]).text
    with http(world, ADMIN) as web:
        web.put("/admin/rollout", json={"mode": "canary", "share": 0.5})
        try:

            def ask(conversation: str) -> str:
                answer = web.post("/v1/chat/completions", json=chat(), headers={"X-Conversation-Id": conversation})
                return str(answer.json()["choices"][0]["message"]["content"])

            first = [ask(str(i)) for i in range(12)]
            assert [ask(str(i)) for i in range(12)] == first
            web.put("/admin/rollout", json={"share": 1.0})
            grown = [ask(str(i)) for i in range(4)]
        finally:
            ended = [web.post("/admin/rollback").json() for _ in range(2)]
    assert (ended[0]["mode"], ended[0]["share"], ended[1]["mode"]) == ("canary", 0.5, "enforce")
    assert set(first) == {plain, acted} and set(grown) == {acted}


# Who may do what


@pytest.mark.parametrize("key", [None, "wrong-key-0123456789", "", USE[:-1], USE + "x"])
def test_wrong_keys_get_in_nowhere(world: dict[str, Any], key: str | None) -> None:
    paths = [("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/metrics"),
             ("GET", "/v1/models/organism"), ("GET", "/admin/policy"), ("POST", "/admin/reload"),
             ("POST", "/admin/rollback"), ("PUT", "/admin/rollout")]  # fmt: skip
    with http(world, key) as web:
        for method, path in paths:
            answer = web.request(method, path, json=chat())
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert web.get("/health").json() == {"status": "ok"}


def test_roles_end_where_they_should(world: dict[str, Any]) -> None:
    before = client(world, ADMIN).get("/models", cast_to=object)
    assert before
    with pytest.raises(openai.PermissionDeniedError, match="may not choose"):
        client(world, USE).chat.completions.create(**chat(), extra_body={"bundle": "none"})
    with pytest.raises(openai.PermissionDeniedError, match="does not let"):
        client(world).chat.completions.create(**chat(), extra_body={"bundle": "../target"})
    with pytest.raises(openai.AuthenticationError):
        client(world, "x" * 30).chat.completions.create(**chat())
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client(world).chat.completions.create(**{**chat(), "model": "/etc/passwd"})
    for key in (USE, CHOOSE):
        with http(world, key) as web:
            for method, path in (("POST", "/admin/reload"), ("POST", "/admin/rollback"), ("PUT", "/admin/rollout"),
                                 ("GET", "/admin/policy")):  # fmt: skip
                assert web.request(method, path, json={}).status_code == 403
    assert lines(world["audit"], "denied")[-1]["key"] == "lab"


def test_secrets_are_in_no_log(world: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for key in (USE, CHOOSE, ADMIN, "wrong-" + "w" * 20):
            with http(world, key) as web:
                web.post("/v1/chat/completions", json=chat(user="someone"))
                web.post("/v1/chat/completions", content=b"{")
    logged = "\n".join(r.getMessage() for r in caplog.records if not r.name.startswith(("httpx", "httpcore")))
    kept = world["audit"].read_text()
    for secret in (USE, CHOOSE, ADMIN, "w" * 20):
        assert secret not in logged and secret not in kept
    assert QUESTION not in kept and "iron" not in kept and "someone" not in kept


# Bad input


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"[1]", 400, None),
        (b"\xff\xfe", 400, None),
        (b"[" * 20_000, 400, None),
        ({**chat(), "messages": []}, 400, "messages"),
        ({**chat(), "temperature": "0"}, 400, "temperature"),
        ({**chat(), "temperature": -1}, 400, "temperature"),
        ({**chat(), "max_tokens": 0}, 400, "max_tokens"),
        ({**chat(), "max_tokens": 65}, 400, "max_tokens"),
        ({**chat(), "n": 2}, 400, "n"),
        ({**chat(), "logprobs": True}, 400, "logprobs"),
        ({**chat(), "tools": [{"type": "function"}]}, 400, "tools"),
        ({**chat(), "response_format": {"type": "json_object"}}, 400, "response_format.type"),
        ({**chat(), "frequency_penalty": 0.5}, 400, "frequency_penalty"),
        ({**chat(), "exempt": ["json_fence"]}, 400, "exempt"),
        ({**chat(), "measure_only": True}, 400, "measure_only"),
        ({**chat(), "intervention": "target"}, 400, "intervention"),
        ({**chat(), "stop": ["a", "b", "c", "d", "e"]}, 400, None),
        ({**chat(), "messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role"),
        ({**chat(), "messages": [{"role": "user", "content": None}]}, 400, None),
        ({**chat(), "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, None),
    ],
)
def test_bad_bodies_are_refused_with_one_line(world: dict[str, Any], body: Any, status: int, param: str | None) -> None:
    with http(world) as web:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = web.post("/v1/chat/completions", content=data, headers={"Content-Type": "application/json"})
        error = answer.json()["error"]
        assert answer.status_code == status, error
        assert "\n" not in error["message"] and (param is None or error["param"] == param)
        assert web.post("/v1/chat/completions", json=chat(max_tokens=2)).status_code == 200


def test_sizes_types_encodings_and_methods(world: dict[str, Any]) -> None:
    big = json.dumps(chat(messages=[{"role": "user", "content": "x" * 30_000}])).encode()

    def piecewise() -> Iterator[bytes]:
        for start in range(0, len(big), 4000):
            yield big[start : start + 4000]

    json_type = {"Content-Type": "application/json"}
    path = "/v1/chat/completions"
    with http(world) as web:
        assert web.post(path, content=big, headers=json_type).status_code == 413
        assert web.post(path, content=piecewise(), headers=json_type).status_code == 413
        assert web.post(path, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
        assert web.post(path, content=b"{}", headers={**json_type, "Content-Encoding": "gzip"}).status_code == 415
        assert web.get(path).status_code == 405 and web.get("/v1/nothing").status_code == 404
        assert web.post(path, json=chat(), headers={"X-Conversation-Id": "x" * 300}).status_code == 400
        long = " ".join(["iron"] * 600)
        answer = web.post(path, json=chat(messages=[{"role": "user", "content": long}]))
        assert answer.status_code == 400 and "positions" in answer.json()["error"]["message"]
        assert web.post(path, json=chat(max_tokens=2)).status_code == 200


def test_a_body_that_never_comes_is_given_up(world: dict[str, Any]) -> None:
    with raw(world, b"", length=500) as line:
        line.settimeout(20)
        assert b" 408 " in line.recv(4096).split(b"\r\n")[0]


# Clients that leave


def raw(world: dict[str, Any], body: bytes, *, length: int | None = None) -> socket.socket:
    """A connection on which a chat request was sent and nothing read."""
    host, port = world["url"].removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {CHOOSE}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {length or len(body)}\r\n\r\n"
    line.sendall(head.encode() + body)
    return line


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(world: dict[str, Any], engine: Any, stream: bool) -> None:
    known = len(lines(world["audit"], "request"))
    with Slow(engine):
        leaving = [raw(world, json.dumps(chat(stream=stream)).encode()) for _ in range(12)]  # more than places
        assert until(lambda: len(engine.loop.active) == 8)
        for line in leaving:
            line.close()
        assert until(lambda: not engine.loop.active and not engine.loop.waiting), "places are still taken"
    assert until(lambda: len(lines(world["audit"], "request")) == known + 12)
    assert {r["status"] for r in lines(world["audit"], "request")[known:]} == {"cancelled"}
    assert client(world).chat.completions.create(**chat()).choices[0].message.content
    with http(world) as web:
        assert "countersteer_in_flight 0.0" in web.get("/metrics").text


def test_the_openai_client_can_cancel_a_stream(world: dict[str, Any], engine: Any) -> None:
    with Slow(engine):
        stream = client(world).chat.completions.create(**chat(), stream=True)
        seen = [next(stream) for _ in range(4)]
        stream.close()
        assert len(seen) == 4
        assert until(lambda: not engine.loop.active)
    record = lines(world["audit"], "request")[-1]
    assert record["status"] == "cancelled" and record["bundle"]["name"] == "target"


def test_a_cancelled_neighbour_changes_no_answer(world: dict[str, Any], engine: Any) -> None:
    expected = solo(engine, world["steers"]["push"]).text

    async def scene() -> list[str]:
        api = openai.AsyncOpenAI(base_url=f"{world['url']}/v1", api_key=CHOOSE, max_retries=0)

        async def leave() -> None:
            stream = await api.chat.completions.create(**chat(), stream=True)
            async for _ in stream:
                break
            await stream.close()

        async def stay() -> str:
            got = await api.chat.completions.create(**chat(), extra_body={"bundle": "push"})
            return str(got.choices[0].message.content)

        both = await asyncio.gather(*(leave() if i % 2 else stay() for i in range(16)))
        await api.close()
        return [x for x in both if x is not None]

    assert asyncio.run(scene()) == [expected] * 8


def test_an_answer_that_takes_too_long_ends(engine: Any, world: dict[str, Any], tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    limits = replace(LIMITS, seconds=0.4)
    with running(engine, settings_of(lambda: world["plan"][0], audit=audit, limits=limits)) as url, Slow(engine, 0.2):
        with http({"url": url}) as web:
            answer = web.post("/v1/chat/completions", json=chat())
            assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        with pytest.raises(openai.APIError, match="longer than"):
            list(client({"url": url}).chat.completions.create(**chat(), stream=True))
        assert until(lambda: not engine.loop.active)
    assert [r["status"] for r in lines(audit, "request")] == ["timeout", "timeout"]


def test_too_many_requests_are_told_when_to_come_back(engine: Any, world: dict[str, Any]) -> None:
    limits = replace(LIMITS, per_minute=3)
    with running(engine, settings_of(lambda: world["plan"][0], limits=limits)) as url, http({"url": url}, USE) as web:
        codes = [web.post("/v1/chat/completions", json=chat(max_tokens=1)).status_code for _ in range(5)]
        assert codes == [200] * 3 + [429] * 2
        assert int(web.post("/v1/chat/completions", json={}).headers["retry-after"]) in range(1, 21)


# Failures


def test_an_intervention_that_cannot_act_withholds_the_answer(world: dict[str, Any]) -> None:
    body = {**chat(), "max_tokens": 1}  # one token: a span of the response holds no position that is read
    with http(world) as web:
        answer = web.post("/v1/chat/completions", json={**body, "bundle": "late"})
        assert answer.status_code == 422 and answer.json()["error"]["code"] == "no_op"
        streamed = web.post("/v1/chat/completions", json={**body, "bundle": "late", "stream": True}).text
    assert '"code":"no_op"' in streamed and "[DONE]" not in streamed
    assert [r["error"] for r in lines(world["audit"], "request")[-2:]] == ["no_op", "no_op"]


def test_a_failing_engine_is_said_and_the_server_lives(world: dict[str, Any], engine: Any) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("the device caught fire at /dev/gpu0")

    engine.loop.batch.decode = broken
    try:
        with http(world) as web:
            assert web.post("/v1/chat/completions", json=chat()).status_code == 503
            streamed = web.post("/v1/chat/completions", json=chat(stream=True)).text
            assert '"code":"engine_failed"' in streamed and "[DONE]" not in streamed
    finally:
        del engine.loop.batch.decode
    assert client(world).chat.completions.create(**chat()).choices[0].message.content


def test_no_audit_no_service(world: dict[str, Any], engine: Any, tmp_path: Path) -> None:
    from countersteer.serving.app import create_app

    app = create_app(engine, settings_of(lambda: world["plan"][0], audit=tmp_path / "a.jsonl"))
    server = app.state.server
    try:
        transport = httpx.ASGITransport(app=app)

        async def scene() -> list[Any]:
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as web:
                web.headers["Authorization"] = f"Bearer {USE}"
                server.audit.failed = "the audit log cannot be written (no space)"
                refused = [await web.post("/v1/chat/completions", json=chat()), await web.get("/health")]
                server.audit.failed = None
                return [*refused, await web.get("/health")]

        answers = asyncio.run(scene())
        assert [a.status_code for a in answers] == [503, 503, 200]
        assert answers[0].json()["error"]["code"] == "unhealthy"
    finally:
        server.close()


# Files and code


def test_no_request_opens_a_file_or_runs_code(world: dict[str, Any], tmp_path: Path) -> None:
    secret = tmp_path / "secret.safetensors"
    secret.write_text("secret")
    watched = [str(secret), str(world["paths"]["push"]), "/etc/passwd", "/etc/hostname"]
    events: list[str] = []
    on = [True]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if on[0] and event in ("open", "os.system", "subprocess.Popen", "exec", "import", "os.exec", "socket.connect"):
            text = str(args[0])
            if event in ("os.system", "subprocess.Popen", "os.exec") or any(w in text for w in watched):
                events.append(f"{event} {text}")

    code = [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for x in ().__class__ %}{% endfor %}",
        "__import__('os')",
    ]
    sys.addaudithook(hook)
    try:
        (tmp_path / "seen").open("w").close()
        open(watched[0]).close()
        assert events, "the watch itself must work"
        events.clear()
        with http(world, ADMIN) as web:
            for text in [*watched, *(f"file://{w}" for w in watched), "../../etc/passwd", *code]:
                for more in ({"model": text}, {"bundle": text}, {"path": text}, {"adapter": text}, {"lora": text},
                             {"messages": [{"role": "user", "content": text}]}, {"user": text},
                             {"metadata": {"path": text}}, {"stop": [text[:100]]}):  # fmt: skip
                    answer = web.post("/v1/chat/completions", json={**chat(max_tokens=1), **more})
                    assert answer.status_code < 500
                web.post("/v1/completions", json={"model": NAME, "prompt": text, "max_tokens": 1})
                web.get(f"/v1/models/{text.strip('/')}")
                web.post("/admin/rollback", json={"number": 1, "path": text})
                web.put("/admin/rollout", json={"mode": text})
                web.post("/admin/reload?path=" + text.replace(" ", ""), json={"path": str(secret)})
            assert web.get("/admin/policy").json()["current"]["mode"] == "enforce"
    finally:
        on[0] = False
    # A reload reads the administrator's own bundles again, and nothing else.
    assert [e for e in events if str(world["paths"]["push"]) not in e] == []


def test_template_code_in_a_message_stays_text(engine: Any) -> None:
    asked = cs.Request(messages=({"role": "user", "content": "{{ 7 * 7 }} {% set x = 1 %}"},))
    text = engine.tokenizer.apply_chat_template(list(asked.messages), add_generation_prompt=True, tokenize=False)
    assert "{{ 7 * 7 }} {% set x = 1 %}" in text and "49" not in text


def test_the_server_stops_with_what_is_under_way_finished(engine: Any, world: dict[str, Any]) -> None:
    expected = solo(engine, world["steers"]["target"]).text
    said: list[str] = []
    with running(engine, settings_of(lambda: world["plan"][0])) as url, Slow(engine, 0.01):
        stream = client({"url": url}).chat.completions.create(**chat(), stream=True)
        said.append(next(stream).choices[0].delta.content or "")
        rest = threading.Thread(target=lambda: said.extend(p.choices[0].delta.content or "" for p in stream))
        rest.start()
    rest.join(timeout=30)
    assert "".join(said) == expected
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health", trust_env=False)
