"""Small models on disk, mixed requests for them, and what plain hooks on full passes make of each request.

The same requests are built in any environment (the embedded engine's answers come from another one).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import countersteer as cs
from helpers_cases import METHODS, Maker
from helpers_models import decoder_layers, prompts, tiny
from helpers_reference import Write, in_span, plain_hooks

WIDTH, VOCAB = 64, 89
SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "head_dim": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "initializer_range": 0.18,
}
SPANS = ("all", "prompt", "response", "generation", "from", "until")
NEW = 10
GREEDY = cs.Sampling(temperature=0, max_tokens=NEW)
MARGIN = 1e-4


@dataclass(frozen=True)
class Case:
    """A request and the same as plain writes."""

    name: str
    request: cs.Request
    writes: tuple[Write, ...]

    @property
    def tokens(self) -> list[int]:
        """The prompt's token ids."""
        assert self.request.tokens is not None
        return list(self.request.tokens)


def save(name: str, folder: Path, *, layers: int | None = None) -> Path:
    """Save a model of an architecture as float32 safetensors; returns its folder. `layers`: if not its own number."""
    path = folder / (name if layers is None else f"{name}-{layers}")
    if not (path / "config.json").exists():
        more = {} if layers is None else {"num_hidden_layers": layers}
        tied = {"tie_word_embeddings": True} if name == "gemma2" else {}  # as vLLM takes for granted
        tiny(name, dtype=torch.float32, **SHAPE, **tied, **more).save_pretrained(path)
    return path


@lru_cache
def load(path: Path) -> Any:
    """The model in float64 for references."""
    from transformers import AutoConfig, AutoModelForCausalLM

    attention = "eager" if getattr(AutoConfig.from_pretrained(path), "attn_logit_softcapping", None) else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation=attention)
    return model.eval()


def spelled(span: str, prompt: int, seed: int) -> str:
    """A span's text; `from` and `until` get a position before, at and after the prompt's end in turn."""
    if span not in ("from", "until"):
        return span
    return f"{span}({max((1, prompt - 1, prompt, prompt + 2, prompt // 2)[seed % 5], 1)})"


@lru_cache
def cases(model: Any) -> list[Case]:
    """Every constructor on every span, then joined interventions, steps of order and readouts, then the shared-prompt
    matrix: two prompts, each with seven interventions, so that a wrong cache key must show."""
    layers = len(decoder_layers(model))
    sample = prompts(2, seed=99)[1]
    makers = [Maker(model, layer, sample) for layer in range(layers)]
    texts = prompts(len(METHODS) * len(SPANS), seed=11)
    out = []
    for i, (method, span) in enumerate((m, s) for m in METHODS for s in SPANS):
        steer, write = makers[i % layers].make(method, seed=i)
        where = spelled(span, len(texts[i]), i)
        request = cs.Request(tokens=tuple(texts[i]), intervention=steer.span(where), sampling=GREEDY)
        out.append(Case(f"{method} {where}", request, (replace(write, span=where),)))
    more = prompts(6, seed=12, low=20, high=60)
    for i, text in enumerate(more[:3]):
        a, write_a = makers[0].make("add", seed=i)
        b, write_b = makers[-1].make("clamp", seed=i + 1)
        c, write_c = makers[-1].make("add_latent", seed=i + 2)
        steer = a.span("prompt") + b.span("response") + c.span("generation") + c.span("generation")
        writes = (
            replace(write_a, span="prompt"),
            replace(write_b, span="response"),
            replace(write_c, span="generation"),
            replace(write_c, span="generation"),
        )
        out.append(Case(f"joined {i}", cs.Request(tokens=tuple(text), intervention=steer, sampling=GREEDY), writes))
    for i, text in enumerate(more[3:]):
        a, write_a = makers[1].make("add", seed=2 * i + 1)
        b, write_b = makers[1].make("remove", seed=i)
        request = cs.Request(tokens=tuple(text), intervention=a + b.order(1), sampling=GREEDY)
        out.append(Case(f"two steps {i}", request, (write_a, replace(write_b, order=1))))
    for i, text in enumerate(prompts(2, seed=13, low=70, high=71)):
        v = makers[1].make("add", seed=41)
        flipped = makers[1]
        d, s = v[0].edits[0], v[1]
        variants: list[tuple[str, Any, tuple[Write, ...]]] = [
            ("none", None, ()),
            ("add", v[0], (s,)),
            (
                "add negative",
                cs.add(cs.direction(-d.write[0].double() * float(d.intercept[0, 1]), layer=1), 1.0),
                (Write(1, lambda h, s=s: -s.delta(h)),),  # type: ignore[misc]
            ),
            ("ablation", *_one(flipped.make("ablate", seed=42))),
            ("target", *_one(flipped.make("to_target", seed=43))),
            ("response-only add", v[0].span("response"), (replace(s, span="response"),)),
        ]
        third, write_third = makers[-1].make("ablate", seed=44)
        mixed = v[0] + third
        variants.append(("mixed", mixed, (s, write_third)))
        for name, steer, writes in variants:
            request = cs.Request(tokens=tuple(text), intervention=steer, sampling=GREEDY)
            out.append(Case(f"shared {i} {name}", request, writes))
    return out


def _one(pair: tuple[Any, Write]) -> tuple[Any, tuple[Write, ...]]:
    return pair[0], (pair[1],)


def shared(all_cases: list[Case]) -> list[Case]:
    """The fourteen cases that share two prompts."""
    return [c for c in all_cases if c.name.startswith("shared")]


@dataclass(frozen=True)
class Expected:
    """Greedy tokens, log-probability of each, and by how much it beat the second (log-probabilities)."""

    tokens: list[int]
    logprobs: list[float]
    margins: list[float]


def judged(model: Any, case: Case, tokens: list[int]) -> Expected:
    """What plain hooks on one pass over a request and `tokens` make of every position: the greedy choice there.

    The pass is causal, so where the choice at every position is the token that follows, `tokens` are what generating
    them one by one would have given.
    """
    prompt, text = len(case.tokens), [*case.tokens, *tokens[:-1]]
    with plain_hooks(model, case.writes, prompt), torch.inference_mode():
        rows = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, prompt - 1 :].log_softmax(1)
    best = rows.topk(2)
    margins = (best.values[:, 0] - best.values[:, 1]).tolist()
    return Expected(best.indices[:, 0].tolist(), best.values[:, 0].tolist(), margins)


_KNOWN: dict[tuple[int, str], Expected] = {}


def expected(model: Any, case: Case, guess: Sequence[int] = ()) -> Expected:
    """What plain hooks on passes over the whole text make of a request.

    `guess`: tokens that may be right; if one pass confirms each of them, nothing is generated.
    """
    key = id(model), case.name
    if key in _KNOWN:
        return _KNOWN[key]
    text = list(guess)
    if len(text) == NEW:
        found = judged(model, case, text)
        if found.tokens == text:
            return _KNOWN.setdefault(key, found)
    text = []
    for _ in range(NEW):
        text = [*text, judged(model, case, [*text, 0]).tokens[-1]]
    return _KNOWN.setdefault(key, judged(model, case, text))


def agree(want: Expected, tokens: list[int]) -> tuple[int, bool]:
    """(tokens that agree, whether a difference is explained by a margin below MARGIN)."""
    for i, (a, b) in enumerate(zip(want.tokens, tokens, strict=True)):
        if a != b:
            return i, want.margins[i] < MARGIN
    return len(tokens), True


def receipts(model: Any, case: Case, generated: list[int]) -> dict[int, dict[str, float]]:
    """Per edited layer: tokens seen and changed, mean and max |h' - h| / |h| (position 0 left out), from one pass over
    the text as it was read."""
    text = [*case.tokens, *generated[:-1]]
    prompt, out = len(case.tokens), {}
    layers = decoder_layers(model)
    for layer in sorted({w.layer for w in case.writes}):
        seen: list[Tensor] = []

        def first(module: Any, args: Any, output: Any, seen: list[Tensor] = seen) -> None:
            seen.append((output[0] if isinstance(output, tuple) else output)[0].clone())

        handle = layers[layer].register_forward_hook(first)
        with plain_hooks(model, case.writes, prompt), torch.inference_mode():
            last = layers[layer].register_forward_hook(first)
            model(input_ids=torch.tensor([text]), use_cache=False)
            last.remove()
        handle.remove()
        before, after = seen
        positions = torch.arange(len(text))
        inside = torch.zeros(len(text), dtype=torch.bool)
        for w in case.writes:
            if w.layer == layer:
                inside |= in_span(w.span, positions, prompt)
        moved = (after - before).norm(dim=1)
        relative = (moved / before.norm(dim=1))[inside & (positions > 0)]
        out[layer] = {
            "seen": int(inside.sum()),
            "changed": int((inside & (moved > 1e-6 * before.norm(dim=1))).sum()),
            "mean": float(relative.mean()) if len(relative) else 0.0,
            "max": float(relative.max()) if len(relative) else 0.0,
        }
    return out


def save_sae(folder: Path, *, layer: int, seed: int, width: int = WIDTH, latents: int = 300) -> Path:
    """A ReLU SAE of random weights, in SAELens's format."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (width, latents), "W_dec": (latents, width), "b_enc": (latents,), "b_dec": (width,)}
    folder.mkdir(exist_ok=True)
    save_file({k: torch.randn(s, generator=g) for k, s in shapes.items()}, folder / "sae_weights.safetensors")
    hook = f"blocks.{layer}.hook_resid_post"
    about = {"architecture": "standard", "d_in": width, "d_sae": latents, "hook_name": hook}
    (folder / "cfg.json").write_text(json.dumps(about))
    return folder


def maxima(folder: Path, residuals: Sequence[Tensor]) -> Tensor:
    """The largest activation of each of its latents on each text, position 0 left out, from the tensors in float64."""
    w = {k: v.double() for k, v in load_file(folder / "sae_weights.safetensors").items()}
    x = [(h.double()[1:] - w["b_dec"]) @ w["W_enc"] + w["b_enc"] for h in residuals]
    return torch.stack([v.clamp_min(0).amax(0) for v in x])


def readouts() -> list[Any]:
    """A direction at layer 2 and two latents at layers 2 and 0."""
    g = torch.Generator().manual_seed(77)
    rows = torch.randn(3, WIDTH, generator=g, dtype=torch.float64)
    return [
        cs.direction(rows[0], layer=2),
        cs.edits.Latent(1, cs.Site(0), rows[1] / rows[1].norm(), 0.2, rows[1], threshold=0.1),
        cs.edits.Latent(2, cs.Site(2), rows[2] / rows[2].norm(), -0.1, rows[2], threshold=0.0),
    ]
