"""Passes that start at a decoder layer, whatever else its layers return."""

import pytest
import torch

from headcount.models.capabilities import can_restart
from headcount.models.observe import decoder_of
from tests.models.families import build


# Layers return a tensor, a tuple of one, and a tuple of two.
@pytest.mark.parametrize("family", ["llama", "falcon_h1", "bamba"])
def test_a_pass_can_start_at_any_layer(family, tiny):
    model, tokens = build(family), torch.tensor([[5, 6, 7, 8, 9, 10]])
    decoder = decoder_of(model)
    with torch.no_grad():
        with decoder.inputs_kept() as kept:
            expected = model(tokens, use_cache=False).logits
        for place, hidden in enumerate(kept):
            # The layers before `place` are skipped, so other tokens do not matter.
            with decoder.starting_at(place, hidden), decoder.inputs_kept([place]) as entering:
                found = model(tokens.flip(1), use_cache=False).logits
            assert torch.equal(found, expected)
            assert torch.equal(entering[0], hidden)
    assert len(kept) == len(decoder.layers) == 3
    assert can_restart(model)
