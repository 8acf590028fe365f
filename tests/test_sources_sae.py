"""Reading an SAE in parts: chosen rows, streamed pooling, memory, and the errors of files that cannot be used."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from countersteer.core.errors import InputError, RefusedError
from countersteer.sources import encode as encoding
from countersteer.sources.sae import load_sae
from countersteer.sources.tensorfile import TensorFile, write_tensors

GOLDEN = Path(__file__).parent / "data" / "saelens"


def make_sae(folder: Path, *, d: int = 8, n: int = 40, dtype=torch.float32, **config) -> dict[str, torch.Tensor]:
    """A ReLU SAE with random weights in `folder`; returns its tensors."""
    random = torch.Generator().manual_seed(d * n)
    shapes = {"W_enc": (d, n), "W_dec": (n, d), "b_enc": (n,), "b_dec": (d,)}
    tensors = {name: torch.randn(shape, generator=random).to(dtype) for name, shape in shapes.items()}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    raw = {"architecture": "standard", "d_in": d, "d_sae": n, "metadata": {"hook_name": "blocks.2.hook_resid_post"}}
    raw |= config
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))
    return tensors


def relu(h: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    """SAELens's formula for a ReLU SAE with b_dec applied, in float64."""
    return ((h.double() - w["b_dec"].double()) @ w["W_enc"].double() + w["b_enc"].double()).clamp_min(0)


# chosen rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("chosen", [[0], [39999], [5, 39999, 0], [17, 18, 19, 20], [7, 7], list(range(0, 40000, 900))])
def test_chosen_columns_and_rows_are_those_of_the_file(tmp_path, dtype, chosen):
    """Scattered reads, reads of neighbours and reads of whole row blocks give the same columns."""
    w = make_sae(tmp_path, d=6, n=40000, dtype=dtype)
    file = TensorFile.open(tmp_path / "sae_weights.safetensors")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert torch.equal(torch.from_numpy(file.columns("W_enc", chosen)), w["W_enc"][:, chosen].to(wide))
    assert torch.equal(torch.from_numpy(file.rows("W_dec", chosen)), w["W_dec"][chosen].to(wide))
    assert torch.equal(torch.from_numpy(file.column_block("W_enc", 3, 1003)), w["W_enc"][:, 3:1003].to(wide))


def test_row_blocks_cover_a_matrix_larger_than_the_buffer(tmp_path):
    w = make_sae(tmp_path, d=40, n=20000)
    blocks = list(TensorFile.open(tmp_path / "sae_weights.safetensors").row_blocks("W_dec"))
    assert len(blocks) > 2
    assert torch.equal(torch.from_numpy(np.concatenate([b for _, b in blocks])), w["W_dec"])
    assert [start for start, _ in blocks] == np.cumsum([0, *[len(b) for _, b in blocks[:-1]]]).tolist()


def test_written_tensors_are_read_by_the_safetensors_library(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    words = (values.view(np.uint32) >> 16).astype(np.uint16)
    path = tmp_path / "w.safetensors"
    write_tensors(path, {"a": ("F32", (3, 4), iter([values[:1], values[1:]])), "b": ("BF16", (3, 4), iter([words]))})
    read = load_file(path)
    assert torch.equal(read["a"], torch.from_numpy(values))
    assert torch.equal(read["b"].float(), torch.from_numpy(values)) and read["b"].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="bytes were given"):
        write_tensors(path, {"a": ("F32", (3, 4), iter([values[:1]]))})


def test_decoder_norms_are_those_of_the_rows(tmp_path):
    w = make_sae(tmp_path, d=40, n=20000, dtype=torch.bfloat16)
    expected = w["W_dec"].double().pow(2).sum(1).sqrt()
    assert torch.allclose(torch.from_numpy(load_sae(tmp_path).decoder_norms()), expected, rtol=1e-12)


def test_a_topk_decoder_row_is_a_direction_but_no_latent():
    sae = load_sae(GOLDEN / "topk")
    rows = load_file(GOLDEN / "topk" / "sae_weights.safetensors")["W_dec"]
    assert torch.equal(sae.direction(4).vector, rows[4]) and sae.direction(4).site == sae.site
    for use in (
        lambda: sae.latent(4),
        lambda: sae.encode(torch.zeros(1, 16)),
        lambda: sae.max_activations([torch.zeros(2, 16)]),
    ):
        with pytest.raises(RefusedError, match="JumpReLU"):
            use()


# pooling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [1 << 20, 8 * 4 * 10, 1])
@pytest.mark.parametrize("tile", [1 << 20, 7 * 4 * 3, 1])
@pytest.mark.parametrize("skip_first", [True, False])
def test_max_activations_equal_the_maximum_of_encode(tmp_path, monkeypatch, held, tile, skip_first):
    """Whatever the batches and tiles, texts longer than a batch and texts that share a tile included."""
    monkeypatch.setattr(encoding, "HELD_BYTES", held)
    monkeypatch.setattr(encoding, "TILE_BYTES", tile)
    w = make_sae(tmp_path)
    random = torch.Generator().manual_seed(3)
    texts = [torch.randn(n, 8, generator=random) for n in (2, 25, 3, 2 if skip_first else 1, 12)]
    texts[0][0] *= 1e4  # a BOS with a huge norm
    done = []
    got = load_sae(tmp_path).max_activations(texts, skip_first=skip_first, chunk=9, progress=done.append)
    expected = torch.stack([relu(t, w)[1 if skip_first else 0 :].amax(0) for t in texts])
    assert got.shape == (len(texts), 40) and got.dtype == np.float32
    assert torch.allclose(torch.from_numpy(got).double(), expected, rtol=1e-4, atol=1e-5)
    assert (got == 0).any() and (got > 0).any()
    assert done == sorted(done) and done[-1] == len(texts)


@pytest.mark.parametrize("name", ["jumprelu-b_dec-exact", "gated-b_dec-exact", "jumprelu-bfloat16"])
def test_max_activations_keep_thresholds(name):
    sae, e = load_sae(GOLDEN / name), load_file(GOLDEN / name / "expected.safetensors")
    texts = [e["h"][:5], e["h"][3:12]]
    expected = torch.stack([e["acts"][1:5].amax(0), e["acts"][4:12].amax(0)])
    assert torch.allclose(torch.from_numpy(sae.max_activations(iter(texts))).double(), expected, atol=1e-5)
    first_only = torch.from_numpy(sae.max_activations([e["h"][:1]], skip_first=False))
    assert torch.allclose(first_only[0].double(), e["acts"][0], atol=1e-5)


def test_max_activations_take_half_precision_and_no_text(tmp_path):
    w = make_sae(tmp_path)
    h = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    got = load_sae(tmp_path).max_activations([h], skip_first=False)
    assert torch.allclose(torch.from_numpy(got[0]).double(), relu(h, w).amax(0), atol=1e-5)
    assert load_sae(tmp_path).max_activations([]).shape == (0, 40)


# memory --------------------------------------------------------------------------------------------------------------

MEASURE = """
import resource, sys, torch
from countersteer.edits.vectors import as_vector
from countersteer.sources import encode
from countersteer.sources.sae import load_sae
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
torch.zeros(64, 64) @ torch.zeros(64, 64)
sae = load_sae(sys.argv[1])
before = peak()
{work}
print(peak() - before)
"""


def growth_mb(folder: Path, work: str) -> float:
    """By how many MiB `work` raises the peak of a fresh process, after its imports."""
    run = subprocess.run([sys.executable, "-c", MEASURE.format(work=work), str(folder)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return float(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="2026-11: ru_maxrss is in KiB on Linux only")
def test_26_of_65536_latents_cost_a_few_megabytes(tmp_path):
    d, n = 512, 65536
    zeros = lambda *shape: iter([np.zeros(shape, np.uint16)])  # noqa: E731
    shapes = {"W_enc": (d, n), "W_dec": (n, d), "b_enc": (n,), "b_dec": (d,)}
    write_tensors(tmp_path / "sae_weights.safetensors", {k: ("BF16", s, zeros(*s)) for k, s in shapes.items()})
    config = {"architecture": "standard", "d_in": d, "d_sae": n, "hook_name": "blocks.0.hook_resid_post"}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    assert (tmp_path / "sae_weights.safetensors").stat().st_size > 125 << 20
    assert growth_mb(tmp_path, "assert len(sae.latents(range(0, 65536, 2521))) == 26") < 16


@pytest.mark.skipif(sys.platform != "linux", reason="2026-11: ru_maxrss is in KiB on Linux only")
def test_memory_of_pooling_does_not_grow_with_tokens(tmp_path):
    make_sae(tmp_path, d=16, n=8192)
    work = "encode.HELD_BYTES = 1 << 20; sae.max_activations(torch.zeros(10000, 16) + i for i in range({n}))"
    few, many = growth_mb(tmp_path, work.format(n=1)), growth_mb(tmp_path, work.format(n=6))
    assert few < 100  # 10,000 tokens x 8,192 latents would be 312 MiB
    assert many < few + 40


# bad input -----------------------------------------------------------------------------------------------------------


def copy(name: str, tmp_path: Path, **changes) -> Path:
    folder = tmp_path / "sae"
    shutil.copytree(GOLDEN / name, folder)
    cfg = json.loads((folder / "cfg.json").read_text())
    for key, value in changes.items():
        where = cfg["metadata"] if key.startswith("hook") else cfg
        where.pop(key, None) if value is ... else where.__setitem__(key, value)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


def refuses(folder: Path, *words: str, error: type[InputError] = InputError) -> None:
    with pytest.raises(error) as caught:
        load_sae(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "batchtopk"}, ["batchtopk", "JumpReLU"]),
        ({"architecture": "matching_pursuit"}, ["matching_pursuit"]),
        ({"architecture": "temporal"}, ["temporal", "earlier tokens"]),
        ({"architecture": "skip_transcoder"}, ["transcoder"]),
        ({"architecture": "mystery"}, ["mystery", "jumprelu"]),
        ({"normalize_activations": "layer_norm"}, ["layer_norm", "every token"]),
        ({"normalize_activations": "constant_norm_rescale"}, ["constant_norm_rescale"]),
        ({"normalize_activations": "covariance_whitening"}, ["covariance_whitening"]),
        ({"normalize_activations": "expected_average_only_in"}, ["factor", "activation_scaler.json"]),
        ({"reshape_activations": "hook_z"}, ["residual stream"]),
        ({"hook_name": "blocks.4.hook_mlp_out"}, ["hook_mlp_out", "hook_resid_post"]),
        ({"hook_name": "blocks.4.attn.hook_z"}, ["hook_z"]),
        ({"hook_name": "blocks.4.hook_resid_mid"}, ["hook_resid_mid"]),
        ({"hook_name": "blocks.0.hook_resid_pre"}, ["embedding"]),
        ({"hook_name": "hook_embed"}, ["hook_embed"]),
        ({"hook_head_index": 3}, ["residual stream"]),
        ({"hook_name_out": "blocks.4.hook_mlp_out"}, ["transcoder"]),
        ({"activation_fn_str": "topk"}, ["TopK"]),
        ({"activation_fn_str": "tanh-relu"}, ["tanh-relu"]),
        ({"finetuning_scaling_factor": True}, ["finetuning_scaling_factor"]),
    ],
)
def test_what_is_no_edit_of_the_residual_stream_is_refused_by_name(tmp_path, changes, words):
    folder = copy("relu-plain", tmp_path, **changes)
    if "TopK" in words:
        with pytest.raises(RefusedError, match="TopK"):
            load_sae(folder).latent(0)
    else:
        refuses(folder, *words, error=RefusedError)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"d_in": ...}, ["'d_in'", "lacks"]),
        ({"d_sae": ...}, ["'d_sae'", "lacks"]),
        ({"hook_name": ...}, ["hook_name", "lacks"]),
        ({"d_in": 17}, ["shape [16, 32]", "[17, 32]"]),
        ({"d_sae": 31}, ["W_enc"]),
        ({"d_in": "16"}, ["whole number", "'16'"]),
        ({"d_sae": True}, ["whole number"]),
        ({"apply_b_dec_to_input": "yes"}, ["true or false"]),
        ({"architecture": "jumprelu"}, ["no tensor 'threshold'"]),
    ],
)
def test_a_bad_configuration_is_named(tmp_path, changes, words):
    refuses(copy("relu-plain", tmp_path, **changes), *words)


def test_weights_of_another_architecture_than_the_configuration_says_are_refused(tmp_path):
    refuses(copy("jumprelu-plain", tmp_path, architecture="standard"), "threshold", "architecture", error=RefusedError)


def test_missing_and_malformed_files_are_named(tmp_path):
    refuses(tmp_path / "nowhere", "nowhere", "cfg.json")
    refuses(tmp_path, "cfg.json", "No such file")
    folder = copy("relu-plain", tmp_path)
    (folder / "cfg.json").write_text("{")
    refuses(folder, "not valid JSON")
    (folder / "cfg.json").write_text("[1]")
    refuses(folder, "one JSON object")
    (folder / "cfg.json").write_bytes(b"\xff\xfe")
    refuses(folder, "cfg.json")
    shutil.copy(GOLDEN / "relu-plain" / "cfg.json", folder)
    (folder / "sae_weights.safetensors").unlink()
    refuses(folder, "sae_weights.safetensors", "No such file")


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 1000, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    folder = copy("relu-plain", tmp_path)
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refuses(folder, "truncated")


def test_a_file_that_shrinks_after_it_was_opened_is_refused(tmp_path):
    folder = copy("relu-plain", tmp_path)
    sae, path = load_sae(folder), folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="truncated"):
        sae.latents(range(32))


@pytest.mark.parametrize(
    "header",
    [
        b"nonsense",
        b"[]",
        b'{"W_enc": 1}',
        b'{"W_enc": {"dtype": "F8_E4M3", "shape": [16, 32], "data_offsets": [0, 512]}}',
        b'{"W_enc": {"dtype": "F32", "shape": [16, 32], "data_offsets": [0, 4]}}',
        b'{"W_enc": {"dtype": "F32", "shape": [16, -32], "data_offsets": [0, 4]}}',
        b'{"W_enc": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b'{"W_enc": {"shape": [1], "data_offsets": [0, 4]}}',
    ],
)
def test_a_malformed_header_is_refused(tmp_path, header):
    folder = copy("relu-plain", tmp_path)
    data = len(header).to_bytes(8, "little") + header + bytes(4096)
    (folder / "sae_weights.safetensors").write_bytes(data)
    refuses(folder, "malformed")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_non_finite_weights_are_refused_when_they_are_used(tmp_path, name, value):
    folder = copy("relu-b_dec", tmp_path)
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    where = {"W_enc": (2, 5), "W_dec": (5, 2), "b_enc": (5,), "b_dec": (2,)}[name]
    tensors[name][where] = value
    save_file(tensors, path)
    with pytest.raises(InputError, match=f"{name} holds NaN or infinite"):
        load_sae(folder).latent(5)
    if name == "W_dec":
        with pytest.raises(InputError, match="W_dec"):
            load_sae(folder).decoder_norms()
    else:
        with pytest.raises(InputError, match=name):
            load_sae(folder).encode(torch.zeros(1, 16))


def test_indices_out_of_range_or_of_another_type_are_refused():
    sae = load_sae(GOLDEN / "relu-plain")
    for index in (32, -1, 10**9):
        with pytest.raises(InputError, match=f"latent {index} is out of range.*0 to 31"):
            sae.latent(index)
    for index in (1.0, True, "3", None):
        with pytest.raises(InputError, match="whole number"):
            sae.latents([index])
    with pytest.raises(InputError, match=r"sae\.latent takes one"):
        sae.latents(3)
    assert sae.latents(np.array([3, 9]))[1].index == 9
    assert sae.latents([]) == ()


def test_residuals_of_another_width_are_refused():
    sae = load_sae(GOLDEN / "relu-plain")
    for use in (sae.encode, lambda h: sae.max_activations([h])):
        with pytest.raises(InputError, match=r"15 wide but SAE .* is 16 wide"):
            use(torch.zeros(3, 15))
        with pytest.raises(InputError, match=r"\[tokens, d_model\]"):
            use(torch.zeros(16))
        with pytest.raises(InputError, match="NaN"):
            use(torch.full((3, 16), float("nan")))
    with pytest.raises(InputError, match="text 1 has no position besides the first"):
        sae.max_activations([torch.zeros(2, 16), torch.zeros(1, 16)])
    with pytest.raises(InputError, match="text 0 has no token"):
        sae.max_activations([torch.zeros(0, 16)], skip_first=False)
    with pytest.raises(InputError, match=r"16 wide but org/model is 4096 wide"):
        sae.require_width(4096, model="org/model")
    sae.require_width(16)


# layouts and fingerprints --------------------------------------------------------------------------------------------


def test_the_flat_layout_of_saelens_5_is_read(tmp_path):
    w = make_sae(
        tmp_path, metadata=..., architecture=..., hook_name="blocks.7.hook_resid_pre", hook_layer=7, model_name="gpt2",
        activation_fn_str="relu", normalize_activations=False, finetuning_scaling_factor=False, hook_head_index=None,
    )  # fmt: skip
    sae = load_sae(tmp_path)
    assert (str(sae.site), sae.architecture, sae.config.subtract_b_dec, sae.config.model) == (
        "resid_post.6", "standard", True, "gpt2",
    )  # fmt: skip
    h = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert (sae.encode(h.double()) - relu(h, w)).abs().max() < 1e-12
    save_file(w | {"scaling_factor": torch.ones(40)}, tmp_path / "sae_weights.safetensors")
    assert (load_sae(tmp_path).encode(h.double()) - relu(h, w)).abs().max() < 1e-12
    save_file(w | {"scaling_factor": torch.full((40,), 2.0)}, tmp_path / "sae_weights.safetensors")
    refuses(tmp_path, "scaling_factor", error=RefusedError)


@pytest.mark.parametrize("hook", ["model.layers.3", "gpt_neox.layers.3", "transformer.h.3", "blocks.3.hook_out"])
def test_module_names_of_a_layer_are_its_output(tmp_path, hook):
    assert load_sae(copy("relu-plain", tmp_path, hook_name=hook)).site.layer == 3


def test_the_fingerprint_follows_content_and_conventions(tmp_path):
    first = load_sae(GOLDEN / "relu-plain").fingerprint
    same = copy("relu-plain", tmp_path, device="cuda")
    assert load_sae(same).fingerprint == first
    assert load_sae(copy("relu-plain", tmp_path / "a", apply_b_dec_to_input=True)).fingerprint != first
    assert load_sae(copy("relu-plain", tmp_path / "b", hook_name="blocks.5.hook_resid_post")).fingerprint != first
    path = same / "sae_weights.safetensors"
    tensors = load_file(path)
    tensors["b_enc"][31] += 1e-6
    save_file(tensors, path)
    assert load_sae(same).fingerprint != first


def test_opening_an_sae_imports_no_torch():
    code = (
        "import sys; from countersteer.sources.sae import load_sae; "
        f"sae = load_sae({str(GOLDEN / 'relu-plain')!r}); sae.decoder_norms(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
