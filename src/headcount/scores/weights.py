"""Scores from attention weights."""

from torch import Tensor

from headcount.attention.measurements import LayerMeasurements
from headcount.scores.normalisation import over_layer_mean
from headcount.scores.registry import score


@score(
    "awft",
    name="Avg Weight of First Token",
    needs=["first_token_weight"],
    inactive_when="high",
    unit="1",
    source="arXiv 2504.03889, Table 1; Guo et al. 2024 (dormant heads)",
    aliases=["Dormant"],
)
def awft(m: LayerMeasurements) -> Tensor:
    """Mean over queries i = 0…N−1 of A[i,0]; query 0, always 1, counts."""
    return m.first_token_weight


@score(
    "awft_ln",
    name="Avg Weight of First Token, layer-normalised",
    needs=["first_token_weight"],
    inactive_when="high",
    unit="1",
    source="arXiv 2504.03889, Table 1",
    aliases=["NormalizedDormant"],
)
def awft_ln(m: LayerMeasurements) -> Tensor:
    """``awft`` over its mean over the layer's query heads."""
    return over_layer_mean(m.first_token_weight)


@score(
    "aeqd",
    name="Avg Entropy of Query Distributions",
    needs=["entropy"],
    inactive_when="low",
    unit="nat",
    source="arXiv 2504.03889, Table 1",
    aliases=["Entropy"],
)
def aeqd(m: LayerMeasurements) -> Tensor:
    """Mean over queries i = 0…N−1 of −Σ_j A[i,j] ln A[i,j]; query 0, always 0, counts."""
    return m.entropy


@score(
    "aeqd_ln",
    name="Avg Entropy of Query Distributions, layer-normalised",
    needs=["entropy"],
    inactive_when="low",
    unit="1",
    source="arXiv 2504.03889, Table 1",
    aliases=["NormalizedEntropy"],
)
def aeqd_ln(m: LayerMeasurements) -> Tensor:
    """``aeqd`` over its mean over the layer's query heads."""
    return over_layer_mean(m.entropy)
