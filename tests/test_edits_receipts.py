"""Each edit of a layer has a receipt of its own, so that none hides behind another; against numpy, edit by edit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import countersteer as cs
from countersteer.core.errors import NoOpError
from countersteer.core.request import LayerReceipt, Receipt
from countersteer.edits.receipts import no_op
from countersteer.edits.table import RowTable
from helpers_models import WIDTH, prompts, tiny

D, LAYER, PROMPT = 12, 2, 5


def latent(rng: np.random.Generator, index: int, threshold: float) -> cs.edits.Latent:
    read, write = torch.tensor(rng.normal(size=D)), torch.tensor(rng.normal(size=D))
    return cs.edits.Latent(index, cs.Site(LAYER), read, 0.0, write, threshold)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["f64", "bf16"])
def test_every_edit_of_a_mixed_batch_is_counted_by_itself(dtype: torch.dtype) -> None:
    """Slots with one to three edits at the layer, spans and orders mixed, over a prefill and three single steps."""
    rng = np.random.default_rng(0)
    clamped = [latent(rng, i, t) for i, t in enumerate((0.0, 1.5, 1e6))]  # often, sometimes, never active
    v, w = rng.normal(size=D), rng.normal(size=D)
    big, lost = cs.add(cs.direction(v, layer=LAYER), 3.0), cs.add(cs.direction(w, layer=LAYER), 1e-20)
    steers = [
        big + cs.clamp([clamped[1]], 0.0),
        cs.clamp([clamped[2]], 0.0).span("generation") + big.span("response"),
        lost + cs.clamp([clamped[0]], 0.0) + cs.clamp([clamped[1]], 0.0).order(1),
        big,
    ]
    table = RowTable(LAYER, len(steers), D, dtype=dtype, device=torch.device("cpu"))
    tokens = 9
    h = torch.tensor(rng.normal(size=(len(steers), tokens, D)) * 2).to(dtype)
    for slot, steer in enumerate(steers):
        table.install(slot, steer.edits, PROMPT)
    for at in (range(PROMPT), *([t] for t in range(PROMPT, tokens))):
        where = torch.tensor([[s, t] for s in range(len(steers)) for t in at])
        table.apply(h[where[:, 0], where[:, 1]], where[:, 0], where[:, 1])

    wide = np.float64 if dtype == torch.float64 else np.float32

    thresholds = {id(steers[0].edits[1]): 1.5, id(steers[1].edits[0]): 1e6, id(steers[2].edits[1]): 0.0,
                  id(steers[2].edits[2]): 1.5}  # fmt: skip

    def write(base: np.ndarray, edit: cs.edits.Edit) -> np.ndarray:
        f = np.full(len(base), float(edit.intercept[0, 1]))
        if edit.read is not None:
            x = base @ edit.read[0].numpy()
            f = np.where(x > thresholds[id(edit)], -x, 0.0)
        return (f[:, None] * edit.write[0].numpy()).astype(wide)

    def rounded(base: np.ndarray, added: np.ndarray) -> np.ndarray:
        return torch.tensor(base.astype(wide) + added).to(dtype).double().numpy()

    for slot, steer in enumerate(steers):
        receipt = table.receipt(slot, tokens)
        assert receipt is not None and [e.method for e in receipt.edits] == [e.method for e in steer.edits]
        base = h[slot].double().numpy()
        first = [e for e in steer.edits if e.order == 0]
        written = rounded(base, sum(write(base, e) for e in first))
        for edit, own in zip(steer.edits, receipt.edits, strict=True):
            start, stop = edit.span.bounds(PROMPT)
            span = slice(start, min(stop, tokens))
            read = base if edit.order == 0 else written
            moved = (rounded(read, write(read, edit)) - read)[span]
            assert own.tokens_seen == len(moved) and own.conditional == edit.conditional
            assert own.tokens_changed == (moved != 0).any(1).sum()
            away = (np.linalg.norm(moved, axis=1) / np.linalg.norm(read[span], axis=1))[1 if start == 0 else 0 :]
            assert own.mean_relative == pytest.approx(away.mean(), rel=1e-9 if wide is np.float64 else 2e-2, abs=1e-30)
            if edit.read is not None:
                x = (read[span] @ edit.read[0].numpy())[1 if start == 0 else 0 :]
                assert own.before == pytest.approx((x.mean(),), rel=1e-9 if wide is np.float64 else 2e-2)
        assert receipt.edits[0] != receipt.edits[-1] or len(receipt.edits) == 1
    sole = table.receipt(3, tokens)
    assert sole is not None
    assert (sole.edits[0].tokens_changed, sole.edits[0].mean_relative) == (sole.tokens_changed, sole.mean_relative)


def layer_of(*edits: tuple[int, bool], changed: int) -> LayerReceipt:
    entries = [{"method": "m", "tokens_seen": 9, "tokens_changed": n, "mean_relative": None, "before": [],
                "conditional": c} for n, c in edits]  # fmt: skip
    return LayerReceipt("resid_post.1", 9, changed, None, None, edits=tuple(entries))  # type: ignore[arg-type]


def test_an_unconditional_edit_is_judged_by_its_own_entry() -> None:
    d = cs.direction(torch.ones(WIDTH), layer=1)
    steer = cs.add(d, 1.0) + cs.ablate(cs.edits.Latent(0, cs.Site(1), torch.ones(WIDTH), 0.0, torch.ones(WIDTH)))

    def why(*layers: LayerReceipt) -> str | None:
        return no_op(steer, Receipt(layers), prompt_tokens=4, tokens=9)

    assert why(layer_of((9, False), (0, True), changed=9)) is None
    assert "add at resid_post.1 changed no token" in (why(layer_of((0, False), (9, True), changed=9)) or "")
    assert "changed no token" in (why(layer_of((9, False), (9, True), changed=0)) or ""), "edits that cancel out"
    assert why(LayerReceipt("resid_post.1", 9, 9, None, None)) is None, "an engine that measures layers only"
    assert "changed no token" in (why() or "")


def test_a_lost_add_does_not_hide_behind_a_clamp_at_its_layer() -> None:
    model = tiny("llama", dtype=torch.float32)
    text = tuple(prompts(1, seed=5)[0])
    v = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    clamp = cs.ablate(cs.edits.Latent(0, cs.Site(1), v.flip(0), 0.0, v.roll(3)))
    lost = cs.add(cs.direction(v, layer=1), 1e-20)
    sampling = cs.Sampling(temperature=0, max_tokens=4)
    with cs.load_engine(model, places=2) as engine:
        request = cs.Request(tokens=text, intervention=lost + clamp, sampling=sampling)
        with pytest.raises(NoOpError, match=r"add at resid_post\.1 changed no token") as caught:
            engine.run([request])
        add, held = caught.value.completion.receipt.layers[0].edits
        assert add.tokens_changed == 0 < held.tokens_changed <= held.tokens_seen == len(text) + 3
        (fine,) = engine.run([request.with_(intervention=cs.add(cs.direction(v, layer=1), 1.0) + clamp)])
        assert [e.method for e in fine.receipt.layers[0].edits] == ["add", held.method]
    with pytest.raises(NoOpError, match=r"add at resid_post\.1"), cs.attach(model, lost + clamp) as handle:
        model.generate(torch.tensor([list(text)] * 2), do_sample=False, max_new_tokens=4)
    assert handle.receipt.layers[0].edits[1].tokens_seen == 2 * (len(text) + 3)


def test_receipts_come_back_from_json_as_they_were() -> None:
    receipt = Receipt((layer_of((9, False), (3, True), changed=9),), "e", ("n",))
    plain = json.loads(json.dumps(receipt.to_dict()))
    assert Receipt.from_dict(plain) == receipt and plain["layers"][0]["edits"][1]["tokens_changed"] == 3
