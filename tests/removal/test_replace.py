"""Replacements against the same computation written out: hooks that put means in, and a plain least-squares problem."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headcount.calibration import Calibration
from headcount.errors import InputError
from headcount.models.instrument import instrument
from headcount.models.observe import attention_modules
from headcount.models.projection import output_projection
from headcount.moments import Mean
from headcount.policies import Fixed
from headcount.removal.fitting import Fitting
from headcount.removal.head_outputs import head_output_statistics
from headcount.removal.replace import replace_heads
from headcount.replacements import Kept
from headcount.units import UnitSet
from tests.calibrated import calibrated_on

ROWS = [torch.randint(3, 256, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (12, 30, 5, 1)]
REMOVED = UnitSet([(0, 1), (0, 6), (2, 0)])
TOKENS = torch.tensor([ROWS[1]])


def head_outputs(model, layer, hook=lambda x: x):
    """All the layer's concatenated head outputs on ROWS, [token, feature]: a text at a time, first tokens left out."""
    seen = []
    module = output_projection(attention_modules(model)[layer])
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, 1:].double().numpy()))
    with torch.no_grad():
        for row in ROWS:
            model(torch.tensor([row]))
    handle.remove()
    return np.concatenate(seen)


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # no bias and nn.Linear; a bias and Conv1D
def test_zero_is_what_a_policy_does(tiny, family):
    model = tiny(family)
    before = logits(model)
    with instrument(model, policy=Fixed(REMOVED)):
        expected = logits(model)
    with replace_heads(model, REMOVED, "zero").applied(model):
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(logits(model), before)
    assert (output_projection(attention_modules(model)[0]).bias is None) == (family == "llama")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_mean_is_what_a_hook_that_puts_means_in_does(tiny, family):
    model = tiny(family)
    means = {layer: head_outputs(model, layer).mean(0) for layer in range(3)}
    measured = head_output_statistics(model, Fitting(rows=ROWS, batch_tokens=40), Mean)
    for layer, mean in means.items():
        np.testing.assert_allclose(measured[layer].mean, mean, rtol=1e-4, atol=1e-6)

    def put_in(layer, heads):
        def hook(module, args):
            outputs = args[0].clone()
            for head in heads:
                outputs[..., 8 * head : 8 * head + 8] = torch.tensor(means[layer][8 * head : 8 * head + 8])
            return (outputs,)

        return output_projection(attention_modules(model)[layer]).register_forward_pre_hook(hook)

    handles = [put_in(0, [1, 6]), put_in(2, [0])]
    expected = logits(model)
    for handle in handles:
        handle.remove()
    with replace_heads(model, REMOVED, "mean", Fitting(rows=ROWS)).applied(model):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-6)


def test_refit_solves_each_layers_regression_on_the_changed_model(tiny):
    model = tiny()
    ridge = 0.05
    replacement = replace_heads(model, REMOVED, "refit", Fitting(rows=ROWS, ridge=ridge, batch_tokens=40))

    def refitted(layer, gone):
        inputs = head_outputs(model, layer)  # [token, feature], of the model as it is now
        weight = output_projection(attention_modules(model)[layer]).weight.detach().double().numpy()
        columns = np.repeat(np.isin(np.arange(8), gone), 8)
        centred = inputs - inputs.mean(0)
        # Least squares with the penalty as further rows: √λ ΔW = 0, where W' = W + ΔW on the columns that stay.
        penalty = ridge * (centred**2).mean(0).mean() * len(centred)
        kept, lost = centred[:, ~columns], centred[:, columns] @ weight[:, columns].T
        rows = np.concatenate([kept, np.sqrt(penalty) * np.eye(kept.shape[1])])
        change, *_ = np.linalg.lstsq(rows, np.concatenate([lost, np.zeros((kept.shape[1], 64))]))
        new = np.zeros_like(weight)
        new[:, ~columns] = weight[:, ~columns] + change.T
        return new, (weight - new) @ inputs.mean(0)

    first = replacement.projections[0]
    weight, bias = refitted(0, [1, 6])
    np.testing.assert_allclose(first.weight, weight, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(first.bias, bias, rtol=1e-3, atol=1e-6)
    untouched = replacement.projections[2].weight
    assert list(replacement.projections) == [0, 2]
    with replace_heads(model, UnitSet([(0, 1), (0, 6)]), "refit", Fitting(rows=ROWS, ridge=ridge)).applied(model):
        weight, _ = refitted(2, [0])
    np.testing.assert_allclose(untouched, weight, rtol=1e-3, atol=1e-5)


def test_a_head_that_the_others_determine_is_replaced_exactly(tiny):
    # Head 1 of the last layer is made to put out what head 0 does, by the same query and, in one group, the same value.
    model = tiny(num_hidden_layers=1)
    attention = attention_modules(model)[0]
    with torch.no_grad():
        attention.q_proj.weight[8:16] = attention.q_proj.weight[0:8]
    before = logits(model)
    replacement = replace_heads(model, UnitSet([(0, 1)]), "refit", Fitting(rows=ROWS, ridge=1e-9))
    with replacement.applied(model):
        torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-4)


def test_refitting_is_predicting_from_the_heads_that_stay(tiny):
    """What ``kept`` puts in place, of a calibration that says nothing of the block's input, folded into the projection."""
    model, removed = tiny(num_hidden_layers=1), UnitSet([(0, 1), (0, 6)])
    calibration = calibrated_on(model, ROWS)
    layer = calibration.layers[0]
    alone = layer.covariance.clone()
    alone[64:, :64], alone[:64, 64:] = 0, 0
    calibration = Calibration(layers={0: replace(layer, covariance=alone)}, facts=calibration.facts)
    before = logits(model)
    with replace_heads(model, removed, "refit", Fitting(rows=ROWS, ridge=0.05)).applied(model):
        refitted = logits(model)
    with instrument(model, policy=Fixed(removed, instead=Kept(ridge=0.05), calibration=calibration)):
        kept = logits(model)
    # First tokens are apart in a calibration.
    torch.testing.assert_close(refitted[:, 1:], kept[:, 1:], rtol=0, atol=1e-5)
    assert (refitted - before)[:, 1:].abs().max() > 0.005


def test_bad_input(tiny):
    model = tiny(num_hidden_layers=1)
    with pytest.raises(InputError, match="'zero', 'mean' or 'refit', not 'median'"):
        replace_heads(model, REMOVED, "median")  # pyright: ignore
    with pytest.raises(InputError, match="by mean needs calibration texts"):
        replace_heads(model, UnitSet([(0, 1)]), "mean", Fitting(rows=[[3]]))
    with pytest.raises(InputError, match="ridge is greater than 0, not 0"):
        replace_heads(model, UnitSet([(0, 1)]), "refit", Fitting(rows=ROWS, ridge=0))
    with pytest.raises(InputError, match="Query head 1 of layer 2 does not exist"):
        replace_heads(model, UnitSet([(2, 1)]), "zero")
