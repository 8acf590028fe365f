"""Capability with and without a defence, by Inspect on local data: multiple choice, instructions, open questions.

One JSONL line per question. `{"id", "kind": "choice", "question", "choices": [...], "answer": "B"}`; `{"id", "kind":
"instruction", "prompt", "checks": [{"words_at_most": 20}, ...]}`: checks of the answer's form alone, so that no judge
is needed; `{"id", "kind": "open", "prompt"}`: the two answers are compared by the judge, in both orders. A small set of
our own is shipped as `shipped`; public sets (MMLU, IFEval, MT-Bench, AlpacaEval) convert line by line. Greedy, no
system prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError, nearest
from countersteer.core.fingerprint import rng
from countersteer.defence.data import Scenario
from countersteer.defence.judges import DefenceJudge
from countersteer.defence.responses import Answer, Ask
from countersteer.defence.scoring import preferred
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


def questions_of(sources: Sequence[str]) -> list[dict[str, Any]]:
    """The questions of several files. Raises InputError for an id that two of them use."""
    rows = [row for source in sources for row in load_questions(source)]
    ids = [row["id"] for row in rows]
    if twice := next((i for i in ids if ids.count(i) > 1), None):
        raise InputError(f"capability questions: id {twice!r} is used twice; ids must differ, over several files too")
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
        elif kind == "open":
            if not str(row["prompt"]).strip():
                raise ValueError("the prompt is empty")
        else:
            raise ValueError(f"kind must be choice, instruction or open, got {kind!r}")
        return {**row, "id": str(row["id"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{at} is not a question: {error}") from error


@dataclass(frozen=True)
class Said:
    """What came of a question: `right` 1 or 0 (None for an open one, or without an answer), the answer's text."""

    right: float | None
    text: str = ""
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Asked:
    """Every question answered without and with the intervention."""

    questions: Sequence[Mapping[str, Any]]
    plain: Mapping[str, Said]
    defended: Mapping[str, Said]

    def summary(self, settings: Settings, judge: DefenceJudge | None) -> dict[str, Any]:
        """Per kind the share answered rightly without and with the intervention, paired; open ones by preference.

        "missing": questions without an answer in one of the two (a span that held no position of a one-word answer).
        """
        out: dict[str, Any] = {}
        for kind in sorted({row["kind"] for row in self.questions}):
            rows = [row for row in self.questions if row["kind"] == kind]
            if kind == "open":
                if judge is not None:
                    out[kind] = self._compared(rows, settings, judge)
                continue
            ids = [row["id"] for row in rows]
            one, two = [self.plain[i].right for i in ids], [self.defended[i].right for i in ids]
            both = [i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a is not None and b is not None]
            gap = [two[i] - one[i] if i in both else None for i in range(len(ids))]  # type: ignore[operator]
            named = zip(("undefended", "defended", "change"), (one, two, gap), strict=True)
            out[kind] = {"n": len(ids), "missing": len(ids) - len(both),
                         **{name: _mean(values, ids, settings, kind, name) for name, values in named}}  # fmt: skip
        return out

    def _compared(self, rows: Sequence[Mapping[str, Any]], settings: Settings, judge: DefenceJudge) -> dict[str, Any]:
        scenarios = [Scenario(row["id"], "report", row["prompt"], "", "", group=row["id"]) for row in rows]
        judge.prepare(scenarios)

        def answers(found: Mapping[str, Said]) -> list[Answer]:
            return [Answer(Ask(s, None, s.user), "error" if found[s.id].reason else "ok", found[s.id].text,
                           reason=found[s.id].reason) for s in scenarios]  # fmt: skip

        verdicts = judge.prefer(answers(self.plain), answers(self.defended))
        return {"n": len(rows), "by": judge.compares,
                **preferred(verdicts, scenarios, settings.defence.seed, "open")}  # fmt: skip


def capability(settings: Settings, intervention: Intervention, *, adapter: str | None = None) -> Asked:
    """Ask every question of the settings' files without and with the intervention.

    Raises InputError for files that cannot be used or where Inspect is not installed.
    """
    questions = questions_of(settings.scorecard.capability)
    plain, defended = (run(settings, questions, given, adapter=adapter) for given in (None, intervention))
    return Asked(questions, plain, defended)


def _mean(values: Sequence[float | None], ids: list[str], settings: Settings, *names: str) -> dict[str, Any]:
    found = bootstrap.mean(values, ids, ids, rng(settings.defence.seed, "capability", *names))
    return {"value": found.value, "interval": found.interval.as_list() if found.interval else None, "n": found.n}


def run(
    settings: Settings, questions: Sequence[Mapping[str, Any]], intervention: Intervention | None, *,
    adapter: str | None = None,
) -> dict[str, Said]:  # fmt: skip
    """What came of every question, by id, through Inspect's provider of this package."""
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
            return Score(value="C" if follows(state.output.completion, state.metadata.get("checks", ())) else "I")

        return score

    own = settings.defence
    options: dict[str, Any] = {
        k: v
        for k, v in {"dtype": own.dtype, "device": own.device, "adapter": adapter, "intervention": intervention}.items()
        if v
    }
    tasks = []
    for kind in sorted({r["kind"] for r in questions}):
        rows = [r for r in questions if r["kind"] == kind]
        if kind == "choice":
            samples = [Sample(id=r["id"], input=r["question"], choices=list(r["choices"]), target=r["answer"])
                       for r in rows]  # fmt: skip
            tasks.append(Task(name=kind, dataset=MemoryDataset(samples), solver=multiple_choice(), scorer=choice()))
            continue
        samples = [Sample(id=r["id"], input=r["prompt"], metadata={"checks": r.get("checks", [])}) for r in rows]
        tasks.append(Task(name=kind, dataset=MemoryDataset(samples), solver=generate(), scorer=form()))
    model = get_model(f"countersteer/{own.model}", memoize=False, places=own.places, **options,
                      config=GenerateConfig(temperature=0.0, max_tokens=MAX_TOKENS))  # fmt: skip
    found: dict[str, Said] = {}
    with tempfile.TemporaryDirectory() as logs:
        # One answer that cannot be had (a no-op, say) must not take the others with it.
        for log in eval(tasks, model=model, log_dir=logs, display="none", log_level="error", fail_on_error=False):
            if log.status != "success" or log.samples is None:
                raise InputError(f"Inspect could not finish {log.eval.task}: {log.error and log.error.message}")
            for sample in log.samples:
                found[str(sample.id)] = _said(sample, open_ended=log.eval.task == "open")
    return found


def _said(sample: Any, *, open_ended: bool) -> Said:
    if sample.error is not None or not sample.scores:
        why = "no answer" if sample.error is None else " ".join(sample.error.message.split())[:300]
        return Said(None, reason=why)
    text = str(sample.output.completion)
    if open_ended:
        return Said(None, text)
    return Said(1.0 if next(iter(sample.scores.values())).value == "C" else 0.0, text)
