import warnings
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount.errors import InputError, ModelError
from headcount.models.batching import (
    batch_tokens_for,
    batches_by_tokens,
    check_lengths,
    check_tokens,
    data_fingerprint,
    pad,
    run_in_batches,
)
from tests.pretended import place, pretended_devices

HALVED = "does not fit in memory and was halved"


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_batches_cover_each_index_once_and_obey_the_bound(lengths, batch_tokens):
    batches = list(batches_by_tokens(lengths, batch_tokens))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= batch_tokens or len(batch) == 1


def test_batches_start_with_the_longest_and_keep_ties_in_order():
    # 9 > 8 goes alone. 4 + 4 of padding fit 8 with 4 itself; 3 and 3 no more.
    assert list(batches_by_tokens([3, 9, 4, 4, 3], 8)) == [[1], [2, 3], [0, 4]]


@pytest.mark.parametrize("batch_tokens", [0, -5])
def test_a_batch_holds_at_least_one_token(batch_tokens):
    with pytest.raises(InputError, match=f"at least 1; got {batch_tokens}"):
        list(batches_by_tokens([1], batch_tokens))


def test_pad_fills_on_the_right():
    tokens, mask = pad([[5, 6, 7], [8]], torch.device("cpu"))
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert tokens.dtype == mask.dtype == torch.int64


class Machine:
    """Runs batches of at most ``fits`` examples, and raises ``error`` for larger ones."""

    def __init__(self, fits: int, error: Exception | None = None) -> None:
        self.fits, self.error = fits, error or torch.OutOfMemoryError("CUDA out of memory.")
        self.done: list[int] = []

    def __call__(self, batch: list[int]) -> None:
        if len(batch) > self.fits:
            raise self.error
        self.done += batch


def test_everything_runs_once_and_progress_is_told():
    machine, told = Machine(fits=9), []
    run_in_batches([2, 3, 1], 6, machine, lambda done, total: told.append((done, total)))
    assert machine.done == [1, 0, 2]  # two of width 3 fit 6 tokens, then the last
    assert told == [(2, 3), (3, 3)]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
@pytest.mark.parametrize("fits", [1, 2, 3])
def test_out_of_memory_halves_batches_says_so_once_and_finishes(error, fits):
    machine, told = Machine(fits, error), []
    with pytest.warns(UserWarning, match=HALVED) as caught:
        run_in_batches([4] * 11, 20, machine, lambda done, total: told.append((done, total)))
    assert len(caught) == 1
    assert sorted(machine.done) == list(range(11))
    assert machine.done == list(range(11))  # halves keep the order
    assert told[-1] == (11, 11)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


@pytest.mark.filterwarnings(f"ignore:.*{HALVED}")
def test_what_a_failed_pass_made_is_gone_before_the_next_one_begins(monkeypatch):
    class Activations:
        pass

    made, left = [], []

    def run(batch):
        activations = Activations()
        left.append([ref() for ref in made if ref() is not None])
        made.append(weakref.ref(activations))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append([ref() for ref in made if ref() is not None]))
    run_in_batches([4, 4], 8, run)
    assert left == [[]] * 4


@pytest.mark.parametrize("free", [1 << 20, 30 << 20])
def test_automatic_batches_follow_from_device_and_weights_and_not_from_what_is_free(tiny, free):
    with pretended_devices(2, memory=40 << 20, free=free):
        model = place(tiny(), lambda name: "cuda:0")
        weights = 4 * sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
        # A token takes 4 bytes times (3 layers · 3 + 16) · 64 numbers, and a batch a quarter of what the weights leave.
        assert batch_tokens_for(model) == int((40 * 2**20 - weights) / 4 / (4 * 25 * 64))


def test_batches_that_fit_are_not_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_in_batches([4] * 8, 16, Machine(fits=4))


def test_a_single_example_that_does_not_fit_is_an_error_with_its_length():
    with pytest.raises(ModelError, match=r"One example of 7 tokens does not fit in memory\. Shorten"):
        run_in_batches([3, 7], 4, Machine(fits=0))


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run_in_batches([3, 3], 6, Machine(1, RuntimeError("shape mismatch")))


def test_inputs_that_fit_are_kept(tiny):
    model = tiny(num_hidden_layers=1, max_position_embeddings=4)
    assert check_lengths([[1, 2, 3, 4], (5,)], model) == ([[1, 2, 3, 4], [5]], 0)


@pytest.mark.parametrize("token", [256, 10**30, -1])
def test_token_ids_that_the_model_does_not_know_are_refused(tiny, token):
    model = tiny(num_hidden_layers=1)
    check_tokens([[0, 255], []], model)
    with pytest.raises(InputError, match=rf"Input 1 has the token id {token}, and the model knows 0…255"):
        check_tokens([[0, 255], [3, token]], model)


def test_too_long_inputs_are_refused_with_what_to_do(tiny):
    model = tiny(num_hidden_layers=1, max_position_embeddings=4)
    with pytest.raises(InputError, match=r"2 of 3 inputs are longer than the model's 4 positions \(input 1 has 5 tok"):
        check_lengths([[1], [1] * 5, [1] * 6], model)


@pytest.mark.filterwarnings("ignore:.*cut off")
def test_too_long_inputs_are_cut_at_the_end_on_request(tiny):
    model = tiny(num_hidden_layers=1, max_position_embeddings=4)
    assert check_lengths([[9], [1, 2, 3, 4, 5]], model, too_long="cut") == ([[9], [1, 2, 3, 4]], 1)


def test_gpt2_bounds_its_positions_under_another_name(tiny):
    model = tiny("gpt2", num_hidden_layers=1, max_position_embeddings=4)
    with pytest.raises(InputError, match="4 positions"):
        check_lengths([[1] * 5], model)


def test_an_unknown_way_to_deal_with_length_is_refused(tiny):
    with pytest.raises(InputError, match="too_long is 'refuse' or 'cut', not 'truncate'"):
        check_lengths([[1]], tiny(num_hidden_layers=1), too_long="truncate")


def test_data_fingerprint_identifies_inputs_in_order():
    rows = [[1, 2], [3]]
    given = data_fingerprint(rows)
    assert given == data_fingerprint([(1, 2), np.array([3])])
    assert len(given) == 16
    assert int(given, 16) >= 0
    others = [[[3], [1, 2]], [[1], [2, 3]], [[1, 2, 3]], [[1, 2], [4]], [[1, 2]], [[1, 2], [3], [3]]]
    assert len({data_fingerprint(other) for other in others} | {given}) == len(others) + 1
