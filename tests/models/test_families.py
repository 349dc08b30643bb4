"""Every supported family: scores equal a plain loop over the model's own eager attention, zeroing equals zeroing the
columns of the output projection's input, the model is restored, generation runs. Others are refused by name."""

import numpy as np
import pytest
import torch

from headcount.errors import ModelError
from headcount.models.instrument import instrument
from headcount.models.observe import units_of
from headcount.models.projection import output_projection
from headcount.policies import Fixed
from tests.models.eager import eager_attention, plain_scores
from tests.models.families import FAMILIES, REFUSED, build

TOKENS = torch.randint(
    3, 256, (1, 20), generator=torch.Generator().manual_seed(0)
)  # longer than windows and chunks of 8


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """Tiny random models provoke warnings that are not about headcount."""
    import transformers

    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity(level)


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family):
    model = build(family)
    layers = eager_attention(model, TOKENS)
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
