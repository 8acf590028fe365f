"""Controls that must fail: with one part of steering taken out, the proofs of the other tests notice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import countersteer as cs
import worlds
from countersteer.core.errors import EngineError
from runs import start, with_logprobs


def mismatches(engine: Any, cases: list[worlds.Case], want: list[worlds.Expected]) -> list[str]:
    """Names of the cases whose greedy tokens differ from plain hooks, in a cold or a warm pass."""
    wrong = set()
    for _ in range(2):
        for case, expected, (tokens, _) in zip(
            cases, want, with_logprobs(engine, [c.request for c in cases]), strict=True
        ):
            if not worlds.agree(expected, tokens)[1]:
                wrong.add(case.name)
    return sorted(wrong)


@pytest.mark.parametrize(
    "broken",
    [{"scheduler_cls": "broken.NoCacheKey"}, {"worker_cls": "broken.StaleIndex"}],
    ids=["no-cache-key", "stale-index"],
)
def test_a_missing_part_gives_wrong_tokens(broken: dict[str, str], folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    path = worlds.save("llama", folder)
    model = worlds.load(path)
    cases = worlds.shared(worlds.cases(model))
    want = [worlds.expected(model, c) for c in cases]
    with start(path, enforce_eager=True, **broken) as engine:
        wrong = mismatches(engine, cases, want)
    print(f"{broken}: {len(wrong)} of {len(cases)} wrong")
    assert len(wrong) >= 3


STARTED = """
import json, os, sys
sys.path.insert(0, {tests!r})
from runs import SMALL
from countersteer.engines.vllm.engine import SCHEDULER, WORKER, engine_options, load_vllm
from countersteer.engines.vllm.settings import Settings

if __name__ == "__main__":
    which, rows = sys.argv[1], tuple(json.loads(sys.argv[2]))
    options = {{k: v for k, v in SMALL.items() if k not in ("rows", "parts")}}
    if which == "steered":
        load_vllm({path!r}, **{{**SMALL, "rows": rows}}).close()
    else:
        from vllm import LLM

        if which == "vanilla":  # all that is in the key of vLLM's compile cache, and its own worker
            options |= engine_options(Settings(rows=rows, parts=SMALL["parts"]), {{}})
            del options["worker_cls"], options["scheduler_cls"]
        else:  # our worker without its settings
            options |= {{"worker_cls": WORKER, "scheduler_cls": SCHEDULER, "async_scheduling": False}}
        LLM({path!r}, disable_log_stats=True, **options)
    print("served")
"""


@pytest.fixture
def launch(folder: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Starts vLLM on a Llama of one layer in a process of its own, with a compile cache of the test's own."""
    script = tmp_path / "script.py"
    path = worlds.save("llama", folder, layers=1)
    script.write_text(STARTED.format(tests=str(Path(__file__).parent), path=str(path)))
    (tmp_path / "store").mkdir()
    # Two variables of the key that our worker sets are given to vLLM's own, too.
    own = {"VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_COMPUTE_NANS_IN_LOGITS": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    places = {"VLLM_CACHE_ROOT": str(tmp_path / "cache"), "COUNTERSTEER_STORE": str(tmp_path / "store")}

    def run(which: str, rows: str = "[8]") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(script), which, rows],
            env={**os.environ, **own, **places},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
        )

    return run


def test_a_graph_without_steering_is_refused_at_start(folder: Path, monkeypatch: Any, capfd: Any) -> None:
    """What a stale compile cache would hand out: the graph of the model without our layer operation."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")  # traced once and for all, as a compiled graph is
    with pytest.raises(EngineError):
        start(worlds.save("llama", folder, layers=1), worker_cls="broken.VanillaGraph")
    said = capfd.readouterr()
    assert "compiled graph was made without steering" in said.err + said.out


def test_a_compile_cache_of_vllms_own_worker_never_serves_unsteered(launch: Any) -> None:
    """vLLM's cache does not know the worker class, so a graph of its own worker lies under our key. Where it is handed
    out (on a CPU, vLLM 0.32.0 finds it, cannot finish loading it and compiles again) the engine must not start."""
    vanilla = launch("vanilla")
    assert vanilla.returncode == 0 and "served" in vanilla.stdout.splitlines(), vanilla.stdout[-2000:]
    stale = launch("steered")
    if "Directly load AOT compilation" in stale.stdout:
        assert stale.returncode != 0 and "served" not in stale.stdout.splitlines()
        assert "compiled graph was made without steering" in stale.stdout
    else:
        assert "Compiling model again due to a load failure" in stale.stdout, "the graph was not even looked for"
        assert stale.returncode == 0 and "served" in stale.stdout.splitlines()


def test_a_worker_without_its_settings_does_not_start(launch: Any) -> None:
    done = launch("absent")
    assert done.returncode != 0 and "served" not in done.stdout.splitlines()
    assert "vLLM runs without settings for steering" in done.stdout


def test_bad_requests_are_one_line_and_leave_the_engine_working(folder: Path) -> None:
    path = worlds.save("llama", folder)
    model = worlds.load(path)
    cases = worlds.shared(worlds.cases(model))
    want = [worlds.expected(model, c) for c in cases]
    good = cs.add(cs.direction(list(range(1, worlds.WIDTH + 1)), layer=1), 1.0)
    prompt = cases[0].request.tokens
    latents = [
        cs.edits.Latent(i, cs.Site(1), [1.0] * worlds.WIDTH, 0.0, [float(i + 1)] * worlds.WIDTH) for i in range(41)
    ]
    bad: list[tuple[Any, str]] = [
        (cs.Request(tokens=prompt, intervention=cs.add(cs.direction([1.0, 2.0], layer=0), 1.0)), "2 wide"),
        (cs.Request(tokens=prompt, intervention=cs.add(cs.direction([1.0] * worlds.WIDTH, layer=7), 1.0)), "layer 7"),
        (cs.Request(tokens=prompt, intervention=cs.ablate(latents)), "41 rows"),
        (cs.Request(tokens=prompt, intervention=good.order(1) + good + good.order(2)), "order(2)"),
        (cs.Request(tokens=(1, 100000)), "token ids"),
        (cs.Request(tokens=tuple([5] * 200)), "positions"),
    ]
    with start(path, enforce_eager=True) as engine:
        for request, words in bad:
            (error,) = engine.run([request], errors="return")
            assert isinstance(error, cs.InputError) and words in str(error) and "\n" not in str(error), error
        # numbers that float32 holds and whose sum it does not: an error before the token counts, for that request only
        big = cs.add(cs.direction([1.0] * worlds.WIDTH, layer=1), 3e38)
        mixed = [c.request for c in cases[:3]]
        mixed.insert(1, mixed[0].with_(intervention=big + big))
        out = engine.run(mixed, errors="return")
        assert isinstance(out[1], EngineError) and "overflowed" in str(out[1]) and "\n" not in str(out[1])
        assert not any(isinstance(done, Exception) for done in (out[0], *out[2:]))
        # a ticket that names what does not exist, past every check of ours: an error, never an unsteered answer
        ticket = type("T", (), {"to_args": lambda self: {"countersteer": {"steer": "0" * 32}}})()

        async def unknown() -> str | None:
            request = cs.Request(tokens=prompt, sampling=worlds.GREEDY)
            finish = None
            async for out in engine.session._outputs(
                list(prompt or ()), engine.session._params(request, ticket, fresh=False)
            ):
                finish = out.finish_reason
            return finish

        try:
            assert engine.bridge.start(unknown()).result() == "error"
        except cs.CountersteerError as error:
            assert "\n" not in str(error)
        assert not mismatches(engine, cases, want)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"async_scheduling": True}, "asynchronous scheduling"),
        ({"layers": (1, 9)}, "layers 0..2"),
        ({"capture_layers": (5,)}, "layers 0..2"),
        ({"rows": ()}, "rows"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}},
            "speculative",
        ),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_what_cannot_be_honoured_is_refused_before_vllm_starts(
    options: dict[str, Any], words: str, folder: Path
) -> None:
    with pytest.raises(cs.InputError, match=words) as error:
        start(worlds.save("llama", folder), enforce_eager=True, **options)
    assert "\n" not in str(error.value)
