"""Torch files converted into SAE folders, what is refused of them, and contrasts of two sets."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from countersteer.core.errors import InputError
from countersteer.sources import torchfile
from countersteer.sources.contrast import mean_difference
from countersteer.sources.fetch import fetch
from countersteer.sources.sae import load_sae


def goodfire(path: Path, *, d=8, n=40, dtype=torch.float32, old_format=False, **changes) -> dict[str, torch.Tensor]:
    """A torch file in Goodfire's layout."""
    random = torch.Generator().manual_seed(1)
    shapes = {"encoder_linear.weight": (n, d), "encoder_linear.bias": (n,)}
    shapes |= {"decoder_linear.weight": (d, n), "decoder_linear.bias": (d,)}
    tensors = {name: torch.randn(shape, generator=random).to(dtype) for name, shape in shapes.items()}
    tensors = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
    torch.save(tensors, path, _use_new_zipfile_serialization=not old_format)
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [128 << 20, 400])
@pytest.mark.parametrize("old_format", [False, True])
def test_a_goodfire_file_gives_the_latents_of_its_linear_layers(tmp_path, monkeypatch, dtype, block, old_format):
    monkeypatch.setattr(torchfile, "_BLOCK", block)
    path = tmp_path / "Some-SAE-l50.pt"
    w = goodfire(path, dtype=dtype, old_format=old_format)
    sae = fetch(path, layer=50, model="org/model", out=tmp_path / "new" / "sae")
    assert str(sae.site) == "resid_post.50" and sae.config.model == "org/model"
    assert sae.dtype == {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    h = torch.randn(5, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = (h @ w["encoder_linear.weight"].double().T + w["encoder_linear.bias"].double()).clamp_min(0)
    assert (sae.encode(h) - expected).abs().max() < 1e-12
    assert torch.equal(sae.latent(39).write, w["decoder_linear.weight"][:, 39].float())
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["sae"]
    again = load_sae(tmp_path / "new" / "sae")
    assert again.fingerprint == sae.fingerprint


def one_line(words: str, *args, **kwargs) -> None:
    with pytest.raises(InputError, match=words) as caught:
        fetch(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_a_torch_file_that_does_not_fit_is_refused_and_leaves_nothing(tmp_path):
    out = tmp_path / "sae"
    path = tmp_path / "x-l7.pt"
    goodfire(path)
    one_line(r"layer=N \(its name suggests 7\)", path, out=out)
    one_line("layer must be", path, layer=-1, out=out)
    one_line("takes no SAE id", path, "some-id", layer=1, out=out)
    one_line("more than the limit", path, layer=1, out=out, max_gb=1e-9)
    goodfire(path, **{"decoder_linear.bias": None})
    one_line(r"lacks decoder_linear\.bias", path, layer=1, out=out)
    goodfire(path, **{"decoder_linear.weight": torch.zeros(40, 8)})
    one_line("do not fit together", path, layer=1, out=out)
    goodfire(path, **{"encoder_linear.weight": torch.zeros(40, 8, dtype=torch.int8)})
    one_line("int8", path, layer=1, out=out)
    goodfire(path, **{"decoder_linear.weight": torch.full((8, 40), float("nan"))})
    one_line("W_dec holds NaN", path, layer=1, out=out)
    torch.save([1, 2], path)
    one_line("lacks encoder_linear", path, layer=1, out=out)
    path.write_bytes(b"not a torch file")
    one_line("cannot be read", path, layer=1, out=out)
    one_line("no file at", tmp_path / "none.pt", layer=1, out=out)
    assert [p.name for p in tmp_path.iterdir()] == ["x-l7.pt"]


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


def test_a_torch_file_cannot_run_code(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"encoder_linear.weight": Evil(tmp_path / "ran")}, path)
    one_line("cannot be read", path, layer=1, out=tmp_path / "sae")
    path.write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    one_line("cannot be read", path, layer=1, out=tmp_path / "sae")
    assert not (tmp_path / "ran").exists()


def test_nothing_is_overwritten(tmp_path):
    path, out = tmp_path / "a.pt", tmp_path / "sae"
    goodfire(path)
    out.mkdir()
    fetch(path, layer=1, out=out)  # an empty folder is fine
    before = (out / "cfg.json").read_bytes()
    one_line("exists already", path, layer=2, out=out)
    assert (out / "cfg.json").read_bytes() == before
    one_line("exists already", path, layer=2, out=path)
    one_line("cannot write", path, layer=2, out=path / "below")


def test_a_release_needs_an_id_and_sae_lens(tmp_path, monkeypatch):
    one_line("needs the id", "gemma-scope-2b-pt-res-canonical", out=tmp_path / "sae")
    one_line("knows its own layer", "gemma-scope-2b-pt-res-canonical", "x", layer=3, out=tmp_path / "sae")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "sae_lens" else found(name, *a))
    one_line(r"pip install 'countersteer\[sae\]'", "gemma-scope-2b-pt-res-canonical", "x", out=tmp_path / "sae")
    assert not list(tmp_path.iterdir())


def test_the_written_configuration_is_plain_json_in_the_current_layout(tmp_path):
    path = tmp_path / "a.pt"
    goodfire(path)
    fetch(path, layer=3, out=tmp_path / "sae")
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["d_in"], cfg["d_sae"], cfg["apply_b_dec_to_input"]) == ("standard", 8, 40, False)
    assert cfg["metadata"]["hook_name"] == "blocks.3.hook_resid_post"


# contrasts -----------------------------------------------------------------------------------------------------------


def test_a_contrast_points_from_the_second_mean_to_the_first():
    random = torch.Generator().manual_seed(4)
    a, b = torch.randn(7, 5, generator=random), torch.randn(3, 5, generator=random)
    d = mean_difference(a, b.bfloat16(), layer=2, model="fp", label="x")
    expected = [sum(r[i].item() for r in a) / 7 - sum(r[i].item() for r in b.bfloat16()) / 3 for i in range(5)]
    assert d.vector.tolist() == pytest.approx(expected, abs=1e-6)
    assert (str(d.site), d.model, d.label) == ("resid_post.2", "fp", "x")


def test_a_contrast_that_is_no_direction_is_refused():
    a = torch.ones(2, 4)
    for positive, negative, words in [
        (a, a, "same mean"),
        (a, torch.ones(2, 5), "differ in width"),
        (a, torch.ones(0, 4), "negative set"),
        (torch.ones(4), a, "positive set"),
        (a * float("nan"), a, "NaN"),
    ]:
        with pytest.raises(InputError, match=words):
            mean_difference(positive, negative, layer=0)
