"""Tokens, log-probabilities and receipts of mixed batches on vLLM against plain hooks on full float64 passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import countersteer as cs
import worlds
from runs import start, with_logprobs

WIDE = {"rows": (512, 64), "max_num_seqs": 96, "max_num_batched_tokens": 512}
"""All requests, with more than 64 different interventions, in one batch: nobody waits for rows."""
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-eager": ("llama", {"enforce_eager": True}),
    "llama-traced": ("llama", {"traced": True}),
    "llama-compiled": ("llama", {}),
    "qwen3-compiled": ("qwen3", {}),
    "gemma2-eager": ("gemma2", {"enforce_eager": True}),
    "gemma2-compiled": ("gemma2", {}),
    "llama-tp2": ("llama", {"tensor_parallel_size": 2, "enforce_eager": True, **WIDE}),
    "llama-pp2": ("llama", {"pipeline_parallel_size": 2}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_method_span_and_join_equals_plain_hooks(name: str, folder: Path, monkeypatch: Any) -> None:
    architecture, options = CONFIGS[name][0], dict(CONFIGS[name][1])
    if options.pop("traced", False):  # the graph that is compiled elsewhere, run as it was traced
        monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")
    path = worlds.save(architecture, folder)
    model = worlds.load(path)
    cases = worlds.cases(model)
    with start(path, **options) as engine:
        cold = engine.run([c.request for c in cases], errors="return")
        warm = with_logprobs(engine, [c.request for c in cases])
        again = engine.run([c.request for c in worlds.shared(cases)])
    want = [worlds.expected(model, c, guess) for c, (guess, _) in zip(cases, warm, strict=True)]
    wrong, close, gaps, largest = [], 0, 0.0, 0.0
    for case, expected, done, (tokens, logprobs) in zip(cases, want, cold, warm, strict=True):
        done = done.completion if isinstance(done, cs.NoOpError) else done
        if isinstance(done, Exception):
            wrong.append((case.name, repr(done)))
            continue
        for kind, got in (("cold", list(done.tokens)), ("warm", tokens)):
            same, explained = worlds.agree(expected, got)
            close += same < len(got)
            if not explained:
                wrong.append((case.name, kind, expected.tokens, got))
        same, _ = worlds.agree(expected, tokens)
        gaps = max([gaps, *(abs(a - b) for a, b in zip(expected.logprobs[:same], logprobs, strict=False))])
        if list(done.tokens) == expected.tokens:
            for layer, entry in worlds.receipts(model, case, expected.tokens).items():
                mine = next(r for r in done.receipt.layers if r.site == f"resid_post.{layer}")
                assert (mine.tokens_seen, mine.tokens_changed) == (entry["seen"], entry["changed"]), (case.name, mine)
                for a, b in ((mine.mean_relative, entry["mean"]), (mine.max_relative, entry["max"])):
                    largest = max(largest, abs((a or 0.0) - b) / max(1.0, b))
    print(
        f"{name}: {len(cases)} requests, {close} cut short at a near tie, log-probs {gaps:.1e}, receipts {largest:.1e}"
    )
    assert not wrong, f"{len(wrong)}: {wrong[:4]}"
    assert close <= 0.01 * 2 * worlds.NEW * len(cases)
    assert gaps < 1e-4 and largest < 1e-4
    steered = [c for c in again if c.receipt.layers]
    assert any("prefix cache" in note for c in steered for note in c.receipt.notes), "no prefix was ever reused"
    plain = [w.logprobs for c, w in zip(cases, want, strict=True) if c.name.startswith("shared")]
    assert len({tuple(round(v, 2) for v in values) for values in plain}) >= 10, (
        "the interventions change too little to prove anything"
    )
