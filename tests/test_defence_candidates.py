"""What each candidate of a sweep does to a residual, against formulas written out here, on a fit made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import countersteer as cs
from countersteer.core.errors import InputError
from countersteer.defence.candidates import Candidate, build, grid
from countersteer.defence.fit import Fit
from countersteer.defence.settings import Settings, checked
from countersteer.edits import apply

D, LAYERS = 16, 3
RNG = np.random.default_rng(5)
UNITS = np.linalg.qr(RNG.normal(size=(D, LAYERS)))[0].T
M, MU, SD, LOW = 0.4, 1.5, 0.25, -0.9
SETTINGS = Settings()


def fit() -> Fit:
    along = {"boundary": M, "aligned_mean": MU, "aligned_spread": SD, "malicious_mean": LOW, "malicious_spread": 0.3}
    rows = [{"layer": k, "along": {"logistic": along}, "condition_threshold": 0.1, "condition_auc": 0.5 + 0.1 * k,
             "clas": {"bias": 0.7}} for k in range(LAYERS)]  # fmt: skip
    arrays = {"direction.logistic": UNITS, "condition": UNITS[::-1].copy(), "clas.1": RNG.normal(size=D)}
    return Fit(arrays, {"layers": rows, "trait": {"name": "t"}, "model_fingerprint": "f"}, [])


FIT = fit()
H = torch.from_numpy(RNG.normal(size=(200, D)) * 2)
V = torch.from_numpy(UNITS[1])
RHO = H @ V


def after(method: str, strength: float, *, control: str = "", span: str = "all") -> torch.Tensor:
    made = build(Candidate(method, 1, strength, span, control), FIT, SETTINGS)
    assert made is not None and {str(e.span) for e in made.edits} == {span} and made.layers == (1,)
    return apply(H, made.edits, layer=1, prompt_tokens=5)


@pytest.mark.parametrize("s", [1, 2.5, 5])
def test_swfc_adds_strength_times_the_separation(s: float) -> None:
    torch.testing.assert_close(after("swfc", s), H + s * (MU - LOW) * V)


@pytest.mark.parametrize("s", [0, 6, 36])
def test_sttp_puts_what_is_below_the_boundary_exactly_on_target(s: float) -> None:
    out, below = after("sttp", s), RHO < M
    assert 0 < int(below.sum()) < len(H)
    torch.testing.assert_close(out[below] @ V, torch.full((int(below.sum()),), MU + s * SD, dtype=torch.float64))
    assert torch.equal(out[~below], H[~below]), "tokens at or above the boundary are bit-identical"
    rest = torch.eye(D, dtype=torch.float64) - torch.outer(V, V)
    torch.testing.assert_close(out @ rest, H @ rest)


def test_stmp_of_strength_1_is_the_mirror_image_and_2_goes_twice_as_far() -> None:
    below = RHO < M
    once, twice = after("stmp", 1), after("stmp", 2)
    torch.testing.assert_close(once[below] @ V, 2 * M - RHO[below])
    torch.testing.assert_close(twice[below] - H[below], 2 * (once[below] - H[below]))
    assert torch.equal(once[~below], H[~below])
    reflection = torch.eye(D, dtype=torch.float64) - 2 * torch.outer(V, V)
    torch.testing.assert_close(once[below], H[below] @ reflection + 2 * M * V)


@pytest.mark.parametrize("s", [0, 1, 2])
def test_limit_lifts_the_projection_to_between_boundary_and_mean(s: float) -> None:
    torch.testing.assert_close(after("limit", s) @ V, RHO.clamp_min(M + s * (MU - M)))


def test_remove_and_gated() -> None:
    torch.testing.assert_close(after("remove", 1) @ V, torch.zeros(len(H), dtype=torch.float64), atol=1e-12, rtol=0)
    out, below = after("gated", 2), RHO <= M
    torch.testing.assert_close(out[below], H[below] + 2 * (MU - LOW) * V)
    assert torch.equal(out[~below], H[~below])


def test_clas_is_affine_in_the_residual() -> None:
    c = torch.from_numpy(FIT.arrays["clas.1"])
    expected = H + (0.5 * (H @ c + 0.7))[:, None] * (MU - LOW) * V
    torch.testing.assert_close(after("clas", 0.5), expected)
    with pytest.raises(InputError, match="clas_layers"):
        build(Candidate("clas", 2, 1.0, "all"), FIT, SETTINGS)


def test_cast_adds_behind_a_gate_on_the_best_conditions_layer() -> None:
    made = build(Candidate("cast", 0, 3.0, "all"), FIT, SETTINGS)
    assert made is not None and made.gate is not None
    assert made.gate.site == cs.Site(2) and made.gate.threshold == 0.1
    prompt = torch.from_numpy(np.stack([FIT.arrays["condition"][2]] * 4))
    assert made.gate.opens(prompt) and not made.gate.opens(-prompt)


def test_random_controls_take_the_same_step_in_another_direction() -> None:
    steps = [after("swfc", 3, control=f"random-{i}") - H for i in range(2)]
    for step in steps:
        torch.testing.assert_close(step.norm(dim=1), torch.full((len(H),), 3 * (MU - LOW), dtype=torch.float64))
        assert abs(float(torch.cosine_similarity(step[0], V, dim=0))) < 0.9
    assert abs(float(torch.cosine_similarity(steps[0][0], steps[1][0], dim=0))) < 0.9
    assert torch.equal(steps[0], after("swfc", 3, control="random-0") - H)
    with pytest.raises(InputError, match="no control"):
        after("swfc", 3, control="upside-down")


@pytest.mark.parametrize("s", [0, 6])
def test_the_flipped_control_pushes_the_aligned_side_to_the_malicious_mean(s: float) -> None:
    out, above = after("sttp", s, control="flipped"), RHO > M
    torch.testing.assert_close(out[above] @ V, torch.full((int(above.sum()),), LOW - s * 0.3, dtype=torch.float64))
    assert torch.equal(out[~above], H[~above])
    torch.testing.assert_close(after("swfc", 2, control="flipped"), H - 2 * (MU - LOW) * V)


def test_the_grid_is_the_papers_and_controls_have_the_same_without_the_prompt() -> None:
    made = checked({"sweep": {"methods": ["swfc", "sttp", "stmp", "remove", "prompt"], "layers": [0, 2]}}, where="x")
    points = grid(FIT, made)
    assert {m: len(p) for m, p in points.items()} == {"swfc": 20, "sttp": 28, "stmp": 28, "remove": 4, "prompt": 1}
    assert sorted({p.strength for p in points["sttp"]}) == [0, 6, 12, 18, 24, 30, 36]
    assert sorted({p.strength for p in points["stmp"]}) == [1, 1.5, 2, 2.5, 3, 3.5, 4]
    control = grid(FIT, made, control="random-0")
    assert "prompt" not in control and len(control["swfc"]) == 20
    with pytest.raises(InputError, match="no layer 7"):
        grid(FIT, checked({"sweep": {"layers": [7]}}, where="x"))
    with pytest.raises(InputError, match="CLAS"):
        grid(FIT, checked({"sweep": {"methods": ["clas"], "layers": [0]}}, where="x"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sweep": {"methods": ["stpt"]}}, "sweep.methods"),
        ({"sweep": {"strengths": {"swcf": [1]}}}, "did you mean 'swfc'"),
        ({"sweep": {"floor": 1.5}}, "sweep.floor"),
        ({"fitt": {}}, "fitt"),
        ({"sampling": {"temperature": -1}}, "temperature"),
        ({"scorecard": {"turns": 50}}, "scorecard.turns"),
    ],
)
def test_bad_settings_are_refused_by_name(data: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked(data, where="x.toml")
