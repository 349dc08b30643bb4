"""MLPs of every supported family: neurons' scores equal a plain loop over what the model's own modules were given, off equals
zeroed columns of the last map's input, the model is restored. Mixtures of experts and others are refused by name."""

import numpy as np
import pytest
import torch

from headcount.errors import ModelError
from headcount.models.instrument import instrument
from headcount.models.observe import decoder_of, mlps_of, units_of
from headcount.policies import Fixed
from tests.models.families import FAMILIES, build

TOKENS = torch.randint(3, 256, (1, 20), generator=torch.Generator().manual_seed(0))
#: Families whose layers hold something else than one MLP, and what they say.
OTHERS = dict.fromkeys(
    (
        *("deepseek_v3", "dots1", "gpt_oss", "granitemoe", "granitemoehybrid", "llama4_text", "minimax", "mixtral"),
        *("nemotron_h", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "qwen3_next", "recurrent_gemma"),
    ),
    "several maps in one module",
)
OTHERS |= {"bamba": "2 linear maps", "falcon_h1": "2 linear maps", "jamba": "3 linear maps"}
#: Families whose MLPs read what attention reads.
PARALLEL = {"cohere", "cohere2", "phi", "gpt_neox"}
#: Families whose layers add something else than what the last map writes: scaled, or normalised.
SCALED = {"doge", "exaone4", "gemma2", "gemma3_text", "glm4", "granite", "olmo2", "olmo3"}
DOWN = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "ff_out", "w2", "fc_out", "output_linear")


def residuals(model, parallel):
    """The residual stream that each MLP reads, worked out of what its decoder layer was given, gave and added last."""
    found, decoder = [], decoder_of(model)
    written = {}
    hooks = [
        mlp.down.register_forward_hook(lambda m, args, out, i=i: written.update({i: out.reshape(1, 20, -1)}))
        for i, mlp in mlps_of(model).items()
    ]
    for i, layer in enumerate(decoder.layers):

        def keep(m, args, kwargs, out, i=i):
            out = out[0] if isinstance(out, tuple) else out
            found.append((args[0] if args else kwargs["hidden_states"]) if parallel else out - written[i])

        hooks.append(layer.register_forward_hook(keep, with_kwargs=True))
    with torch.no_grad():
        model(TOKENS)
    for hook in hooks:
        hook.remove()
    return found


def kept(model, names):
    """What the modules that end in one of ``names`` were given, outside attention, in the order of their layers."""
    found, hooks = [], []
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in names and "att" not in name:
            hooks.append(module.register_forward_pre_hook(lambda m, args, f=found: f.append((m, args[0]))))
    with torch.no_grad():
        logits = model(TOKENS).logits
    for hook in hooks:
        hook.remove()
    return found, logits


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_family(family):
    model = build(family)
    if family in OTHERS:
        with pytest.raises(ModelError, match=f"{type(model).__name__} .*{OTHERS[family]}"):
            units_of(model, "neuron")
        return
    given, before = kept(model, DOWN)
    mlps = mlps_of(model)
    assert [mlp.down for mlp in mlps.values()] == [module for module, _ in given]

    scores = ["ahon", "ahon_ln", "fhon", "fhon_ln", "lthon", "fthon", "griffin", "rms_res", "random"]
    with instrument(model, scores=scores, unit="neuron") as probe, torch.no_grad():
        measured_logits = model(TOKENS).logits
    torch.testing.assert_close(measured_logits, before, rtol=1e-4, atol=1e-5)
    for layer, (down, values) in enumerate(given):
        a = values.reshape(20, -1).double().numpy()
        weight = down.weight.detach().double().numpy()
        w = np.linalg.norm(weight if weight.shape[1] == a.shape[1] else weight.T, axis=0)
        size = np.abs(a).mean(0)
        expected = {
            "ahon": size,
            "ahon_ln": size / size.mean(),
            "fhon": size * w,
            "fhon_ln": size * w / (size * w).mean(),
            "lthon": np.abs(a[-1]),
            "fthon": np.abs(a[0]),
            "griffin": np.sqrt((a**2 / (a**2).sum(1, keepdims=True)).mean(0)),
        }
        for name, of_layer in expected.items():
            np.testing.assert_allclose(
                probe.scores[name].values[0, layer], of_layer, rtol=2e-4, atol=1e-6, err_msg=f"{name}, {layer}"
            )
        if family not in SCALED:
            x = residuals(model, family in PARALLEL)[layer][0].double().numpy()
            of_layer = np.sqrt(((a * w) ** 2 / (x**2).sum(1, keepdims=True)).mean(0))
            np.testing.assert_allclose(probe.scores["rms_res"].values[0, layer], of_layer, rtol=1e-3, atol=1e-6)

    off = [(layer, neuron) for layer in range(len(given)) for neuron in (1, 5, 90)]
    mask = torch.zeros(given[0][1].shape[-1], dtype=torch.bool)
    mask[[1, 5, 90]] = True
    hooks = [module.register_forward_pre_hook(lambda _, args: (args[0].masked_fill(mask, 0),)) for module, _ in given]
    with torch.no_grad():
        expected_logits = model(TOKENS).logits
    for hook in hooks:
        hook.remove()
    with instrument(model, policy=Fixed(off), unit="neuron") as probe, torch.no_grad():
        off_logits = model(TOKENS).logits
    torch.testing.assert_close(off_logits, expected_logits, rtol=1e-4, atol=1e-5)
    assert probe.off.values.sum() == len(off)
    assert not torch.allclose(off_logits, before, atol=1e-4), "three neurons of every layer changed nothing"

    hooks = [module.register_forward_pre_hook(lambda _, args: (torch.zeros_like(args[0]),)) for module, _ in given[1:2]]
    with torch.no_grad():
        expected_logits = model(TOKENS).logits
    hooks[0].remove()
    with instrument(model, policy=Fixed([(1, 0)]), unit="mlp") as probe, torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, expected_logits, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, kept(model, DOWN)[1])
