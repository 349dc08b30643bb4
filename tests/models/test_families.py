"""Every supported family: scores equal a plain loop over the model's own eager attention, zeroing equals zeroing the
columns of the output projection's input, the model is restored, generation runs. Others are refused by name."""

import math
import sys

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from headcount.errors import ModelError
from headcount.models.instrument import instrument
from headcount.models.observe import units_of
from headcount.models.projection import output_projection
from headcount.policies import Fixed
from tests.models.families import FAMILIES, REFUSED, build

TOKENS = torch.randint(
    3, 256, (1, 20), generator=torch.Generator().manual_seed(0)
)  # longer than windows and chunks of 8

Layers = dict[int, tuple[torch.nn.Module, np.ndarray, np.ndarray, np.ndarray]]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """Tiny random models provoke warnings that are not about headcount."""
    import transformers

    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity(level)


def eager_attention(model: PreTrainedModel) -> Layers:
    """layer → (module, attention weights [head, query, key], values [key-value head, key, dim], outputs [head, query, dim]).

    From the family's own eager attention function, which headcount never calls.
    """
    layers: Layers = {}

    def capture(module, query, key, value, attention_mask, **kwargs):
        eager = sys.modules[type(module).__module__].eager_attention_forward
        output, weights = eager(module, query, key, value, attention_mask, **kwargs)
        arrays = weights[0], value[0], output[0].transpose(0, 1)
        layers[module.layer_idx] = module, *(array.detach().double().numpy() for array in arrays)
        return output, weights

    before = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    implementations = {key: config._attn_implementation for key, config in before.items()}
    AttentionInterface.register("capture", capture)
    AttentionMaskInterface.register("capture", eager_mask)
    try:
        model.set_attn_implementation("capture")
        with torch.no_grad():
            model(TOKENS, use_cache=False)
    finally:
        for key, config in before.items():
            config._attn_implementation_internal = implementations[key]
        del AttentionInterface._global_mapping["capture"], AttentionMaskInterface._global_mapping["capture"]
    return layers


def plain_scores(
    module: torch.nn.Module, weights: np.ndarray, values: np.ndarray, outputs: np.ndarray
) -> dict[str, np.ndarray]:
    """The scores of one layer, [head] each, by SCORES' definitions written as loops."""
    heads, length, _ = weights.shape
    group = heads // len(values)
    projection = output_projection(module)
    raw: dict[str, list[float]] = {name: [] for name in ("awft", "aeqd", "ftvvn", "avvn", "lthon", "ahon", "fhon")}
    for head in range(heads):
        entropy = 0.0
        for query in range(length):
            row = [*weights[head, query], max(0.0, 1 - weights[head, query].sum())]  # the rest is the sink's, or 0
            entropy -= sum(p * math.log(p) for p in row if p > 1e-7)
        value, output = values[head // group], outputs[head]
        alone = np.zeros((length, heads, output.shape[-1]))
        alone[:, head] = output
        with torch.no_grad():
            bias = projection(torch.zeros(1, heads * output.shape[-1]))
            contribution = (projection(torch.tensor(alone.reshape(length, -1)).float()) - bias).double().numpy()
        norms = np.linalg.norm(output, axis=-1)
        raw["awft"].append(weights[head, :, 0].mean())
        raw["aeqd"].append(entropy / length)
        raw["ftvvn"].append(np.linalg.norm(value[0]))
        raw["avvn"].append(np.linalg.norm(value, axis=-1).mean())
        raw["lthon"].append(norms[-1])
        raw["ahon"].append(norms.mean())
        raw["fhon"].append(np.linalg.norm(contribution, axis=-1).mean())
    scores = {name: np.array(of_heads) for name, of_heads in raw.items()}
    normalised = {f"{name}_ln": of_heads / of_heads.mean() for name, of_heads in scores.items()}
    normalised["lthon_ln"] = scores["lthon"] / scores["ahon"].mean()
    return scores | normalised | {"lthon_hn": scores["lthon"] / scores["ahon"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family):
    model = build(family)
    layers = eager_attention(model)
    with torch.no_grad():
        before = model(TOKENS).logits

    with instrument(model, scores="all") as probe, torch.no_grad():
        measured_logits = model(TOKENS).logits
    torch.testing.assert_close(measured_logits, before, rtol=1e-4, atol=1e-5)
    assert units_of(model).layer_indices == sorted(layers)
    for place, layer in enumerate(sorted(layers)):
        for name, expected in plain_scores(*layers[layer]).items():
            measured = probe.scores[name].values[0, place, : len(expected)]
            np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-5, err_msg=f"{name}, layer {layer}")

    off = [(layer, head) for layer in layers for head in (1, 2)]
    hooks = []
    for module, _, _, outputs in layers.values():
        columns = np.zeros(outputs.shape[0], bool)
        columns[[1, 2]] = True
        mask = torch.from_numpy(np.repeat(columns, outputs.shape[-1]))
        hooks.append(
            output_projection(module).register_forward_pre_hook(lambda _, args, m=mask: (args[0].masked_fill(m, 0),))
        )
    with torch.no_grad():
        expected_logits = model(TOKENS).logits
    for hook in hooks:
        hook.remove()
    with instrument(model, policy=Fixed(off)) as probe, torch.no_grad():
        zeroed_logits = model(TOKENS).logits
        answer = model.generate(TOKENS, max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
    torch.testing.assert_close(zeroed_logits, expected_logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(zeroed_logits, before, atol=1e-4), "zeroing two heads of every layer changed nothing"
    assert answer.shape == (1, TOKENS.shape[1] + 3)
    assert probe.off.values[0, :, 1:3].all()

    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, before)


@pytest.mark.parametrize("family", REFUSED)
def test_family_outside_the_interface_is_refused(family):
    model = build(family)
    with torch.no_grad():
        before = model(TOKENS).logits
    with pytest.raises(ModelError, match=type(model).__name__), instrument(model):
        pass
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, before)
