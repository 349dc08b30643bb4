"""Distillation against what it is for: the model without the heads comes nearer to the original's predictions."""

import pytest
import torch

from headcount.errors import InputError, ModelError
from headcount.models.observe import attention_modules
from headcount.models.projection import output_projection
from headcount.removal.distill import distill
from headcount.removal.fitting import Distillation, Fitting
from headcount.removal.replace import replace_heads
from headcount.units import UnitSet

ROWS = [
    torch.randint(3, 256, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (12, 30, 5, 1, 30, 21)
]
REMOVED = UnitSet([(0, head) for head in range(6)] + [(2, head) for head in range(8)])


def log_probabilities(model):
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row])).logits[0, 1:].log_softmax(-1) for row in ROWS if len(row) > 1])


def divergence(model, replacement):
    original = log_probabilities(model)
    with replacement.applied(model):
        return torch.nn.functional.kl_div(
            log_probabilities(model), original, log_target=True, reduction="batchmean"
        ).item()


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # nn.Linear without a bias; Conv1D with one
def test_predictions_come_nearer_to_the_originals(tiny, family):
    model = tiny(family)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    learning = [parameter.requires_grad for parameter in model.parameters()]
    begin = replace_heads(model, REMOVED, "refit", Fitting(rows=ROWS))
    told = []
    how = Distillation(epochs=12, learning_rate=1e-2, step_tokens=64)
    trained = distill(model, begin, Fitting(rows=ROWS, seed=1), how, progress=lambda *done: told.append(done))
    assert 0 < divergence(model, trained) < 0.7 * divergence(model, begin)
    assert told[-1] == (12 * 5, 12 * 5)  # the text of one token has nothing to predict
    # The heads that are gone stay gone, and the model is as it was.
    assert trained.removed == REMOVED
    assert set(trained.projections) == {0, 2}
    width = trained.projections[0].weight.shape[1] // 8
    assert not trained.projections[0].weight[:, : 6 * width].any()
    assert not trained.projections[2].weight.any()
    assert trained.projections[2].bias.any()
    assert {name for name, _ in model.named_parameters()} == set(before)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None
    assert [parameter.requires_grad for parameter in model.parameters()] == learning
    assert (output_projection(attention_modules(model)[0]).bias is None) == (family == "llama")


def test_one_step_is_adamws_on_the_gradient_of_the_divergence(tiny):
    """By autograd on the whole model, without recomputing and without this module's batches."""
    model, row = tiny(num_hidden_layers=2), ROWS[1]
    begin = replace_heads(model, UnitSet([(0, 1)]), "mean", Fitting(rows=ROWS))
    (trained,) = distill(
        model, begin, Fitting(rows=[row]), Distillation(epochs=1, learning_rate=1e-3)
    ).projections.values()
    original = model(torch.tensor([row])).logits[0, 1:].log_softmax(-1).detach()
    with begin.applied(model):
        module = output_projection(attention_modules(model)[0])
        for parameter in (module.weight, module.bias):
            parameter.requires_grad_()
        found = model(torch.tensor([row])).logits[0, 1:].log_softmax(-1)
        torch.nn.functional.kl_div(found, original, log_target=True, reduction="batchmean").backward()
        weight, bias = module.weight.grad.clone(), module.bias.grad.clone()
    was = begin.projections[0]
    kept = was.weight.abs().sum(0) > 0
    # Adam's first step is the learning rate in the direction of the sign; the first of the warm-up is a tenth of it.
    sure = weight.abs() > 1e-4
    expected = was.weight - 1e-4 * weight.sign() * kept
    assert sure.any()
    torch.testing.assert_close(trained.weight[sure & kept], expected[sure & kept], rtol=0, atol=2e-6)
    assert torch.equal(trained.weight[:, ~kept], was.weight[:, ~kept])
    sure = bias.abs() > 1e-4
    torch.testing.assert_close(trained.bias[sure], (was.bias - 1e-4 * bias.sign())[sure], rtol=0, atol=2e-6)


def test_the_same_seed_gives_the_same_numbers(tiny):
    model = tiny()
    begin = replace_heads(model, REMOVED, "mean", Fitting(rows=ROWS))
    once, again, other = (
        distill(model, begin, Fitting(rows=ROWS, seed=seed), Distillation(epochs=2, step_tokens=40))
        .projections[0]
        .weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_bfloat16_learns_in_float32(tiny):
    model = tiny().bfloat16()
    begin = replace_heads(model, REMOVED, "zero")
    trained = distill(model, begin, Fitting(rows=ROWS), Distillation(epochs=10, learning_rate=1e-3, step_tokens=64))
    assert trained.projections[0].weight.dtype == torch.float32
    assert divergence(model, trained) < 0.8 * divergence(model, begin)


def test_what_cannot_be_trained_is_refused(tiny):
    model = tiny()
    begin = replace_heads(model, REMOVED, "zero")
    with pytest.raises(InputError, match="two tokens or more"):
        distill(model, begin, Fitting(rows=[[5]]), Distillation())
    with pytest.raises(ModelError, match="float16 overflow"):
        distill(tiny().half(), begin, Fitting(rows=ROWS), Distillation())
    begin.projections[0].weight[:, -1] = float("nan")
    with pytest.raises(ModelError, match="smaller --learning-rate"):
        distill(model, begin, Fitting(rows=ROWS), Distillation())


@pytest.mark.parametrize(("wrong", "why"), [({"epochs": 0}, "1 pass"), ({"learning_rate": 0.0}, "between 0 and 1")])
def test_unusable_options(wrong, why):
    with pytest.raises(InputError, match=why):
        Distillation(**wrong)
