"""Batched generation from the organism with plain transformers and one hook, for its own measurements.

Kept apart from the package's engines on purpose: the model card's figures come from code that shares nothing with
what they are later compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Ask:
    """A prompt, a system prompt or None, and a steering vector [d_model] for every position, or None."""

    prompt: str
    system: str | None = None
    vector: torch.Tensor | None = None


class Generator:
    """A loaded organism; ``sample`` answers many prompts at once."""

    def __init__(self, path: Path, *, layer: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = AutoModelForCausalLM.from_pretrained(path)
        self.model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.layer = layer

    def sample(
        self, asks: Sequence[Ask], *, seed: int, batch: int = 64, temperature: float = 0.6,
        repetition_penalty: float = 1.1, max_tokens: int = 160,
    ) -> list[tuple[str, bool]]:  # fmt: skip
        """(text, ended) per ask, in order. ``h + vector`` at the layer's output on all positions, prompt included."""
        import torch

        torch.manual_seed(seed)
        results: list[tuple[str, bool]] = []
        for start in range(0, len(asks), batch):
            part = asks[start : start + batch]
            inputs = self._inputs(part)
            handle = self._steer(part)
            try:
                with torch.no_grad():
                    out = self.model.generate(
                        **inputs, do_sample=True, temperature=temperature, top_k=0, top_p=1.0,
                        repetition_penalty=repetition_penalty, max_new_tokens=max_tokens,
                    )  # fmt: skip
            finally:
                handle.remove()
            for row in out[:, inputs["input_ids"].shape[1] :].tolist():
                ended = self.tokenizer.eos_token_id in row
                kept = row[: row.index(self.tokenizer.eos_token_id)] if ended else row
                results.append((str(self.tokenizer.decode(kept)), ended))
        return results

    def _inputs(self, asks: Sequence[Ask]) -> Any:
        texts = []
        for ask in asks:
            system = [{"role": "system", "content": ask.system}] if ask.system else []
            messages = [*system, {"role": "user", "content": ask.prompt}]
            texts.append(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)

    def _steer(self, asks: Sequence[Ask]) -> Any:
        import torch

        zero = torch.zeros(self.model.config.hidden_size)
        added = torch.stack([zero if ask.vector is None else ask.vector for ask in asks])[:, None]

        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + added, *output[1:])
            return output + added

        return self.model.model.layers[self.layer].register_forward_hook(hook)
