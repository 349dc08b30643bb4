"""The kernel against float64, on this processor and as it is built for others."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount.attention import compiled, kernel
from headcount.attention.compiled import attend_compiled, supports_compiled
from headcount.attention.fused import attend_fused
from tests.attention.reference import CASES, PER_POSITION, case, factors, make, matrices

#: Blocks and spans far smaller than usual, so that every boundary between them is crossed.
SMALL = {"block_rows": 16, "held_scores": 1}


def attend(inputs, positions, **sizes):
    output, found = attend_compiled(
        inputs, positions, wanted=PER_POSITION, projection_factor=lambda: factors(inputs), **sizes
    )
    return found | {"output": output}


def assert_exact(found, expected, positions, *, rtol=1e-5, atol=3e-6):
    """Equal at every real position; float32 apart from the output."""
    assert found.keys() == expected.keys()
    real = torch.ones(found["output"].shape[::2]) if positions.real is None else positions.real
    real = real.bool()[:, None]
    for name, values in found.items():
        difference_counts = (
            real[..., None] if name == "output" else torch.tensor(True) if name == "value_norm" else real
        )
        a, b = (torch.where(difference_counts, tensor.double(), 0) for tensor in (values, expected[name]))
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("sizes", [{}, SMALL], ids=["usual blocks", "small blocks"])
@pytest.mark.parametrize("name", CASES)
def test_equals_a_plain_loop(name, sizes):
    inputs, positions, expected = case(name)
    assert supports_compiled(inputs)
    found = attend(inputs, positions, **sizes)
    keys = found["value_norm"].shape[-1]  # a static cache has more slots
    assert_exact(found, expected | {"value_norm": expected["value_norm"][:, :, :keys]}, positions)


shapes = st.fixed_dictionaries(
    {
        "groups": st.integers(1, 3),
        "length": st.integers(1, 200),
        "head_dim": st.sampled_from([1, 7, 16, 33, 64, 80, 96, 128, 256]),
        "value_dim": st.sampled_from([None, 5, 64, 72]),
        "mask": st.sampled_from([None, None, "causal", "window", "holes"]),
        "window": st.integers(1, 200),
        "softcap": st.sampled_from([None, None, 3.0, 50.0]),
        "sinks": st.booleans(),
        "batch": st.integers(1, 2),
        "seed": st.integers(0, 999),
    }
)


@settings(max_examples=40, deadline=None)
@given(
    shape=shapes,
    group=st.integers(1, 7),
    left=st.booleans(),
    padding=st.floats(0, 0.9),
    block_rows=st.integers(1, 200),
    held_scores=st.integers(1, 20_000),
    threads=st.integers(1, 2),
)
def test_equals_float64_for_any_shape_and_cut(shape, group, left, padding, block_rows, held_scores, threads):
    length = shape["length"]
    lengths = [length, max(1, round(length * (1 - padding)))][-shape["batch"] :]
    if left and shape["mask"] is None:
        left = False  # without a mask padding can only stand behind the text
    inputs, positions = make(heads=shape["groups"] * group, lengths=lengths, left=left, **shape)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = attend(inputs, positions, block_rows=block_rows, held_scores=held_scores)
    finally:
        torch.set_num_threads(before)
    assert_exact(found, matrices(inputs, positions), positions, rtol=2e-5, atol=5e-6)


@settings(max_examples=25, deadline=None)
@given(shape=shapes, group=st.integers(1, 4), block_rows=st.integers(1, 200), held_scores=st.integers(1, 20_000))
def test_bfloat16_rounds_no_more_than_its_bounds(shape, group, block_rows, held_scores):
    """Weights, entropies and norms of values are those of the given bfloat16 numbers in float32; outputs within 1 %."""
    inputs, positions = make(heads=shape["groups"] * group, dtype=torch.bfloat16, **shape)
    found = attend(inputs, positions, block_rows=block_rows, held_scores=held_scores)
    expected = matrices(inputs, positions)
    assert found["output"].dtype == torch.bfloat16
    for name in ("first_token_weight", "entropy", "value_norm"):
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name].double(), expected[name], rtol=2e-5, atol=5e-6)
    for name in ("output", "output_norm", "contribution_norm"):
        assert (found[name] - expected[name]).norm() <= 0.01 * expected[name].norm()


def test_bfloat16_outputs_are_as_exact_as_those_of_the_fused_kernel():
    inputs, positions = make(length=300, head_dim=64, dtype=torch.bfloat16)
    expected = matrices(inputs, positions)["output"]
    ours, theirs = (
        (output - expected).norm() for output in (attend(inputs, positions)["output"], attend_fused(inputs))
    )
    assert ours <= 1.05 * theirs


def test_4096_tokens():
    inputs, positions = make(length=4096, heads=2, groups=1, head_dim=64, batch=1)
    found = attend(inputs, positions)
    chosen = torch.cat([torch.arange(4), torch.arange(100, 4096, 333), torch.tensor([4095])])
    for i in chosen.tolist():  # each query worked alone
        alone = replace(
            inputs,
            query=inputs.query[:, :, i : i + 1],
            key=inputs.key[:, :, : i + 1],
            value=inputs.value[:, :, : i + 1],
        )
        expected = matrices(alone, positions)
        for name in PER_POSITION - {"value_norm"} | {"output"}:
            torch.testing.assert_close(found[name][:, :, i].double(), expected[name][:, :, 0], rtol=1e-5, atol=3e-6)
    for values in found.values():
        assert values.isfinite().all()


@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_extreme_scores_neither_overflow_nor_vanish(shift):
    """Scores of some thousands, all but one weight 0: entropy 0 and no NaN."""
    inputs, positions = make(length=12, head_dim=8)
    inputs = replace(inputs, query=inputs.query * shift)
    assert_exact(attend(inputs, positions), matrices(inputs, positions), positions, rtol=1e-3, atol=2e-3)


def test_inputs_of_a_model_are_not_contiguous():
    inputs, positions = make(length=40)
    for dims in ((1, 2), (2, 3)):  # as projections give them, and with elements apart
        turned = (
            tensor.transpose(*dims).contiguous().transpose(*dims) for tensor in (inputs.query, inputs.key, inputs.value)
        )
        query, key, value = turned
        found = attend(replace(inputs, query=query, key=key, value=value), positions)
        for name, values in attend(inputs, positions).items():
            assert torch.equal(found[name], values)


@pytest.mark.parametrize("elements_apart", [False, True])
def test_no_examples_give_nothing(elements_apart):
    inputs, positions = make(batch=1)
    given = {name: getattr(inputs, name)[:0] for name in ("query", "key", "value")}
    if elements_apart:
        given = {name: torch.empty(tensor.mT.shape).mT for name, tensor in given.items()}
        assert all(tensor.stride(-1) != 1 for tensor in given.values())
    found = attend(replace(inputs, **given), replace(positions, first=positions.first[:0]))
    assert found["output"].shape == (0, 4, 21, 16)


def test_a_mask_may_be_shared_by_examples_and_turned():
    inputs, positions = make(mask="holes", length=40)
    mask = inputs.mask[:1, :, :, :].mT.contiguous().mT
    assert mask.stride(-1) != 1
    assert_exact(attend(replace(inputs, mask=mask), positions), matrices(inputs, positions), positions)


def test_inputs_are_not_written_to():
    inputs, positions = make(mask="window", sinks=True, softcap=3.0)
    tensors = (inputs.query, inputs.key, inputs.value, inputs.mask, inputs.sinks)
    before = [tensor.clone() for tensor in tensors]
    attend(inputs, positions)
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)


def test_threads_change_no_bit():
    inputs, positions = make(length=200, lengths=[200, 3, 64])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = attend(inputs, positions)
        torch.set_num_threads(3)
        for name, values in attend(inputs, positions).items():
            assert torch.equal(values, alone[name]), name
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [0x7FC00000, -1, 0x7F80FFFF])
def test_nan_stays_nan_and_stays_where_it_is(dtype, bits):
    """In a query: that head's row alone. In a key: the rows of its group that see it. Whatever the NaN's bits."""
    nan = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    inputs, positions = make(length=12, head_dim=8, batch=1, dtype=dtype)
    query, key = inputs.query.clone(), inputs.key.clone()
    query[0, 1, 5, 0] = nan
    found = attend(replace(inputs, query=query), positions, **SMALL)
    for name in PER_POSITION - {"value_norm"}:
        assert found[name].isnan().nonzero().tolist() == [[0, 1, 5]], name
    assert found["output"].isnan().all(-1).nonzero().tolist() == [[0, 1, 5]]
    key[0, 1, 9, 3] = nan
    found = attend(replace(inputs, key=key), positions, **SMALL)
    for name in PER_POSITION - {"value_norm"}:
        assert found[name].isnan().nonzero().tolist() == [[0, h, i] for h in (2, 3) for i in (9, 10, 11)], name


@pytest.mark.parametrize("infinite", [float("inf"), float("-inf")])
def test_an_infinite_query_gives_no_number(infinite):
    inputs, positions = make(length=12, head_dim=8, batch=1)
    inputs.query[0, 0, 4, 0] = infinite
    found = attend(inputs, positions)
    assert found["entropy"][0, 0, 4].isnan()
    assert found["output"][0, 0, 4].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_token_has_entropy_0_exactly(dtype):
    inputs, positions = make(length=1, dtype=dtype)
    found = attend(inputs, positions)
    assert (found["entropy"] == 0).all()
    assert (found["first_token_weight"] == 1).all()
    assert torch.equal(found["output"], inputs.value.repeat_interleave(2, 1))


def test_only_what_is_wanted_is_given():
    inputs, positions = make()
    for wanted in (set(), {"entropy"}, {"value_norm", "output_norm"}):
        assert attend_compiled(inputs, positions, wanted=frozenset(wanted))[1].keys() == wanted


def test_what_the_kernel_does_not_do_is_not_supported():
    inputs, _ = make()
    assert not supports_compiled(replace(inputs, mask=torch.zeros(3, 1, 21, 21)))  # a bias, not a mask
    assert not supports_compiled(replace(inputs, mask=torch.ones(3, 4, 21, 21, dtype=torch.bool)))  # one for each head
    assert not supports_compiled(replace(inputs, query=inputs.query.double()))
    assert not supports_compiled(replace(inputs, scaling=-1.0))
    half = {name: getattr(inputs, name).half() for name in ("query", "key", "value")}
    assert not supports_compiled(replace(inputs, **half))


BUILDS = {
    "no vector instructions named": [],
    "AVX2": ["-mavx2", "-mfma"],
    "AVX-512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    # AMX in C, since few processors have it: the instructions' own names, defined in tiles.h.
    "AMX": ["-march=native", "-include", str(Path(__file__).with_name("tiles.h")), "-DTILES_ALLOWED=1"],
}


@pytest.fixture(scope="module", params=BUILDS)
def built(request, tmp_path_factory):
    """The kernel as built for another processor, if this one can run it."""
    compiler, flags = kernel._compiler(), BUILDS[request.param]
    native = kernel._for_this_processor(compiler)[1]
    needed = {"AVX2": ["__AVX2__"], "AVX-512": ["__AVX512DQ__"], "AMX": ["__AVX512BF16__"]}.get(request.param, [])
    if missing := [macro for macro in needed if f"#define {macro} " not in native]:
        pytest.skip(f"this processor has no {missing[0].strip('_')}")
    target = tmp_path_factory.mktemp("kernel") / "attention.so"
    kernel._build([*compiler, *kernel._FLAGS, *flags], target)
    return kernel._load(target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_processors_get_the_same(built, dtype, monkeypatch):
    for shape in CASES.values():
        inputs, positions = make(**shape, dtype=dtype)
        expected = attend(inputs, positions, **SMALL)
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "load_kernel", lambda: built)
            found = attend(inputs, positions, **SMALL)
        bounds = {"rtol": 1e-5, "atol": 3e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
        assert_exact(found, {name: values.double() for name, values in expected.items()}, positions, **bounds)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the check is for gcc's AMX intrinsics")
def test_the_amx_kernel_compiles_to_tile_instructions(tmp_path):
    assembly = tmp_path / "attention.s"
    flags = ["-O3", "-std=gnu11", "-march=sapphirerapids", "-S", "-o", str(assembly)]
    made = subprocess.run(
        ["gcc", *flags, str(kernel._SOURCES / "attention.c")], capture_output=True, text=True, check=False
    )
    if "sapphirerapids" in made.stderr:
        pytest.skip("a compiler that does not know AMX")
    assert made.returncode == 0, made.stderr
    assert "tdpbf16ps" in assembly.read_text()
