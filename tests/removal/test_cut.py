"""Every supported family: the pruned model's logits are the masked model's; the others are refused by name."""

import pytest
import torch

from headcount.errors import ModelError
from headcount.models.instrument import instrument
from headcount.models.observe import units_of
from headcount.policies import Fixed
from headcount.removal.cut import cut_heads
from headcount.removal.head_weights import head_weights_of
from headcount.removal.plan import plan_removal
from headcount.removal.prune import savings
from headcount.removal.replace import replace_heads
from tests.models.families import FAMILIES, build

pytestmark = pytest.mark.usefixtures("tiny")  # one thread

TOKENS = torch.randint(3, 256, (2, 20), generator=torch.Generator().manual_seed(0))

#: Families whose heads cannot be told apart in the weights, and the name in the refusal that says why.
REFUSED = {"doge": "A", "olmo2": "q_norm", "olmo3": "q_norm", "olmoe": "q_norm"}


def some_heads(model):
    """First layer: groups of different size. Second: a whole group, and one head of each other. Third: all heads."""
    heads = []
    for place, layer in enumerate(units_of(model).layers):
        count, size = layer.num_attention_heads, layer.group_size
        uneven = [0, count - 2, count - 1]
        even = [head for head in range(count) if head < size or head % max(size, 2) == 1]
        heads += [(layer.index, head) for head in (uneven, even, range(count), uneven)[place]]
    return heads


def whole_and_step(model):
    """Logits of all tokens read at once, and of the last one read after the others' cache."""
    whole = model(TOKENS, use_cache=False).logits
    first = model(TOKENS[:, :19], use_cache=True)
    if "past_key_values" not in first:  # recurrent_gemma keeps its state in its modules
        return whole, model(TOKENS[:, 19:], use_cache=True, cache_position=torch.tensor([19])).logits
    return whole, model(TOKENS[:, 19:], past_key_values=first.past_key_values, use_cache=True).logits


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in REFUSED])
def test_pruned_is_masked(family):
    model = build(family)
    plan = plan_removal(units_of(model), some_heads(model), uneven="index")
    with torch.no_grad():
        before = model(TOKENS).logits
        with instrument(model, policy=Fixed(plan.removed)):
            masked, masked_step = whole_and_step(model)
        pruned, _ = cut_heads(model, plan, replace_heads(model, plan.removed, "zero"))
        logits, step = whole_and_step(pruned)
        torch.testing.assert_close(logits, masked, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(step, masked_step, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(logits, before, atol=1e-3)
        assert torch.equal(model(TOKENS).logits, before)
    left = sum(parameter.numel() for parameter in pruned.parameters())
    before_count = sum(parameter.numel() for parameter in model.parameters())
    assert savings(model, plan, biases=False).num_parameters == (before_count, left)


@pytest.mark.parametrize(("family", "reason"), REFUSED.items())
def test_family_that_cannot_be_cut_is_refused_by_name(family, reason):
    model = build(family)
    with pytest.raises(ModelError, match=f"Attention.*{reason}"):
        head_weights_of(model)


def test_norms_with_weights_of_their_own_for_each_head():
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.models.families import COMMON

    for family, switch in (("cohere", {"use_qk_norm": True}), ("stablelm", {"qk_layernorm": True})):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **COMMON, **switch)).float().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name and "attn" in name:
                    parameter.uniform_(0.2, 5)
        plan = plan_removal(units_of(model), some_heads(model), uneven="index")
        pruned, _ = cut_heads(model, plan, replace_heads(model, plan.removed, "zero"))
        with torch.no_grad(), instrument(model, policy=Fixed(plan.removed)):
            masked = model(TOKENS).logits
        with torch.no_grad():
            torch.testing.assert_close(pruned(TOKENS).logits, masked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("uneven", ["repeat", "keep"])
def test_other_ways_with_uneven_groups(tiny, uneven):
    model = tiny("qwen2")
    heads = [(0, 0), (0, 5), (0, 6), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3), (2, 7)]
    plan = plan_removal(units_of(model), heads, uneven=uneven)
    assert len(plan.removed) == (9 if uneven == "repeat" else 7)
    pruned, _ = cut_heads(model, plan, replace_heads(model, plan.removed, "zero"))
    with torch.no_grad(), instrument(model, policy=Fixed(plan.removed)):
        masked = model(TOKENS).logits
    with torch.no_grad():
        torch.testing.assert_close(pruned(TOKENS).logits, masked, rtol=1e-4, atol=1e-5)
        cache = pruned(TOKENS, use_cache=True).past_key_values
    held = sum(layer.keys[0, :, 0].numel() + layer.values[0, :, 0].numel() for layer in cache.layers)
    assert savings(model, plan).key_value_bytes == (4 * 3 * 2 * 2 * 8, 4 * held)


def test_what_is_not_a_plain_projection_is_refused(tiny):
    model = tiny(num_hidden_layers=1)
    attention = model.model.layers[0].self_attn
    attention.v_proj = torch.nn.Sequential(attention.v_proj)
    with pytest.raises(ModelError, match=r"v_proj is a Sequential.*without quantisation"):
        head_weights_of(model)
