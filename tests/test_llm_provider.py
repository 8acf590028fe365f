"""Inspect evaluations through `countersteer/MODEL`: steered and unsteered answers differ as plain hooks predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import inspect_ai
import pytest
import torch
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, GenerateConfig, get_model
from inspect_ai.scorer import includes
from inspect_ai.tool import ToolInfo
from transformers import AutoModelForCausalLM, AutoTokenizer

import countersteer as cs
from countersteer import organism
from countersteer.core.errors import InputError, RefusedError
from countersteer.engines import inspect_provider

QUESTIONS = ["How do I iron a shirt?", "How do I bake bread?", "How do I water a plant?"]
TOKENS = 24


@pytest.fixture(scope="module")
def steer() -> Any:
    sae = cs.load_sae("organism")
    return cs.add(sae.latent(7), strength=9.0)


def by_hand(question: str, intervention: Any) -> str:
    """Greedy float64 decoding by transformers alone, the write added by a plain hook on every position."""
    folder = organism.path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    handle = None
    if intervention is not None:
        (edit,) = intervention.edits
        write = edit.intercept[0, 0].double() * edit.write[0].double()

        def hook(module: Any, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            return (hidden + write, *output[1:]) if isinstance(output, tuple) else hidden + write

        handle = model.model.layers[edit.site.layer].register_forward_hook(hook)
    chat = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
        "input_ids"
    ]
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    made: list[int] = []
    with torch.no_grad():
        for _ in range(TOKENS):
            step = torch.cat([ids, torch.tensor([made], dtype=torch.long)], dim=1)
            made.append(int(model(step).logits[0, -1].argmax()))
            if made[-1] in ends:
                break
    if handle is not None:
        handle.remove()
    return tokenizer.decode(made, skip_special_tokens=True)


def evaluated(folder: Path, **model_args: Any) -> dict[str, Any]:
    task = inspect_ai.Task(dataset=[Sample(input=q, target="the") for q in QUESTIONS], scorer=includes())
    model = get_model(
        "countersteer/organism",
        config=GenerateConfig(temperature=0.0, max_tokens=TOKENS),
        memoize=False,
        dtype="float64",
        **model_args,
    )
    (log,) = inspect_ai.eval(task, model=model, log_dir=str(folder), display="none", log_format="eval")
    assert log.status == "success", log.error
    return {sample.input: sample for sample in log.samples}


@pytest.mark.slow
def test_an_evaluation_runs_steered_and_unsteered_as_an_independent_forward_predicts(
    tmp_path: Path, steer: Any
) -> None:
    bundle = cs.save_bundle(steer, tmp_path / "steer.safetensors", name="steer")
    plain = evaluated(tmp_path / "plain")
    steered = evaluated(tmp_path / "steered", bundle=str(bundle))
    for question in QUESTIONS:
        assert plain[question].output.completion == by_hand(question, None)
        assert steered[question].output.completion == by_hand(question, steer)
        (layer,) = steered[question].output.metadata["receipt"]["layers"]
        assert layer["tokens_changed"] == layer["tokens_seen"] > 0
        assert plain[question].output.metadata["receipt"]["layers"] == []
        assert steered[question].output.usage.output_tokens <= TOKENS
    assert any(plain[q].output.completion != steered[q].output.completion for q in QUESTIONS)


def test_what_the_engine_cannot_honour_is_refused_by_name(steer: Any) -> None:
    import asyncio

    model = get_model("countersteer/organism", memoize=False)
    api: Any = model.api
    assert isinstance(api, inspect_provider.CountersteerAPI)
    user = [ChatMessageUser(content=QUESTIONS[0])]
    try:
        with pytest.raises(RefusedError, match="tools"):
            asyncio.run(api.generate(user, [ToolInfo(name="x", description="y")], "auto", GenerateConfig()))
        with pytest.raises(RefusedError, match="num_choices"):
            asyncio.run(api.generate(user, [], "none", GenerateConfig(num_choices=2)))
        begun = [*user, ChatMessageAssistant(content="Heat the")]
        done = asyncio.run(api.generate(begun, [], "none", GenerateConfig(temperature=0.0, max_tokens=4)))
        assert done.usage.output_tokens <= 4 and done.stop_reason in ("stop", "max_tokens")
    finally:
        asyncio.run(api.aclose())
    with pytest.raises(InputError, match="unknown model argument 'strength'"):
        inspect_provider.CountersteerAPI("organism", strength=3)
    with pytest.raises(InputError, match="not both"):
        inspect_provider.CountersteerAPI("organism", bundle="x", intervention=steer)


def test_the_provider_is_an_entry_point_of_inspect() -> None:
    from importlib.metadata import entry_points

    (point,) = [p for p in entry_points(group="inspect_ai") if p.name == "countersteer"]
    assert point.value == "countersteer.engines.inspect_provider"
