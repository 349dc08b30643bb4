"""Measuring by the log-sum-exp of PyTorch's fused kernel."""

from dataclasses import replace

import pytest
import torch

from headcount.attention.fused import attend_fused, attend_fused_measured, supports_fused
from tests.attention.reference import CASES, OF_WEIGHTS, case, make, matrices
from tests.pretended import pretended_devices

SERVED = [case for case in CASES if supports_fused(make(**CASES[case])[0])]


def test_masks_are_served_and_what_breaks_the_identities_is_not():
    assert {"grouped", "left padding", "window", "window and padding", "values of another size"} <= set(SERVED)
    assert not {"softcap", "sinks", "length 1", "one query, many keys"} & set(SERVED)


@pytest.mark.parametrize("name", SERVED)
def test_equals_a_plain_loop(name):
    inputs, positions, expected = case(name)
    output, found = attend_fused_measured(inputs, positions, wanted=OF_WEIGHTS)
    real = torch.ones(output.shape[::2], dtype=torch.bool) if positions.real is None else positions.real
    real = real[:, None]
    torch.testing.assert_close(
        torch.where(real[..., None], output.double(), 0), torch.where(real[..., None], expected["output"], 0),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    for name in OF_WEIGHTS:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(
            torch.where(real, found[name].double(), 0), torch.where(real, expected[name], 0), rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(
            positions.mean(found[name]).double(), positions.mean(expected[name]), rtol=1e-5, atol=3e-6
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_entropies_in_half_precision_are_exact_where_heads_lean_on_the_first_token(dtype):
    """lse − E[s], with E[s] of rounded outputs, is off by 0.02 nat (bfloat16) and 0.002 (float16) a query here."""
    inputs, positions = make(length=300, head_dim=64, batch=1, dtype=dtype)
    inputs.key[:, :, 0] += 2.5 * inputs.query.unflatten(1, (2, 2)).mean((2, 3)).sign()
    found = attend_fused_measured(inputs, positions, wanted=OF_WEIGHTS)[1]
    expected = matrices(inputs, positions)
    assert (found["entropy"] - expected["entropy"]).abs().max() < 1e-4
    assert (found["first_token_weight"] - expected["first_token_weight"]).abs().max() < 1e-4


@pytest.mark.parametrize("keys", [21, 40])
def test_a_new_token_attends_to_the_cache_as_it_stands(keys, monkeypatch):
    inputs, _ = make(length=1, keys=keys, heads=6, groups=2, mask="causal")
    inputs.mask[1, :, :, :5] = False
    expected = torch.nn.functional.scaled_dot_product_attention(
        inputs.query, inputs.key.repeat_interleave(3, 1), inputs.value.repeat_interleave(3, 1), inputs.mask,
        scale=inputs.scaling,
    )  # fmt: skip
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", lambda *_, **__: pytest.fail("the cache was copied"))
    torch.testing.assert_close(attend_fused(inputs), expected)


def test_bfloat16_stays_within_its_bounds():
    """Mean weights within 5e-4, mean entropies within 5e-3 nat, outputs within 1 % of exact attention on the same inputs."""
    inputs, positions = make(length=150, head_dim=64, lengths=[150, 149, 40], dtype=torch.bfloat16)
    output, found = attend_fused_measured(inputs, positions, wanted=OF_WEIGHTS)
    expected = matrices(inputs, positions)
    assert output.dtype == torch.bfloat16
    assert (output - expected["output"]).norm() < 0.01 * expected["output"].norm()
    for name, bound in (("first_token_weight", 5e-4), ("entropy", 5e-3)):
        assert (positions.mean(found[name]) - positions.mean(expected[name])).abs().max() < bound


@pytest.mark.parametrize("mask", [None, "causal"])
@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_extreme_scores_neither_overflow_nor_vanish(shift, mask):
    """Scores of some thousands, all but one weight 0: entropy 0 and no NaN."""
    inputs, positions = make(length=12, head_dim=8, mask=mask)
    inputs = replace(inputs, query=inputs.query * shift)
    output, found = attend_fused_measured(inputs, positions, wanted=OF_WEIGHTS)
    expected = matrices(inputs, positions)
    torch.testing.assert_close(output.double(), expected["output"], rtol=1e-3, atol=1e-3)
    for name in OF_WEIGHTS:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-3, atol=2e-3)


def test_the_first_query_has_entropy_0_exactly():
    for mask in (None, "window"):
        inputs, positions = make(mask=mask)
        found = attend_fused_measured(inputs, positions, wanted=OF_WEIGHTS)[1]
        assert (found["entropy"][:, :, 0] == 0).all()


@pytest.mark.parametrize("mask", [None, "window"])
@pytest.mark.parametrize("wanted", [OF_WEIGHTS, frozenset({"first_token_weight"}), frozenset({"entropy"})], ids=sorted)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_dim", [12, 20, 100, 192, 256])
def test_on_cuda_the_operators_are_called_with_what_they_take(head_dim, dtype, wanted, mask):
    """Operators that refuse what the real ones refuse: sizes that are not multiples of 8, groups, masks that start askew."""
    inputs, positions = make(
        length=21, head_dim=head_dim, value_dim=128 if head_dim == 192 else None, dtype=dtype, mask=mask
    )
    output, found = attend_fused_measured(inputs, positions, wanted=wanted)
    with pretended_devices() as devices:
        there = replace(inputs, **{name: getattr(inputs, name).to("cuda:0") for name in ("query", "key", "value")})
        there = replace(there, mask=None if mask is None else inputs.mask.to("cuda:0"))
        assert supports_fused(there)
        output_there, found_there = attend_fused_measured(there, positions.to(torch.device("cuda:0")), wanted=wanted)
        output_there, found_there = output_there.cpu(), {name: found.cpu() for name, found in found_there.items()}
    (operator, _, keys), times = devices.attended.popitem()
    assert times == 1
    assert not devices.attended
    in_half = dtype != torch.float32 and "entropy" not in wanted and mask is None
    assert (operator, keys[1]) == (("flash_attention", 2) if in_half else ("efficient_attention", 4))
    bound = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(output_there, output, rtol=bound, atol=bound)
    assert found_there.keys() == wanted
    for name, values in found_there.items():
        torch.testing.assert_close(values, found[name], rtol=1e-4, atol=1e-4)


def test_a_nan_query_gives_no_weights():
    """PyTorch's fused CPU kernel puts out 0 for such a row, in plain sdpa too; the measurements stay NaN."""
    inputs, positions = make(length=12, head_dim=8, batch=1)
    inputs.query[0, 1, 5, 0] = float("nan")
    found = attend_fused_measured(inputs, positions, wanted=OF_WEIGHTS)[1]
    for name in OF_WEIGHTS:
        assert found[name].isnan().nonzero().tolist() == [[0, 1, 5]]


def test_unmeasured_attention_is_pytorchs_own():
    inputs, _ = make(lengths=[21, 1, 8])
    expected = torch.nn.functional.scaled_dot_product_attention(
        inputs.query, inputs.key, inputs.value, is_causal=True, enable_gqa=True, scale=inputs.scaling
    )
    assert torch.equal(attend_fused(inputs), expected)
