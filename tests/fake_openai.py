"""An HTTP server that speaks the OpenAI chat wire format, judges by a rule of its own, and fails on demand.

What it does to a question depends on the question (content faults) and on how often it was asked (transport faults), so
a test can say beforehand what must come out. It counts requests and the money it would bill.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

TRANSPORT = ("429-after", "429", "500", "503", "slow", "cut", "truncated-body")
CONTENT = ("cut-json", "wrong-type", "not-in-text", "out-of-range", "refusal", "empty", "list")
HARMLESS = ("prose", "fenced", "curly")
BILLED = ("slow", "cut", "truncated-body")
RESTART = "Wait, that is not right. "
PRICE = (2.0, 10.0)


def luck(*what: object) -> float:
    """A number in [0, 1) that depends on its arguments only."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:6], "big") / 2**48


def pick(choices: tuple[str, ...], *what: object) -> str:
    return choices[int(luck("pick", *what) * len(choices))]


def score(text: str) -> int:
    """The score this judge gives a text."""
    return int(luck("score", text.strip()) * 101)


def block(name: str, user: str) -> str:
    """The text in the question's or the answer's block of a message."""
    match = re.search(rf"<{name}-(\w+)>\n(.*)\n</{name}-\1>", user, re.S)
    return match[2] if match else ""


def pieces(response: str) -> list[str]:
    """Its attempts: it believes in one restart phrase only."""
    parts = response.split(RESTART)
    return [part for part in [parts[0], *(RESTART + p for p in parts[1:])] if part.strip()]


def verdict(response: str) -> dict[str, Any]:
    rows = []
    for n, text in enumerate(pieces(response)):
        rows.append({"quote": text.strip(), "restart": RESTART.strip() if n else None, "score": score(text)})
    return {"attempts": rows}


def other_rubric(user: str) -> dict[str, Any] | None:
    """The reply to the rubrics concreteness, recovery, episodes and pairwise, told apart by a question's last line."""
    response = block("answer", user)
    if '"better"' in user:
        first, second = block("first", user), block("second", user)
        if "PLACE" in first + second:  # a judge with a bias
            return {"better": "first", "evidence": "it came first"}
        gap = score(first) - score(second)
        return {"better": "tie" if "EVEN" in first + second else "first" if gap > 0 else "second", "evidence": "x"}
    if block("description", user):
        return {"score": score(block("description", user)), "evidence": "by the label"}
    if '"kind"' in user:
        found = pieces(response)
        gain = max(0, score(found[-1]) - score(found[0])) if found else 0
        return {"score": gain // 10, "kind": ("explicit" if len(found) > 1 else "gradual") if gain >= 10 else "none"}
    if '"off_topic"' in user:
        found = pieces(response)
        if len(found) < 2:
            return {"off_topic": None, "correction": None, "on_topic": None}
        places = (found[0], found[1], found[1].removeprefix(RESTART))
        return dict(zip(("off_topic", "correction", "on_topic"), (p.strip()[:40] for p in places), strict=True))
    return None


@dataclass
class FakeOpenAI:
    """The server. Rates are chances per request (transport) and per question (content)."""

    transport: float = 0.0
    content: float = 0.0
    delay: float = 0.0
    slow: float = 1.6
    structured: bool = True
    key: str | None = None
    intercept: Callable[[str, int], tuple[int, dict[str, Any]] | None] | None = None
    requests: int = 0
    billed: float = 0.0
    most_at_once: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    log: list[float] = field(default_factory=list)
    broken_batches: int = 0
    in_batches: int = 0
    files: dict[str, list[bytes]] = field(default_factory=dict)
    batches: list[str] = field(default_factory=list)
    _now: int = 0

    def __enter__(self) -> FakeOpenAI:
        ready = threading.Event()

        def serve() -> None:
            self._loop = asyncio.new_event_loop()
            server = self._loop.run_until_complete(asyncio.start_server(self._client, "127.0.0.1", 0, limit=1 << 24))
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            self._loop.run_forever()
            server.close()
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.close()

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def content_fault(self, response: str) -> str | None:
        """What is wrong with the reply about this response, whenever it is asked."""
        if luck("content", response) < self.content:
            return pick(CONTENT + HARMLESS, "content", response)
        return None

    def transport_fault(self, response: str, attempt: int) -> str | None:
        if luck("transport", response, attempt) < self.transport:
            return pick(TRANSPORT, "transport", response, attempt)
        return None

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: *(\d+)", head, re.I)
                body = await reader.readexactly(int(length[1])) if length else b"{}"
                method, path = head.decode().split()[:2]
                if path.startswith(("/v1/files", "/v1/batches")):
                    await self._send(writer, *self._batch(method, path, body))
                elif not await self._answer(head.decode(), json.loads(body), writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            return await self._reply(head, body, writer)
        finally:
            self._now -= 1

    async def _reply(self, head: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        self.requests += 1
        self.log.append(asyncio.get_running_loop().time())
        user = body["messages"][-1]["content"]
        response = block("answer", user)
        attempt = self.asked[response]
        self.asked[response] += 1
        if self.key is not None and f"bearer {self.key}".lower() not in head.lower():
            given = re.search(r"authorization: *(.*)", head, re.I)
            error = {"error": {"message": f"Incorrect API key provided: {given[1].strip() if given else ''}"}}
            return await self._send(writer, 401, error)
        if self.intercept is not None and (made := self.intercept(response, attempt)) is not None:
            return await self._send(writer, *made)
        if not self.structured and "response_format" in body:
            return await self._send(writer, 400, {"error": {"message": "response_format is not supported"}})
        fault = self.transport_fault(response, attempt)
        if fault:
            self.faults[fault] += 1
        if fault == "429-after":
            return await self._send(writer, 429, {"error": {"message": "slow down"}}, "retry-after: 0.05\r\n")
        if fault == "429":
            return await self._send(writer, 429, {"error": {"message": "slow down"}})
        if fault in ("500", "503"):
            return await self._send(writer, int(fault), {"error": {"message": "something broke"}})
        await asyncio.sleep(self.slow if fault == "slow" else self.delay)
        data = json.dumps(self._chat(body)).encode()
        if fault == "cut":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data))
            writer.write(data[: len(data) // 2])
            await writer.drain()
            return False
        if fault == "truncated-body":
            data = data[: len(data) // 2]
        elif fault is None:
            self.answered[user] += 1
        return await self._send(writer, 200, data)

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """The chat completion of a request, billed."""
        text, finish = self.said(body["messages"][-1]["content"])
        usage_in, usage_out = len(json.dumps(body["messages"])) // 4, len(text) // 4 + 1
        self.billed += (usage_in * PRICE[0] + usage_out * PRICE[1]) / 1e6
        return {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": usage_in, "completion_tokens": usage_out, "total_tokens": usage_in + usage_out},
        }  # fmt: skip

    def _batch(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """The batch interface: a file of requests, a batch of it, done when it is looked after, its results."""
        name = path.removesuffix("/content").rsplit("/", 1)[-1]
        if path == "/v1/files":
            lines = [line for line in body.splitlines() if line.startswith(b"{")]
            self.files[f"file-{len(self.files)}"] = lines
            return 200, {"id": f"file-{len(self.files) - 1}", "object": "file", "bytes": len(body), "created_at": 0,
                         "filename": "x.jsonl", "purpose": "batch", "status": "processed"}  # fmt: skip
        if path.startswith("/v1/files/"):
            return 200, b"\n".join(self.files[name])
        if method == "POST":
            if self.broken_batches:
                self.broken_batches -= 1
                return 500, {"error": {"message": "something broke"}}
            given = json.loads(body)
            self.batches.append(self._judged(given["input_file_id"]))
            name = f"batch-{len(self.batches) - 1}"
        done = {"output_file_id": self.batches[int(name.split("-")[1])], "status": "completed"}
        return 200, {"id": name, "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "x",
                     "completion_window": "24h", "created_at": 0,
                     **({"status": "in_progress"} if method == "POST" else done)}  # fmt: skip

    def _judged(self, file: str) -> str:
        """The name of the file of replies to a file of requests."""
        lines = []
        for line in map(json.loads, self.files[file]):
            user = line["body"]["messages"][-1]["content"]
            self.answered[user] += 1
            self.in_batches += 1
            made = {"status_code": 200, "request_id": "x", "body": self._chat(line["body"])}
            row = {"id": "x", "custom_id": line["custom_id"], "response": made, "error": None}
            lines.append(json.dumps(row).encode())
        self.files[f"file-{len(self.files)}"] = lines
        return f"file-{len(self.files) - 1}"

    def said(self, user: str) -> tuple[str, str]:
        """The model's text about what it is asked and why it stopped."""
        response = block("answer", user)
        made = other_rubric(user)
        if made is not None:
            return json.dumps(made), "stop"
        right = json.dumps(verdict(response))
        fault = self.content_fault(response)
        if fault:
            self.faults[fault] += 1
        rows = verdict(response)["attempts"]
        wrong = {
            "cut-json": right[: len(right) * 2 // 3],
            "wrong-type": json.dumps({"attempts": [dict(row, score="rather good") for row in rows]}),
            "not-in-text": json.dumps({"attempts": [dict(row, quote="Zebras never yodel at all") for row in rows]}),
            "out-of-range": json.dumps({"attempts": [dict(row, score=140) for row in rows]}),
            "refusal": "I'm sorry, but I can't help with that.",
            "empty": "",
            "list": json.dumps([1, 2, 3]),
            "prose": f"Here is my verdict, after some thought {{not JSON}}:\n{right}\nI hope this helps!",
            "fenced": f"```json\n{right}\n```",
            "curly": right.replace("'", "\u2019").replace("  ", " "),
        }
        return (wrong[fault] if fault else right), ("length" if fault == "cut-json" else "stop")

    async def _send(self, writer: asyncio.StreamWriter, status: int, body: Any, headers: str = "") -> bool:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}content-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()
        return True
