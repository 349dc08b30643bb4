"""The Triton kernel for GPUs, in Triton's interpreter, against attention in float64.

The interpreter shows what is computed, not how fast, and not what only a GPU does: its own rounding of products, and races.
It multiplies bfloat16 as widened here, so what bfloat16 rounds differently on a GPU is not to be seen either.
"""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from headcount.attention.blocks import attend_in_blocks
from headcount.attention.gpu import Tiles, attend_on_gpu, supports_gpu, tiles_for
from headcount.attention.inputs import AttentionInputs, Positions, Rows
from tests.attention.reference import CASES, OF_WEIGHTS, case, make, matrices

pytest.importorskip("triton")  # which tests/conftest.py has interpret
MEASURED = OF_WEIGHTS | {"output_norm"}
#: How many random layers of either kind: six take half a minute, and HEADCOUNT_TEST_KERNEL=200 an hour.
RANDOM_LAYERS = int(os.environ.get("HEADCOUNT_TEST_KERNEL", "6"))
#: Largest errors: of outputs and their norms relative to the largest, of weights and nats absolute.
BOUNDS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def assert_exact(inputs, positions, expected=None, tiles=None):
    output, found = attend_on_gpu(inputs, positions, tiles=tiles)
    expected = matrices(inputs, positions) if expected is None else expected
    real = (torch.ones(output.shape[::2], dtype=torch.bool) if positions.real is None else positions.real)[:, None]
    assert output.dtype == inputs.query.dtype
    assert found.keys() == MEASURED
    bound = BOUNDS[inputs.query.dtype]
    errors = {"output": ((output - expected["output"]) * real[..., None]).abs().max() / expected["output"].abs().max()}
    for name in MEASURED:
        assert found[name].dtype == torch.float32
        scale = max(1, expected[name].max())
        errors[name] = ((found[name] - expected[name]) * real).abs().max() / scale
    assert errors["output"] < bound, errors
    assert errors["output_norm"] < bound, errors
    for name in OF_WEIGHTS:
        assert errors[name] < 1e-4, errors
    return output, found


@pytest.mark.parametrize("name", CASES)
def test_equals_a_plain_loop(name):
    inputs, positions, expected = case(name)
    assert_exact(inputs, positions, expected)


def random_layer(seed):
    """A layer of any kind, cut into tiles of any kind."""
    rng = np.random.default_rng(seed)

    def one_of(*given):
        return given[rng.integers(len(given))]

    groups, length, batch = int(one_of(1, 2, 3)), int(rng.integers(1, 120)), int(one_of(1, 2, 3))
    mask = one_of(None, "causal", "window", "holes")
    lengths, left = None, bool(one_of(True, False)) and mask is not None
    past = int(one_of(0, 7, 40)) if mask is not None else 0
    if one_of(True, False) and not past:
        lengths = [length, *(int(n) for n in rng.integers(1, length + 1, batch - 1))]
    inputs, positions = make(
        heads=groups * int(one_of(1, 2, 4)), groups=groups, length=length, keys=length + past, batch=batch,
        head_dim=int(one_of(16, 20, 24, 64, 100)), value_dim=one_of(None, None, 16, 48), lengths=lengths, left=left, mask=mask,
        window=int(rng.integers(1, 60)), softcap=one_of(None, None, 5.0, 30.0), sinks=bool(one_of(False, False, True)),
        dtype=one_of(torch.float32, torch.float16), seed=seed,
    )  # fmt: skip
    if one_of(False, False, True):  # heads that lean on the first token
        inputs.key[:, :, 0] *= 3
    return inputs, positions, Tiles(queries=int(one_of(16, 32, 64)), keys=int(one_of(16, 32, 64)), warps=4, stages=1)


@pytest.mark.parametrize("seed", range(RANDOM_LAYERS))
def test_random_layers_are_exact(seed):
    inputs, positions, tiles = random_layer(seed)
    assert_exact(inputs, positions, tiles=tiles)


def random_rows(seed):
    """Rows said by number: end to end, with stretches of keys before their own; or padded at both ends. With their tiles."""
    rng = np.random.default_rng(seed)

    def one_of(*given):
        return given[rng.integers(len(given))]

    packed, groups, batch, dim = (
        bool(one_of(True, True, False)),
        int(one_of(1, 2)),
        int(one_of(1, 2, 4)),
        int(one_of(16, 20, 64)),
    )
    sizes = rng.integers(1, 60, batch)
    if packed:
        begins, earlier = sizes.cumsum() - sizes, int(one_of(0, 0, 60))
        keys = [[*((int(first), int(rng.integers(1, 60 - first))) for first in rng.integers(0, 50, (2 if earlier else 0))),
                 (earlier + begin, size)] for begin, size in zip(begins, sizes, strict=True)]  # fmt: skip
        tokens = int(sizes.sum())
    else:
        tokens = int(sizes.max()) + 5
        begins, earlier = rng.integers(0, tokens - sizes + 1), 0
        keys = [[of] for of in zip(begins, sizes, strict=True)]
    rows = Rows(
        queries=torch.tensor(np.stack([begins, sizes], 1), dtype=torch.int32),
        keys=torch.tensor(np.array(keys), dtype=torch.int32),
        packed=packed,
        most_queries=int(sizes.max()) if packed else tokens,
        most_keys=max(sum(int(n) for _, n in of) for of in keys) if packed else tokens,
        window=one_of(None, int(rng.integers(1, 50))),
    )
    made, _ = make(
        heads=groups * int(one_of(1, 2, 4)), groups=groups, length=tokens, keys=earlier + tokens, batch=1 if packed else batch,
        head_dim=dim, value_dim=one_of(None, 48), softcap=one_of(None, None, 5.0), sinks=bool(one_of(False, False, True)),
        dtype=one_of(torch.float32, torch.float16), seed=seed,
    )  # fmt: skip
    if one_of(False, True):  # heads that lean on the first token
        made.key[:, :, :: max(1, tokens // 4)] *= 3
    real = torch.zeros(batch, rows.most_queries, dtype=torch.bool)
    for row, begin, size in zip(real, begins, sizes, strict=True):
        row[(0 if packed else begin) :][:size] = True
    return replace(made, rows=rows), Positions.from_mask(real, batch, rows.most_queries, real.device)


def one_by_one(inputs, positions):
    """Float64 attention of such rows, each cut out."""
    found = {}
    for row, ((begin, size), stretches) in enumerate(
        zip(inputs.rows.queries.tolist(), inputs.rows.keys.tolist(), strict=True)
    ):
        batch = 0 if inputs.rows.packed else row
        key, value = (
            torch.cat([of[batch : batch + 1, :, first : first + n] for first, n in stretches], 2)
            for of in (inputs.key, inputs.value)
        )
        total = key.shape[2]
        place, past = torch.arange(total), total - size + torch.arange(size)[:, None]
        seen = (place <= past) & (place > past - (inputs.rows.window or total))
        alone = AttentionInputs(
            query=inputs.query[batch : batch + 1, :, begin : begin + size], key=key, value=value, mask=seen[None, None],
            scaling=inputs.scaling, softcap=inputs.softcap, sinks=inputs.sinks,
        )  # fmt: skip
        for name, of_row in matrices(alone, Positions.from_mask(None, 1, size, key.device)).items():
            if name in MEASURED | {"output"}:
                made = found.setdefault(name, of_row.new_zeros(len(positions.first), *output_of(positions, of_row)))
                made[row][:, positions.real[row] if positions.real is not None else slice(None)] = of_row[0]
    return found


def output_of(positions, of_row):
    length = int(positions.last.max()) + 1 if positions.real is None else positions.real.shape[1]
    return (of_row.shape[1], length, *of_row.shape[3:])


@pytest.mark.parametrize("seed", range(RANDOM_LAYERS))
def test_rows_said_by_number_are_exact_and_so_are_their_means(seed):
    inputs, positions = random_rows(seed)
    tiles = Tiles(queries=16 << seed % 3, keys=16 << seed // 3 % 3, warps=4, stages=1)
    expected = one_by_one(inputs, positions)
    output, found = assert_exact(inputs, positions, expected, tiles)
    if positions.real is not None:
        assert (output.transpose(1, 2)[~positions.real] == 0).all()
    _, means = attend_on_gpu(inputs, positions, means=True, tiles=tiles)
    if inputs.rows.most_queries > 1:
        for name in MEASURED:
            torch.testing.assert_close(means[name], positions.mean(found[name]), rtol=1e-5, atol=1e-6)
        last = positions.at(found["output_norm"], positions.last)
        torch.testing.assert_close(means["last_output_norm"], last, rtol=0, atol=0)
    laid_out, _ = attend_in_blocks(inputs.laid_out(), positions)
    real = (torch.ones(output.shape[::2]) if positions.real is None else positions.real)[:, None, :, None]
    torch.testing.assert_close(
        laid_out.double() * real, expected["output"] * real, rtol=0, atol=5e-3 * float(expected["output"].abs().max())
    )


def test_means_of_a_row_are_the_same_bits_in_any_batch():
    sizes = [90, 40, 17]
    inputs, positions = make(heads=2, groups=1, length=90, lengths=sizes, dtype=torch.float16)
    tiles = Tiles(queries=16, keys=16, warps=4, stages=1)
    together = attend_on_gpu(inputs, positions, means=True, tiles=tiles)[1]
    for row, size in enumerate(sizes):
        query, key, value = (of[row : row + 1, :, :size] for of in (inputs.query, inputs.key, inputs.value))
        own = replace(inputs, query=query, key=key, value=value), Positions.from_mask(None, 1, size, key.device)
        alone = attend_on_gpu(*own, means=True, tiles=tiles)[1]
        for name, of_rows in together.items():
            assert torch.equal(of_rows[row], alone[name][0]), name


@pytest.mark.parametrize(
    "layer",
    [
        {},
        {"heads": 6, "groups": 1, "sinks": True},
        {"mask": "holes", "dtype": torch.float16},
        {"heads": 34, "groups": 2, "softcap": 5.0},
    ],
)
def test_a_new_token_meets_its_keys_in_parts(layer):
    inputs, positions = make(length=1, keys=300, **layer)
    inputs = replace(inputs, key=inputs.key * 2)  # so that the largest score is in any part
    first = torch.tensor([0, 3, 130])
    expected = matrices(inputs, replace(positions, first=first))
    for part_keys in (64, 512):
        output, found = attend_on_gpu(inputs, replace(positions, first=first), part_keys=part_keys)
        bound = BOUNDS[inputs.query.dtype]
        torch.testing.assert_close(output.double(), expected["output"], rtol=bound, atol=bound)
        for name in MEASURED:
            torch.testing.assert_close(found[name].double(), expected[name], rtol=bound, atol=1e-4)


@pytest.mark.parametrize("layer", [{"head_dim": 256, "softcap": 50.0}, {"head_dim": 192, "value_dim": 128}])
def test_wide_heads_are_exact(layer):
    assert_exact(*make(length=40, heads=2, groups=1, batch=1, dtype=torch.float16, **layer))


def test_bfloat16_is_exact_but_for_its_rounding():
    inputs, positions = make(length=70, batch=1, dtype=torch.bfloat16)
    inputs.key[:, :, 0] += 3 * inputs.query.unflatten(1, (2, 2)).mean((2, 3)).sign()
    assert_exact(inputs, positions)


def test_what_sees_nothing_puts_out_nothing():
    inputs, positions = make(mask="causal")
    inputs = replace(inputs, mask=inputs.mask.clone())
    inputs.mask[1, :, 7] = False
    inputs.mask[2] = False
    output, found = attend_on_gpu(inputs, positions)
    for nothing in (
        output[1, :, 7],
        output[2],
        *(of[1, :, 7] for of in found.values()),
        *(of[2] for of in found.values()),
    ):
        assert (nothing == 0).all()
    torch.testing.assert_close(output[0].double(), matrices(inputs, positions)["output"][0], rtol=1e-5, atol=1e-5)


def test_padding_on_the_right_puts_out_nothing():
    inputs, positions = make(lengths=[21, 5, 1])
    output, found = attend_on_gpu(inputs, positions)
    assert (output[1, :, 5:] == 0).all()
    assert all((of[2, :, 1:] == 0).all() for of in found.values())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("mask", [None, "causal"])
def test_a_nan_query_gives_nan_and_no_other_does(mask):
    inputs, positions = make(length=12, batch=1, mask=mask)
    inputs.query[0, 1, 5, 0] = float("nan")
    output, found = attend_on_gpu(inputs, positions)
    assert output.isnan().any(-1).nonzero().tolist() == [[0, 1, 5]]
    for name in MEASURED:
        assert found[name].isnan().nonzero().tolist() == [[0, 1, 5]]


@pytest.mark.parametrize("mask", [None, "causal"])
@pytest.mark.parametrize("factor", [-300.0, 300.0])
def test_extreme_scores_neither_overflow_nor_vanish(factor, mask):
    inputs, positions = make(length=12, mask=mask)
    inputs = replace(inputs, query=inputs.query * factor)
    output, found = attend_on_gpu(inputs, positions)
    expected = matrices(inputs, positions)
    torch.testing.assert_close(output.double(), expected["output"], rtol=1e-3, atol=1e-3)
    for name in MEASURED:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-3, atol=2e-3)


def test_masks_may_start_anywhere_and_be_one_for_all_rows():
    inputs, positions = make(length=21, mask="window")
    wide = torch.zeros(21, 50, dtype=torch.bool)
    wide[:, 3:24] = inputs.mask[0, 0]
    askew = replace(inputs, mask=wide[None, None, :, 3:24])
    assert_exact(askew, positions)


@pytest.mark.parametrize("shared_memory", [48 << 10, 99 << 10, 163 << 10, 227 << 10])
@pytest.mark.parametrize(("dim", "value_dim"), [(64, 64), (100, 100), (128, 128), (192, 128), (256, 256)])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("length", [1, 16, 17, 5000])
def test_tiles_fit_where_any_do(length, itemsize, dim, value_dim, shared_memory):
    tiles = tiles_for(length, dim, value_dim, itemsize, shared_memory)
    assert tiles.queries == 16 if length <= 16 else tiles.queries >= (16 if itemsize > 2 else 64)
    smallest = tiles_for(length, dim, value_dim, itemsize, 0)
    padded = [max(16, 1 << (size - 1).bit_length()) for size in (dim, value_dim)]
    assert tiles == smallest or tiles.shared_memory(*padded, itemsize) <= shared_memory


def test_what_it_serves():
    """Only where the tensors are says whether a GPU's kernel serves a layer, and a layer here is in main memory."""

    class There(torch.Tensor):
        device = torch.device("cuda")

    def there(**changes):
        inputs = make(**changes)[0]
        return replace(inputs, query=inputs.query.as_subclass(There))

    assert not supports_gpu(make()[0])
    for served in (
        there(),
        there(mask="holes"),
        there(softcap=3.0, sinks=True),
        there(head_dim=256),
        there(length=1, keys=9),
    ):
        assert supports_gpu(served)
    assert not supports_gpu(there(head_dim=264))
    assert not supports_gpu(replace(there(), mask=torch.zeros(3, 1, 21, 21)))
    assert not supports_gpu(replace(there(), scaling=-1.0))
