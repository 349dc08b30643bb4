"""Scores from value vectors. Query heads of one key-value head share their value scores."""

from torch import Tensor

from headcount.attention.measurements import LayerMeasurements
from headcount.scores.normalisation import over_layer_mean
from headcount.scores.registry import score


@score(
    "ftvvn",
    name="First Token Value Vector Norm",
    needs=["first_value_norm"],
    inactive_when="low",
    unit="activation",
    source="arXiv 2504.03889, Table 1",
    aliases=["ValueVectorMagnitudeFirstToken"],
)
def ftvvn(m: LayerMeasurements) -> Tensor:
    """‖v_0‖ of the head's key-value head."""
    return m.first_value_norm


@score(
    "ftvvn_ln",
    name="First Token Value Vector Norm, layer-normalised",
    needs=["first_value_norm"],
    inactive_when="low",
    unit="1",
    source="arXiv 2504.03889, Table 1",
    aliases=["ValueVectorMagnitudeNormalizedFirstToken"],
)
def ftvvn_ln(m: LayerMeasurements) -> Tensor:
    """``ftvvn`` over its mean over the layer's query heads."""
    return over_layer_mean(m.first_value_norm)


@score(
    "avvn",
    name="Avg Value Vector Norm",
    needs=["value_norm"],
    inactive_when="low",
    unit="activation",
    source="arXiv 2504.03889, Table 1",
    aliases=["ValueVectorAvgMagnitude"],
)
def avvn(m: LayerMeasurements) -> Tensor:
    """Mean over keys j = 0…N−1 of ‖v_j‖."""
    return m.value_norm


@score(
    "avvn_ln",
    name="Avg Value Vector Norm, layer-normalised",
    needs=["value_norm"],
    inactive_when="low",
    unit="1",
    source="arXiv 2504.03889, Table 1",
    aliases=["ValueVectorAvgNormalizedMagnitude"],
)
def avvn_ln(m: LayerMeasurements) -> Tensor:
    """``avvn`` over its mean over the layer's query heads."""
    return over_layer_mean(m.value_norm)
