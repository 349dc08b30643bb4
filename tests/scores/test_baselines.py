import torch

from headcount.attention.measurements import LayerMeasurements
from headcount.scores import get_score


def test_random_is_the_uniform_draw():
    drawn = torch.tensor([[0.0, 0.25, 0.999]])
    torch.testing.assert_close(get_score("random")(LayerMeasurements(uniform=drawn)), drawn)


def test_random_is_inactive_below_a_share():
    drawn = torch.tensor([[0.0, 0.25, 0.3, 0.999]])
    assert get_score("random").inactive(drawn, 0.3).tolist() == [[True, True, False, False]]
