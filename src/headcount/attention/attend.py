"""One layer's attention with everything that scores may ask about it."""

from collections.abc import Callable

import torch
from torch import Tensor

from headcount.attention.blocks import attend_in_blocks
from headcount.attention.fused import attend_fused
from headcount.attention.inputs import AttentionInputs, Positions
from headcount.attention.measurements import WEIGHT_MEASUREMENTS
from headcount.attention.ways import attend_and_weigh

#: Tokens whose norms are computed at a time, in float32.
_TOKENS_AT_A_TIME = 512


def attend(
    inputs: AttentionInputs,
    positions: Positions,
    *,
    needs: frozenset[str] = frozenset(),
    projection_factor: Callable[[], Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output, and the measurements in ``needs``; nothing else is computed.

    Args:
        inputs: query, key, value, mask and scaling of the layer.
        positions: which of the queries' own positions are real tokens; ``first`` is a position among the keys.
        needs: names of ``LayerMeasurements`` fields, ``uniform`` excepted.
        projection_factor: gives R ``[head, head_dim, head_dim]`` with ‖R_h o‖ = ‖W_h o‖ for each head's slice W_h of
            the output projection; called only when ``contribution_norm`` is needed.

    Returns:
        Output ``[batch, head, query, head_dim]`` and ``{measurement: float32 [batch, head]}``.
    """
    weight_needs = needs & WEIGHT_MEASUREMENTS
    if weight_needs:
        output, measured = attend_and_weigh(inputs, positions, needs=weight_needs)
    elif inputs.softcap is not None or inputs.sinks is not None:
        output, measured = attend_in_blocks(inputs, positions)
    else:
        output, measured = attend_fused(inputs), {}
    length = inputs.query.shape[2]

    if needs & {"first_value_norm", "value_norm"}:
        norms = _norm(inputs.value[:, :, inputs.past : inputs.past + length])  # [batch, key-value head, own token]
        if "first_value_norm" in needs:
            measured["first_value_norm"] = positions.at(norms, positions.first).repeat_interleave(inputs.group_size, 1)
        if "value_norm" in needs:
            measured["value_norm"] = positions.mean(norms).repeat_interleave(inputs.group_size, 1)
    if needs & {"last_output_norm", "output_norm"}:
        norms = _norm(output)  # [batch, head, query]
        if "last_output_norm" in needs:
            measured["last_output_norm"] = positions.at(norms, positions.last)
        if "output_norm" in needs:
            measured["output_norm"] = positions.mean(norms)
    if "contribution_norm" in needs:
        assert projection_factor is not None
        measured["contribution_norm"] = positions.mean(_norm(output, projection_factor().mT))
    return output, measured


def _norm(vectors: Tensor, factor: Tensor | None = None) -> Tensor:
    """L2 norm in float32 over the last dimension of ``[batch, head, token, dim]``, each head times its ``factor`` first.

    A few tokens at a time: a float32 copy of them all would double the memory of attention.
    """
    parts = (part.float() for part in vectors.split(_TOKENS_AT_A_TIME, dim=2))
    return torch.cat(
        [torch.linalg.vector_norm(part if factor is None else part @ factor, dim=-1) for part in parts], -1
    )
