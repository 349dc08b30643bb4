"""Predictions against ridge regression solved by numpy, sums of parts, and whose calibration it is."""

import pickle

import numpy as np
import pytest
import torch

from headcount.calibration import RIDGE, Calibration
from headcount.errors import InputError, ModelError
from headcount.units import UnitMap
from tests.calibration.made import HEADS, LAYERS, WIDTH, calibration, facts, layer_of, measured, vectors

OUTPUTS = HEADS * WIDTH


def ridge_regression(z, into, out_of, penalties):
    """What numpy predicts of the columns ``into`` from the columns ``out_of``, which are penalised as given, a token each."""
    centred = z - z.mean(0)
    x, y = centred[:, out_of], centred[:, into]
    return x @ np.linalg.solve(x.T @ x / len(x) + np.diag(penalties[out_of]), x.T @ y / len(x)) + z[:, into].mean(0)


def penalties(z, ridge):
    variance = z.var(0)
    return ridge * np.concatenate([np.full(OUTPUTS, variance[:OUTPUTS].mean()), np.full(5, variance[OUTPUTS:].mean())])


@pytest.mark.parametrize("ridge", [0.01, 0.3])
def test_linear_is_ridge_regression_on_the_block_input(ridge):
    z = vectors(seed=3)
    known = calibration(seed=1)
    layer, every = known.layers[2], np.arange(z.shape[1])
    prediction = (
        layer.mean.flatten() + (torch.tensor(z[:, OUTPUTS:]).float() - layer.input_mean) @ known.linear(2, ridge).T
    )
    expected = ridge_regression(z, every < OUTPUTS, every >= OUTPUTS, penalties(z, ridge))
    np.testing.assert_allclose(prediction, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("off", [[0], [2], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("ridge", [0.01, 0.3])
def test_precision_gives_ridge_regression_on_all_that_is_kept(off, ridge):
    z = vectors(seed=3)
    known = calibration(seed=1)
    layer = known.layers[2]
    out = np.isin(np.arange(z.shape[1]) // WIDTH, off) & (np.arange(z.shape[1]) < OUTPUTS)
    mean = torch.cat([layer.mean.flatten(), layer.input_mean]).double()
    rows = known.precision(2, ridge).double()
    assert rows.shape == (OUTPUTS, z.shape[1])
    inside = torch.tensor(out[:OUTPUTS])
    errors = (torch.tensor(z) - mean) @ rows[inside].T
    prediction = torch.tensor(z)[:, out] - torch.linalg.solve(rows[inside][:, torch.tensor(out)], errors.T).T
    np.testing.assert_allclose(prediction, ridge_regression(z, out, ~out, penalties(z, ridge)), rtol=1e-3, atol=1e-3)


def test_what_was_derived_is_kept_and_does_not_travel():
    known = calibration()
    assert known.linear(0, 0.1) is known.linear(0, 0.1)
    assert known.linear(0, 0.1) is not known.linear(0, 0.2)
    assert known.linear(0) is known.linear(0, RIDGE)
    copied = pickle.loads(pickle.dumps(known))
    assert len(pickle.dumps(copied)) <= len(pickle.dumps(calibration())) + 200  # the fingerprint, no matrices
    assert copied.fingerprint == known.fingerprint
    assert len({known, copied}) == 2


def test_parts_add_up_to_the_whole():
    z, first, gradients = measured(seed=5)
    parts = [(slice(0, 13), slice(0, 2)), (slice(13, 60), slice(2, 7))]
    summed, other = (
        Calibration(layers={0: layer_of(z[tokens], first[texts], gradients[tokens])}, facts=facts())
        for tokens, texts in parts
    )
    whole, both = layer_of(z, first, gradients), summed + other
    for name, value in vars(both.layers[0]).items():
        np.testing.assert_allclose(value, getattr(whole, name), rtol=1e-5, atol=1e-5)
    assert both.layers[0].count == 60
    assert both.facts.num_texts == 14
    assert both.fingerprint != summed.fingerprint


def test_only_what_is_alike_adds_up():
    known = calibration()
    with pytest.raises(InputError, match="same model fingerprint"):
        known + calibration(model_fingerprint="0")
    with pytest.raises(InputError, match="same seed"):
        known + Calibration(layers=known.layers, facts=facts(seed=3))
    with pytest.raises(InputError, match="lacks layers, covariances"):
        known + Calibration(layers={0: known.layers[0]}, facts=facts())


def test_another_model_is_refused():
    known = calibration()
    known.check(UnitMap(layers=LAYERS), "f" * 16)
    with pytest.raises(ModelError, match="of made in float32.*fingerprint f+ there, 0 here"):
        known.check(UnitMap(layers=LAYERS), "0")
    with pytest.raises(ModelError, match="its attention layers and heads are others"):
        known.check(UnitMap(layers=LAYERS[:1]), "f" * 16)


def test_what_cannot_be_predicted_says_why():
    known = calibration()
    with pytest.raises(InputError, match="Layer 1 was not calibrated; these were: \\[0, 2\\]"):
        known.linear(1)
    with pytest.raises(InputError, match="ridge is a number greater than 0, not 0"):
        known.precision(0, 0)
    bare = {0: type(known.layers[0])(count=3, first_count=1, mean=torch.zeros(3, 4), first=torch.zeros(3, 4))}
    with pytest.raises(InputError, match="holds no covariances.*--no-covariances"):
        Calibration(layers=bare, facts=facts()).linear(0)
    flat = {0: type(known.layers[0])(**vars(known.layers[0]) | {"covariance": torch.zeros(17, 17)})}
    with pytest.raises(InputError, match="covariance of layer 0 cannot be inverted"):
        Calibration(layers=flat, facts=facts()).precision(0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mean": torch.zeros(4, 3)}, r"mean is not a tensor of 32-bit floats in main memory with shape \[3, 4\]"),
        ({"first": torch.zeros(3, 4).double()}, "first is not a tensor of 32-bit floats"),
        ({"input_mean": torch.full((5,), torch.nan)}, "input_mean holds numbers that are not finite"),
        ({"covariance": torch.arange(289.0).view(17, 17)}, "covariance is not symmetric"),
        ({"covariance": -torch.eye(17)}, "diagonal of 0 and more"),
        ({"covariance": None}, "one alone"),
        ({"sensitivity": None}, "gradients and no sensitivity"),
        ({"count": 0}, "counts no tokens"),
    ],
)
def test_tensors_that_are_not_the_layers_are_refused(changed, said):
    layer = calibration().layers[0]
    with pytest.raises(InputError, match=f"layer 0 cannot be used: .*{said}"):
        Calibration(layers={0: type(layer)(**vars(layer) | changed)}, facts=facts())
    with pytest.raises(InputError, match=r"has a layer 1, and its model's attention layers are \[0, 2\]"):
        Calibration(layers={1: layer}, facts=facts())
