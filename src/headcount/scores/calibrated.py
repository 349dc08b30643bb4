"""Scores of what would be lost if a head were replaced, as a calibration tells it (docs/results/beyond.md).

What is lost at a token is W_h (o − r): o the head's output, r what would stand in its place. With g the gradient of the
loss at the layer's output, the loss changes by gᵀ W_h (o − r) to first order, and the mean of its square, with g spread
evenly over directions, is proportional to ‖W_h (o − r)‖² times the layer's mean ‖g‖².
"""

from torch import Tensor

from headcount.attention.measurements import LayerMeasurements
from headcount.scores.registry import score


@score(
    "devg",
    name="Deviation From The Mean, times sensitivity",
    needs=["mean_error", "sensitivity"],
    inactive_when="low",
    unit="nats²",
    source="headcount, docs/results/beyond.md",
)
def devg(m: LayerMeasurements) -> Tensor:
    """γ · mean over tokens of ‖W_h (o_i − μ_h)‖², with γ the layer's sensitivity."""
    return m.sensitivity * m.mean_error


@score(
    "ling",
    name="Error Of The Linear Prediction, times sensitivity",
    needs=["linear_error", "sensitivity"],
    inactive_when="low",
    unit="nats²",
    source="headcount, docs/results/beyond.md",
)
def ling(m: LayerMeasurements) -> Tensor:
    """γ · mean over tokens of ‖W_h (o_i − r_i)‖², with r_i what the block's input predicts."""
    return m.sensitivity * m.linear_error


@score(
    "keptg",
    name="Error Of The Prediction By The Other Heads, times sensitivity",
    needs=["kept_error", "sensitivity"],
    inactive_when="low",
    unit="nats²",
    source="headcount, docs/results/beyond.md",
)
def keptg(m: LayerMeasurements) -> Tensor:
    """γ · mean over tokens of ‖W_h (o_i − r_i)‖², with r_i what the layer's other heads and the block's input predict."""
    return m.sensitivity * m.kept_error


@score(
    "jointg",
    name="Addition To The Joint Error, times sensitivity",
    needs=["joint_error", "sensitivity"],
    inactive_when="low",
    unit="nats²",
    source="headcount, docs/results/beyond.md",
)
def jointg(m: LayerMeasurements) -> Tensor:
    """γ · what the head adds to the mean over tokens of ‖Σ W_h (o_i − r_i)‖², heads going off one after another.

    The one that adds least goes next, r_i is what the heads that stay and the block's input predict, and a head has the largest
    addition so far: those below a threshold are those that went first.
    """
    return m.sensitivity * m.joint_error
