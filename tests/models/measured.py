"""What a model in any state is held to: the plain model, measured, zeroed and left as it was."""

import numpy as np
import torch

from headcount.measure import measure_heads
from headcount.models.instrument import instrument
from headcount.models.observe import units_of
from headcount.policies import Fixed

ROWS = [[5, 6, 7, 8, 9, 10, 11], [3, 4, 5, 6]]
TOKENS = torch.tensor(ROWS[:1])
POLICY = Fixed([(0, 1), (2, 3)])


def logits(model, tokens=TOKENS, **options):
    with torch.no_grad():
        return model(tokens, **options).logits


def assert_measured_as(model, plain):
    """Geometry, fingerprint, every score, and zeroing are those of ``plain``, and both give their own logits again."""
    before = logits(plain)
    expected, found = measure_heads(plain, ROWS), measure_heads(model, ROWS)
    assert units_of(model) == units_of(plain)
    assert found.attrs == expected.attrs
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    with instrument(plain, policy=POLICY, scores="all") as probe:
        zeroed = logits(plain)
    with instrument(model, policy=POLICY, scores="all") as same:
        torch.testing.assert_close(logits(model), zeroed)
    np.testing.assert_allclose(same.scores["fhon"], probe.scores["fhon"], rtol=1e-5)
    torch.testing.assert_close(logits(model), before)


def layers_compiled(model):
    for place, layer in enumerate(model.model.layers):
        model.model.layers[place] = torch.compile(layer, backend="eager")
    return model
