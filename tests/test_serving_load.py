"""Many conversations at once, and changes of policy under load: every answer is the one that its bundle gives alone."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import countersteer as cs
from countersteer import organism
from countersteer.serving.run import running
from serving_world import ADMIN, CHOOSE, NAME, interventions, lines, plan_of, settings_of, write_bundles

CONVERSATIONS, TOKENS = 200, 9


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    with cs.load_engine("organism", dtype="float64") as loaded:
        yield loaded


class Solo:
    """What the engine answers to one request alone, with nothing else in flight, by bundle and messages."""

    def __init__(self, engine: Any, steers: dict[str, Any]) -> None:
        self.engine, self.steers, self.known = engine, steers, {}

    def __call__(self, name: str, messages: list[dict[str, str]]) -> str:
        key = json.dumps([name, messages])
        if key not in self.known:
            steer = self.steers.get(name)
            request = cs.Request(messages=tuple(messages), intervention=steer,
                                 sampling=cs.Sampling(temperature=0, max_tokens=TOKENS))  # fmt: skip
            (done,) = self.engine.run([request])
            self.known[key] = done.text
        return self.known[key]


async def say(
    api: openai.AsyncOpenAI, messages: list[dict[str, str]], *, stream: bool, **extra: Any
) -> tuple[str, Any]:
    """An answer and what the server told about its bundle."""
    body: Any = {"model": NAME, "messages": messages, "temperature": 0, "max_tokens": TOKENS, "extra_body": extra}
    if not stream:
        whole = await api.chat.completions.create(**body)
        return str(whole.choices[0].message.content), whole.model_extra["countersteer"]
    text, told = "", None
    async for piece in await api.chat.completions.create(**body, stream=True):
        text += piece.choices[0].delta.content or ""
        told = (piece.model_extra or {}).get("countersteer") or told
    return text, told


def test_two_hundred_conversations_at_once_with_mixed_bundles(engine: Any, tmp_path: Path) -> None:
    steers = interventions(engine.d_model)
    paths = write_bundles(tmp_path, engine, steers)
    audit, rng = tmp_path / "audit.jsonl", random.Random(3)
    questions = [p["prompt"] for p in organism.prompts("howto")]
    names = [rng.choice([*steers, "none"]) for _ in range(CONVERSATIONS)]
    asked = [rng.sample(questions, 2) for _ in range(CONVERSATIONS)]
    systems = [rng.choice([None, *organism.systems("warm")[:2]]) for _ in range(CONVERSATIONS)]
    histories: list[list[dict[str, str]]] = []

    async def converse(api: openai.AsyncOpenAI, i: int) -> list[dict[str, str]]:
        turns = [] if systems[i] is None else [{"role": "system", "content": systems[i]}]
        for n, question in enumerate(asked[i][: 1 + i % 2]):
            turns.append({"role": "user", "content": question})
            text, told = await say(api, turns, stream=(i + n) % 2 == 0, bundle=names[i])
            assert (told["bundle"] or {"name": "none"})["name"] == names[i]
            turns.append({"role": "assistant", "content": text})
        return turns

    async def scene() -> list[list[dict[str, str]]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=CHOOSE, max_retries=0, timeout=500) as api:
            return await asyncio.gather(*(converse(api, i) for i in range(CONVERSATIONS)))

    with running(engine, settings_of(lambda: plan_of(paths), audit=audit)) as url:
        histories = asyncio.run(scene())
    alone, different = Solo(engine, steers), 0
    for name, turns in zip(names, histories, strict=True):
        for end in (i for i, turn in enumerate(turns) if turn["role"] == "assistant"):
            assert turns[end]["content"] == alone(name, turns[:end])
    for turns in histories[:50]:
        first = next(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        different += alone("none", turns[:first]) != turns[first]["content"]
    assert different >= 8, "the bundles hardly matter here"
    records = lines(audit, "request")
    assert len(records) == sum(len(t) // 2 for t in histories) and {r["status"] for r in records} == {"ok"}
    assert len({r["id"] for r in records}) == len(records)


def test_reload_and_rollback_under_load_lose_no_request(engine: Any, tmp_path: Path) -> None:
    steers = interventions(engine.d_model)
    versions = {"1": steers["target"], "2": steers["push"], "3": steers["mirror"]}
    prints = {steer.fingerprint: version for version, steer in versions.items()}
    path = write_bundles(tmp_path, engine, {"live": versions["1"]})["live"]
    questions = [p["prompt"] for p in organism.prompts("howto")][:6]
    audit, stop = tmp_path / "audit.jsonl", asyncio.Event()
    heard: list[tuple[str, str, str, int]] = []

    async def client(api: openai.AsyncOpenAI, i: int) -> None:
        n = 0
        while not stop.is_set():
            question = questions[(i + n) % len(questions)]
            text, told = await say(api, [{"role": "user", "content": question}], stream=n % 2 == 0)
            heard.append((question, text, prints[told["bundle"]["fingerprint"]], told["policy"]))
            n += 1

    async def administrate(api: openai.AsyncOpenAI) -> None:
        admin = api.with_options(api_key=ADMIN)
        base = str(url)

        async def change(kind: str, body: Any = None) -> dict[str, Any]:
            before = len(heard)
            answer = await admin.post(f"{base}/admin/{kind}", cast_to=object, body=body)
            while len(heard) < before + 12:  # some answers under every policy
                await asyncio.sleep(0.01)
            return dict(answer)  # type: ignore[call-overload]

        for version in ("2", "3"):
            write_bundles(tmp_path, engine, {"live": versions[version]}, version=version)
            assert (await change("reload"))["bundles"]["live"]["version"] == version
        path.write_bytes(path.read_bytes()[:200])  # a broken file: refused, and nothing changes
        with pytest.raises(openai.ConflictError, match="nothing was changed"):
            await change("reload")
        assert (await change("rollback"))["bundles"]["live"]["version"] == "2"
        assert (await change("rollback"))["bundles"]["live"]["version"] == "1"
        assert (await change("rollback", {"number": 3}))["bundles"]["live"]["version"] == "3"
        with pytest.raises(openai.ConflictError, match="no policy 9"):
            await change("rollback", {"number": 9})
        stop.set()

    async def scene() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=CHOOSE, max_retries=0, timeout=500) as api:
            await asyncio.gather(administrate(api), *(client(api, i) for i in range(12)))

    with running(engine, settings_of(lambda: plan_of({"live": path}), audit=audit)) as url:
        asyncio.run(scene())
    alone = Solo(engine, versions)
    for question, text, version, _ in heard:
        assert text == alone(version, [{"role": "user", "content": question}])
    by_policy = {policy: version for _, _, version, policy in heard}
    assert by_policy == {1: "1", 2: "2", 3: "3", 4: "2", 5: "1", 6: "3"}
    records = lines(audit, "request")
    assert len(records) == len(heard) and {r["status"] for r in records} == {"ok"}
    assert [r["status"] for r in lines(audit, "reload")] == ["ok", "ok", "refused"]
    assert [r["status"] for r in lines(audit, "rollback")] == ["ok", "ok", "ok", "refused"]
