import numpy as np
import pytest
import torch
from torch import nn
from transformers import DynamicCache

from headcount.errors import InputError, ModelError
from headcount.models.context import ForwardContext


class Model(nn.Module):
    """A model's signature, and nothing else."""

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        **kwargs,
    ): ...


def context(*args, **kwargs) -> ForwardContext:
    return ForwardContext(Model(), args, kwargs)


TOKENS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
RIGHT = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
LEFT = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])


def a_cache(length: int) -> DynamicCache:
    cache = DynamicCache()
    if length:
        cache.update(torch.zeros(2, 1, length, 4), torch.zeros(2, 1, length, 4), 0)
    return cache


def test_without_a_mask_every_token_is_real():
    for given in (context(TOKENS), context(input_ids=TOKENS), context(TOKENS, torch.ones_like(TOKENS))):
        assert (given.batch, given.continues) == (2, False)
        assert given.positions.real is None
        assert given.positions.first.tolist() == [0, 0]
        assert given.positions.last.tolist() == [3, 3]


@pytest.mark.parametrize(("mask", "first", "last"), [(RIGHT, [0, 0], [2, 3]), (LEFT, [2, 0], [3, 3])])
def test_the_mask_says_which_tokens_are_real(mask, first, last):
    positions = context(TOKENS, attention_mask=mask).positions
    assert positions.first.tolist() == first
    assert positions.last.tolist() == last
    assert positions.real.tolist() == mask.bool().tolist()


def test_embeddings_serve_but_have_no_random_draws():
    given = context(inputs_embeds=torch.zeros(2, 4, 8), attention_mask=RIGHT)
    assert given.positions.last.tolist() == [2, 3]
    with pytest.raises(ModelError, match="call the model with input_ids"):
        given.uniform(0, 1, 1)


def test_a_wrapper_that_hands_on_what_it_is_given_is_read_too():
    class Wrapper(nn.Module):
        def forward(self, *args, **kwargs): ...

    given = ForwardContext(Wrapper(), (TOKENS,), {"attention_mask": RIGHT})
    assert given.positions.last.tolist() == [2, 3]
    with pytest.raises(InputError, match="given 2 inputs without names"):
        ForwardContext(Wrapper(), (TOKENS, RIGHT), {})


def test_a_call_without_inputs_is_refused():
    with pytest.raises(InputError, match="called without input_ids"):
        context(attention_mask=RIGHT)


def test_a_filled_cache_means_a_continuation_whose_mask_is_not_read():
    assert context(TOKENS[:, :1], torch.ones(2, 5), past_key_values=a_cache(4)).continues
    assert not context(TOKENS, torch.ones_like(TOKENS), past_key_values=a_cache(0)).continues


def causal(real, window=9, slots=4):
    """A mask as transformers prepares it for a cache of ``slots``: bool [batch, 1, query, key]."""
    length = real.shape[1]
    band = torch.ones(length, slots, dtype=torch.bool).tril().triu(1 - window)
    return band & torch.nn.functional.pad(real.bool(), (0, slots - length))[:, None, None]


@pytest.mark.parametrize("slots", [4, 7])
@pytest.mark.parametrize("window", [2, 9])
def test_real_tokens_are_read_off_prepared_masks(window, slots):
    for real in (LEFT, RIGHT, torch.ones_like(LEFT)):
        mask = causal(real, window, slots)
        bias = torch.zeros(mask.shape).masked_fill(~mask, -1e30)
        expected = context(TOKENS, real).positions
        for given in (mask, bias, {"full_attention": None, "sliding_attention": mask}):
            found = context(TOKENS, given, past_key_values=a_cache(0)).positions
            assert torch.equal(found.first, expected.first)
            assert torch.equal(found.last, expected.last)


def test_a_prepared_mask_that_packs_texts_is_refused():
    packed = causal(torch.ones(2, 4))
    packed[:, :, 2:, :2] = False
    with pytest.raises(InputError, match=r"2-D .*not plainly one causal text a row"):
        context(TOKENS, packed)


def test_masks_that_hide_what_is_padding_are_refused():
    with pytest.raises(InputError, match=r"2-D \[batch, position\].*shape \(2, 1, 4, 4\)"):
        context(TOKENS, torch.ones(2, 1, 4, 4))
    with pytest.raises(InputError, match=r"2-D .*a dict of masks"):
        context(TOKENS, {"full_attention": RIGHT})


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"shape \(2, 3\), the inputs \(2, 4\)"):
        context(TOKENS, RIGHT[:, :3])


def test_an_example_of_padding_only_is_refused():
    with pytest.raises(InputError, match=r"padding only\. Leave empty examples out"):
        context(TOKENS, torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]))


def test_packed_texts_are_refused():
    context(TOKENS, position_ids=torch.arange(4)[None])
    context(TOKENS, position_ids=torch.arange(3, 7)[None])
    with pytest.raises(InputError, match="packs several texts into one"):
        context(TOKENS, position_ids=torch.tensor([[0, 1, 0, 1]]))


def test_draws_are_uniform_float32_numbers():
    drawn = context(torch.arange(50)[:, None]).uniform(0, 20, 20)
    assert drawn.shape == (50, 20, 20)
    assert drawn.dtype == torch.float32
    assert drawn.min() >= 0
    assert drawn.max() < 1
    # 20,000 draws: the mean's standard deviation is sqrt(1/12 / 20000) = 0.002, that of each tenth's share the same.
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.008)
    np.testing.assert_allclose(np.histogram(drawn, bins=10, range=(0, 1))[0] / 20000, 0.1, atol=0.009)
    assert drawn.unique().numel() > 19000


def test_draws_depend_on_seed_and_real_tokens_alone():
    alone = context(torch.tensor([[5, 6, 7]])).uniform(3, 2, 4)[0]
    right = context(TOKENS, RIGHT).uniform(3, 2, 4)
    left = context(torch.tensor([[9, 10, 11, 12], [99, 5, 6, 7]]), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]))
    assert torch.equal(right[0], alone)
    assert torch.equal(left.uniform(3, 2, 4)[1], alone)
    assert torch.equal(left.uniform(3, 2, 4)[0], right[1])
    assert not torch.equal(right[0], right[1])
    for other in (0, -3, 2**40):
        assert not torch.equal(context(TOKENS, RIGHT).uniform(other, 2, 4)[0], alone)


def test_one_context_draws_for_two_seeds():
    given = context(TOKENS)
    first, second = given.uniform(1, 2, 4), given.uniform(2, 2, 4)
    assert not torch.equal(first, second)
    assert torch.equal(given.uniform(1, 2, 4), first)


@pytest.mark.parametrize("shape", [(1, 0), (0, 4)])
def test_no_token_at_all_is_refused(shape):
    with pytest.raises(InputError, match="without a token"):
        context(input_ids=torch.zeros(shape, dtype=torch.int64))
