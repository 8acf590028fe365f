"""Writes the golden SAE folders next to this file, with SAELens itself (`pip install sae-lens==6.54.*`).

Each folder holds `cfg.json` and `sae_weights.safetensors` as SAELens saved them, and `expected.safetensors`: residuals
`h`, SAELens's own activations `acts` of them, and `clamped.LATENT.VALUE`, the residuals after that latent was set to
that value in those activations, decoded, and the reconstruction error added back (encode, modify, decode + error). All
of it is computed by SAELens in float64, so that float32 arithmetic can be judged against it.

Weights and residuals are multiples of 1/8 wherever a case needs x to be exactly at a threshold: sums of their products
are exact in every order, in float32 too. Run: `python make.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sae_lens.saes.transcoder import Transcoder, TranscoderConfig
from safetensors.torch import save_file

HERE = Path(__file__).parent
D_IN, D_SAE, TOKENS = 16, 32, 12
VALUES = (0.0, 2.5, 0.0)


def metadata(hook: str = "blocks.4.hook_resid_post") -> SAEMetadata:
    return SAEMetadata(model_name="golden", hook_name=hook, hook_head_index=None, prepend_bos=True, context_size=64)


def eighths(random: torch.Generator, *shape: int, top: int = 8) -> torch.Tensor:
    """Random multiples of 1/8 between -top/8 and top/8."""
    return torch.randint(-top, top + 1, shape, generator=random).float() / 8


def fill(sae: SAE, random: torch.Generator, *, dyadic: bool) -> None:
    """Random weights for every parameter; thresholds are spread around 0, negative ones included."""
    with torch.no_grad():
        for name, parameter in sorted(sae.named_parameters()):
            shape = parameter.shape
            values = eighths(random, *shape) if dyadic else torch.randn(shape, generator=random) * 0.5
            if name == "r_mag":
                values = torch.zeros(shape) if dyadic else torch.randn(shape, generator=random) * 0.4
            if name == "threshold" and not dyadic:
                values = torch.randn(shape, generator=random) * 0.5 + 0.5
            parameter.copy_(values.to(parameter.dtype))


def residuals(sae: SAE, random: torch.Generator, *, dyadic: bool) -> torch.Tensor:
    return eighths(random, TOKENS, D_IN, top=16) if dyadic else torch.randn(TOKENS, D_IN, generator=random) * 2


def expected(folder: Path, h: torch.Tensor, latents: list[int]) -> dict[str, torch.Tensor]:
    """SAELens's answers for the SAE it saved in `folder`, in float64; three latents are clamped."""
    sae = SAE.load_from_disk(folder, dtype="float64")
    with torch.no_grad():
        acts = sae.encode(h.double())
        error = h.double() - sae.decode(acts)
        out = {"h": h, "acts": acts}
        for latent, value in zip(latents, VALUES, strict=True):
            changed = acts.clone()
            changed[:, latent] = value
            out[f"clamped.{latent}.{value}"] = sae.decode(changed) + error
    return out


def write(name: str, sae: SAE, seed: int, *, dyadic: bool = False) -> None:
    random = torch.Generator().manual_seed(seed)
    fill(sae, random, dyadic=dyadic)
    h = residuals(sae, random, dyadic=dyadic)
    latents = [3, 5, 7]
    if dyadic and isinstance(sae, JumpReLUSAE):
        # put x of token 0 exactly at the threshold of every latent whose x is above 0, as SAELens computes x
        with torch.no_grad():
            x = sae.process_sae_in(h) @ sae.W_enc + sae.b_enc
            sae.threshold.copy_(torch.where(x[0] > 0, x[0], sae.threshold))
            latents = [*(x[0] > 0).nonzero()[:2, 0].tolist(), int((x[0] <= 0).nonzero()[0])]
    if dyadic and isinstance(sae, GatedSAE):
        # put the gate's pre-activation of token 0 exactly at 0 for every even latent
        with torch.no_grad():
            z = sae.process_sae_in(h) @ sae.W_enc
            even = torch.arange(D_SAE) % 2 == 0
            sae.b_gate.copy_(torch.where(even, -z[0], sae.b_gate))
            latents = [*(even & (z[0] + sae.b_mag > 0)).nonzero()[:2, 0].tolist(), 7]
    folder = HERE / name
    sae.save_model(folder)
    save_file(expected(folder, h, latents), folder / "expected.safetensors")


def main() -> None:
    kinds = {"relu": (StandardSAE, StandardSAEConfig), "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig)}
    kinds["gated"] = (GatedSAE, GatedSAEConfig)
    seed = 0
    for name, (sae_class, config_class) in kinds.items():
        for applied in (True, False):
            seed += 1
            label = f"{name}-{'b_dec' if applied else 'plain'}"
            config = config_class(d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=applied, metadata=metadata())
            write(label, sae_class(config), seed)
            config = config_class(d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=applied, metadata=metadata())
            write(f"{label}-exact", sae_class(config), 100 + seed, dyadic=True)
    for dtype in ("bfloat16", "float16"):
        seed += 1
        config = JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE, dtype=dtype, metadata=metadata("blocks.5.hook_resid_pre"))
        write(f"jumprelu-{dtype}", JumpReLUSAE(config), seed)
    config = StandardSAEConfig(d_in=D_IN, d_sae=D_SAE, metadata=metadata(), normalize_activations="none")
    norm(config, seed + 1)
    write("topk", TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4, metadata=metadata())), seed + 2)
    transcoder(seed + 3)


def norm(config: StandardSAEConfig, seed: int) -> None:
    """An unfolded activation norm as a SAELens checkpoint has it; expected values from the SAE folded by SAELens."""
    factor = 0.375
    sae, random, folder = StandardSAE(config), torch.Generator().manual_seed(seed), HERE / "relu-norm"
    fill(sae, random, dyadic=False)
    h = residuals(sae, random, dyadic=False)
    sae.cfg.normalize_activations = "expected_average_only_in"
    sae.save_model(folder)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": factor, "has_whitening": False}))
    sae = sae.to(torch.float64)
    sae.fold_activation_norm_scaling_factor(factor)
    sae.cfg.dtype = "float64"
    sae.save_model(folder / "folded")
    save_file(expected(folder / "folded", h, [3, 5, 7]), folder / "expected.safetensors")
    for path in (folder / "folded").iterdir():
        path.unlink()
    (folder / "folded").rmdir()


def transcoder(seed: int) -> None:
    config = TranscoderConfig(
        d_in=D_IN, d_sae=D_SAE, d_out=D_IN, apply_b_dec_to_input=False, metadata=metadata("blocks.4.hook_mlp_in")
    )
    config.metadata.hook_name_out = "blocks.4.hook_mlp_out"
    sae = Transcoder(config)
    fill(sae, torch.Generator().manual_seed(seed), dyadic=False)
    sae.save_model(HERE / "transcoder")


if __name__ == "__main__":
    main()
