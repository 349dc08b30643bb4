import pytest
import torch

from headcount.attention.measurements import LayerMeasurements
from headcount.scores import get_score

# Four query heads in two groups: the two of a group share their key-value head's norms.
M = LayerMeasurements(
    first_value_norm=torch.tensor([[1.0, 1.0, 3.0, 3.0]]),
    value_norm=torch.tensor([[2.0, 2.0, 8.0, 8.0]]),
)


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ("ftvvn", [1.0, 1.0, 3.0, 3.0]),
        ("ftvvn_ln", [0.5, 0.5, 1.5, 1.5]),  # over (1 + 1 + 3 + 3) / 4 = 2
        ("avvn", [2.0, 2.0, 8.0, 8.0]),
        ("avvn_ln", [0.4, 0.4, 1.6, 1.6]),  # over (2 + 2 + 8 + 8) / 4 = 5
    ],
)
def test_value_scores_by_hand(id, expected):
    torch.testing.assert_close(get_score(id)(M), torch.tensor([expected]))


def test_directions_and_units():
    for id, unit in {"ftvvn": "activation", "ftvvn_ln": "1", "avvn": "activation", "avvn_ln": "1"}.items():
        assert (get_score(id).inactive_when, get_score(id).unit) == ("low", unit)
