"""Attention by blocks of queries: any mask, any device, memory linear in the sequence. The reference."""

import torch
from torch import Tensor

from headcount.attention.inputs import AttentionInputs, Positions
from headcount.attention.measurements import OF_WEIGHTS

#: Queries per block; the scores of a block, [batch, head, BLOCK, key], are the largest thing in memory.
BLOCK = 128


def attend_in_blocks(
    inputs: AttentionInputs,
    positions: Positions | None = None,
    *,
    wanted: frozenset[str] = frozenset(),
    block: int = BLOCK,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output, and for each query what is ``wanted`` of its attention weights.

    The softmax runs in float32 and its result is cast to the values' dtype, as in transformers' eager attention.

    Args:
        inputs: one layer's query, key and value.
        positions: where each example's first real token is; read for ``first_token_weight``.
        wanted: any of ``first_token_weight`` (0 where a window hides the first token) and ``entropy`` (with sinks, the
            sink counts as one more outcome of the query's distribution).
        block: queries at a time.

    Returns:
        Output ``[batch, head, query, value head_dim]`` and what was wanted, float32 ``[batch, head, query]``.
        A query that may attend to nothing (padding) has output 0.
    """
    query, key, value, mask = inputs.query, inputs.key, inputs.value, inputs.mask
    batch, heads, length, head_dim = query.shape
    groups, group = key.shape[1], inputs.group_size
    causal = mask is None and length > 1
    if causal and key.shape[2] > length:  # a static cache, of which the first `length` slots are filled
        key, value = key[:, :, :length], value[:, :, :length]
    grouped = query.view(batch, groups, group, length, head_dim)

    outputs: list[Tensor] = []
    rows: dict[str, list[Tensor]] = {name: [] for name in wanted & OF_WEIGHTS}
    for start in range(0, length, block):
        stop = min(start + block, length)
        seen = stop if causal else key.shape[2]
        stacked = grouped[:, :, :, start:stop].reshape(batch, groups, group * (stop - start), head_dim)
        scores = stacked @ key[:, :, :seen].mT  # [batch, key-value head, group · query, key]
        scores = (scores.float() * inputs.scaling).view(batch, heads, stop - start, seen)
        if inputs.softcap is not None:
            scores = torch.tanh(scores / inputs.softcap) * inputs.softcap
        if causal:
            later = torch.ones(stop - start, seen, dtype=torch.bool, device=scores.device).triu(start + 1)
            scores = scores.masked_fill(later, -torch.inf)
        elif mask is not None:
            allowed = mask[:, :, start:stop, :seen]
            scores = scores.masked_fill(~allowed, -torch.inf) if allowed.dtype == torch.bool else scores + allowed
        if inputs.sinks is not None:
            sinks = inputs.sinks.float().view(1, heads, 1, 1).expand(batch, heads, stop - start, 1)
            scores = torch.cat([scores, sinks], dim=-1)
        weights = torch.softmax(scores, dim=-1)
        if mask is not None:
            weights = weights.masked_fill(scores.amax(-1, keepdim=True) == -torch.inf, 0)
        if "entropy" in rows:
            rows["entropy"].append(torch.special.entr(weights).sum(-1))
        if inputs.sinks is not None:
            weights = weights[..., :-1]
        if "first_token_weight" in rows:
            assert positions is not None
            rows["first_token_weight"].append(_first_column(weights, positions))
        stacked = weights.to(value.dtype).view(batch, groups, group * (stop - start), seen)
        outputs.append((stacked @ value[:, :, :seen]).view(batch, heads, stop - start, value.shape[-1]))

    return torch.cat(outputs, dim=2), {name: torch.cat(parts, dim=-1) for name, parts in rows.items()}


def _first_column(weights: Tensor, positions: Positions) -> Tensor:
    """Weight on each example's first real token: ``[batch, head, query, key]`` → ``[batch, head, query]``."""
    index = positions.first.clamp(max=weights.shape[-1] - 1)  # beyond the block's keys every query is padding
    return torch.take_along_dim(weights, index.view(-1, 1, 1, 1), dim=-1).squeeze(-1)
