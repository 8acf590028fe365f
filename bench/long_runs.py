"""Long runs: overhead of the runner per trial, grades per second through the judge's pipeline, memory against length.

    python bench/long_runs.py [--quick] --out bench/long_runs.json

overhead: CPU time per trial of a scripted study whose engine and judge answer at once, each response another text
(planning, keys, storing and grading's bookkeeping are left), against the CPU time the organism takes to generate a
response, measured before and after. grades: a language-model judge that answers at once, as an Inspect provider inside
this process (so what is measured is the whole pipeline: rubric, ledger, budget, provider call, reading of the reply,
all of it stored), and with the real client over HTTP to a server in a process of its own. memory: peak of a process.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from countersteer.core.request import Completion, LayerReceipt, Receipt  # noqa: E402


def study(folder: Path, trials: int) -> Path:
    """A study of the scripted world with this many trials (rounded up to arms of 40 latents x 8 prompts)."""
    import studies_world as world

    each = 40 * 8
    arms = max(1, -(-trials // each))
    path = world.study(folder, latents=f"ids = {list(range(40))}\n", arms="")
    text = path.read_text().replace("per_latent = 4", "per_latent = 8\nresample = 0")
    path.write_text(text + "".join(f"[arms.a{i}]\nstrength = {0.5 + i * 1e-4}\n" for i in range(arms)))
    return path


TEXT = "Heat the iron on the cotton setting. Lay the shirt flat. Press the collar with steam. " * 2
RECEIPT = Receipt((LayerReceipt("resid_post.2", 51, 51, 0.4, 0.6, (), ()),), "scripted-1")


NUMBER = itertools.count()


def answer(request: Any) -> Completion:
    """What the engine answers at once, so that its own time is not counted: another text for every request."""
    return Completion(f"{TEXT}{next(NUMBER)}", tuple(range(40)), 12, "stop", RECEIPT)


class InstantJudge:
    """A judge that takes no time, so that what is left is the runner."""

    name = key = "instant"

    def __init__(self) -> None:
        from countersteer.judging.references import ReferenceSet

        self.references = ReferenceSet.of({})

    def grade(self, prompt: str, response: str, *, label: str | None = None) -> Any:
        from countersteer.core.trial import Attempt, Grade

        return Grade("ok", (Attempt(0, len(response), 50.0),), self.name)


def scripted_run(trials: int, *, judge: Callable[[Any], Any] | None = None) -> dict[str, float]:
    """CPU and wall time of a scripted run, after its plan was made, and the process's peak memory."""
    import studies_world as world
    from countersteer.studies import runner, spec

    if judge is not None:
        runner.make_judge = judge
    with tempfile.TemporaryDirectory() as folder:
        path = study(Path(folder), trials)
        loaded = spec.load(path)
        cpu, wall = time.process_time(), time.monotonic()
        tools = world.tools(Path(folder) / "sae", script=answer)
        with runner.run_study(loaded, Path(folder) / "run", tools=lambda _: tools) as run:
            count = sum(run.trial_counts().values())
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"trials": count, "cpu_s": cpu, "wall_s": wall, "cpu_ms_per_trial": 1e3 * cpu / count, "peak_mb": peak}


def in_child(what: str, *arguments: object) -> dict[str, float]:
    """A measurement in a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import json, long_runs; print(json.dumps(long_runs.{what}))"
    done = subprocess.run([sys.executable, "-c", code.format(*arguments)], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def generation(count: int) -> dict[str, float]:
    """CPU time of the organism's own generation per response of a trial, steered, at the demo's settings."""
    import countersteer as cs
    from countersteer import organism

    prompts, sae = [row["prompt"] for row in organism.prompts("howto")], cs.load_sae("organism")
    with cs.load_engine("organism") as engine:
        requests = [
            cs.Request(
                prompt=prompts[i % len(prompts)],
                intervention=cs.add(sae.latent(17 + i % 20), strength=4.0),
                sampling=cs.Sampling(seed=i, max_tokens=128, temperature=0.6),
            )
            for i in range(count)
        ]
        engine.run(requests[:8])
        began = time.process_time()
        engine.run(requests)
        return {"responses": count, "cpu_ms_per_response": 1e3 * (time.process_time() - began) / count}


def texts(count: int) -> list[str]:
    from fake_openai import RESTART

    first = "Heat the iron on setting {i}. Press the collar first, then the sleeves, and hang the shirt."
    return [first.format(i=i) + (f" {RESTART}Lay shirt {i} flat." if i % 10 == 0 else "") for i in range(count)]


async def grade_all(caller: Any, responses: list[str]) -> dict[str, float]:
    from countersteer.judging.llm import LLMJudge

    judge, room = LLMJudge(caller), asyncio.Semaphore(128)

    async def one(response: str) -> str:
        async with room:
            return (await judge.grade("How do I iron a shirt?", response, label="irons")).status

    await asyncio.gather(*(one(f"warm up {i}") for i in range(64)))
    cpu, wall = time.process_time(), time.monotonic()
    statuses = await asyncio.gather(*(one(response) for response in responses))
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    assert set(statuses) == {"ok"}
    await caller.close()
    count = len(responses)
    return {"grades": count, "per_s": count / wall, "per_cpu_s": count / cpu, "cpu_ms_per_grade": 1e3 * cpu / count}


def grades_inside(count: int) -> dict[str, float]:
    """Grades through the whole pipeline (ledger, budget, Inspect, parsing) with a judge inside this process."""
    from inspect_ai.model import ModelAPI, ModelOutput, ModelUsage, modelapi

    from fake_openai import block, verdict

    class Instant(ModelAPI):
        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> ModelOutput:
            output = ModelOutput.from_content("instant", json.dumps(verdict(block("answer", input[-1].text))))
            output.usage = ModelUsage(input_tokens=500, output_tokens=60, total_tokens=560)
            return output

    modelapi(name="instant")(Instant)
    return _graded("instant/judge", count)


def grades_over_http(count: int) -> dict[str, float]:
    """The same with the real client, against an HTTP server in a process of its own that answers at once."""
    code = (
        f"import sys, time; sys.path.insert(0, {str(HERE.parent / 'tests')!r})\nfrom fake_openai import FakeOpenAI\n"
        "with FakeOpenAI() as s:\n print(s.url, flush=True)\n sys.stdin.read()"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        os.environ["OPENAI_API_KEY"] = "none"
        return _graded("openai/gpt-4o", count, base_url=server.stdout.readline().strip())
    finally:
        server.kill()


def _graded(model: str, count: int, **more: Any) -> dict[str, float]:
    from countersteer.judging.llm_calls import Caller
    from countersteer.judging.llm_settings import JudgeSettings
    from countersteer.store.replies import Replies

    async def go(folder: str) -> dict[str, float]:
        settings = JudgeSettings(model, connections=64, price=(1.0, 1.0), **more)
        return await grade_all(Caller(settings, Replies.shared(folder), max_cost=1e6), texts(count))

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(go(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "long_runs.json")
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes")
    given = parser.parse_args()
    by = 10 if given.quick else 1
    before = in_child(f"generation({200 // by})")
    overhead = in_child(f"scripted_run({10_000 // by}, judge=lambda _: long_runs.InstantJudge())")
    after = in_child(f"generation({200 // by})")
    own = (before["cpu_ms_per_response"] + after["cpu_ms_per_response"]) / 2
    small = in_child("scripted_run(1000, judge=lambda _: long_runs.InstantJudge())")
    large = in_child(f"scripted_run({100_000 // by}, judge=lambda _: long_runs.InstantJudge())")
    result = {
        "runner_ms_per_trial": overhead["cpu_ms_per_trial"],
        "runner_share_of_generation": overhead["cpu_ms_per_trial"] / own,
        "generation_ms_per_response": own,
        "grades_inside": in_child(f"grades_inside({3000 // by})"),
        "grades_over_http": in_child(f"grades_over_http({2000 // by})"),
        "memory_mb": {str(int(row["trials"])): row["peak_mb"] for row in (small, large)},
        "details": {"overhead": overhead, "small": small, "large": large},
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
