"""One layer's measurements: means over real positions of what the ways give for each."""

import pytest
import torch

from headcount.attention import ways
from headcount.attention.attend import attend
from tests.attention.reference import CASES, factors, loop, make

NEEDS = frozenset(
    {
        "first_token_weight", "entropy", "first_value_norm", "value_norm", "last_output_norm", "output_norm",
        "contribution_norm",
    }
)  # fmt: skip


def by_hand(inputs, positions, real_rows):
    """Each measurement ``[batch, head]`` from the loops' numbers of each position."""
    found = loop(inputs, positions)
    group = inputs.group_size
    measured = {name: torch.zeros(inputs.query.shape[:2], dtype=torch.float64) for name in NEEDS}
    for b, real in enumerate(real_rows):
        for h in range(inputs.query.shape[1]):
            for name in ("first_token_weight", "entropy", "output_norm", "contribution_norm"):
                measured[name][b, h] = sum(found[name][b, h, i] for i in real) / len(real)
            values = found["value_norm"][b, h // group]
            measured["value_norm"][b, h] = sum(values[i] for i in real) / len(real)
            measured["first_value_norm"][b, h] = values[real[0]]
            measured["last_output_norm"][b, h] = found["output_norm"][b, h, real[-1]]
    return measured


@pytest.mark.parametrize("way", ways.WAYS)
@pytest.mark.parametrize(
    "case", ["grouped", "static cache", "right padding", "left padding", "window and padding", "sinks"]
)
def test_measurements_are_means_over_real_positions(case, way, monkeypatch):
    monkeypatch.setenv(ways.VARIABLE, way)
    inputs, positions = make(**CASES[case])
    length = inputs.query.shape[2]
    lengths = CASES[case].get("lengths", [length] * 3)
    left = CASES[case].get("left", False)
    real = [range(length - n, length) if left else range(n) for n in lengths]
    _, measured = attend(inputs, positions, needs=NEEDS, projection_factor=lambda: factors(inputs))
    assert measured.keys() == NEEDS
    for name, expected in by_hand(inputs, positions, real).items():
        assert measured[name].dtype == torch.float32
        torch.testing.assert_close(measured[name].double(), expected, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("way", ways.WAYS)
def test_only_what_is_asked_for_is_measured(way, mode, monkeypatch):
    monkeypatch.setenv(ways.VARIABLE, way)
    inputs, positions = make()
    with mode():
        for needs in ({"entropy"}, {"first_token_weight"}, {"output_norm"}, {"value_norm", "last_output_norm"}, set()):
            assert attend(inputs, positions, needs=frozenset(needs))[1].keys() == needs


def test_the_projection_is_factored_only_for_contributions():
    inputs, positions = make()
    attend(inputs, positions, needs=NEEDS - {"contribution_norm"}, projection_factor=lambda: pytest.fail("factored"))
