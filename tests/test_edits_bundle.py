"""Bundle files: an intervention written and read back bit for bit, and anything altered refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import countersteer as cs
from countersteer.core.errors import InputError
from countersteer.edits.bundle import Bundle

D = 12
PARTS = ("read", "bias", "write", "lo", "hi", "slope", "intercept")


def interventions() -> dict[str, cs.Intervention]:
    rng = np.random.default_rng(1)

    def d(layer: int = 3, dtype: type = np.float64) -> cs.edits.Direction:
        return cs.direction(rng.normal(size=D).astype(dtype), layer=layer)

    def latent(i: int) -> cs.edits.Latent:
        rows = torch.tensor(rng.normal(size=(2, D)), dtype=torch.float32)
        return cs.edits.Latent(i, cs.Site(3), rows[0], 0.1, rows[1], 0.3, sae="some-sae", label="näme")

    gate = cs.Gate(cs.Site(1), torch.tensor(rng.normal(size=(2, D))), 0.25, over="last", above=False)
    return {
        "add": cs.add(d(dtype=np.float32), 1 / 3).span("from(7)"),
        "fixed": cs.fixed(d(), 2.0, separation=0.7),
        "clamp": cs.clamp([latent(3), latent(9)], 1.5),
        "ablate": cs.ablate(latent(4), layer=8),
        "remove": cs.remove([d(), d(), d()]),
        "limit": cs.limit(d(), low=-0.1),
        "target": cs.to_target(d(), boundary=0.1, target=2.0).order(3),
        "mirror": cs.to_mirror(d(), boundary=0.1, strength=1.5).span("response"),
        "gated": cs.gated_add(d(), 2.0, gate=d(), threshold=-0.2),
        "contextual": cs.contextual_add(d(), weights=d(), bias=0.1),
        "mixed": (cs.add(d(), 1.0).span("prompt") + cs.remove(d(5)).span("generation")).gated(gate),
    }


@pytest.mark.parametrize("name", interventions())
def test_bundle_round_trips_bit_for_bit(name: str, tmp_path: Path) -> None:
    steer = interventions()[name]
    meta = {"model": "m", "fit": {"auc": 0.1 + 0.2, "n": 3}, "note": "ünïcode"}
    path = cs.save_bundle(Bundle("my defence", steer, "2.1", meta), tmp_path / "a.safetensors")
    back = cs.load_bundle(path)
    assert (back.name, back.version, dict(back.meta)) == ("my defence", "2.1", meta)
    assert back.intervention.fingerprint == steer.fingerprint
    assert len(back.intervention.edits) == len(steer.edits)
    for a, b in zip(steer.edits, back.intervention.edits, strict=True):
        for part in PARTS:
            x, y = getattr(a, part), getattr(b, part)
            assert (x is None) == (y is None)
            if x is not None:
                assert x.dtype == y.dtype and x.numpy().tobytes() == y.numpy().tobytes()
        for part in ("site", "span", "method", "conditional", "setter", "order"):
            assert getattr(a, part) == getattr(b, part)
        assert dict(a.origin) == dict(b.origin)
    if steer.gate is not None:
        assert back.intervention.gate is not None
        assert back.intervention.gate.direction.numpy().tobytes() == steer.gate.direction.numpy().tobytes()
        assert back.intervention.gate.fingerprint == steer.gate.fingerprint
    again = cs.save_bundle(back, tmp_path / "b.safetensors")
    assert again.read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def head_of(data: bytes) -> tuple[int, dict[str, object]]:
    (size,) = struct.unpack("<Q", data[:8])
    return 8 + size, json.loads(data[8 : 8 + size])


def test_altered_tensors_are_refused(tmp_path: Path) -> None:
    path = cs.save_bundle(interventions()["mixed"], tmp_path / "a.safetensors", name="x")
    data = path.read_bytes()
    start, _ = head_of(data)
    rng = np.random.default_rng(2)
    for at in rng.choice(np.arange(start, len(data)), size=150, replace=False):
        bent = bytearray(data)
        bent[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(bent))
        with pytest.raises(InputError):
            cs.load_bundle(path)


def test_a_damaged_header_is_refused_or_leaves_the_intervention_as_it_was(tmp_path: Path) -> None:
    steer = interventions()["mixed"]
    path = cs.save_bundle(steer, tmp_path / "a.safetensors", name="x")
    data = path.read_bytes()
    start, _ = head_of(data)
    rng = np.random.default_rng(3)
    refused = 0
    for at in rng.choice(np.arange(8, start), size=400, replace=False):
        bent = bytearray(data)
        bent[at] ^= 1 << int(rng.integers(7))
        path.write_bytes(bytes(bent))
        try:
            assert cs.load_bundle(path).intervention.fingerprint == steer.fingerprint
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 250


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    path = cs.save_bundle(interventions()["clamp"], tmp_path / "a.safetensors")
    data = path.read_bytes()
    for size in [0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(InputError):
            cs.load_bundle(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(InputError):
        cs.load_bundle(path)


def test_another_format_number_is_refused(tmp_path: Path) -> None:
    path = cs.save_bundle(interventions()["add"], tmp_path / "a.safetensors")
    data = path.read_bytes()
    assert data.count(rb"\"format\": 1") == 1
    path.write_bytes(data.replace(rb"\"format\": 1", rb"\"format\": 2"))
    with pytest.raises(InputError, match="format 2"):
        cs.load_bundle(path)


def test_changed_span_or_layer_is_refused(tmp_path: Path) -> None:
    path = cs.save_bundle(interventions()["add"], tmp_path / "a.safetensors")
    data = path.read_bytes()
    for old, new in ((b"from(7)", b"from(8)"), (b"resid_post.3", b"resid_post.2")):
        assert data.count(old) == 1
        path.write_bytes(data.replace(old, new))
        with pytest.raises(InputError, match="altered"):
            cs.load_bundle(path)


def test_files_that_are_no_bundle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        cs.load_bundle(tmp_path / "none.safetensors")
    with pytest.raises(InputError):
        cs.load_bundle(tmp_path)
    plain = tmp_path / "plain.safetensors"
    save_file({"w": torch.ones(3)}, str(plain))
    with pytest.raises(InputError):
        cs.load_bundle(plain)
    for text in (
        "[]",
        "null",
        "{}",
        '{"format": 1}',
        "not json",
        '{"format": 1, "edits": 3, "gate": null, "name": "x"}',
    ):
        save_file({"w": torch.ones(3)}, str(plain), metadata={"countersteer": text})
        with pytest.raises(InputError):
            cs.load_bundle(plain)
    plain.write_bytes(np.random.default_rng(4).bytes(500))
    with pytest.raises(InputError):
        cs.load_bundle(plain)


def test_a_bundle_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    steer = interventions()["add"]
    with pytest.raises(InputError):
        cs.save_bundle(steer, tmp_path / "no" / "such" / "folder.safetensors")
    with pytest.raises(InputError):
        cs.save_bundle(Bundle("x", steer, meta={"bad": float("nan")}), tmp_path / "a.safetensors")
    with pytest.raises(InputError):
        cs.save_bundle(Bundle("x", steer, meta={"bad": object()}), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []
