"""The one normalisation that the layer-normalised scores share."""

from torch import Tensor


def over_layer_mean(values: Tensor, of: Tensor | None = None) -> Tensor:
    """``values`` over the layer's mean of ``of`` (default: of ``values``), for each example.

    Args:
        values: ``[batch, head]``.
        of: ``[batch, head]``; its mean over heads is the divisor.

    A layer whose mean is 0 (a single token has entropy 0 in every head) has no ratio: NaN.
    """
    mean = (values if of is None else of).mean(dim=1, keepdim=True)  # [batch, 1]
    return (values / mean).masked_fill(mean == 0, float("nan"))
