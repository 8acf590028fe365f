"""Adapters in the embedded engine answer as peft does, share the base's weights, and are arms of a study."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import countersteer as cs
from countersteer.cli import call
from countersteer.core.errors import InputError, RefusedError
from countersteer.engines.embedded.adapter_record import read_adapter, write_record
from countersteer.engines.embedded.fingerprint import module_fingerprint
from countersteer.judging.llm_budget import CostCapError
from countersteer.report.summary import summarise
from countersteer.store import Run
from countersteer.studies import spec
from countersteer.studies.judges import JudgeOptions
from countersteer.studies.runner import run_study
from fake_openai import FakeOpenAI
from helpers_text import talking

PROMPTS = ["Why is it so?", "And now", "the end of an answer"]
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3))


def write_adapter(folder: Path, seed: int, *, model_seed: int = 0, scale: float = 0.05) -> Path:
    """A LoRA adapter of the tiny model with weights drawn from a seed, large enough to change the text."""
    module, _ = talking(model_seed)
    print_ = module_fingerprint(module)
    torch.manual_seed(seed)
    wrapped = get_peft_model(module, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = scale * torch.randn(parameter.shape, dtype=parameter.dtype)
    wrapped.save_pretrained(str(folder))
    write_record(folder, model=print_, facts={"ratio": 0.5, "seed": seed, "train_prompts": ["How do I knit?"]})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("adapters")
    return {name: write_adapter(place / name, seed, scale=0.4) for name, seed in (("one", 1), ("two", 2))}


def by_peft(folder: Path | None, prompt: str, steer: bool) -> list[int]:
    """Greedy decoding by peft and a plain hook."""
    module, tokenizer = talking(0)
    if folder is not None:
        module = PeftModel.from_pretrained(module, str(folder), autocast_adapter_dtype=False).double().eval()
    layers = (module.get_base_model() if folder is not None else module).model.layers
    if steer:
        layers[0].register_forward_hook(
            lambda m, a, out: (out[0] + 2 * VECTOR.double(), *out[1:]) if isinstance(out, tuple) else out
            + 2 * VECTOR.double()
        )  # fmt: skip
    ids = tokenizer(prompt)["input_ids"]
    made: list[int] = []
    with torch.no_grad():
        for _ in range(10):
            made.append(int(module(torch.tensor([ids + made])).logits[0, -1].argmax()))
            if made[-1] == tokenizer.eos_token_id:
                break
    return made


def test_adapters_of_one_batch_answer_as_peft_does_steered_and_not(folders: dict[str, Path]) -> None:
    steer = cs.add(cs.direction(VECTOR, layer=0), strength=2.0)
    asked = [(name, prompt, on) for prompt in PROMPTS for name in (None, "one", "two") for on in (False, True)]
    with cs.load_engine(talking(0), adapters=folders) as engine:
        requests = [
            cs.Request(prompt=p, template=False, adapter=n, intervention=steer if on else None,
                       sampling=cs.Sampling(temperature=0, max_tokens=10))
            for n, p, on in asked
        ]  # fmt: skip
        done = engine.run(requests)
        base, other = engine.model.module, engine.adapters.engine("one").model.module
        shared = {id(p) for p in base.parameters()}
        extra = [n for n, p in other.named_parameters() if id(p) not in shared]
        assert extra and all("lora_" in name for name in extra), "the adapter copied the base model's weights"
        assert asyncio.run(engine.generate(requests[2])).tokens == done[2].tokens
    texts = {}
    for (name, prompt, on), completion in zip(asked, done, strict=True):
        expected = by_peft(folders[name] if name else None, prompt, on)
        assert list(completion.tokens) == expected, (name, prompt, on)
        assert bool(completion.receipt.layers) == on
        texts[name, prompt, on] = expected
    assert len({tuple(texts[n, PROMPTS[0], False]) for n in (None, "one", "two")}) == 3


def test_one_adapter_under_every_request(folders: dict[str, Path]) -> None:
    request = cs.Request(prompt=PROMPTS[0], template=False, sampling=cs.Sampling(temperature=0, max_tokens=10))
    with cs.load_engine(talking(0), adapter=folders["two"]) as engine:
        assert list(engine.run([request])[0].tokens) == by_peft(folders["two"], PROMPTS[0], False)
        assert engine.describe()["adapter"] == read_adapter(folders["two"]).fingerprint
        assert engine.model_fingerprint == module_fingerprint(talking(0)[0])
    with pytest.raises(InputError, match="not both"):
        cs.load_engine(talking(0), adapter=folders["two"], adapters=folders)


def test_an_adapter_keeps_the_day_that_its_engine_was_given(folders: dict[str, Path]) -> None:
    module, tokenizer = talking(0)
    tokenizer.chat_template = (
        "{% if strftime_now('%Y') == '1999' %}Once upon {% endif %}"
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    then = tokenizer("Once upon Why?", add_special_tokens=False)["input_ids"]
    for given, name in (({"adapter": folders["one"]}, None), ({"adapters": folders}, "one")):
        asked = cs.Request(prompt="Why?", adapter=name, sampling=cs.Sampling(max_tokens=1))
        with cs.load_engine((module, tokenizer), date="1999-01-31", **given) as engine:
            assert engine.encode(asked) == then
            assert engine.run([asked])[0].prompt_tokens == len(then)
        with cs.load_engine((module, tokenizer), **given) as engine:
            assert engine.run([asked])[0].prompt_tokens < len(then)


def test_an_adapter_of_another_model_is_refused_before_it_is_used(folders: dict[str, Path], tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other", 1, model_seed=5)
    for how in ({"adapter": other}, {"adapters": {"x": other}}):
        with pytest.raises(RefusedError, match="was trained on another model"):
            cs.load_engine(talking(0), **how)
    unsigned = tmp_path / "unsigned"
    shutil.copytree(folders["one"], unsigned)
    (unsigned / "countersteer.json").unlink()
    with pytest.raises(RefusedError, match=r"has no countersteer\.json that says which model"):
        cs.load_engine(talking(0), adapter=unsigned)
    changed = tmp_path / "changed"
    shutil.copytree(folders["one"], changed)
    shutil.copy(folders["two"] / "adapter_model.safetensors", changed)
    with pytest.raises(InputError, match="was changed after it was trained"):
        cs.load_engine(talking(0), adapter=changed)
    config = json.loads((changed / "adapter_config.json").read_text())
    (changed / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 999}))
    shutil.copy(folders["one"] / "adapter_model.safetensors", changed)
    with pytest.raises(InputError, match="was changed after it was trained"):
        read_adapter(changed)
    with pytest.raises(InputError, match="is no adapter"):
        cs.load_engine(talking(0), adapters={"x": tmp_path})
    with (
        cs.load_engine(talking(0), adapters={"one": folders["one"]}) as engine,
        pytest.raises(InputError, match=r"adapter 'two' is not loaded \(loaded: one\)"),
    ):
        engine.run([cs.Request(prompt="x", template=False, adapter="two")])
    with pytest.raises(RefusedError, match="this engine does not have it"):
        cs.ScriptedEngine({"x": "y"}).run([cs.Request(prompt="x", adapter="one")])


SMALL = """
[study]
model = "organism-plain"
sae = "organism-plain"
[latents]
count = 2
[calibration]
method = "bisection"
rounds = 1
per_round = 2
[trials]
prompts = "held-out"
per_latent = 2
[sampling]
max_tokens = 60
[judge]
references = 1
[finetune]
prompts = "howto"
templates = "organism"
corrections = 12
normals = 40
ratios = [0.25, 0.5]
total = 16
epochs = 1
rank = 4
learning_rate = 1e-2
EXTRA
[arms.base]
[arms.unsteered]
strength = 0
[arms.tuned]
adapter = "finetune"
recalibrate = true
"""


def test_a_plan_counts_what_the_adapters_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["plan", "preset:finetune-organism", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    stages = told["generations"]
    assert stages["fine-tuning answers"] == 15 * 40 + 40 * 5, "answers to the train prompts, and their references"
    assert stages["fine-tuning episodes, calibration"] == stages["calibration"]
    assert stages["fine-tuning episodes, trials base"] == stages["trials base"] == 24 * 5
    assert told["generations_certain"] == sum(n for name, n in stages.items() if "resamples" not in name)
    assert set(told["tokens"]) >= set(stages) and all(told["tokens"][name] >= n for name, n in stages.items())
    assert told["tokens_at_most"] == sum(told["tokens"].values())


def test_the_episodes_judge_is_paid_from_the_studys_money(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from countersteer.finetune import recipe

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with FakeOpenAI() as server:
        judge = f'[judge]\nmodel = "openai/gpt-4o"\nbase_url = "{server.url}"\n'
        text = SMALL.replace("[judge]\nreferences = 1\n", "").replace("EXTRA", f"episodes = true\n{judge}")
        loaded = spec.parse(text, name="paid")
        with pytest.raises(CostCapError):
            recipe.prepare(loaded, tmp_path, options=JudgeOptions(max_cost=0.001))
        assert server.requests <= 1 and recipe.spent(tmp_path) <= 0.001
        with pytest.raises(CostCapError):
            recipe.prepare(loaded, tmp_path, options=JudgeOptions(max_cost=0.02))
        assert 0 < recipe.spent(tmp_path) <= 0.02


def test_a_study_trains_its_adapters_and_measures_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from countersteer.finetune import recipe, training

    loaded = spec.parse(SMALL.replace("EXTRA", ""), name="small")
    assert [arm.name for arm in loaded.arms] == ["base", "unsteered", "tuned@0.25", "tuned@0.5"]
    with pytest.raises(InputError, match="is not trained yet; `countersteer run small"):
        run_study(loaded, tmp_path / "run")
    made = recipe.prepare(loaded, tmp_path / "run")
    stamps = {p: (p / "adapter_model.safetensors").stat().st_mtime_ns for p in made}
    monkeypatch.setattr(training, "load_base", lambda *a: pytest.fail("a finished adapter was trained again"))
    assert recipe.prepare(loaded, tmp_path / "run") == made
    with run_study(loaded, tmp_path / "run") as run:
        arms, result = run.arms(), summarise(run)
        keys = {name: [t.plan.key for t in run.trials(name)] for name in arms}
        strengths = {name: [t.plan.strength for t in run.trials(name)] for name in arms}
        assert all(t.status in ("ok", "no-attempt") for name in arms for t in run.trials(name))
    assert stamps == {p: (p / "adapter_model.safetensors").stat().st_mtime_ns for p in made}
    for path, ratio in zip(made, (0.25, 0.5), strict=True):
        record = read_adapter(path)
        assert arms[f"tuned@{ratio:g}"]["adapter"]["fingerprint"] == record.fingerprint
        assert result["arms"][f"tuned@{ratio:g}"]["settings"]["adapter"]["ratio"] == ratio
        assert record.facts["corrections"] + 0 <= round(16 * ratio)
    flat = [key for name in arms for key in keys[name]]
    assert len(set(flat)) == len(flat), "an adapter's trials share keys with others"
    assert strengths["tuned@0.25"] != strengths["base"], "the tuned model was not calibrated anew"
    with Run.open(tmp_path / "run") as run:
        assert {"arms.tuned@0.25.adapter", "arms.tuned@0.5.adapter"} <= set(run.header["inputs"])

    overlapping = SMALL.replace("EXTRA", "").replace('prompts = "held-out"', 'prompts = "howto"')
    with pytest.raises(InputError, match="share 40, 'Explain how to"):
        recipe.prepare(spec.parse(overlapping), tmp_path / "other")
    trained_on = overlapping.split("[finetune]")[0] + f'[arms.base]\n[arms.x]\nadapter = "{made[0]}"\n'
    with pytest.raises(RefusedError, match="on 40 prompts that its adapter was trained on"):
        run_study(spec.parse(trained_on), tmp_path / "third")
