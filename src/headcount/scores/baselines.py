"""Scores that know nothing, to compare with."""

from torch import Tensor

from headcount.attention.measurements import LayerMeasurements
from headcount.scores.registry import score


@score(
    "random",
    name="Random",
    needs=["uniform"],
    inactive_when="low",
    unit="1",
    source="arXiv 2504.03889, Section 4",
    aliases=[],
)
def random(m: LayerMeasurements) -> Tensor:
    """Uniform on [0, 1), drawn for each example, layer and head from the run's seed and the example's tokens.

    The same tokens and seed give the same numbers, whatever batch they come in.
    """
    return m.uniform
