"""The presets of the paper's models, end to end on random-weight models of the same architecture and SAE format.

Settings are the preset's own (layers, priors, penalties, rules); only sizes are made small: the model's width, how many
latents and tokens, rounds of the calibration.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
import transformers as hf
from safetensors.torch import save_file

import countersteer as cs
from countersteer.core.errors import InputError, RefusedError
from countersteer.core.request import Request
from countersteer.sources.fetch import fetch
from countersteer.studies import runner, spec
from finetune_tokenizers import gemma2, llama3, qwen3

WIDTH, D_SAE = 16, 640
LAYERS = {"llama-3.3-70b": (33, 50), "llama-3.1-8b": (19, 19), "gemma-2-2b": (16, 16), "gemma-2-9b": (26, 26),
          "gemma-2-27b": (22, 22)}  # fmt: skip
"""Steering and reading layer (ESR paper, table of models)."""
PRIORS = {"llama-3.3-70b": (7, 5, 0, 100), "llama-3.1-8b": (10, 10, 0, 50), "gemma-2-2b": (150, 75, 0, 300),
          "gemma-2-9b": (280, 280, 0, 560), "gemma-2-27b": (1500, 1500, 0, 5000)}  # fmt: skip
"""Mean, SD and range of the calibration's prior (ESR paper, calibration)."""
SHAPE = {
    "hidden_size": WIDTH, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "max_position_embeddings": 512, "initializer_range": 0.2, "tie_word_embeddings": False,
}  # fmt: skip


def make_model(name: str, folder: Path) -> Any:
    """A random model with as many layers as the preset needs, saved with its tokenizer; returns the tokenizer."""
    torch.manual_seed(1)
    llama = name.startswith("llama")
    tokenizer = llama3() if llama else gemma2()
    shape = {**SHAPE, "vocab_size": len(tokenizer), "num_hidden_layers": max(LAYERS[name]) + 1,
             "bos_token_id": tokenizer.bos_token_id, "eos_token_id": None, "pad_token_id": None}  # fmt: skip
    if llama:
        model: Any = hf.LlamaForCausalLM(hf.LlamaConfig(**shape))
    else:
        model = hf.Gemma2ForCausalLM(
            hf.Gemma2Config(**shape, query_pre_attn_scalar=8, sliding_window=64, attn_logit_softcapping=50.0,
                            final_logit_softcapping=30.0)
        )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_sae(name: str, folder: Path, model: Path) -> None:
    """Goodfire's torch file through `fetch`, or the folder that fetching a Gemma Scope SAE leaves; sparse latents."""
    read = LAYERS[name][1]
    draw = np.random.default_rng(2)
    with cs.load_engine(str(model)) as engine:
        import asyncio

        texts = howto()[:6]
        h = asyncio.run(engine.forward(texts, capture=cs.Site(read), template=True))
        steer = asyncio.run(engine.forward(texts, capture=cs.Site(LAYERS[name][0]), template=True))
    flat = torch.cat([torch.cat(h), torch.cat(steer)]).double().numpy()
    encoder = draw.normal(size=(WIDTH, D_SAE))
    level = np.quantile(flat @ encoder, draw.uniform(0.9, 1.0, D_SAE), axis=0).diagonal()  # active on 10% down to none
    decoder = draw.normal(size=(D_SAE, WIDTH))
    t = {k: torch.tensor(v, dtype=torch.float32) for k, v in {"e": encoder, "d": decoder, "b": -level}.items()}
    if name.startswith("llama"):
        path = folder.parent / f"{name}-SAE-l{read}.pt"
        torch.save(
            {"encoder_linear.weight": t["e"].T.contiguous(), "encoder_linear.bias": t["b"],
             "decoder_linear.weight": t["d"].T.contiguous(), "decoder_linear.bias": torch.zeros(WIDTH)}, path
        )  # fmt: skip
        fetch(path, out=folder, layer=read)
        return
    folder.mkdir()
    save_file(
        {"W_enc": t["e"].contiguous(), "W_dec": t["d"].contiguous(), "b_enc": torch.zeros(D_SAE),
         "b_dec": torch.zeros(WIDTH), "threshold": (-t["b"]).clamp_min(0).contiguous()},
        folder / "sae_weights.safetensors",
    )  # fmt: skip
    golden = Path(__file__).parent / "data" / "saelens" / "jumprelu-plain" / "cfg.json"  # as SAELens itself writes it
    config = golden.read_text().replace('"d_in": 16, "d_sae": 32', f'"d_in": {WIDTH}, "d_sae": {D_SAE}')
    (folder / "cfg.json").write_text(config.replace("blocks.4.", f"blocks.{read}."))


def howto() -> list[str]:
    from countersteer.studies.prompts import load_prompts

    return load_prompts("howto")


@pytest.mark.parametrize("name", LAYERS)
def test_a_preset_runs_end_to_end_with_its_own_settings(name: str, tmp_path: Path) -> None:
    make_model(name, tmp_path / "model")
    make_sae(name, tmp_path / "sae", tmp_path / "model")
    data = tomllib.loads(spec.preset(name))
    data["study"] |= {"model": str(tmp_path / "model"), "sae": str(tmp_path / "sae")}
    (tmp_path / "prompts.txt").write_text("\n".join(howto()[:8]))
    data["latents"]["count"] = 2
    data["calibration"] |= {"rounds": 2, "per_round": 2, "max_tokens": 12}
    data["trials"] |= {"prompts": str(tmp_path / "prompts.txt"), "per_latent": 2, "resample": 1}
    data["sampling"]["max_tokens"] = 12
    data["judge"]["references"] = 1
    data["detectors"] |= {"count": 3, "draws": 19, "derangements": 1}
    random = data["arms"].get("random-ablated")
    if random:
        random["clamp"]["random"] = 2
    loaded = spec.parse(tomli_w.dumps(data), name=name)
    steer, read = LAYERS[name]
    mean, spread, low, high = PRIORS[name]
    section = loaded.settings.calibration
    assert (section.centre, section.prior_sd, section.low, section.high) == (mean, spread, low, high)
    assert section.method == "bisection" and section.units == "latent" and section.target == 30
    with runner.run_study(loaded, tmp_path / "run") as run:
        assert run.finished and (run.fact("steer_layer"), run.fact("read_layer")) == (steer, read)
        arms = list(run.arms())
        wanted = {"base", "unsteered", "self-monitor"}
        if name == "llama-3.3-70b":
            wanted |= {"detectors-ablated", "prefill", *(f"random-ablated@set{i}" for i in (1, 2, 3))}
        assert set(arms) == wanted
        for row in run.latents():
            assert row.strength is not None and low <= row.strength <= high
        trials = list(run.trials("base"))
        assert len(trials) == 4 and {t.status for t in trials} <= {"ok", "no-attempt"}
        for t in trials:
            (layer,) = (t.receipt or {})["layers"]
            assert layer["site"] == f"resid_post.{steer}" and layer["tokens_changed"] == layer["tokens_seen"] > 30
        for arm in arms:
            assert all(t.status in ("ok", "no-attempt") for t in run.trials(arm)), arm
        assert run.header["settings"]["sampling"] == {
            "temperature": 0.6, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.1, "max_tokens": 12, "stop": []
        }  # fmt: skip
        if name == "llama-3.3-70b":
            clamped = [t.receipt["layers"][0]["edits"] for t in run.trials("detectors-ablated") if t.receipt]
            assert clamped and all([e["method"] for e in edits] == ["add", "ablate"] for edits in clamped)


def test_the_reference_template_sends_bos_and_the_assistant_header_twice(tmp_path: Path) -> None:
    tokenizer = make_model("llama-3.1-8b", tmp_path / "model")
    prompt = "How do I iron a shirt?"
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    user = f"<|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
    once = f"<|begin_of_text|>{user}{header}"
    with cs.load_engine(str(tmp_path / "model")) as plain:
        assert tokenizer.decode(plain.encode(Request(prompt=prompt))) == once
        own = plain.describe()
    with cs.load_engine(str(tmp_path / "model"), template="esr-reference") as engine:
        twice = f"{once}<|begin_of_text|>{header}"
        assert tokenizer.decode(engine.encode(Request(prompt=prompt))) == twice
        assert tokenizer.decode(engine.encode(Request(prompt=prompt, prefix="Heat"))) == f"{twice}Heat"
        assert tokenizer.decode(engine.encode(Request(prompt=prompt, template=False))) == prompt
        told = engine.describe()
        assert told["template"] == "esr-reference" and told["template_hash"] != own["template_hash"]
        assert told["model_fingerprint"] == own["model_fingerprint"]


def test_the_reference_template_is_a_setting_of_a_study_and_part_of_every_key(tmp_path: Path) -> None:
    from countersteer.studies.setup import load_tools
    from countersteer.studies.steering import Steering

    make_model("llama-3.1-8b", tmp_path / "model")
    make_sae("llama-3.1-8b", tmp_path / "sae", tmp_path / "model")
    keys = []
    for line in ("", 'template = "esr-reference"\n'):
        text = f'[study]\nmodel = "{tmp_path}/model"\nsae = "{tmp_path}/sae"\n{line}[arms.base]\n'
        loaded = spec.parse(text)
        assert ('template = "esr-reference"' in loaded.text) == bool(line)
        tools = load_tools(loaded)
        with tools.engine as engine:
            steering = Steering(tools.sae, layer=19, model=engine.model_fingerprint, family=engine.family,
                                facts=engine.describe())  # fmt: skip
            keys.append(steering.key(steering.plain("How?", loaded.sampling, 1)))
    assert keys[0] != keys[1]
    with pytest.raises(InputError, match="template"):
        spec.parse('[study]\nmodel = "m"\nsae = "s"\ntemplate = "other"\n[arms.base]\n')
    with pytest.raises(InputError, match="no template 'other'"):
        cs.load_engine(str(tmp_path / "model"), template="other")


def test_a_model_without_bos_cannot_have_the_reference_template() -> None:
    torch.manual_seed(0)
    tokenizer = qwen3()
    shape = {**SHAPE, "vocab_size": len(tokenizer), "num_hidden_layers": 1, "bos_token_id": None, "eos_token_id": None}
    model = hf.Qwen3ForCausalLM(hf.Qwen3Config(**shape))
    with pytest.raises(InputError, match="no beginning-of-sequence token"):
        cs.load_engine((model, tokenizer), template="esr-reference")
    with pytest.raises(InputError, match="this model has none"):
        cs.load_engine(model, template="no-thinking")
    with pytest.raises(RefusedError, match="knows no enable_thinking"):
        cs.load_engine("organism", template="no-thinking")
    with cs.load_engine((model, tokenizer), template="no-thinking") as engine:
        sent = tokenizer.decode(engine.encode(Request(prompt="How?")))
        assert sent.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert engine.describe()["template"] == "no-thinking"
