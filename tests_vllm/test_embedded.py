"""Completions of the vLLM engine against those of the embedded one: tokens, receipts and readouts, whole."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import countersteer as cs
import worlds
from runs import start

ROOT = Path(__file__).resolve().parent.parent
PYTHON = os.environ.get("COUNTERSTEER_EMBEDDED_PYTHON", str(ROOT / ".venv" / "bin" / "python"))


def near(a: Any, b: Any) -> bool:
    """Equal to 1e-4, relative above 1; None only equals None."""
    if a is None or b is None:
        return a is b
    return abs(a - b) <= 1e-4 * max(1.0, abs(b))


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_completions_equal_the_embedded_engines(architecture: str, folder: Path) -> None:
    path = worlds.save(architecture, folder)
    given = subprocess.run([PYTHON, str(ROOT / "tests_vllm" / "embedded_answers.py"), str(path)], capture_output=True)
    assert given.returncode == 0, given.stderr.decode()[-2000:]
    embedded = json.loads(given.stdout)
    model = worlds.load(path)
    cases = worlds.cases(model)
    with start(path, enforce_eager=True) as engine:
        assert engine.model_fingerprint == embedded["fingerprint"]
        out = engine.run([c.request.with_(readouts=worlds.readouts()) for c in cases], errors="return")
    compared = 0
    for case, theirs, done in zip(cases, embedded["answers"], out, strict=True):
        done = done.completion if isinstance(done, cs.NoOpError) else done
        assert not isinstance(done, Exception), (case.name, done)
        assert case.name == theirs["name"]
        want = worlds.Expected(theirs["tokens"], [], worlds.expected(model, case).margins)
        same, explained = worlds.agree(want, list(done.tokens))
        assert explained, case.name
        if same < len(done.tokens):
            continue
        compared += 1
        assert done.finish == theirs["finish"]
        receipts = done.receipt.to_dict()["layers"]
        assert [r["site"] for r in receipts] == [r["site"] for r in theirs["receipt"]]
        for mine, other in zip(receipts, theirs["receipt"], strict=True):
            for key in ("tokens_seen", "tokens_changed", "conditional"):
                assert mine[key] == other[key], (case.name, key, mine, other)
            for key in ("mean_relative", "max_relative", "missed_target"):
                assert near(mine[key], other[key]), (case.name, key, mine, other)
            for key in ("before", "after"):
                assert len(mine[key]) == len(other[key]), (case.name, key)
                assert all(map(near, mine[key], other[key])), (case.name, key, mine, other)
        np.testing.assert_allclose(done.readouts, np.array(theirs["readouts"]), rtol=1e-4, atol=1e-4)
    print(f"{architecture}: {compared} of {len(cases)} completions compared whole")
    assert compared >= 0.99 * len(cases)
