"""A small world with known truth for tests of studies: an SAE on disk, prompts, and a script that answers them.

Stronger steering makes off-topic answers likelier, and some answers restart; what a request is answered depends on the
request alone, so every number of a run can be computed independently.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from countersteer.core.request import Request
from countersteer.engines.scripted import ScriptedEngine, Shape
from countersteer.sources.sae import load_sae
from countersteer.studies.setup import Tools

D_MODEL, D_SAE, LAYER, LAYERS = 16, 40, 2, 4
TOPICS = {
    "How do I iron a shirt?": "Heat the iron on the cotton setting. Lay the shirt flat. Press the collar with steam.",
    "How do I bake bread?": "Mix flour with yeast. Knead the dough until smooth. Bake the loaf in a hot oven.",
    "How do I plant tulips?": "Dig a hole in the soil. Set the bulb with its tip up. Water the flower bed in spring.",
    "How do I fix a flat tyre?": "Lift the bicycle wheel. Pull the inner tube out. Patch the hole with rubber glue.",
    "How do I tie a bow tie?": "Cross the silk ends at the neck. Fold one into a loop. Tighten the knot at the throat.",
    "How do I wash a dog?": "Brush the fur before the bath. Rub in the shampoo. Rinse the puppy with warm water.",
    "How do I paint a wall?": "Cover the floor with sheets. Roll the paint up the plaster. Trim edges with a brush.",
    "How do I tune a guitar?": "Pluck the lowest string. Turn its peg until the pitch fits. Repeat for every chord.",
}
OFF_TOPIC = "The moon pulls the ocean so that tides rise twice. Sailors read a chart of the harbour before dawn."
RESTART = " Wait, that is not right. Let me try again. "


def write_sae(folder: Path, *, labelled: bool = True, d_model: int = D_MODEL) -> Path:
    """A ReLU SAE in SAELens's folder format; every second latent is rated concrete."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(3)
    save_file(
        {
            "W_enc": draw.normal(size=(d_model, D_SAE)).astype(np.float32),
            "b_enc": np.full(D_SAE, -12.0, np.float32),  # rarely active
            "W_dec": draw.normal(size=(D_SAE, d_model)).astype(np.float32),
            "b_dec": np.zeros(d_model, np.float32),
        },
        folder / "sae_weights.safetensors",
    )
    config = {
        "architecture": "standard",
        "d_in": d_model,
        "d_sae": D_SAE,
        "dtype": "float32",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": {"hook_name": f"blocks.{LAYER}.hook_resid_post", "model_name": "scripted"},
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    if labelled:
        rows = [f"{i},topic {i},{90 if i % 2 else 10}" for i in range(D_SAE)]
        (folder / "labels.csv").write_text("index,label,concreteness\n" + "\n".join(rows) + "\n")
    return folder


def relative_strength(request: Request, unit: dict[float, float] | None = None) -> float:
    """How long the write is, against a residual of typical length 4 (= sqrt(d_model))."""
    if request.intervention is None:
        return 0.0
    adds = [edit for edit in request.intervention.edits if edit.method == "add"]
    return sum(float(abs(e.intercept[0, 0]) * e.write[0].norm()) for e in adds) / 4.0


def answer(request: Request) -> str:
    """On topic below the threshold of the request's own luck, off topic above it; restarts with the suffix or luck."""
    luck = random.Random(f"{request.sampling.seed}/{request.prompt}")
    question = next(q for q in TOPICS if (request.prompt or "").startswith(q))
    on_topic = TOPICS[question]
    drift = relative_strength(request) * luck.uniform(0.6, 1.6) > 0.9
    restarts = luck.random() < (0.7 if "drifting" in (request.prompt or "") else 0.3)
    recovers = luck.random() < 0.5
    if not drift:
        return on_topic
    return OFF_TOPIC + (RESTART + (on_topic if recovers else OFF_TOPIC) if restarts else "")


def tools(sae: Path, **options: Any) -> Tools:
    """The scripted engine and the SAE of this world."""
    script = options.pop("script", answer)
    return Tools(ScriptedEngine(script, shape=Shape(LAYERS, D_MODEL), **options), load_sae(sae))


def study(folder: Path, *, arms: str = "[arms.base]\n", latents: str = "count = 6\n", more: str = "") -> Path:
    """A study file of this world with its SAE and prompts beside it."""
    write_sae(folder / "sae")
    (folder / "prompts.txt").write_text("\n".join(TOPICS) + "\n")
    path = folder / "study.toml"
    path.write_text(
        f'[study]\nmodel = "scripted"\nsae = "sae"\n[latents]\n{latents}[trials]\nprompts = "prompts.txt"\n'
        f"per_latent = 4\n[judge]\nreferences = 3\n{more}{arms}"
    )
    return path
