"""What `instrument` refuses, and that the model is as it was afterwards."""

import pytest
import torch

from headcount.errors import InputError, ModelError
from headcount.models.instrument import instrument
from headcount.policies import Random
from tests.models.traces import TOKENS, logits, traces


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"position_ids": torch.tensor([[*range(6), *range(6)]] * 3)}, "packs several texts into one"),
        ({"attention_mask": torch.ones(3, 1, 12, 12, dtype=torch.bool)}, "attention_mask must be 2-D"),
        ({"attention_mask": torch.tensor([[1] * 12, [0] * 12, [1] * 12])}, "padding only"),
        ({"attention_mask": torch.ones(3, 11, dtype=torch.int64)}, "they must agree"),
    ],
)
def test_calls_that_cannot_be_measured_are_refused(tiny, kwargs, message):
    model = tiny()
    before, found = logits(model), traces(model)
    with instrument(model, scores="all") as probe:
        with pytest.raises(InputError, match=message):
            logits(model, **kwargs)
        assert probe.scores.sizes["example"] == 0
        logits(model)  # the next call is measured
        assert probe.scores.sizes["example"] == 3
    assert torch.equal(logits(model), before)
    assert traces(model) == found


@pytest.mark.parametrize(
    ("family", "changes"), [("falcon", {}), ("gptj", {"n_embd": 64, "n_head": 8, "n_layer": 2, "rotary_dim": 8})]
)
def test_a_model_outside_the_attention_interface_is_refused_by_name_and_left_alone(tiny, family, changes):
    model = tiny(family, **changes)
    before, found = logits(model), traces(model)
    with (
        pytest.raises(ModelError, match=f"{type(model).__name__} computes attention itself"),
        instrument(model, scores="all"),
    ):
        pass
    assert torch.equal(logits(model), before)
    assert traces(model) == found


def test_an_attention_layer_on_its_own_is_refused(tiny):
    model = tiny()
    hidden = torch.zeros(1, 4, 64)
    rotary = model.model.rotary_emb(hidden, torch.arange(4)[None])
    with instrument(model), pytest.raises(ModelError, match="outside its model's forward pass"):
        model.model.layers[0].self_attn(hidden, position_embeddings=rotary, attention_mask=None)


def test_a_continuation_whose_prompt_was_not_seen_is_refused(tiny):
    model = tiny()
    with torch.no_grad():
        cache = model(TOKENS, use_cache=True).past_key_values
    with instrument(model, policy=Random(0.5)), pytest.raises(InputError, match="inside one block"):
        logits(model, TOKENS[:, :1], past_key_values=cache)


def test_unknown_scores_are_refused_before_anything_is_changed(tiny):
    model = tiny()
    found = traces(model)
    with pytest.raises(InputError, match="Unknown score 'ahom'"), instrument(model, scores=["ahom"]):
        pass
    assert traces(model) == found


@pytest.mark.parametrize("token", [256, -1])
def test_token_ids_that_the_model_does_not_know_are_refused_and_the_model_is_restored(tiny, token):
    model = tiny()
    before, expected = traces(model), logits(model)
    wrong = torch.tensor([[3, token]])
    with (
        pytest.raises(InputError, match=rf"An input has the token id {token}, and the model knows 0…255"),
        instrument(model, scores=["ahon"]),
    ):
        logits(model, wrong)
    assert traces(model) == before
    assert torch.equal(logits(model), expected)


def test_gradient_checkpointing_is_refused_for_what_it_is(tiny):
    model = tiny()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # its name has changed
    model.train()
    with pytest.raises(ModelError, match=r"gradient_checkpointing_disable|model\.eval\(\)"), instrument(model):
        model(input_ids=torch.arange(4, 12)[None]).logits.sum().backward()


def test_an_empty_prompt_is_refused(tiny):
    with pytest.raises(InputError, match="without a token"), instrument(model := tiny()):
        model.generate(input_ids=torch.zeros(1, 0, dtype=torch.int64), max_new_tokens=2, use_cache=False)


@pytest.mark.parametrize("seed", [2**127, 1.5, "1"])
def test_what_is_no_seed_is_refused(tiny, seed):
    with pytest.raises(InputError, match="A seed is a whole number"), instrument(tiny(), scores=["random"], seed=seed):
        pass
