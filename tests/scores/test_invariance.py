"""What must not change a score, for every registered score: padding, batches, blocks, the order of heads, repeated keys."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headcount.attention.attend import attend
from headcount.attention.blocks import attend_in_blocks
from headcount.attention.inputs import AttentionInputs, Positions
from headcount.attention.measurements import OF_WEIGHTS, RAW_TENSORS, LayerMeasurements
from headcount.scores import select_scores

GROUPS, GROUP, DIM, VALUE_DIM = 2, 3, 8, 6
HEADS = GROUPS * GROUP
SCORES = [score for score in select_scores("all") if not score.needs & (RAW_TENSORS | {"uniform"})]
NEEDS = frozenset().union(*(score.needs for score in SCORES))
FACTOR = torch.randn(HEADS, VALUE_DIM, VALUE_DIM, generator=torch.Generator().manual_seed(1))
lengths = st.integers(1, 40)
seeds = st.integers(0, 2**16)
relaxed = settings(max_examples=15, deadline=None)


def tensors(seed: int, batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = 2 * torch.randn(batch, HEADS, length, DIM, generator=generator)
    key = torch.randn(batch, GROUPS, length, DIM, generator=generator)
    return query, key, torch.randn(batch, GROUPS, length, VALUE_DIM, generator=generator)


def scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    real: Tensor | None = None,
    mask: Tensor | None = None,
    factor: Tensor = FACTOR,
) -> dict[str, np.ndarray]:
    """Every score, float64 [batch, head]."""
    inputs = AttentionInputs(query=query, key=key, value=value, mask=mask, scaling=DIM**-0.5)
    positions = Positions.from_mask(real, query.shape[0], query.shape[2], query.device)
    _, measured = attend(inputs, positions, needs=NEEDS, projection_factor=lambda: factor)
    measurements = LayerMeasurements(**measured)
    return {score.id: score(measurements).double().numpy() for score in SCORES}


def assert_equal(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray], rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=rtol, atol=atol, err_msg=name)


@relaxed
@given(seed=seeds, length=lengths, padding=st.integers(1, 30), side=st.sampled_from(["left", "right"]))
def test_padding_does_not_count(seed, length, padding, side):
    whole = tensors(seed, 2, length)
    before, after = (padding, 0) if side == "left" else (0, padding)
    filled = [torch.nn.functional.pad(tensor, (0, 0, before, after), value=7.0) for tensor in whole]
    real = torch.zeros(2, length + padding, dtype=torch.bool)
    real[:, before : before + length] = True
    causal = torch.ones(length + padding, length + padding, dtype=torch.bool).tril()
    mask = None if side == "right" else (causal & real[:, None, None, :])
    assert_equal(scores(*filled, real=real, mask=mask), scores(*whole))


@relaxed
@given(seed=seeds, length=lengths, order=st.permutations(range(4)))
def test_batch_order_and_company_do_not_count(seed, length, order):
    whole = tensors(seed, 4, length)
    together = scores(*(tensor[list(order)] for tensor in whole))
    for place, index in enumerate(order):
        alone = scores(*(tensor[[index]] for tensor in whole))
        assert_equal({name: values[[place]] for name, values in together.items()}, alone)


@relaxed
@given(seed=seeds, length=lengths, groups=st.permutations(range(GROUPS)), inside=st.permutations(range(GROUP)))
def test_permuting_heads_permutes_scores(seed, length, groups, inside):
    query, key, value = tensors(seed, 2, length)
    order = [group * GROUP + head for group in groups for head in inside]
    permuted = scores(query[:, order], key[:, list(groups)], value[:, list(groups)], factor=FACTOR[order])
    assert_equal(permuted, {name: values[:, order] for name, values in scores(query, key, value).items()})


@relaxed
@given(seed=seeds, length=lengths)
def test_shared_keys_score_as_repeated_keys(seed, length):
    query, key, value = tensors(seed, 2, length)
    repeated = key.repeat_interleave(GROUP, 1), value.repeat_interleave(GROUP, 1)
    assert_equal(scores(query, *repeated), scores(query, key, value))


@relaxed
@given(seed=seeds, length=lengths, block=st.integers(1, 50), window=st.integers(1, 50))
def test_block_size_does_not_count(seed, length, block, window):
    query, key, value = tensors(seed, 2, length)
    band = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - window)[None, None]
    for mask in (None, band):
        inputs = AttentionInputs(query=query, key=key, value=value, mask=mask, scaling=DIM**-0.5)
        positions = Positions.from_mask(None, 2, length, query.device)
        output, measured = attend_in_blocks(inputs, positions, wanted=OF_WEIGHTS, block=block)
        expected, reference = attend_in_blocks(inputs, positions, wanted=OF_WEIGHTS, block=length)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
        for name in OF_WEIGHTS:
            torch.testing.assert_close(measured[name], reference[name], rtol=1e-4, atol=1e-5)


@relaxed
@given(seed=seeds, length=lengths)
def test_a_window_of_the_whole_length_is_no_window(seed, length):
    whole = tensors(seed, 2, length)
    band = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - length)
    assert_equal(scores(*whole, mask=band[None, None]), scores(*whole))


@relaxed
@given(seed=seeds, length=st.integers(2, 40))
def test_bfloat16_stays_near_float32(seed, length):
    rounded = [tensor.bfloat16() for tensor in tensors(seed, 2, length)]
    exact = scores(*(tensor.float() for tensor in rounded))
    assert_equal(scores(*rounded), exact, rtol=0.03, atol=0.02)  # bfloat16 has 8 bits: a weight is right to 1 in 256


def test_one_token():
    found = scores(*tensors(0, 2, 1))
    assert (found["awft"] == 1).all()
    assert (found["aeqd"] == 0).all()
    assert np.isnan(found["aeqd_ln"]).all()  # a ratio to 0
    np.testing.assert_allclose(found["lthon_hn"], 1, rtol=1e-6)


@pytest.mark.parametrize("length", [4096])
def test_long_sequences_match_single_rows(length):
    # The last query of a long sequence, worked alone, gives its part of the means.
    query, key, value = tensors(3, 1, length)
    inputs = AttentionInputs(query=query, key=key, value=value, mask=None, scaling=DIM**-0.5)
    output, measured = attend(
        inputs, Positions.from_mask(None, 1, length, query.device), needs=NEEDS - {"contribution_norm"}
    )
    logits = (
        torch.einsum("hd,hkd->hk", query[0, :, -1].double(), key[0].repeat_interleave(GROUP, 0).double()) * DIM**-0.5
    )
    weights = logits.softmax(-1)
    expected = torch.einsum("hk,hkd->hd", weights, value[0].repeat_interleave(GROUP, 0).double())
    torch.testing.assert_close(output[0, :, -1].double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(measured["last_output_norm"][0].double(), expected.norm(dim=-1), rtol=1e-4, atol=1e-5)
    assert all(bool(values.isfinite().all()) for values in measured.values())
