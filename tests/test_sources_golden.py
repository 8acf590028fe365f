"""Latents against SAELens itself: golden folders that it wrote, with its own encode and modified decode + error.

tests/data/saelens/make.py writes them. Expected values are float64; the float32 tolerance is that of sums of 16 terms.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from countersteer.edits.apply import apply
from countersteer.edits.methods import clamp
from countersteer.edits.vectors import read_rows
from countersteer.sources.sae import load_sae

GOLDEN = Path(__file__).parent / "data" / "saelens"
REFUSED = {"topk", "transcoder"}
FOLDERS = sorted(f.name for f in GOLDEN.iterdir() if f.is_dir() and f.name not in REFUSED)
EXACT = [name for name in FOLDERS if name.endswith("-exact")]
FLOAT32 = 2e-5


def golden(name: str):
    return load_sae(GOLDEN / name), load_file(GOLDEN / name / "expected.safetensors")


def clamps(expected):
    """(latent, value, residuals after it) for each clamp in the golden file."""
    found = [(key.split(".", 2), value) for key, value in expected.items() if key.startswith("clamped.")]
    assert len(found) == 3
    return [(int(latent), float(value), after) for (_, latent, value), after in found]


def test_all_architectures_are_covered_with_and_without_b_dec():
    for architecture in ("relu", "jumprelu", "gated"):
        for way in ("b_dec", "plain", "b_dec-exact", "plain-exact"):
            assert f"{architecture}-{way}" in FOLDERS
    assert load_sae(GOLDEN / "relu-plain").config.subtract_b_dec is False
    assert load_sae(GOLDEN / "relu-b_dec").config.subtract_b_dec is True


@pytest.mark.parametrize("name", FOLDERS)
def test_encode_equals_saelens(name):
    sae, expected = golden(name)
    h, acts = expected["h"], expected["acts"]
    assert 0.1 < (acts > 0).double().mean() < 0.9  # both kinds occur
    assert (sae.encode(h.double()) - acts).abs().max() < 1e-12
    single = sae.encode(h)
    assert single.dtype == torch.float32
    assert (single - acts).abs().max() < FLOAT32
    assert ((single > 0) == (acts > 0)).all()


@pytest.mark.parametrize("name", FOLDERS)
def test_each_latent_alone_reads_what_the_whole_encoder_says(name):
    sae, expected = golden(name)
    h, acts = expected["h"].double(), expected["acts"]
    order = [31, 0, 7, 30, 1]
    (rows,) = read_rows(sae.latents(order))
    assert (rows.values(h) - acts[:, order]).abs().max() < 1e-12
    alone = sae.latent(7)
    x = h @ alone.read.double() + alone.bias
    assert (torch.where(x > max(alone.threshold, 0), x, 0) - acts[:, 7]).abs().max() < 1e-12
    assert alone.sae == sae.fingerprint and alone.index == 7 and alone.site == sae.site


@pytest.mark.parametrize("name", FOLDERS)
def test_a_clamp_equals_encode_modify_decode_plus_error(name):
    sae, expected = golden(name)
    h = expected["h"]
    for latent, value, after in clamps(expected):
        edits = clamp(sae.latent(latent), value).edits
        assert (apply(h.double(), edits, layer=sae.site.layer) - after).abs().max() < 1e-12
        assert (apply(h, edits, layer=sae.site.layer) - after).abs().max() < FLOAT32


@pytest.mark.parametrize("name", EXACT)
def test_float32_is_exact_where_every_sum_is(name):
    """Multiples of 1/8: no rounding anywhere, so a wrong side of a threshold cannot hide in a tolerance."""
    sae, expected = golden(name)
    h = expected["h"]
    assert torch.equal(sae.encode(h).double(), expected["acts"])
    for latent, value, after in clamps(expected):
        changed = apply(h, clamp(sae.latent(latent), value).edits, layer=4)
        assert torch.equal(changed.double(), after)


@pytest.mark.parametrize("name", [n for n in EXACT if not n.startswith("relu")])
def test_a_latent_exactly_at_its_threshold_is_inactive(name):
    sae, expected = golden(name)
    first = expected["h"][0]
    at = [la for la in sae.latents(range(32)) if la.threshold > 0 and first @ la.read.float() + la.bias == la.threshold]
    assert len(at) >= 3
    assert (expected["acts"][0, [la.index for la in at]] == 0).all()  # SAELens says so
    assert (sae.encode(first[None])[0, [la.index for la in at]] == 0).all()
    tested = [(latent, value) for latent, value, _ in clamps(expected) if latent in {la.index for la in at}]
    assert {value for _, value in tested} == {0.0, 2.5}  # the clamp tests cover x at the threshold


def test_half_precision_rows_are_widened_exactly():
    for name in ("jumprelu-bfloat16", "jumprelu-float16"):
        sae = load_sae(GOLDEN / name)
        weights = load_file(GOLDEN / name / "sae_weights.safetensors")
        latent = sae.latent(9)
        assert latent.read.dtype == latent.write.dtype == torch.float32
        assert torch.equal(latent.read, weights["W_enc"][:, 9].float())
        assert torch.equal(latent.write, weights["W_dec"][9].float())
        assert latent.threshold == max(weights["threshold"][9].item(), 0.0)
        assert sae.dtype == {"jumprelu-bfloat16": "BF16", "jumprelu-float16": "F16"}[name]


def test_an_unfolded_activation_norm_is_folded_with_its_factor():
    sae, expected = golden("relu-norm")
    weights = load_file(GOLDEN / "relu-norm" / "sae_weights.safetensors")
    assert sae.config.norm_factor == 0.375
    assert torch.allclose(sae.latent(2).write.double(), weights["W_dec"][2].double() / 0.375, rtol=1e-15)
    assert (sae.encode(expected["h"].double()) - expected["acts"]).abs().max() < 1e-12
    norms = weights["W_dec"].double().norm(dim=1) / 0.375
    assert torch.allclose(torch.from_numpy(sae.decoder_norms()), norms, rtol=1e-12)


def test_resid_pre_of_a_layer_is_resid_post_of_the_one_before():
    assert str(load_sae(GOLDEN / "jumprelu-float16").site) == "resid_post.4"  # written as blocks.5.hook_resid_pre
    assert str(load_sae(GOLDEN / "relu-plain").site) == "resid_post.4"
