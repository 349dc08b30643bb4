"""Taylor scores against the loss's own change: one token's head output moved a little, by hand."""

import gc
import weakref

import numpy as np
import pytest
import torch

from headcount.errors import InputError, ModelError
from headcount.models.observe import attention_modules
from headcount.models.projection import output_projection
from headcount.removal.fitting import Fitting
from headcount.removal.gradients import taylor_scores, unpredicted
from headcount.units import UnitSet
from tests.removal.test_replace import head_outputs

ROWS = [torch.randint(3, 256, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (9, 14)]


def loss(model, row):
    tokens = torch.tensor([row])
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:], reduction="sum").item()


def change_of_loss(model, row, layer, token, move):
    """First-order change of a text's loss when one token's concatenated head outputs move by ``move``; differences."""

    def moved(by):
        def hook(module, args):
            outputs = args[0].clone()
            outputs[0, token] += by * torch.tensor(move)
            return (outputs,)

        handle = output_projection(attention_modules(model)[layer]).register_forward_pre_hook(hook)
        value = loss(model, row)
        handle.remove()
        return value

    return (moved(1e-3) - moved(-1e-3)) / 2e-3


def test_nothing_of_a_batch_is_kept(tiny):
    """Memory is that of one layer and one batch, however many texts there are: no activation outlives its backward pass."""
    model = tiny()
    entered, alive = [], []
    for module in attention_modules(model).values():
        projection = output_projection(module)
        projection.register_forward_pre_hook(lambda _, args: entered.append(weakref.ref(args[0])))
    gc.disable()
    try:
        taylor_scores(model, Fitting(rows=ROWS, batch_tokens=14), how="zero")
        alive = [tensor for tensor in (reference() for reference in entered) if tensor is not None]
    finally:
        gc.enable()
    assert len(entered) >= 12
    assert alive == []


@pytest.mark.parametrize("how", ["zero", "mean", "refit"])
@pytest.mark.parametrize("kind", ["head", "group", "attention"])
def test_score_is_the_mean_squared_change_of_the_loss(tiny, how, kind, monkeypatch):
    model = tiny("starcoder2", num_hidden_layers=2).double()  # LayerNorm computes in double, RMSNorm does not
    monkeypatch.setattr("tests.removal.test_replace.ROWS", ROWS)
    scores = taylor_scores(model, Fitting(rows=ROWS, ridge=0.1, batch_tokens=20), how=how, kind=kind)
    size = {"head": 1, "group": 4, "attention": 8}[kind]
    assert scores.shape == (2, 2, 8 // size)
    for layer, number in ((0, 0), (1, 8 // size - 1)):
        outputs = head_outputs(model, layer)  # both texts' tokens but the first, one after the other
        centred = outputs - outputs.mean(0)
        own = np.repeat(np.arange(8) // size == number, 8)
        lost = np.zeros_like(outputs)
        if how == "zero":
            lost[:, own] = outputs[:, own]
        elif how == "mean":
            lost[:, own] = centred[:, own]
        else:
            rest = centred[:, ~own]
            penalty = 0.1 * (centred**2).mean(0).mean() * len(rest)
            prediction = rest @ np.linalg.solve(
                rest.T @ rest + penalty * np.eye(rest.shape[1]), rest.T @ centred[:, own]
            )
            lost[:, own] = centred[:, own] - prediction
        for text, (row, of_text) in enumerate(zip(ROWS, np.split(lost, [8]), strict=True)):
            changes = [change_of_loss(model, row, layer, t, -of_text[t - 1]) for t in range(1, len(row))]
            expected = np.mean(np.square(changes))
            np.testing.assert_allclose(scores.values[text, layer, number], expected, rtol=1e-3, atol=1e-12)


def test_batches_and_padding_do_not_matter_and_the_model_is_as_before(tiny):
    model = tiny("opt", ffn_dim=96, word_embed_proj_dim=64, dropout=0.5)  # dropout must stay off
    next(model.parameters()).requires_grad_(True)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before = model(torch.tensor(ROWS[:1])).logits
    one = taylor_scores(model, Fitting(rows=ROWS, batch_tokens=14))
    both = taylor_scores(model, Fitting(rows=ROWS, batch_tokens=100))
    np.testing.assert_allclose(one, both, rtol=1e-3, atol=1e-12)
    assert torch.equal(model(torch.tensor(ROWS[:1])).logits, before)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def test_heads_that_are_out_predict_nothing_and_have_no_score(tiny):
    model = tiny(num_hidden_layers=1)
    scores = taylor_scores(
        model, Fitting(rows=ROWS), how="refit", kind="group", removed=UnitSet([(0, head) for head in range(4)])
    )
    assert np.isnan(scores.values[:, 0, 0]).all()
    # With the other group gone, what remains is predicted by nothing: its mean is all that is left.
    alone = taylor_scores(model, Fitting(rows=ROWS), how="mean", kind="group")
    np.testing.assert_allclose(scores.values[:, 0, 1], alone.values[:, 0, 1], rtol=1e-3)


def test_what_a_head_adds_to_the_others():
    # Two heads of one dimension with variance 1 and correlation 0.6: head 1 predicts 0.6 of head 0, and the other way.
    covariance = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    matrix = unpredicted(covariance, [[0], [1]], [0, 1], 1, ridge=1e-12)
    torch.testing.assert_close(matrix, torch.tensor([[1.0, -0.6], [-0.6, 1.0]]))
    matrix = unpredicted(covariance, [[0], [1]], [0], 1, ridge=1e-12)
    torch.testing.assert_close(matrix, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_models_that_give_no_good_gradients_say_what_they_need(tiny):
    model = tiny(num_hidden_layers=1)
    with pytest.raises(ModelError, match="float16 overflow.*--dtype float32 or bfloat16"):
        taylor_scores(model.half(), Fitting(rows=ROWS))
    model = tiny(num_hidden_layers=1)
    model.is_quantized = True
    with pytest.raises(ModelError, match="LlamaForCausalLM is quantised.*--score ahon_ln"):
        taylor_scores(model, Fitting(rows=ROWS))
    model = tiny(num_hidden_layers=1)
    with torch.no_grad():
        model.lm_head.weight[5] = 1e38
        model.lm_head.weight[6] = -1e38
    with pytest.raises(ModelError, match="Gradients of layer 0 are not finite in float32"):
        taylor_scores(model, Fitting(rows=ROWS))
    with pytest.raises(InputError, match="two tokens or more"):
        taylor_scores(tiny(num_hidden_layers=1), Fitting(rows=[[3]]))
