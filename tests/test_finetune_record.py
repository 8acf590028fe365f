"""An adapter's record: which tokenizer and template it was trained with, every prompt, every setting that decides."""

from __future__ import annotations

import json
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

import countersteer as cs
from countersteer import organism
from countersteer.core.errors import RefusedError
from countersteer.engines.embedded.adapter import adapted, text_facts
from countersteer.engines.embedded.adapter_record import (
    RECORD,
    TextFacts,
    adapter_fingerprint,
    read_adapter,
    trained_on,
    write_merged,
    write_record,
)
from countersteer.engines.embedded.fingerprint import module_fingerprint
from countersteer.engines.embedded.model import verified
from countersteer.engines.vllm.adapters import read_adapters, served_adapters
from helpers_text import talking

THINKS = "{% for m in messages %}{{ m['content'] }}{% if enable_thinking is defined %} {% endif %}{% endfor %}"


def plain() -> Any:
    """The tiny model, whose template can switch thoughts off."""
    module, tokenizer = talking(0)
    tokenizer.chat_template = THINKS
    return module, tokenizer


def write(folder: Path, module: Any, *, facts: dict[str, Any], **config: Any) -> Path:
    """An adapter of a module, with weights drawn from a seed. The module is changed."""
    print_ = module_fingerprint(module)
    torch.manual_seed(0)
    wrapped = get_peft_model(module, LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
                                                | config))  # fmt: skip
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, dtype=parameter.dtype)
    wrapped.save_pretrained(str(folder))
    write_record(folder, model=print_, facts=facts)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Adapters trained with the template itself, with its variation, and one that does not say."""
    facts: dict[str | None, dict[str, Any]] = {}
    for variation in (None, "no-thinking"):
        with cs.load_engine(plain(), template=variation) as engine:
            told = engine.describe()
        facts[variation] = {"tokenizer_hash": told["tokenizer"], "template_hash": told["template_hash"]}
        assert text_facts(plain()[1], variation) == TextFacts(told["tokenizer"], told["template_hash"], variation)
    facts["no-thinking"]["settings"] = {"template": "no-thinking"}
    made = {"thinks": facts[None], "thoughtless": facts["no-thinking"], "older": {}}
    return {name: write(tmp_path / name, plain()[0], facts=given) for name, given in made.items()}


@pytest.mark.parametrize("how", ["adapter", "adapters"])
def test_an_adapter_meets_the_tokenizer_and_template_it_was_trained_with(how: str, folders: dict[str, Path]) -> None:
    def load(model: Any, name: str, template: str | None = None) -> None:
        given: Any = folders[name] if how == "adapter" else {name: folders[name]}
        cs.load_engine(model, template=template, **{how: given}).close()

    for name, template in (("thinks", None), ("thoughtless", "no-thinking"), ("older", None), ("older", "no-thinking")):
        load(plain(), name, template)
    own, varied = "the chat template itself", "the chat template's variation 'no-thinking'"
    said = f"is sent {own}, but it was trained with {varied}. Instead: template = 'no-thinking' here too"
    with pytest.raises(RefusedError, match=re.escape(said)):
        load(plain(), "thoughtless")
    said = f"is sent {varied}, but it was trained with {own}. Instead: no template here either"
    with pytest.raises(RefusedError, match=re.escape(said)):
        load(plain(), "thinks", "no-thinking")
    module, tokenizer = plain()
    tokenizer.chat_template = THINKS + "Sure: "
    with pytest.raises(RefusedError, match="the chat template of in-memory is another than the one it was trained"):
        load((module, tokenizer), "thinks")
    load((module, tokenizer), "older")
    module, tokenizer = plain()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
    with pytest.raises(RefusedError, match="has another tokenizer than the one it was trained with"):
        load((module, tokenizer), "thinks")
    load(plain()[0], "thinks")  # token ids alone: there is nothing to compare


def test_a_server_compares_the_text_of_its_adapters(folders: dict[str, Path]) -> None:
    model = module_fingerprint(plain()[0])
    lora = {name: type("Lora", (), {"lora_path": str(folders[name])})() for name in ("thinks", "thoughtless")}
    own = text_facts(plain()[1], None)
    assert list(served_adapters({"x": lora["thinks"]}, model=model, name="m", text=own)) == ["x"]
    with pytest.raises(RefusedError, match="trained with the chat template's variation 'no-thinking'"):
        served_adapters({"x": lora["thoughtless"]}, model=model, name="m", text=own)


def test_shipped_adapters_have_names_on_vllm_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(organism.adapter_path("organism-dismissive"), "mine")
    found = read_adapters({"shipped": "organism-dismissive", "own": "mine"})
    assert found["shipped"].fingerprint == found["own"].fingerprint
    assert found["own"].folder == (tmp_path / "mine").resolve() and found["shipped"].folder.is_absolute()
    assert (found["shipped"].folder / RECORD).is_file()


def test_threads_that_first_use_an_adapter_together_make_one_engine(folders: dict[str, Path]) -> None:
    with cs.load_engine(plain(), adapters={"older": folders["older"]}) as engine:
        made, make, meet = [], engine.adapters._make, threading.Barrier(4)

        def slowly(model: Any) -> Any:
            made.append(make(model))
            return made[-1]

        def use() -> None:
            meet.wait()
            found.append(engine.adapters.engine("older"))

        engine.adapters._make, found = slowly, []
        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 1 and found == made * 4
    assert not made[0].alive


def test_every_setting_that_decides_is_in_the_fingerprint(folders: dict[str, Path]) -> None:
    place = folders["older"]
    config = json.loads((place / "adapter_config.json").read_text())
    kept = adapter_fingerprint(place)
    assert read_adapter("organism-dismissive").fingerprint == read_adapter("organism-dismissive").facts["fingerprint"]
    prints = {kept}
    given = {"layer_replication": [[0, 1], [0, 2]], "lora_bias": True, "target_parameters": ["x.y"],
             "trainable_token_indices": [1], "exclude_modules": ["v_proj"], "lora_alpha": 999}  # fmt: skip
    for name, value in given.items():
        (place / "adapter_config.json").write_text(json.dumps({**config, name: value}))
        prints.add(adapter_fingerprint(place))
        assert name == "lora_alpha" or not config.get(name)
    assert len(prints) == 1 + len(given)


def biased() -> Any:
    """A model with biases, drawn from a seed."""
    torch.manual_seed(1)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    module = Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    return module


def test_an_adapter_with_biases_of_its_own_leaves_the_models_alone(tmp_path: Path) -> None:
    folder, ids = write(tmp_path / "a", biased(), facts={}, bias="all"), torch.tensor([[1, 2, 3]])
    base = verified(biased(), None)
    with torch.no_grad():
        before = base.module(ids).logits
        made = adapted(base, folder)
        assert torch.equal(base.module(ids).logits, before)
        from peft import PeftModel

        wanted = PeftModel.from_pretrained(biased(), str(folder)).eval()(ids).logits
        assert torch.allclose(made.module(ids).logits, wanted, atol=1e-5)
        assert not torch.allclose(wanted, before, atol=1e-2)
    own = {n for n, p in made.module.named_parameters() if all(p is not q for q in base.module.parameters())}
    assert own and all("lora_" in name or name.endswith("bias") for name in own)


def test_prompts_of_several_trainings_stay_known() -> None:
    first, second = {"train_prompts": ["a", "b"], "overlap": False}, {"train_prompts": ["b", "c"], "overlap": False}
    assert trained_on(first, second) == {"train_prompts": ["a", "b", "c"], "overlap": False}
    assert trained_on({}, second) == {"train_prompts": ["b", "c"], "overlap": False} and trained_on({}, {}) == {}
    allowed = {"train_prompts": ["c", "d"], "overlap": True}
    assert trained_on(allowed, {}) == {"train_prompts": ["c", "d"], "overlap": True}
    mixed = trained_on(first, allowed)
    assert mixed == {"train_prompts": ["a", "b"], "overlap": False, "overlap_prompts": ["c", "d"]}
    assert trained_on(mixed, second)["overlap_prompts"] == ["c", "d"]


def test_a_folder_that_two_adapters_went_into_names_both(tmp_path: Path, folders: dict[str, Path]) -> None:
    record = read_adapter(write(tmp_path / "x", plain()[0], facts={"train_prompts": ["b"], "overlap": False}))
    write_merged(tmp_path, record, "m", before={"model": "o", "adapter": "f", "train_prompts": ["a"]})
    told = json.loads((tmp_path / "countersteer-merged.json").read_text())
    assert told["train_prompts"] == ["a", "b"] and told["before"] == {"model": "o", "adapter": "f"}
    assert told["adapter"] == record.fingerprint and told["model"] == "m"
