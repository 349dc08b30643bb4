"""Which way attends for a layer, and what happens when a way breaks."""

import logging
import math
from dataclasses import replace

import pytest
import torch

from headcount.attention import ways
from headcount.attention.blocks import attend_in_blocks
from headcount.attention.kernel import load_kernel
from headcount.attention.ways import attend_by_the_fastest_way as attend
from headcount.errors import InputError
from tests.attention.reference import OF_WEIGHTS, make, matrices

NORMS = frozenset({"output_norm"})


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """No way probed yet, none forced; what the test makes of it is forgotten afterwards."""
    monkeypatch.delenv(ways.VARIABLE, raising=False)
    ways._works.cache_clear()
    load_kernel.cache_clear()
    yield
    ways._works.cache_clear()
    load_kernel.cache_clear()


def broken(inputs, positions, **_):
    output, found = attend_in_blocks(inputs, positions, wanted=OF_WEIGHTS)
    return output, found | {"entropy": found["entropy"] + 0.5}


def nan(inputs, positions, **_):
    output, found = attend_in_blocks(inputs, positions, wanted=OF_WEIGHTS)
    return output, found | {"entropy": found["entropy"] * math.nan}


def raising(inputs, positions, **_):
    raise RuntimeError("operator is gone")


@pytest.mark.parametrize(
    ("fault", "said"), [(broken, "off by 0.5"), (raising, "operator is gone"), (nan, "off by inf")]
)
@pytest.mark.parametrize("mask", [None, "window"])
@pytest.mark.parametrize("way", ["compiled", "fused"])
def test_a_broken_way_is_given_up_once_and_the_numbers_stay_right(way, mask, fault, said, monkeypatch, caplog):
    monkeypatch.setattr(ways, {"compiled": "attend_compiled", "fused": "attend_fused_measured"}[way], fault)
    monkeypatch.setenv(ways.VARIABLE, way)
    inputs, positions = make(mask=mask)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            output, found = attend(inputs, positions, wanted=OF_WEIGHTS)
    assert len(caplog.records) == 1
    assert way in caplog.text
    assert said in caplog.text
    expected = matrices(inputs, positions)
    torch.testing.assert_close(output.double(), expected["output"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["entropy"].double(), expected["entropy"], rtol=1e-5, atol=1e-5)


def test_memory_that_runs_out_while_a_way_is_tried_turns_nothing_off(monkeypatch, caplog):
    def full(inputs, positions, **_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    inputs, positions = make()
    with monkeypatch.context() as crowded:
        crowded.setattr(ways, "attend_compiled", full)
        with pytest.raises(torch.OutOfMemoryError):
            attend(inputs, positions, wanted=OF_WEIGHTS)
    assert ways._choose(inputs, OF_WEIGHTS) == "compiled"
    assert not caplog.records


@pytest.mark.parametrize("mask", [None, "window"])
def test_without_a_compiler_the_fused_kernels_measure(mask, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("HEADCOUNT_CACHE", str(tmp_path))
    inputs, positions = make(lengths=[21, 5, 8], mask=mask)
    assert ways._choose(inputs, OF_WEIGHTS) == "fused"
    assert ways._choose(inputs, NORMS) == "sdpa"
    assert "no-such-compiler" in caplog.text
    found = attend(inputs, positions, wanted=OF_WEIGHTS)[1]
    expected = matrices(inputs, positions)
    for name in OF_WEIGHTS:
        torch.testing.assert_close(
            positions.mean(found[name]).double(), positions.mean(expected[name]), rtol=1e-5, atol=1e-5
        )


def test_each_layer_goes_the_fastest_way_that_can_serve_it():
    inputs, _ = make()
    for served in (inputs, replace(inputs, softcap=30.0), replace(inputs, sinks=torch.zeros(4)), make(mask="holes")[0]):
        assert ways._choose(served, OF_WEIGHTS) == "compiled"
        assert ways._choose(served, NORMS) == "compiled"
    half = replace(inputs, query=inputs.query.half(), key=inputs.key.half(), value=inputs.value.half())
    assert ways._choose(half, OF_WEIGHTS) == "fused"
    assert ways._choose(half, NORMS) == "sdpa"
    bias = replace(inputs, mask=torch.zeros(3, 1, 21, 21))
    assert ways._choose(bias, OF_WEIGHTS) == "plain"
    assert ways._choose(bias, NORMS) == "sdpa"
    assert ways._choose(replace(half, sinks=torch.zeros(4)), NORMS) == "plain"


@pytest.mark.parametrize("length", [1, 21])
def test_what_is_measured_changes_no_bit_of_the_output(length):
    inputs, positions = make(length=length, keys=21)
    outputs = [attend(inputs, positions, wanted=wanted)[0] for wanted in (frozenset(), NORMS, OF_WEIGHTS)]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ways.WAYS)
def test_a_forced_way_gives_what_the_others_give(way, dtype, monkeypatch):
    monkeypatch.setenv(ways.VARIABLE, way)
    inputs, positions = make(dtype=dtype)
    output, found = attend(inputs, positions, wanted=OF_WEIGHTS)
    expected = matrices(inputs, positions)
    bound = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected["output"], rtol=bound, atol=bound)
    for name in OF_WEIGHTS:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=bound, atol=bound)


def test_gradients_flow():
    inputs, positions = make()
    query = inputs.query.clone().requires_grad_()
    for wanted in (OF_WEIGHTS, NORMS, frozenset()):
        output, _ = attend(replace(inputs, query=query), positions, wanted=wanted)
        (gradient,) = torch.autograd.grad(output.sum(), query)
        assert gradient.abs().sum() > 0


def test_an_unknown_way_is_refused(monkeypatch):
    monkeypatch.setenv(ways.VARIABLE, "quick")
    inputs, positions = make()
    with pytest.raises(InputError, match="HEADCOUNT_ATTENTION='quick' is no way to attend. Use compiled, fused, plain"):
        attend(inputs, positions, wanted=OF_WEIGHTS)
