import pytest
import torch
from torch import nn

from headcount.errors import ModelError
from headcount.models.attention_function import read_call


class SomeAttention(nn.Module):
    pass


QUERY, KEY, VALUE = torch.rand(1, 4, 3, 16), torch.rand(1, 2, 3, 16), torch.rand(1, 2, 3, 8)


def call(**kwargs):
    return read_call(SomeAttention(), QUERY, KEY, VALUE, None, **kwargs)


def test_a_call_is_taken_over():
    sinks, mask = torch.zeros(4), torch.ones(1, 1, 3, 3, dtype=torch.bool)
    inputs = read_call(SomeAttention(), QUERY, KEY, VALUE, mask, scaling=0.5, softcap=30.0, s_aux=sinks)
    assert (inputs.query is QUERY, inputs.key is KEY, inputs.value is VALUE, inputs.mask is mask) == (True,) * 4
    assert (inputs.scaling, inputs.softcap) == (0.5, 30.0)
    assert inputs.sinks is sinks
    assert inputs.group_size == 2


def test_scaling_defaults_to_one_over_the_root_of_the_query_size():
    inputs = call(dropout=0.0)
    assert inputs.scaling == 0.25  # 16 ** -0.5
    assert inputs.softcap is None
    assert inputs.sinks is None


def test_bookkeeping_and_empty_arguments_are_no_matter():
    call(position_ids=torch.arange(3), use_cache=True, sliding_window=4, position_bias=None, indices=None)


@pytest.mark.parametrize("name", ["position_bias", "indices", "sinks", "something_new"])
def test_an_argument_that_could_change_attention_is_refused_by_name(name):
    with pytest.raises(ModelError, match=f"SomeAttention calls its attention with {name}, which headcount does not"):
        call(**{name: torch.zeros(1)})


def test_all_unknown_arguments_are_named():
    with pytest.raises(ModelError, match="with a_bias, z_bias, which"):
        call(z_bias=1, a_bias=2)


def test_a_falsy_unknown_argument_is_refused_too():
    with pytest.raises(ModelError, match="with temperature"):
        call(temperature=0)


def test_dropout_is_refused():
    with pytest.raises(ModelError, match=r"Attention dropout of 0\.1 is on.*model\.eval\(\)"):
        call(dropout=0.1)


def test_a_model_in_training_with_dropout_is_refused_and_left_as_it_was(tiny):
    from headcount.models.instrument import instrument

    model = tiny(attention_dropout=0.1).train()
    with pytest.raises(ModelError, match="dropout"), instrument(model):
        pass
    assert model.training
    assert model.config._attn_implementation == "sdpa"
