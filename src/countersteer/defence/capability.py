"""Capability with and without a defence, by Inspect on local data: multiple choice and instruction following.

One JSONL line per question. `{"id", "kind": "choice", "question", "choices": [...], "answer": "B"}`, or `{"id",
"kind": "instruction", "prompt", "checks": [{"words_at_most": 20}, ...]}`: checks of the answer's form alone, so that no
judge is needed. A small set of our own is shipped as `shipped`; public sets (MMLU, IFEval) convert line by line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError, nearest
from countersteer.core.fingerprint import rng
from countersteer.defence.settings import Settings
from countersteer.edits.edit import Intervention
from countersteer.statistics import bootstrap

MAX_TOKENS = 256
CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "words_at_most": lambda text, n: len(text.split()) <= int(n),
    "words_at_least": lambda text, n: len(text.split()) >= int(n),
    "lines": lambda text, n: len([line for line in text.strip().splitlines() if line.strip()]) == int(n),
    "contains": lambda text, word: str(word).lower() in text.lower(),
    "lacks": lambda text, word: str(word).lower() not in text.lower(),
    "lower_case": lambda text, wanted: (text == text.lower()) is bool(wanted),
    "upper_case": lambda text, wanted: (text == text.upper()) is bool(wanted),
    "starts_with": lambda text, word: text.strip().lower().startswith(str(word).lower()),
    "ends_with": lambda text, word: text.strip().lower().endswith(str(word).lower()),
    "json": lambda text, wanted: _is_json(text) is bool(wanted),
    "matches": lambda text, pattern: re.search(str(pattern), text) is not None,
}
"""What an instruction's answer may be checked for, by name."""


def follows(text: str, checks: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a text passes every check; an empty one passes none."""
    pairs = [(name, value) for check in checks for name, value in check.items()]
    return bool(text.strip()) and all(CHECKS[name](text, value) for name, value in pairs)


def _is_json(text: str) -> bool:
    body = re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip())
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def load_questions(source: str) -> list[dict[str, Any]]:
    """Questions of a file, or the shipped ones. Raises InputError with the line that is wrong."""
    if source == "shipped":
        text = (resources.files("countersteer.defence") / "data" / "capability.jsonl").read_text(encoding="utf-8")
    else:
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read questions {source}: {error}; give a JSONL file, or 'shipped'") from error
    rows = []
    for n, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            rows.append(_question(line, f"{source}, line {n}"))
    if not rows:
        raise InputError(f"{source} has no question")
    return rows


def _question(line: str, at: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        kind = row["kind"]
        if kind == "choice":
            if len(row["choices"]) < 2 or not 0 <= ord(row["answer"]) - 65 < len(row["choices"]):
                raise ValueError("answer must be the letter of one of at least two choices")
            str(row["question"])
        elif kind == "instruction":
            str(row["prompt"])
            for name in (name for check in row["checks"] for name in check):
                if name not in CHECKS:
                    raise ValueError(f"unknown check {name!r}{nearest(name, CHECKS)}")
        else:
            raise ValueError(f"kind must be choice or instruction, got {kind!r}")
        return {**row, "id": str(row["id"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{at} is not a question: {error}") from error


def capability(settings: Settings, intervention: Intervention, *, adapter: str | None = None) -> dict[str, Any]:
    """Per kind of question the share answered rightly without and with the intervention, paired. Greedy.

    Raises InputError for files that cannot be used or where Inspect is not installed.
    """
    questions = [row for source in settings.scorecard.capability for row in load_questions(source)]
    plain, defended = (run(settings, questions, given, adapter=adapter) for given in (None, intervention))
    out: dict[str, Any] = {}
    for kind in sorted({row["kind"] for row in questions}):
        ids = [row["id"] for row in questions if row["kind"] == kind]
        one, two = [plain[i] for i in ids], [defended[i] for i in ids]
        gap = [b - a for a, b in zip(one, two, strict=True)]
        named = zip(("undefended", "defended", "change"), (one, two, gap), strict=True)
        out[kind] = {"n": len(ids), **{name: _mean(values, ids, settings, kind, name) for name, values in named}}
    return out


def _mean(values: list[float], ids: list[str], settings: Settings, *names: str) -> dict[str, Any]:
    found = bootstrap.mean(values, ids, ids, rng(settings.defence.seed, "capability", *names))
    return {"value": found.value, "interval": found.interval.as_list() if found.interval else None, "n": found.n}


def run(
    settings: Settings, questions: Sequence[Mapping[str, Any]], intervention: Intervention | None, *,
    adapter: str | None = None,
) -> dict[str, float]:  # fmt: skip
    """1 or 0 per question id, through Inspect's provider of this package."""
    import tempfile

    try:
        from inspect_ai import Task, eval
        from inspect_ai.dataset import MemoryDataset, Sample
        from inspect_ai.model import GenerateConfig, get_model
        from inspect_ai.scorer import Score, Target, accuracy, choice, scorer
        from inspect_ai.solver import TaskState, generate, multiple_choice
    except ImportError as error:
        raise InputError("capability questions need Inspect: pip install 'countersteer[judge]'") from error
    import countersteer.engines.inspect_provider  # noqa: F401  (registers the provider)

    @scorer(metrics=[accuracy()])
    def form() -> Any:
        async def score(state: TaskState, target: Target) -> Score:
            return Score(value="C" if follows(state.output.completion, state.metadata["checks"]) else "I")

        return score

    own = settings.defence
    options: dict[str, Any] = {
        k: v
        for k, v in {"dtype": own.dtype, "device": own.device, "adapter": adapter, "intervention": intervention}.items()
        if v
    }
    tasks = []
    choices = [r for r in questions if r["kind"] == "choice"]
    orders = [r for r in questions if r["kind"] == "instruction"]
    if choices:
        samples = [Sample(id=r["id"], input=r["question"], choices=list(r["choices"]), target=r["answer"])
                   for r in choices]  # fmt: skip
        tasks.append(Task(name="choice", dataset=MemoryDataset(samples), solver=multiple_choice(), scorer=choice()))
    if orders:
        samples = [Sample(id=r["id"], input=r["prompt"], metadata={"checks": r["checks"]}) for r in orders]
        tasks.append(Task(name="instruction", dataset=MemoryDataset(samples), solver=generate(), scorer=form()))
    model = get_model(f"countersteer/{own.model}", memoize=False, places=own.places, **options,
                      config=GenerateConfig(temperature=0.0, max_tokens=MAX_TOKENS))  # fmt: skip
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as logs:
        for log in eval(tasks, model=model, log_dir=logs, display="none", log_level="error"):
            if log.status != "success" or log.samples is None:
                raise InputError(f"Inspect could not finish {log.eval.task}: {log.error and log.error.message}")
            for sample in log.samples:
                score = next(iter((sample.scores or {}).values()))
                found[str(sample.id)] = 1.0 if score.value == "C" else 0.0
    return found
