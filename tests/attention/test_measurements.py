import pytest
import torch

from headcount.attention.measurements import extended
from headcount.errors import InputError


def test_measurements_of_two_stretches_join_by_their_numbers_of_tokens():
    # Three tokens with mean 2 and one with 6: (3 · 2 + 6) / 4 = 3. The first token's norm is the start's, the last
    # token's that of what follows.
    before = {
        "entropy": torch.tensor([[2.0]]),
        "first_value_norm": torch.tensor([[7.0]]),
        "last_output_norm": torch.tensor([[8.0]]),
    }
    own = {"entropy": torch.tensor([[6.0]]), "last_output_norm": torch.tensor([[9.0]])}
    joined = extended(before, torch.tensor([3]), own, torch.tensor([1]))
    assert {name: value.item() for name, value in joined.items()} == {
        "entropy": 3.0, "first_value_norm": 7.0, "last_output_norm": 9.0,
    }  # fmt: skip


def test_tensors_of_the_layer_do_not_join():
    raw = {"output": torch.zeros(1, 1, 1, 1)}
    with pytest.raises(InputError, match="reads output needs a whole text"):
        extended(raw, torch.tensor([1]), raw, torch.tensor([1]))
