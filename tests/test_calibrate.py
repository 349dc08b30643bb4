"""What is calibrated against plain loops over texts, one after the other; and that nothing but the texts matters."""

import numpy as np
import pytest
import torch

import headcount as hc
from headcount.errors import InputError, ModelError
from headcount.models.draws import draw_uniform
from headcount.models.observe import attention_modules, units_of
from headcount.models.projection import output_projection
from tests.models.families import build

pytestmark = pytest.mark.usefixtures("tiny")  # one thread

ROWS = [torch.randint(3, 256, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (12, 20, 9, 1)]
FAMILIES = ["llama", "gpt2", "gemma2", "gemma3_text", "phi", "gpt_neox", "deepseek_v3", "doge"]


def watched(model, layer, row):
    """What a layer's output projection and its attention block are given for one text, each ``[token, …]``."""
    module, seen = attention_modules(model)[layer], {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.update(inputs=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        ),
        output_projection(module).register_forward_pre_hook(lambda _, args: seen.update(outputs=args[0])),
    ]
    with torch.no_grad():
        model(torch.tensor([row]))
    for handle in handles:
        handle.remove()
    return seen["outputs"].flatten(0, -2).double().numpy(), seen["inputs"][0].double().numpy()


def by_hand(model, row, seed):
    """Each layer's gradients ``[token, hidden]`` of −log p of tokens drawn from the model's own predictions."""
    outputs = {}
    handles = [
        output_projection(module).register_forward_hook(
            lambda _, args, output, layer=layer: outputs.update({layer: output})
        )
        for layer, module in attention_modules(model).items()
    ]
    logits = model(torch.tensor([row])).logits[0]
    for handle in handles:
        handle.remove()
    total = torch.zeros(())
    for position, draw in enumerate(draw_uniform(np.asarray(row), seed, (1, len(row)))[0]):
        probability = logits[position].double().softmax(-1)
        drawn = int((probability.cumsum(0) > draw).nonzero()[0])
        total = total - logits[position].log_softmax(-1)[drawn]
    found = torch.autograd.grad(total, [*outputs.values()])
    return {layer: gradient.flatten(0, -2).double().numpy() for layer, gradient in zip(outputs, found, strict=True)}


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_and_sensitivities_are_those_of_texts_read_one_by_one(family):
    model = build(family)
    found = hc.calibrate(model, ROWS, batch_tokens=40, gradients=True, seed=3)
    assert [*found.layers] == units_of(model).layer_indices
    gradients = [by_hand(model, row, seed=3) for row in ROWS]
    for units in units_of(model).layers:
        layer = found.layers[units.index]
        seen = [watched(model, units.index, row) for row in ROWS]
        joint = np.concatenate([np.concatenate([outputs, inputs], 1)[1:] for outputs, inputs in seen])
        shape = units.num_attention_heads, units.head_dim
        width = shape[0] * shape[1]
        assert (layer.count, layer.first_count) == (11 + 19 + 8, 4)
        near = {"rtol": 2e-4, "atol": 1e-6}
        np.testing.assert_allclose(layer.mean, joint[:, :width].mean(0).reshape(shape), **near)
        np.testing.assert_allclose(layer.first, np.mean([o[0] for o, _ in seen], 0).reshape(shape), **near)
        np.testing.assert_allclose(layer.input_mean, joint[:, width:].mean(0), **near)
        np.testing.assert_allclose(layer.covariance, np.cov(joint.T, bias=True), **near)
        of_layer = np.concatenate([of_text[units.index][1:] for of_text in gradients])
        np.testing.assert_allclose(layer.sensitivity, (of_layer**2).sum(1).mean(), rtol=1e-3)
        scale = np.abs(of_layer).max() ** 2
        np.testing.assert_allclose(layer.gradients, of_layer.T @ of_layer / len(of_layer), rtol=1e-3, atol=1e-4 * scale)


def assert_alike(ours, theirs):
    for index, layer in ours.layers.items():
        assert layer.holds == theirs.layers[index].holds
        for name in layer.holds:
            value = getattr(layer, name)
            np.testing.assert_allclose(value, getattr(theirs.layers[index], name), rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("changed", [{"batch_tokens": 12}, {"memory": 1}, {"memory": 8 * 128**2 * 2}, {"order": -1}])
def test_batches_padding_order_and_groups_do_not_matter(tiny, changed):
    model = tiny("opt", ffn_dim=96, word_embed_proj_dim=64, dropout=0.5)  # dropout must stay off
    rows = ROWS[:: changed.pop("order", 1)]
    before = model(torch.tensor(ROWS[:1])).logits
    flags = [parameter.requires_grad for parameter in model.parameters()]
    whole = hc.calibrate(model, ROWS, batch_tokens=1000, gradients=True)
    assert_alike(hc.calibrate(model, rows, gradients=True, **changed), whole)
    assert not torch.allclose(torch.tensor(whole.layers[0].sensitivity), torch.tensor(0.0))
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    before = model(torch.tensor(ROWS[:1])).logits
    hc.calibrate(model, ROWS)
    assert torch.equal(model(torch.tensor(ROWS[:1])).logits, before)


def test_calibrations_of_parts_add_up(tiny):
    model = tiny()
    whole = hc.calibrate(model, ROWS, gradients=True)
    summed = hc.calibrate(model, ROWS[:1], gradients=True) + hc.calibrate(model, ROWS[1:], gradients=True)
    assert_alike(summed, whole)
    assert summed.facts.num_tokens == whole.facts.num_tokens == 42
    summed.check(units_of(model), whole.facts.model_fingerprint)
    with pytest.raises(ModelError, match="are others|not the same"):
        hc.calibrate(tiny(seed=1), ROWS).check(units_of(model), whole.facts.model_fingerprint)


def test_what_pytorch_is_set_to_does_not_matter(tiny):
    """Under autocast the model computes as it is told; sums are of float32 products all the same."""
    model = tiny("starcoder2", num_hidden_layers=1)  # whose LayerNorm gives float32 there
    arguments = {"sensitivity": False}
    with torch.autocast("cpu", torch.bfloat16):
        (seen, _), (_, inputs) = (watched(model, 0, row) for row in (ROWS[0], ROWS[0]))
        found = hc.calibrate(model, ROWS[:1], **arguments)
    joint = np.concatenate([seen, inputs], 1)[1:]
    np.testing.assert_allclose(found.layers[0].covariance, np.cov(joint.T, bias=True), rtol=1e-4, atol=1e-7)


def test_the_seed_draws_the_predicted_tokens(tiny):
    model = tiny()
    one, again, other = (hc.calibrate(model, ROWS, covariances=False, seed=seed) for seed in (1, 1, 2))
    assert one.fingerprint == again.fingerprint
    assert one.layers[0].sensitivity != other.layers[0].sensitivity
    assert torch.equal(one.layers[0].mean, other.layers[0].mean)


class Stopped(Exception):
    pass


PASSES = "Differentiating its predictions", "Reading layer by layer"


@pytest.mark.parametrize("at", [(PASSES[0], 1), (PASSES[1], 1), (PASSES[1], 6)])
def test_a_calibration_that_was_stopped_goes_on_to_the_same_bytes(tiny, tmp_path, at):
    model, memory = tiny(), 1  # a group a layer
    expected = hc.calibrate(model, ROWS, batch_tokens=40, gradients=True, memory=memory, into=tmp_path / "whole")
    steps = []

    def stopping(step):
        def told(done, total):
            if step == at[0] and done >= at[1]:
                raise Stopped

        return told

    file = tmp_path / "c.safetensors"
    arguments = {"batch_tokens": 40, "gradients": True, "memory": memory, "into": file}
    with pytest.raises(Stopped):
        hc.calibrate(model, ROWS, progress=stopping, **arguments)
    assert not file.exists()
    (kept,) = tmp_path.glob(".c.safetensors.calibrating")
    steps.clear()
    found = hc.calibrate(
        model, ROWS, progress=lambda step: lambda done, total: steps.append((step, done, total)), **arguments
    )
    assert file.read_bytes() == (tmp_path / "whole").read_bytes()
    assert found.fingerprint == expected.fingerprint == hc.Calibration.load(file).fingerprint
    assert not kept.exists()
    if at[0] == PASSES[1]:  # what was done is not done again
        assert {step for step, *_ in steps} == {PASSES[1]}
        assert steps[-1][2] == {1: 3, 6: 2}[at[1]] * len(ROWS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.safetensors", "whole"]


def test_parts_of_other_texts_or_damaged_ones_are_made_again(tiny, tmp_path):
    model, file = tiny(), tmp_path / "c"

    def stopping(step):
        def told(done, total):
            if step == PASSES[1] and done == total:
                raise Stopped

        return told

    arguments = {"memory": 1, "into": file}
    expected = hc.calibrate(model, ROWS)
    for rows in (ROWS[1:], ROWS):
        with pytest.raises(Stopped):
            hc.calibrate(model, rows, progress=stopping, **arguments)
    folder = tmp_path / ".c.calibrating"
    (folder / "layer-0.safetensors").write_bytes(b"no")
    (folder / "sensitivities.safetensors").write_bytes(b"\0" * 64)
    assert hc.calibrate(model, ROWS, **arguments).fingerprint == expected.fingerprint


def test_a_batch_that_does_not_fit_on_the_way_back_is_counted_once(tiny):
    """Some layers have heard of the batch when memory runs out; its halves are heard whole."""
    model = tiny()
    arguments = {"covariances": False, "gradients": True}
    expected = hc.calibrate(model, ROWS, **arguments)

    def full(_, args):
        if args[0].requires_grad and len(args[0]) > 2:  # in the recomputation, after later layers' gradients
            raise torch.OutOfMemoryError

    handle = model.model.layers[0].mlp.register_forward_pre_hook(full)
    with pytest.warns(UserWarning, match="halved"):
        found = hc.calibrate(model, ROWS, **arguments)
    handle.remove()
    assert_alike(found, expected)


def test_what_cannot_be_calibrated_is_a_sentence(tiny, tmp_path):
    model = tiny(num_hidden_layers=1)
    with pytest.raises(InputError, match="needs a text of two tokens or more"):
        hc.calibrate(model, [[3], [4]])
    with pytest.raises(InputError, match="Gradients are part of the sensitivity"):
        hc.calibrate(model, ROWS, gradients=True, sensitivity=False)
    with pytest.raises(InputError, match="memory is a number of bytes"):
        hc.calibrate(model, ROWS, memory=0)
    (tmp_path / "there").write_text("")
    with pytest.raises(InputError, match="exists already"):
        hc.calibrate(model, ROWS, into=tmp_path / "there")
    with pytest.raises(ModelError, match="float16 overflow.*leave the sensitivity out with --no-sensitivity"):
        hc.calibrate(tiny(num_hidden_layers=1).half(), ROWS)
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight[0] = 1e38
    with pytest.raises(ModelError, match="layer 0 are not finite in float32"):
        hc.calibrate(model, ROWS, sensitivity=False)


def test_outputs_that_are_gated_before_the_projection_are_refused_by_name():
    """What would be put in a head's place, before the gate, is not what was seen behind it."""
    with pytest.raises(ModelError, match="heads of layer 3 of Qwen3NextForCausalLM .* by a gate.*can be zeroed"):
        hc.calibrate(build("qwen3_next"), ROWS)


def test_a_block_whose_input_is_not_to_be_seen_is_refused_by_name(tiny):
    model = tiny(num_hidden_layers=1)
    attention = model.model.layers[0].self_attn
    forward = attention.forward
    attention.forward = lambda states, **rest: forward(hidden_states=states, **rest)
    model.model.layers[0].forward = _under_another_name(model.model.layers[0])
    with pytest.raises(
        ModelError, match="enters the attention block of layer 0 of LlamaForCausalLM is not to be seen.*--no-cov"
    ):
        hc.calibrate(model, ROWS, sensitivity=False)
    found = hc.calibrate(model, ROWS, sensitivity=False, covariances=False)
    assert found.layers[0].holds == {"count", "first_count", "mean", "first"}


def _under_another_name(layer):
    """The layer's forward, which gives its attention what it reads under a name of its own."""

    def forward(hidden_states, **rest):
        states = layer.input_layernorm(hidden_states)
        return hidden_states + layer.self_attn(states=states, **rest)[0]

    return forward
