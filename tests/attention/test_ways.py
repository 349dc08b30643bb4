"""Every way to attend against a plain loop in float64, and what happens when a way breaks."""

import logging
import math
from dataclasses import replace

import pytest
import torch

from headcount.attention import compiled, kernel, ways
from headcount.attention.attend import attend
from headcount.attention.blocks import attend_in_blocks
from headcount.attention.compiled import attend_compiled, supports_compiled
from headcount.attention.fused import attend_fused, attend_fused_measured, supports_fused
from headcount.attention.inputs import AttentionInputs, Positions
from headcount.errors import InputError

NEEDS = frozenset({"first_token_weight", "entropy"})


def loop(inputs, real):
    """Output [batch, head, query, head_dim] and both means over real queries, one query at a time in float64."""
    query, key, value = inputs.query.double(), inputs.key.double(), inputs.value.double()
    batch, heads, length, _ = query.shape
    output = torch.zeros(batch, heads, length, value.shape[-1], dtype=torch.float64)
    measured = {name: torch.zeros(batch, heads, dtype=torch.float64) for name in NEEDS}
    for b in range(batch):
        positions = [i for i in range(length) if real is None or real[b, i]]
        for h in range(heads):
            group = h // inputs.group_size
            for i in range(length):
                if inputs.mask is not None:
                    seen = inputs.mask[b, 0, i].nonzero().flatten().tolist()
                else:
                    seen = list(range(i + 1 if length > 1 else key.shape[2]))
                if not seen:
                    continue
                weights = torch.softmax(key[b, group, seen] @ query[b, h, i] * inputs.scaling, dim=0)
                output[b, h, i] = weights @ value[b, group, seen]
                if i in positions:
                    first = weights[seen.index(positions[0])].item() if positions[0] in seen else 0.0
                    measured["first_token_weight"][b, h] += first / len(positions)
                    measured["entropy"][b, h] -= sum(w * math.log(w) for w in weights.tolist() if w > 0) / len(
                        positions
                    )
    return output, measured


def make(
    *,
    heads=4,
    groups=2,
    length=21,
    keys=None,
    head_dim=16,
    lengths=None,
    left=False,
    mask=None,
    dtype=torch.float32,
    batch=3,
):
    """Random inputs and positions; ``lengths`` are the real tokens of each example, ``mask`` is none, causal or window."""
    generator = torch.Generator().manual_seed(heads * 1000 + length)
    keys = keys or length
    query, key, value = (
        (1.5 * torch.randn(batch, n, t, head_dim, generator=generator)).to(dtype)
        for n, t in ((heads, length), (groups, keys), (groups, keys))
    )
    padding = None
    if lengths is not None:
        padding = torch.zeros(batch, length, dtype=torch.int64)
        for row, n in zip(padding, lengths, strict=True):
            row[length - n :] = 1 if left else row[length - n :]
            row[:n] = row[:n] if left else 1
    allowed = None
    if mask is not None:
        allowed = torch.ones(length, keys, dtype=torch.bool).tril(keys - length)
        if mask == "window":
            allowed = allowed.triu(keys - length - 4)
        allowed = allowed.expand(batch, 1, length, keys)
        if padding is not None:
            allowed = allowed & padding.bool()[:, None, None]
    positions = Positions.from_mask(padding, batch, length, torch.device("cpu"))
    return AttentionInputs(query=query, key=key, value=value, mask=allowed, scaling=head_dim**-0.5), positions


CASES = {
    "grouped": {},
    "multi-query": {"groups": 1},
    "multi-head": {"groups": 4},
    "three to one, odd head size": {"heads": 9, "groups": 3, "head_dim": 20},
    "length 1": {"length": 1},
    "one query, many keys": {"length": 1, "keys": 13},
    "length 2": {"length": 2},
    "static cache": {"keys": 50},
    "right padding": {"lengths": [21, 1, 8]},
    "left padding": {"lengths": [21, 1, 8], "left": True, "mask": "causal"},
    "right padding with a mask": {"lengths": [21, 1, 8], "mask": "causal"},
    "window": {"mask": "window"},
    "window and padding": {"mask": "window", "lengths": [21, 5, 9], "left": True},
    "continued": {"mask": "causal", "length": 5, "keys": 17},
}


def run(way, inputs, positions):
    if way == "plain":
        return attend_in_blocks(inputs, positions, needs=NEEDS, block=8)
    if way == "fused":
        return attend_fused_measured(inputs, positions, needs=NEEDS)
    # Blocks smaller than the sequence, and chunks smaller than the batch, so that every boundary is crossed.
    return attend_compiled(inputs, positions, block=8, max_scores=400)


def served() -> list[tuple[str, str]]:
    """The fused way serves causal attention without a mask; the others serve every case."""
    fused = [case for case in CASES if supports_fused(make(**CASES[case])[0])]
    assert fused
    return [(way, case) for way in ways.WAYS for case in (fused if way == "fused" else CASES)]


@pytest.mark.parametrize(("way", "case"), served())
def test_every_way_equals_a_plain_loop(way, case):
    inputs, positions = make(**CASES[case])
    if way == "compiled":
        assert supports_compiled(inputs)
    output, measured = run(way, inputs, positions)
    expected_output, expected = loop(inputs, positions.real)
    real = torch.ones(output.shape[0], output.shape[2], dtype=torch.bool) if positions.real is None else positions.real
    at_real = real[:, None, :, None].expand_as(output)
    torch.testing.assert_close(output[at_real].double(), expected_output[at_real], rtol=1e-5, atol=1e-5)
    for name in NEEDS:
        assert measured[name].dtype == torch.float32
        torch.testing.assert_close(measured[name].double(), expected[name], rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("way", ways.WAYS)
def test_bfloat16_stays_within_its_bounds(way):
    """Weights within 5e-4, entropies within 5e-3 nat, outputs within 2 % of exact attention on the same inputs."""
    inputs, positions = make(length=150, head_dim=64, lengths=[150, 149, 40], dtype=torch.bfloat16)
    output, measured = run(way, inputs, positions)
    expected_output, expected = loop(inputs, positions.real)
    assert output.dtype == torch.bfloat16
    assert (output - expected_output).norm() / expected_output.norm() < 0.02
    assert (measured["first_token_weight"] - expected["first_token_weight"]).abs().max() < 5e-4
    assert (measured["entropy"] - expected["entropy"]).abs().max() < 5e-3


@pytest.mark.parametrize("way", ["compiled", "fused"])
@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_extreme_scores_neither_overflow_nor_vanish(way, shift):
    """Scores of some thousands, all but one weight 0: entropy 0 and no NaN."""
    inputs, positions = make(length=12, head_dim=8)
    inputs = replace(inputs, query=inputs.query * shift)
    output, measured = run(way, inputs, positions)
    expected_output, expected = loop(inputs, None)
    torch.testing.assert_close(output.double(), expected_output, rtol=1e-3, atol=1e-3)
    for name in NEEDS:
        torch.testing.assert_close(measured[name].double(), expected[name], rtol=1e-3, atol=2e-3)


def test_block_and_chunk_sizes_do_not_matter():
    inputs, positions = make(length=70, lengths=[70, 3, 64])
    whole = attend_compiled(inputs, positions, block=128, max_scores=2**20)
    for block, max_scores in ((1, 1), (64, 1), (7, 1000)):
        parts = attend_compiled(inputs, positions, block=block, max_scores=max_scores)
        torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=1e-6)
        for name in NEEDS:
            torch.testing.assert_close(parts[1][name], whole[1][name], rtol=1e-5, atol=1e-6)


def test_inputs_of_a_model_are_not_contiguous():
    inputs, positions = make(length=40)
    transposed = replace(
        inputs,
        query=inputs.query.transpose(1, 2).contiguous().transpose(1, 2),
        key=inputs.key.transpose(1, 2).contiguous().transpose(1, 2),
        value=inputs.value.transpose(1, 2).contiguous().transpose(1, 2),
    )
    torch.testing.assert_close(attend_compiled(transposed, positions), attend_compiled(inputs, positions))


def test_inputs_are_not_written_to():
    inputs, positions = make(mask="window")
    before = [tensor.clone() for tensor in (inputs.query, inputs.key, inputs.value, inputs.mask)]
    attend_compiled(inputs, positions)
    for tensor, copy in zip((inputs.query, inputs.key, inputs.value, inputs.mask), before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.fixture
def fresh(monkeypatch):
    """No way probed yet, none forced; what the test makes of it is forgotten afterwards."""
    monkeypatch.delenv(ways.VARIABLE, raising=False)
    ways._works.cache_clear()
    compiled._library.cache_clear()
    yield
    ways._works.cache_clear()
    compiled._library.cache_clear()


def broken(inputs, positions, **_):
    output, measured = attend_in_blocks(inputs, positions, needs=NEEDS)
    return output, measured | {"entropy": measured["entropy"] + 0.5}


def raising(inputs, positions, **_):
    raise RuntimeError("operator is gone")


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("fault", "said"), [(broken, "off by 0.5"), (raising, "operator is gone")])
@pytest.mark.parametrize("way", ["compiled", "fused"])
def test_a_broken_way_is_given_up_once_and_the_numbers_stay_right(way, fault, said, monkeypatch, caplog):
    monkeypatch.setattr(ways, {"compiled": "attend_compiled", "fused": "attend_fused_measured"}[way], fault)
    monkeypatch.setenv(ways.VARIABLE, way)
    inputs, positions = make()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            output, measured = attend(inputs, positions, needs=NEEDS)
    assert len(caplog.records) == 1
    assert way in caplog.text
    assert said in caplog.text
    expected_output, expected = loop(inputs, None)
    torch.testing.assert_close(output.double(), expected_output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(measured["entropy"].double(), expected["entropy"], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("fresh")
def test_a_way_that_gives_nan_is_given_up(monkeypatch, caplog):
    def nan(inputs, positions, **_):
        output, measured = attend_in_blocks(inputs, positions, needs=NEEDS)
        return output, measured | {"entropy": measured["entropy"] * math.nan}

    monkeypatch.setattr(ways, "attend_compiled", nan)
    inputs, positions = make()
    assert attend(inputs, positions, needs=NEEDS)[1]["entropy"].isfinite().all()
    assert "off by inf" in caplog.text


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_working_compiler_the_fused_kernels_measure(compiler, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("HEADCOUNT_CACHE", str(tmp_path))
    inputs, positions = make(lengths=[21, 1, 8])
    assert ways._choose(inputs) == "fused"
    assert compiler in caplog.text
    expected = loop(inputs, positions.real)[1]
    measured = attend(inputs, positions, needs=NEEDS)[1]
    torch.testing.assert_close(measured["entropy"].double(), expected["entropy"], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("fresh")
def test_the_kernel_is_built_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADCOUNT_CACHE", str(tmp_path))
    kernel.load_kernel()
    (built,) = (tmp_path / "kernels").iterdir()
    monkeypatch.setattr(kernel, "_build", lambda *_: pytest.fail("compiled again"))
    kernel.load_kernel()
    assert built.suffix == ".so"


@pytest.mark.usefixtures("fresh")
def test_what_the_fast_ways_cannot_do_goes_the_plain_way():
    inputs, _ = make()
    float_mask = torch.zeros(3, 1, 21, 21)
    assert ways._choose(inputs) == "compiled"
    assert ways._choose(replace(inputs, softcap=30.0)) == "plain"
    assert ways._choose(replace(inputs, sinks=torch.zeros(4))) == "plain"
    assert ways._choose(replace(inputs, mask=float_mask)) == "plain"
    assert ways._choose(replace(inputs, query=inputs.query.double())) == "plain"


@pytest.mark.usefixtures("fresh")
def test_gradients_flow_through_the_plain_way():
    inputs, positions = make()
    query = inputs.query.clone().requires_grad_()
    output, _ = attend(replace(inputs, query=query), positions, needs=NEEDS)
    output.sum().backward()
    assert query.grad is not None


def test_an_unknown_way_is_refused(monkeypatch):
    monkeypatch.setenv(ways.VARIABLE, "quick")
    inputs, positions = make()
    with pytest.raises(InputError, match="HEADCOUNT_ATTENTION='quick' is no way to attend. Use compiled, fused, plain"):
        attend(inputs, positions, needs=NEEDS)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("way", ways.WAYS)
def test_only_what_is_asked_for_is_measured(way, mode, monkeypatch):
    monkeypatch.setenv(ways.VARIABLE, way)
    inputs, positions = make()
    with mode():
        for needs in ({"entropy"}, {"first_token_weight"}, NEEDS, {"output_norm"}):
            assert attend(inputs, positions, needs=frozenset(needs))[1].keys() == needs


def test_output_norms_alone_come_from_the_fused_kernel(monkeypatch):
    """Nothing is added to plain attention but the norms, and the output is the unmeasured one, bit for bit."""
    monkeypatch.setattr("headcount.attention.attend.attend_and_weigh", raising)
    inputs, positions = make()
    output, _ = attend(inputs, positions, needs=frozenset({"output_norm", "last_output_norm"}))
    assert torch.equal(output, attend_fused(inputs))


@pytest.mark.parametrize("way", ways.WAYS)
def test_nan_stays_nan_and_stays_where_it_is(way):
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 12, 8), torch.randn(1, 2, 12, 8), torch.randn(1, 2, 12, 8)
    query[0, 1, 5, 0] = float("nan")
    inputs = AttentionInputs(query=query, key=key, value=value, mask=None, scaling=8**-0.5)
    output, measured = run(way, inputs, Positions.from_mask(None, 1, 12, query.device))
    if way != "fused":  # PyTorch's fused CPU kernel gives 0 for such a row, in plain sdpa too
        assert output.isnan().any(-1)[0].nonzero().tolist() == [[1, 5]]
    for name in NEEDS:
        assert measured[name][0].isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("way", ["compiled", "plain"])
def test_one_token_has_entropy_0_exactly(way):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 4, 1, 8), torch.randn(3, 2, 1, 8), torch.randn(3, 2, 1, 8)
    inputs = AttentionInputs(query=query, key=key, value=value, mask=None, scaling=8**-0.5)
    _, measured = run(way, inputs, Positions.from_mask(None, 3, 1, query.device))
    assert (measured["entropy"] == 0).all()
    assert (measured["first_token_weight"] == 1).all()
