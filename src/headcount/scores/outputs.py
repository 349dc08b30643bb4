"""Scores from head outputs, before and after the head's slice of the output projection."""

from torch import Tensor

from headcount.attention.measurements import LayerMeasurements
from headcount.scores.normalisation import over_layer_mean
from headcount.scores.registry import score


@score(
    "lthon",
    name="Last Token Head Output Norm",
    needs=["last_output_norm"],
    inactive_when="low",
    unit="activation",
    source="arXiv 2504.03889, Table 1",
    aliases=["HeadOutputMagnitudeLastToken"],
)
def lthon(m: LayerMeasurements) -> Tensor:
    """‖o_{N−1}‖."""
    return m.last_output_norm


@score(
    "lthon_ln",
    name="Last Token Head Output Norm, layer-normalised",
    needs=["last_output_norm", "output_norm"],
    inactive_when="low",
    unit="1",
    source="arXiv 2504.03889, Table 1 and the authors' code",
    aliases=["HeadOutputMagnitudeNormalizedLastToken"],
)
def lthon_ln(m: LayerMeasurements) -> Tensor:
    """``lthon`` over the layer's mean of ``ahon`` (token-averaged norms), not of ``lthon``."""
    return over_layer_mean(m.last_output_norm, of=m.output_norm)


@score(
    "lthon_hn",
    name="Last Token Head Output Norm, head-normalised",
    needs=["last_output_norm", "output_norm"],
    inactive_when="low",
    unit="1",
    source="arXiv 2504.03889, Appendix",
    aliases=["HeadOutputMagnitudeNormalizedHeadLastToken"],
)
def lthon_hn(m: LayerMeasurements) -> Tensor:
    """``lthon`` over ``ahon`` of the same head; NaN for a head whose outputs are all 0."""
    return (m.last_output_norm / m.output_norm).masked_fill(m.output_norm == 0, float("nan"))


@score(
    "ahon",
    name="Avg Head Output Norm",
    needs=["output_norm"],
    inactive_when="low",
    unit="activation",
    source="arXiv 2504.03889, Table 1",
    aliases=["UnnormalizedHONOR"],
)
def ahon(m: LayerMeasurements) -> Tensor:
    """Mean over queries i = 0…N−1 of ‖o_i‖."""
    return m.output_norm


@score(
    "ahon_ln",
    name="Avg Head Output Norm, layer-normalised",
    needs=["output_norm"],
    inactive_when="low",
    unit="1",
    source="arXiv 2504.03889, Table 1",
    aliases=["HONOR"],
)
def ahon_ln(m: LayerMeasurements) -> Tensor:
    """``ahon`` over its mean over the layer's query heads."""
    return over_layer_mean(m.output_norm)


@score(
    "fhon",
    name="Full Head Output Norm",
    needs=["contribution_norm"],
    inactive_when="low",
    unit="activation",
    source="arXiv 2504.03889, Appendix",
    aliases=["FullHeadOutput"],
)
def fhon(m: LayerMeasurements) -> Tensor:
    """Mean over queries i = 0…N−1 of ‖W_h o_i‖, the head's contribution to the residual stream."""
    return m.contribution_norm


@score(
    "fhon_ln",
    name="Full Head Output Norm, layer-normalised",
    needs=["contribution_norm"],
    inactive_when="low",
    unit="1",
    source="arXiv 2504.03889, Appendix",
    aliases=["FullHeadOutputNormalized"],
)
def fhon_ln(m: LayerMeasurements) -> Tensor:
    """``fhon`` over its mean over the layer's query heads."""
    return over_layer_mean(m.contribution_norm)
