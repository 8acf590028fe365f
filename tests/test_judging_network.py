"""The restart model's arithmetic is that of transformers' BERT with the same weights, window by window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from countersteer.judging.restart_model import MARGIN, PROMPT, WINDOW, RestartModel, prepared, shipped, windows

PROMPTED = "How do I iron a shirt?"
TEXT = (
    "Owls hunt at night, mostly by ear, and they swallow mice whole. Hold on, you asked about shirts! Start with the "
    "collar (inside first), then the cuffs...\n\nThen the sleeves and the front. A little steam helps; cotton likes it."
)


def turned(value: torch.Tensor) -> torch.Tensor:
    """A matrix transposed; a vector as it is."""
    return value.mT if value.ndim > 1 else value


def bert(model: RestartModel) -> BertModel:
    """transformers' encoder with the model's tensors."""
    w = {name: torch.tensor(value) for name, value in model.tensors.items()}
    made = BertModel(
        BertConfig(
            vocab_size=len(w["words"]),
            hidden_size=w["words"].shape[1],
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            intermediate_size=w["0.widen.bias"].shape[0],
            hidden_act="gelu_pytorch_tanh",
            max_position_embeddings=len(w["positions"]),
        ),
        add_pooling_layer=False,
    )
    state = made.state_dict()
    state["embeddings.word_embeddings.weight"] = w["words"]
    state["embeddings.position_embeddings.weight"] = w["positions"]
    state["embeddings.token_type_embeddings.weight"] = w["types"]
    names = {
        "mix": "attention.output.dense",
        "mixed": "attention.output.LayerNorm",
        "widen": "intermediate.dense",
        "narrow": "output.dense",
        "narrowed": "output.LayerNorm",
    }
    for part in ("weight", "bias"):
        state[f"embeddings.LayerNorm.{part}"] = w[f"norm.{part}"]
        for layer in range(model.layers):
            front = f"encoder.layer.{layer}."
            three = w[f"{layer}.attend.{part}"].chunk(3, dim=-1)
            for name, value in zip(("query", "key", "value"), three, strict=True):
                state[f"{front}attention.self.{name}.{part}"] = turned(value)
            for mine, theirs in names.items():
                state[f"{front}{theirs}.{part}"] = turned(w[f"{layer}.{mine}.{part}"])
    made.load_state_dict({name: value.contiguous() for name, value in state.items()})
    return made.eval()


@pytest.fixture(scope="module")
def reference() -> BertModel:
    return bert(shipped())


def expected(reference: BertModel, ids: list[int], second: int) -> np.ndarray:
    """Outputs [T, 2] of the oracle."""
    types = torch.tensor([[0] * second + [1] * (len(ids) - second)])
    with torch.inference_mode():
        hidden = reference(input_ids=torch.tensor([ids]), token_type_ids=types).last_hidden_state[0].numpy()
    return hidden @ shipped().tensors["out.weight"] + shipped().tensors["out.bias"]


@pytest.mark.parametrize("size", [1, 7, 40, WINDOW + 3])
def test_outputs_are_those_of_berts_definition(reference: BertModel, size: int) -> None:
    rng = np.random.default_rng()
    ids = rng.integers(0, len(shipped().tensors["words"]), size).tolist()
    found = shipped().encoded(ids, size // 3)
    np.testing.assert_allclose(found, expected(reference, ids, size // 3), rtol=1e-3, atol=2e-3)


def test_every_word_piece_is_read_in_a_window_that_reaches_around_it() -> None:
    for count in [1, 5, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 5 * WINDOW + 17]:
        read = [k for _, _, kept, last in windows(count) for k in range(kept, last)]
        assert read == list(range(count))
        for start, stop, kept, last in windows(count):
            assert stop - start <= WINDOW
            assert kept - start >= MARGIN or start == 0
            assert stop - last >= MARGIN or stop == count


def test_a_long_response_is_read_window_by_window(reference: BertModel) -> None:
    text, pieces = TEXT * 12, shipped().pieces
    ids = pieces.encode(prepared(text)).ids
    assert len(ids) > 2 * WINDOW
    asked = pieces.encode(prepared(PROMPTED)).ids[:PROMPT]
    front = [pieces.token_to_id("[CLS]"), *asked, pieces.token_to_id("[SEP]")]
    reading = shipped().read(text, PROMPTED)
    for start, stop, kept, last in windows(len(ids)):
        whole = [*front, *ids[start:stop], pieces.token_to_id("[SEP]")]
        made = expected(reference, whole, len(front))[len(front) + kept - start : len(front) + last - start]
        np.testing.assert_allclose(reading.begins[kept:last], made[:, 0], rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(reading.language[kept:last], made[:, 1], rtol=1e-3, atol=2e-3)


def test_offsets_are_those_of_the_response() -> None:
    text = "Café — “naïve” 漢字\n\tOops, scrap that… İstanbul ﬁn 🙂 end"
    reading = shipped().read(text, PROMPTED)
    assert (reading.starts < reading.ends).all() and reading.ends.max() == len(text)
    assert (np.diff(reading.starts) >= 0).all()
    words = [text[a:b] for a, b, opens in zip(reading.starts, reading.ends, reading.opens, strict=True) if opens]
    assert {"that", "end"} <= set(words)


def test_likeliest_beginning_is_where_it_begins() -> None:
    reading = shipped().read(TEXT, PROMPTED)
    assert TEXT[reading.starts[int(reading.begins.argmax())] :].startswith("Hold on")
