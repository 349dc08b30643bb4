"""The reference itself, against plain loops in float64."""

from dataclasses import replace

import pytest
import torch

from headcount.attention.blocks import attend_in_blocks
from tests.attention.reference import CASES, OF_WEIGHTS, case, make, matrices


@pytest.mark.parametrize("name", CASES)
def test_equals_a_plain_loop(name):
    inputs, positions, expected = case(name)
    output, found = attend_in_blocks(inputs, positions, wanted=OF_WEIGHTS, block=8)
    real = torch.ones(output.shape[::2], dtype=torch.bool) if positions.real is None else positions.real
    torch.testing.assert_close(
        output.double()[real[:, None].expand(output.shape[:3])],
        expected["output"][real[:, None].expand(output.shape[:3])],
        rtol=1e-5,
        atol=1e-5,
    )
    for name, values in found.items():
        assert values.dtype == torch.float32
        torch.testing.assert_close(
            positions.mean(values).double(), positions.mean(expected[name]), rtol=1e-5, atol=3e-6
        )


@pytest.mark.parametrize("name", CASES)
def test_the_tests_own_matrices_equal_their_loops(name):
    inputs, positions, expected = case(name)
    for what, values in matrices(inputs, positions).items():
        torch.testing.assert_close(values, expected[what], rtol=1e-9, atol=1e-9)


def test_a_bias_in_place_of_a_mask():
    inputs, positions = make(mask="window")
    bias = torch.zeros(inputs.mask.shape).masked_fill(~inputs.mask, -1e30)
    output, found = attend_in_blocks(replace(inputs, mask=bias), positions, wanted=OF_WEIGHTS)
    expected_output, expected = attend_in_blocks(inputs, positions, wanted=OF_WEIGHTS)
    torch.testing.assert_close(output, expected_output)
    for name in OF_WEIGHTS:
        torch.testing.assert_close(found[name], expected[name])


def test_nan_stays_nan_and_stays_where_it_is():
    inputs, positions = make(length=12, head_dim=8, batch=1)
    inputs.query[0, 1, 5, 0] = float("nan")
    output, found = attend_in_blocks(inputs, positions, wanted=OF_WEIGHTS)
    assert output.isnan().any(-1).nonzero().tolist() == [[0, 1, 5]]
    for name in OF_WEIGHTS:
        assert found[name].isnan().nonzero().tolist() == [[0, 1, 5]]


def test_one_token_has_entropy_0_exactly():
    inputs, positions = make(length=1)
    found = attend_in_blocks(inputs, positions, wanted=OF_WEIGHTS)[1]
    assert (found["entropy"] == 0).all()
    assert (found["first_token_weight"] == 1).all()
