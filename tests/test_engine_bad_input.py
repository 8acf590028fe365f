"""What an engine does with input it cannot use: one line, raised before work starts, and the engine works on."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import countersteer as cs
from countersteer.core.errors import CountersteerError, EngineError, InputError, RefusedError
from helpers_models import VOCAB, WIDTH, prompts, tiny
from helpers_reference import reference
from helpers_text import byte_tokenizer, talking

GREEDY = cs.Sampling(temperature=0, max_tokens=5)
V = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
GOOD = cs.Request(tokens=(5, 6, 7), sampling=GREEDY)


def one_line(error: BaseException) -> None:
    text = str(error)
    assert "\n" not in text and 10 < len(text) < 500 and "Traceback" not in text, text


BAD_REQUESTS: dict[str, Callable[[], Any]] = {
    "layer": lambda: GOOD.with_(intervention=cs.add(cs.direction(V, layer=3), 1.0)),
    "width": lambda: GOOD.with_(intervention=cs.add(cs.direction(V[:-1], layer=1), 1.0)),
    "gate-layer": lambda: GOOD.with_(
        intervention=cs.add(cs.direction(V, layer=1), 1.0).gated(cs.Gate(cs.Site(9), V, 0.0))
    ),
    "gate-width": lambda: GOOD.with_(
        intervention=cs.add(cs.direction(V, layer=1), 1.0).gated(cs.Gate(cs.Site(1), V[:-1], 0.0))
    ),
    "readout-layer": lambda: GOOD.with_(readouts=cs.direction(V, layer=3)),
    "readout-width": lambda: GOOD.with_(readouts=[cs.direction(V[:-1], layer=1)]),
    "readout-type": lambda: GOOD.with_(readouts=["x"]),
    "no-readout": lambda: GOOD.with_(readouts=[]),
    "direction-as-intervention": lambda: GOOD.with_(intervention=cs.direction(V, layer=1)),
    "text-as-intervention": lambda: GOOD.with_(intervention="add"),
    "edits-as-intervention": lambda: GOOD.with_(intervention=cs.add(cs.direction(V, layer=1), 1.0).edits),
    "token-too-large": lambda: cs.Request(tokens=(5, VOCAB)),
    "token-negative": lambda: cs.Request(tokens=(5, -1)),
    "token-text": lambda: cs.Request(tokens=("a",)),  # type: ignore[arg-type]
    "token-float": lambda: cs.Request(tokens=(5.5,)),  # type: ignore[arg-type]
    "no-tokens": lambda: cs.Request(tokens=()),
    "no-tokenizer": lambda: cs.Request(prompt="hello"),
    "stop-without-tokenizer": lambda: GOOD.with_(sampling=cs.Sampling(stop=("x",))),
    "empty": lambda: cs.Request(prompt="  \n"),
    "nothing": lambda: cs.Request(),
    "two-kinds": lambda: cs.Request(prompt="a", tokens=(3,)),
    "prompt-type": lambda: cs.Request(prompt=5),  # type: ignore[arg-type]
    "messages-type": lambda: cs.Request(messages=("hello",)),  # type: ignore[arg-type]
    "no-messages": lambda: cs.Request(messages=()),
    "system-twice": lambda: cs.Request(messages=({"role": "user", "content": "a"},), system="b"),
    "prefix-of-tokens": lambda: cs.Request(tokens=(3,), prefix="b"),
    "sampling-type": lambda: GOOD.with_(sampling=None),
    "sampling-dict": lambda: GOOD.with_(sampling={"temperature": 0}),
    "a-text": lambda: "hello",
    "half-a-character": lambda: cs.Request(prompt="a\ud800b", template=False),
    "too-long": lambda: cs.Request(tokens=(5,) * 300, sampling=GREEDY),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_is_refused_in_one_line_and_the_engine_works_on(name: str) -> None:
    model = tiny("llama")
    with cs.load_engine(model, places=2) as engine:
        with pytest.raises(InputError) as caught:
            engine.run([BAD_REQUESTS[name]()])
        one_line(caught.value)
        try:
            request = BAD_REQUESTS[name]()
        except InputError:
            request = None
        if isinstance(request, cs.Request):
            with pytest.raises(InputError):
                asyncio.run(engine.generate(request))
            good, bad = engine.run([GOOD, request], errors="return")
            assert isinstance(bad, InputError) and list(good.tokens) == reference(model, [5, 6, 7], sampling=GREEDY)
        assert list(engine.run([GOOD])[0].tokens) == reference(model, [5, 6, 7], sampling=GREEDY)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_k": -1},
        {"top_k": 2.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"repetition_penalty": 1e-300},
        {"seed": -1},
        {"seed": 1 << 63},
        {"seed": 1.5},
        {"seed": None},
        {"max_tokens": 0},
        {"max_tokens": 2.0},
        {"stop": "x"},
        {"stop": ("",)},
        {"stop": (3,)},
        {"stop": None},
    ],
    ids=str,
)
def test_bad_sampling_names_the_setting(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))) as caught:
        cs.Sampling(**settings)
    one_line(caught.value)


def test_run_and_forward_arguments() -> None:
    text = tuple(range(3, 9))
    with cs.load_engine(tiny("llama"), places=2) as engine:
        assert engine.run([]) == []
        for call in (lambda: engine.run(GOOD), lambda: engine.run([GOOD], errors="ignore")):
            with pytest.raises(InputError):
                call()
        d = cs.direction(V, layer=1)
        bad: list[dict[str, Any]] = [
            {},
            {"readouts": d, "capture": cs.Site(1)},
            {"readouts": d, "reduce": "sum"},
            {"readouts": cs.direction(V, layer=5)},
            {"readouts": cs.direction(V[:-1], layer=1)},
            {"capture": cs.Site(8)},
            {"capture": [cs.Site(1), cs.Site(8)]},
            {"readouts": d, "span": "respons"},
            {"readouts": d, "span": "response", "reduce": "mean"},
        ]
        for given in bad:
            with pytest.raises(InputError) as caught:
                asyncio.run(engine.forward([text], **given))
            one_line(caught.value)
        for inputs in ([()], [(3, VOCAB)], ["text"], "text", [(3,) * 999]):
            with pytest.raises(InputError):
                asyncio.run(engine.forward(inputs, readouts=d))
        assert asyncio.run(engine.forward([], readouts=d)) == []
        (one,) = asyncio.run(engine.forward([text], readouts=d))
        assert tuple(np.asarray(one).shape) == (6, 1)


def test_a_closed_engine_says_so() -> None:
    engine = cs.load_engine(tiny("llama"), places=2)
    engine.run([GOOD])
    engine.close()
    engine.close()
    calls: list[Callable[[], Any]] = [
        lambda: engine.run([GOOD]),
        lambda: asyncio.run(engine.generate(GOOD)),
        lambda: asyncio.run(engine.forward([(3, 4)], capture=cs.Site(0))),
    ]
    for call in calls:
        with pytest.raises(EngineError, match="closed"):
            call()


@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_a_failing_step_tells_every_waiter_and_the_engine_goes_on(when: str) -> None:
    model = tiny("llama")
    texts = prompts(6, seed=71, high=12)
    steer = cs.add(cs.direction(V, layer=1), 3.0)
    requests = [cs.Request(tokens=tuple(t), intervention=steer, sampling=GREEDY) for t in texts]
    with cs.load_engine(model, places=3) as engine:
        expected = [o.tokens for o in engine.run(requests)]
        forward, calls = model.forward, []

        def failing(*args: Any, **kwargs: Any) -> Any:
            decoding = kwargs["input_ids"].shape[1] == 1
            if decoding == (when == "decode") and not calls:
                calls.append(1)
                raise MemoryError("no memory left\non the device")
            return forward(*args, **kwargs)

        model.forward = failing
        outs = engine.run(requests, errors="return")
        failed = [o for o in outs if isinstance(o, EngineError)]
        assert failed and calls
        for error in failed:
            one_line(error)
            assert "no memory left" in str(error) and isinstance(error.__cause__, MemoryError)
        for out, tokens in zip(outs, expected, strict=True):
            assert isinstance(out, EngineError) or out.tokens == tokens
        assert [o.tokens for o in engine.run(requests)] == expected
        assert not any(table.active for table in engine.hooks.tables.values())

        async def streamed() -> None:
            async for _ in engine.stream(requests[0]):
                pass

        calls.clear()
        with pytest.raises(EngineError, match="no memory"):
            asyncio.run(streamed())
        assert [o.tokens for o in engine.run(requests)] == expected


def test_cancelled_passes_do_not_kill_the_engine() -> None:
    model = tiny("llama")

    async def go(engine: Any) -> None:
        for _ in range(20):
            passes = [
                asyncio.create_task(engine.forward([tuple(range(3, 40))] * 8, capture=cs.Site(1))) for _ in range(4)
            ]
            runs = [asyncio.create_task(engine.generate(GOOD)) for _ in range(4)]
            await asyncio.sleep(0)
            for task in (*passes, *runs):
                task.cancel()
            await asyncio.gather(*passes, *runs, return_exceptions=True)
        assert list((await engine.generate(GOOD)).tokens) == reference(model, [5, 6, 7], sampling=GREEDY)

    with cs.load_engine(model, places=2) as engine:
        asyncio.run(asyncio.wait_for(go(engine), 60))


def test_run_inside_a_running_event_loop() -> None:
    model = tiny("llama")

    async def notebook(engine: Any) -> Any:
        return engine.run([GOOD, GOOD])

    with cs.load_engine(model, places=2) as engine:
        for out in asyncio.run(notebook(engine)):
            assert list(out.tokens) == reference(model, [5, 6, 7], sampling=GREEDY)


def test_closing_ends_the_thread_and_many_engines_do_not_pile_up() -> None:
    before = threading.active_count()
    model = tiny("llama")
    for _ in range(5):
        with cs.load_engine(model, places=1) as engine:
            engine.run([GOOD])
    assert threading.active_count() <= before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused(value: float) -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] = value
    with pytest.raises(InputError, match="NaN or infinite") as caught:
        cs.load_engine(model)
    assert "layers.1.mlp.down_proj" in str(caught.value)


def saved(folder: Path, *, seed: int = 0) -> Any:
    model, tokenizer = talking(seed=seed, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", ["gemma2", "qwen3", "llama"])
def test_a_folder_without_a_tokenizer_has_none_and_nothing_of_one_ends_a_response(name: str, tmp_path: Path) -> None:
    tiny(name, dtype=torch.float32).save_pretrained(tmp_path)
    with cs.load_engine(str(tmp_path), device="cpu") as engine:
        assert engine.tokenizer is None and engine.model.end_tokens == frozenset()
        with pytest.raises(InputError, match="no tokenizer"):
            engine.encode(cs.Request(prompt="hello", template=False))


def test_a_saved_model_is_the_model_that_was_saved(tmp_path: Path) -> None:
    model = saved(tmp_path / "m").double()
    request = cs.Request(prompt="How?", sampling=cs.Sampling(temperature=0, max_tokens=8))
    with cs.load_engine(str(tmp_path / "m"), dtype="float64", device="cpu") as engine:
        (out,) = engine.run([request])
        ids = engine.encode(request)
        assert list(out.tokens) == reference(model, ids, sampling=request.sampling, ends=[2])
        fingerprint = engine.model_fingerprint
    with cs.load_engine(str(tmp_path / "m"), dtype="bf16", device="cpu") as engine:
        assert engine.model_fingerprint == fingerprint and engine.describe()["dtype"] == "bfloat16"
    other = saved(tmp_path / "n", seed=1)
    with cs.load_engine(str(tmp_path / "n"), device="cpu") as engine:
        assert engine.model_fingerprint != fingerprint
    with torch.no_grad():
        other.model.norm.weight[0] += 1.0
    with cs.load_engine(other) as a, cs.load_engine(tiny("llama")) as b, cs.load_engine(tiny("llama")) as c:
        assert a.model_fingerprint != b.model_fingerprint == c.model_fingerprint


def damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    if how.startswith("truncated"):
        weights.write_bytes(data[: {"truncated": len(data) - 7, "truncated-header": 300, "truncated-empty": 0}[how]])
    elif how == "noise":
        weights.write_bytes(np.random.default_rng(0).bytes(5000))
    elif how == "no-weights":
        weights.unlink()
    elif how == "pickle-only":
        weights.unlink()
        torch.save({"x": torch.ones(2)}, folder / "pytorch_model.bin")
    elif how == "no-config":
        (folder / "config.json").unlink()
    elif how == "config-not-json":
        (folder / "config.json").write_text("{not json", encoding="utf-8")
    elif how == "config-not-utf8":
        (folder / "config.json").write_bytes(b'{"a": "\xff\xfe"}')
    elif how == "unknown-architecture":
        (folder / "config.json").write_text(json.dumps({"model_type": "nobody-knows"}), encoding="utf-8")
    elif how == "missing-tensor":
        from safetensors.torch import load_file, save_file

        tensors = load_file(str(weights))
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, str(weights), metadata={"format": "pt"})
    elif how == "wrong-shape":
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["intermediate_size"] = 40
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    elif how == "nan":
        from safetensors.torch import load_file, save_file

        tensors = load_file(str(weights))
        tensors["model.layers.0.mlp.up_proj.weight"][2, 2] = float("nan")
        save_file(tensors, str(weights), metadata={"format": "pt"})


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "truncated-header",
        "truncated-empty",
        "noise",
        "no-weights",
        "pickle-only",
        "no-config",
        "config-not-json",
        "config-not-utf8",
        "unknown-architecture",
        "missing-tensor",
        "wrong-shape",
        "nan",
    ],
)
def test_a_damaged_model_folder_is_refused_in_one_line(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    saved(folder)
    damage(folder, how)
    with pytest.raises(InputError) as caught:
        cs.load_engine(str(folder), device="cpu")
    one_line(caught.value)


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    model = tiny("llama")
    bad: list[tuple[Callable[[], Any], str]] = [
        (lambda: cs.load_engine(str(tmp_path / "nowhere")), "does not exist"),
        (lambda: cs.load_engine("./nowhere"), "does not exist"),
        (lambda: cs.load_engine("no-such-organisation/no-such-model"), "no-such-model"),
        (lambda: cs.load_engine("vllm:some/model"), "vLLM"),
        (lambda: cs.load_engine(5), "int"),
        (lambda: cs.load_engine(None), "needs a model"),
        (lambda: cs.load_engine(torch.nn.Linear(2, 2)), "Linear"),
        (lambda: cs.load_engine(model, dtype="float64"), "in memory"),
        (lambda: cs.load_engine(model, places=0), "places"),
        (lambda: cs.load_engine(str(tmp_path), dtype="int8"), "int8"),
        (lambda: cs.load_engine(str(tmp_path), device="abacus"), "abacus"),
    ]
    for load, named in bad:
        with pytest.raises(InputError, match=named) as caught:
            load()
        one_line(caught.value)
    with pytest.raises(CountersteerError):
        cs.load_engine((model, byte_tokenizer(), 3))


def test_refusals_say_what_to_do_instead() -> None:
    with cs.load_engine(tiny("llama"), places=1) as engine, pytest.raises(RefusedError) as caught:
        engine.run([cs.Request(tokens=(5,) * 250, sampling=cs.Sampling(max_tokens=20))])
    assert caught.value.what and caught.value.why and "at most 7" in caught.value.instead
