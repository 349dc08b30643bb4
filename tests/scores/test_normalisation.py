import torch

from headcount.scores.normalisation import over_layer_mean

NAN = float("nan")


def test_divides_by_the_mean_over_heads_of_the_same_example():
    # Example 0: mean 2. Example 1: mean 20. Each row is over its own mean.
    values = torch.tensor([[1.0, 3.0], [10.0, 30.0]])
    torch.testing.assert_close(over_layer_mean(values), torch.tensor([[0.5, 1.5], [0.5, 1.5]]))


def test_divides_by_the_mean_of_another_quantity():
    # Means 4 and 5.
    values = torch.tensor([[1.0, 2.0], [10.0, 0.0]])
    of = torch.tensor([[3.0, 5.0], [0.0, 10.0]])
    torch.testing.assert_close(over_layer_mean(values, of=of), torch.tensor([[0.25, 0.5], [2.0, 0.0]]))


def test_a_mean_of_0_gives_nan_for_its_example_alone():
    values = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    expected = torch.tensor([[NAN, NAN], [1.0, 1.0]])
    torch.testing.assert_close(over_layer_mean(values), expected, equal_nan=True)
    of_zero = over_layer_mean(torch.ones(1, 2), of=torch.zeros(1, 2))  # 1 / 0 is not measured, and not infinite
    assert of_zero.isnan().all()


def test_one_head_is_its_own_mean():
    torch.testing.assert_close(over_layer_mean(torch.tensor([[7.0]])), torch.tensor([[1.0]]))
