"""What was found out about a model is true of the model as it is now."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from headcount.errors import InputError
from headcount.measure import measure_heads
from headcount.models import observe
from headcount.models.capabilities import can_pack, can_restart
from headcount.models.instrument import instrument
from headcount.models.observe import attention_modules, decoder_of, units_of
from headcount.policies import Fixed

ROWS = torch.randint(3, 256, (2, 9), generator=torch.Generator().manual_seed(1)).tolist()
SHARP = {"initializer_range": 0.2}


def drop_a_layer(model):
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2


def repeat_a_layer(model):
    model.model.layers.append(copy.deepcopy(model.model.layers[0]))
    model.model.layers[-1].self_attn.layer_idx = 3
    for module in model.model.layers[-1].modules():
        if hasattr(module, "config"):
            module.config = model.config
    model.config.num_hidden_layers = 4
    if getattr(model.config, "layer_types", None):
        model.config.layer_types.append(model.config.layer_types[0])


def reverse(model):
    model.model.layers = nn.ModuleList(reversed(model.model.layers))
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index


def narrow(model):
    """Layer 1 keeps its first four query heads of eight."""
    attention = model.model.layers[1].self_attn
    attention.q_proj.weight = nn.Parameter(attention.q_proj.weight[:32])
    attention.o_proj.weight = nn.Parameter(attention.o_proj.weight[:, :32])
    attention.num_key_value_groups = 2


def swap_class(model):
    attention = model.model.layers[1].self_attn
    attention.__class__ = type("Other", (type(attention),), {})


def wider_vocabulary(model):
    model.resize_token_embeddings(300)
    model.eval()  # transformers makes a new projection, in training mode


def shorter_window(model):
    model.config.sliding_window = 2
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 2


CHANGES = [drop_a_layer, repeat_a_layer, reverse, narrow, swap_class, wider_vocabulary, shorter_window]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_measured_as_it_is(tiny, change):
    model = tiny("mistral", **SHARP, sliding_window=4)
    measure_heads(model, ROWS)
    change(model)
    fresh = copy.deepcopy(model)  # of which nothing is remembered
    found, expected = measure_heads(model, ROWS), measure_heads(fresh, ROWS)
    assert units_of(model) == units_of(fresh)
    for name in expected.data_vars:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert list(attention_modules(model).values()) == [layer.self_attn for layer in model.model.layers]
    assert decoder_of(model).layers == [*model.model.layers]
    last = Fixed([(len(model.model.layers) - 1, 3)])
    with instrument(model, policy=last), instrument(fresh, policy=last), torch.no_grad():
        assert torch.equal(model(torch.tensor(ROWS)).logits, fresh(torch.tensor(ROWS)).logits)


def test_heads_that_are_gone_are_refused(tiny):
    model = tiny(**SHARP)
    measure_heads(model, ROWS)
    drop_a_layer(model)
    with pytest.raises(InputError, match="layer 2"):
        instrument(model, policy=Fixed([(2, 0)])).__enter__()


def test_an_unchanged_model_is_looked_at_once(tiny, monkeypatch):
    model, looks = tiny(**SHARP), []
    look = observe._observe
    monkeypatch.setattr(observe, "_observe", lambda model: looks.append(model) or look(model))
    for _ in range(3):
        with instrument(model, scores="all"), torch.no_grad():
            model(torch.tensor(ROWS))
    nn.init.normal_(model.lm_head.weight)  # weights are no units
    model.bfloat16().float().train().eval()
    units_of(model)
    assert len(looks) == 1


def test_what_a_model_can_do_is_found_out_anew_once_it_can_no_more(tiny):
    model = tiny(**SHARP)
    assert can_pack(model)
    assert can_restart(model)
    forward = type(model.model.layers[1]).forward

    class MixesTokens(type(model.model.layers[1])):
        """Reads its neighbour too, as convolutions do."""

        def forward(self, hidden_states, *args, **kwargs):
            before = nn.functional.pad(hidden_states[:, :-1], (0, 0, 1, 0))
            return forward(self, hidden_states + before, *args, **kwargs)

    model.model.layers[1].__class__ = MixesTokens
    assert not can_pack(model)
    assert can_restart(model)


def double(weight):
    weight.data *= 2


def load(weight):
    with torch.no_grad():
        weight.copy_(weight.flip(0, 1))


def one_number(weight):
    weight.data[3, 5] += 0.25


@pytest.mark.parametrize("change", [double, load, one_number])
def test_projections_changed_inside_a_block_count_as_they_are(tiny, change):
    model, tokens = tiny(**SHARP), torch.tensor(ROWS)
    with instrument(model, scores=["fhon"]) as probe, torch.no_grad():
        model(tokens)
        change(model.model.layers[1].self_attn.o_proj.weight)
        model(tokens)
        model.model.layers[2].self_attn.o_proj = copy.deepcopy(model.model.layers[0].self_attn.o_proj)
        model(tokens)
        found = probe.scores["fhon"].values
    fresh_model = copy.deepcopy(model)
    with instrument(fresh_model, scores=["fhon"]) as fresh, torch.no_grad():
        fresh_model(tokens)
    np.testing.assert_array_equal(found[4:], fresh.scores["fhon"].values)
    assert (found[2:4, 1] != found[:2, 1]).any()
    np.testing.assert_array_equal(found[2:4, 1], found[4:, 1])


def test_a_model_moved_to_another_dtype_inside_a_block_is_measured_there(tiny):
    model, tokens = tiny(**SHARP), torch.tensor(ROWS)
    with instrument(model, scores=["fhon"]) as probe, torch.no_grad():
        model(tokens)
        model.double()
        model(tokens)
    np.testing.assert_allclose(probe.scores["fhon"][2:], probe.scores["fhon"][:2], rtol=1e-5)
