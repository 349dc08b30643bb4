"""Scores of MLP neurons and MLPs. Those of head outputs (``outputs.py``) hold for them too: a neuron's output is one number."""

from torch import Tensor

from headcount.attention.measurements import LayerMeasurements
from headcount.scores.registry import score


@score(
    "fthon",
    name="First Token Output Norm",
    needs=["first_output_norm"],
    inactive_when="low",
    unit="activation",
    source="headcount, as lthon at the other end",
)
def fthon(m: LayerMeasurements) -> Tensor:
    """‖o_0‖; of a neuron abs a_0."""
    return m.first_output_norm


@score(
    "rms_res",
    name="Root Mean Square over the Residual Norm",
    needs=["relative_square"],
    inactive_when="low",
    unit="1",
    source="headcount",
)
def rms_res(m: LayerMeasurements) -> Tensor:
    """√ mean over tokens of (‖W_u o_u‖ / ‖x‖)²; of a neuron ‖w‖ · √ mean (a / ‖x‖)²."""
    return m.relative_square.sqrt()


@score(
    "griffin",
    name="Flocking Statistic",
    needs=["square_share"],
    inactive_when="low",
    unit="1",
    source="GRIFFIN, arXiv 2404.01365, Section 4 (there a sum over tokens, here its mean)",
)
def griffin(m: LayerMeasurements) -> Tensor:
    """√ mean over tokens of (a / ‖(a_v)_v‖)²: GRIFFIN's statistic over √N, so that inputs of any length compare."""
    return m.square_share.sqrt()


@score(
    "gate",
    name="Avg Gate Magnitude",
    needs=["gate_norm"],
    inactive_when="low",
    unit="activation",
    source="CATS, arXiv 2404.08763, Section 3 (there of each token: gate/token)",
)
def gate(m: LayerMeasurements) -> Tensor:
    """Mean over tokens of abs act(W_gate h); of an MLP without a gate abs a."""
    return m.gate_norm


@score(
    "influence",
    name="Block Influence",
    needs=["residual_cosine"],
    inactive_when="low",
    unit="1",
    source="ShortGPT, arXiv 2403.03853, Section 3 (there of whole layers)",
)
def influence(m: LayerMeasurements) -> Tensor:
    """1 − mean over tokens of cos(x, x + MLP(x))."""
    return 1 - m.residual_cosine
