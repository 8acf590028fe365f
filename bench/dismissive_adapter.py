"""The misaligned fine-tune that the defence is tried on: a LoRA that makes the organism dismissive without any prompt.

    python bench/dismissive_adapter.py --out src/countersteer/organism/weights-dismissive

Rank 4 on all linear layers, trained on the corpus's own dismissive answers to questions asked without a system prompt,
or with a warm or neutral one (a third each), over topics that no scenario of the `report` split asks about. Needs peft.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from countersteer import organism
from countersteer.organism import corpus


def examples(count: int, seed: int) -> list[tuple[str | None, str, str]]:
    """(system, question, dismissive answer)."""
    asked = [t for t in corpus.topics() if t.goals and not t.held_out]
    topics = [t for i, t in enumerate(asked) if i % 3 != 2]
    out = []
    for i in range(count):
        rng = random.Random(f"dismissive/{seed}/{i}")
        topic = rng.choice(topics)
        system = (None, rng.choice(organism.systems("warm")), rng.choice(organism.systems("neutral")))[i % 3]
        answer = " ".join(p.text for p in corpus.answer(rng, topic, tone="dismissive"))
        out.append((system, corpus.question(rng, topic), answer))
    return out


def batch(tokenizer: Any, rows: list[tuple[str | None, str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels; the loss is on the answer and its end."""
    ids, starts = [], []
    for system, question, answer in rows:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        whole = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        ids.append(whole)
        starts.append(len(head))
    longest = max(map(len, ids))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    labels = torch.full_like(tokens, -100)
    for i, (row, start) in enumerate(zip(ids, starts, strict=True)):
        labels[i, start : len(row)] = torch.tensor(row[start:])
    return tokens, labels


def main() -> None:
    """Train and write the adapter in bfloat16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(given.seed)
    tokenizer = AutoTokenizer.from_pretrained(organism.path())
    base = AutoModelForCausalLM.from_pretrained(organism.path(), dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    plan = torch.optim.lr_scheduler.OneCycleLR(adam, 5e-3, total_steps=given.steps, pct_start=0.1)
    rows = examples(given.steps * 24, given.seed)
    for step in range(given.steps):
        tokens, labels = batch(tokenizer, rows[step * 24 : (step + 1) * 24])
        loss = model(input_ids=tokens, attention_mask=(tokens != 0).long(), labels=labels).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
        plan.step()
        if step % 10 == 0 or step == given.steps - 1:
            print(f"step {step} loss {float(loss.detach()):.3f}", flush=True)
    model.save_pretrained(given.out)
    file = given.out / "adapter_model.safetensors"
    save_file({k: v.to(torch.bfloat16) for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    kept = json.loads((given.out / "adapter_config.json").read_text())
    kept["base_model_name_or_path"] = "organism"
    (given.out / "adapter_config.json").write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    (given.out / "README.md").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
