import torch

from headcount.attention.measurements import LayerMeasurements
from headcount.scores import get_score

# Two examples, three heads.
M = LayerMeasurements(
    first_token_weight=torch.tensor([[0.25, 0.5, 0.75], [1.0, 1.0, 0.1]]),
    entropy=torch.tensor([[0.5, 1.0, 1.5], [0.0, 0.0, 0.6]]),
)


def test_awft_is_the_mean_first_token_weight():
    torch.testing.assert_close(get_score("awft")(M), M.first_token_weight)


def test_awft_ln_is_over_the_layers_mean():
    # Means (0.25 + 0.5 + 0.75) / 3 = 0.5 and 2.1 / 3 = 0.7.
    expected = torch.tensor([[0.5, 1.0, 1.5], [1 / 0.7, 1 / 0.7, 1 / 7]])
    torch.testing.assert_close(get_score("awft_ln")(M), expected)


def test_aeqd_is_the_mean_entropy():
    torch.testing.assert_close(get_score("aeqd")(M), M.entropy)


def test_aeqd_ln_is_over_the_layers_mean():
    # Means 1 and 0.2.
    torch.testing.assert_close(get_score("aeqd_ln")(M), torch.tensor([[0.5, 1.0, 1.5], [0.0, 0.0, 3.0]]))


def test_aeqd_ln_of_a_single_token_is_not_measured():
    # One token attends to itself with weight 1: entropy 0 in every head, so the layer's mean is 0.
    assert get_score("aeqd_ln")(LayerMeasurements(entropy=torch.zeros(1, 3))).isnan().all()


def test_directions_and_units():
    facts = {id: (get_score(id).inactive_when, get_score(id).unit) for id in ("awft", "awft_ln", "aeqd", "aeqd_ln")}
    assert facts == {"awft": ("high", "1"), "awft_ln": ("high", "1"), "aeqd": ("low", "nat"), "aeqd_ln": ("low", "1")}
