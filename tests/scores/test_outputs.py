import pytest
import torch

from headcount.attention.measurements import LayerMeasurements
from headcount.scores import get_score

NAN = float("nan")
# One example, three heads; head 2 puts out nothing.
M = LayerMeasurements(
    last_output_norm=torch.tensor([[2.0, 3.0, 0.0]]),
    output_norm=torch.tensor([[4.0, 2.0, 0.0]]),
    contribution_norm=torch.tensor([[3.0, 6.0, 0.0]]),
)


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ("lthon", [2.0, 3.0, 0.0]),
        ("lthon_ln", [1.0, 1.5, 0.0]),  # over the mean of ahon, (4 + 2 + 0) / 3 = 2, not of lthon, 5/3
        ("lthon_hn", [0.5, 1.5, NAN]),  # 2/4 and 3/2 of the same head; 0/0 is not measured
        ("ahon", [4.0, 2.0, 0.0]),
        ("ahon_ln", [2.0, 1.0, 0.0]),  # over 2
        ("fhon", [3.0, 6.0, 0.0]),
        ("fhon_ln", [1.0, 2.0, 0.0]),  # over (3 + 6 + 0) / 3 = 3
    ],
)
def test_output_scores_by_hand(id, expected):
    torch.testing.assert_close(get_score(id)(M), torch.tensor([expected]), equal_nan=True)


def test_lthon_ln_differs_from_lthon_over_its_own_mean():
    m = LayerMeasurements(last_output_norm=torch.tensor([[1.0, 3.0]]), output_norm=torch.tensor([[8.0, 8.0]]))
    torch.testing.assert_close(get_score("lthon_ln")(m), torch.tensor([[0.125, 0.375]]))  # not [0.5, 1.5]


def test_lthon_hn_without_output_is_nan_and_never_infinite():
    m = LayerMeasurements(last_output_norm=torch.tensor([[1.0]]), output_norm=torch.tensor([[0.0]]))
    assert get_score("lthon_hn")(m).isnan().all()


def test_layer_normalised_scores_of_a_silent_layer_are_not_measured():
    silent = {name: torch.zeros(1, 2) for name in ("last_output_norm", "output_norm", "contribution_norm")}
    for id in ("lthon_ln", "ahon_ln", "fhon_ln"):
        assert get_score(id)(LayerMeasurements(**silent)).isnan().all()


def test_directions_and_units():
    units = {"lthon": "activation", "lthon_ln": "1", "lthon_hn": "1", "ahon": "activation", "ahon_ln": "1"}
    for id, unit in (units | {"fhon": "activation", "fhon_ln": "1"}).items():
        assert (get_score(id).inactive_when, get_score(id).unit) == ("low", unit)
