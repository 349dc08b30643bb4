"""Scores read what enters layers: the residual stream, and the block's input, as their own formulas give them."""

import numpy as np
import pytest
import torch

from headcount.measure import measure_heads, summarise_heads
from headcount.models.instrument import instrument
from headcount.scores import registry, score
from tests.models.families import build

#: Of several lengths, so that batches hold padding.
ROWS = [list(range(3, 25)), list(range(60, 67)), list(range(100, 140, 3))]


@pytest.fixture
def readers(monkeypatch):
    """Scores of one number a token, the same for all heads: of its residual stream, or of the block's input."""
    for name in ("_SCORES", "_NAMES"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))

    def reader(name):
        @score(name, name=name, needs=[name, "output_norm"], inactive_when="low", unit="1", source="test")
        def read(m):
            first_two = getattr(m, name)[:, None, :, :2]  # [batch, 1, token, 2]
            return m.token_mean(first_two).sum(-1) + 0 * m.output_norm

    reader("residual")
    reader("block_input")

    @score("norm", name="norm", needs=["residual_norm"], inactive_when="low", unit="1", source="test")
    def norm(m):
        return m.residual_norm

    return ["residual", "block_input", "norm"]


def entering(model, row):
    """float64 [layer, token, hidden]: what enters each decoder layer of a llama, and its attention block."""
    with torch.no_grad():
        states = model(torch.tensor([row]), output_hidden_states=True, use_cache=False).hidden_states
    residual = np.stack([hidden[0].double().numpy() for hidden in states[: len(model.model.layers)]])
    weights = [layer.input_layernorm.weight.detach().double().numpy() for layer in model.model.layers]
    scale = 1 / np.sqrt((residual**2).mean(-1, keepdims=True) + model.config.rms_norm_eps)
    return residual, residual * scale * np.stack(weights)[:, None]


def by_hand(model, row):
    """Of each token, float64 [layer, token]: what the scores read."""
    residual, block_input = entering(model, row)
    return {
        "residual": residual[..., :2].sum(-1),
        "block_input": block_input[..., :2].sum(-1),
        "norm": np.sqrt((residual**2).sum(-1)),
    }


@pytest.fixture
def model():
    model = build("llama")
    with torch.no_grad():
        for layer in model.model.layers:  # norms that do something
            layer.input_layernorm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(3))
    return model


def test_of_inputs_they_are_means_over_real_tokens(readers, model):
    table = measure_heads(model, ROWS, scores=readers)
    for i, row in enumerate(ROWS):
        for name, expected in by_hand(model, row).items():
            found = table[name].values[i]  # [layer, head]
            np.testing.assert_allclose(found, np.broadcast_to(expected.mean(1)[:, None], found.shape), atol=2e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_count(readers, model, side):
    length = max(map(len, ROWS))
    pads = [[0] * (length - len(row)) for row in ROWS]
    tokens = torch.tensor([pad + row if side == "left" else row + pad for row, pad in zip(ROWS, pads, strict=True)])
    lengths = torch.tensor([len(row) for row in ROWS])[:, None]
    mask = torch.arange(length) < lengths
    mask = mask.flip(1) if side == "left" else mask
    with instrument(model, scores=readers) as probe, torch.no_grad():
        model(tokens, attention_mask=mask.long())
    for i, row in enumerate(ROWS):
        for name, expected in by_hand(model, row).items():
            np.testing.assert_allclose(probe.scores[name].values[i, :, 0], expected.mean(1), atol=2e-5)


def test_of_tokens_they_are_each_tokens_own(readers, model):
    found = summarise_heads(model, ROWS, scores=[f"{name}/token" for name in readers])
    expected = [by_hand(model, row) for row in ROWS]
    for name in readers:
        of_tokens = np.concatenate([of_row[name] for of_row in expected], axis=1)  # [layer, token]
        summary = found.scores[f"{name}/token"].moments
        np.testing.assert_allclose(summary.mean[:, 0], of_tokens.mean(1), atol=2e-5)
        np.testing.assert_allclose(summary.deviations[:, 0] / summary.count[:, 0], of_tokens.var(1), atol=1e-4)
