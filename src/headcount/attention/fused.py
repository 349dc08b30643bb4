"""Attention by PyTorch's fused kernels, and what their log-sum-exp says about the attention weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

from headcount.attention.inputs import AttentionInputs, Positions


def attend_fused(inputs: AttentionInputs) -> Tensor:
    """Attention output ``[batch, head, query, value head_dim]``, as transformers' own ``sdpa`` computes it.

    The calls follow transformers' ``sdpa_attention_forward``, so that a model measured this way gives the logits
    it gives unmeasured, bit for bit.
    """
    query, key, value, mask = inputs.query, inputs.key, inputs.value, inputs.mask
    assert inputs.softcap is None and inputs.sinks is None
    length, group = query.shape[2], inputs.group_size
    if length == 1 and group > 1 and mask is not None and mask.shape[1] == 1:
        # One new token: a group's queries stand as the queries of its one head, so that the cache is not copied.
        together = query.view(query.shape[0], key.shape[1], group, query.shape[-1])
        output = F.scaled_dot_product_attention(together, key, value, attn_mask=mask, scale=inputs.scaling)
        return output.reshape(*query.shape[:3], value.shape[-1])
    causal = mask is None and length > 1
    if causal and key.shape[2] > length:
        key, value = key[:, :, :length], value[:, :, :length]
    grouped = group > 1 and mask is None and key.shape[-1] == value.shape[-1] <= 256
    if group > 1 and not grouped:
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=inputs.scaling, is_causal=causal, enable_gqa=grouped
    )


def supports_fused(inputs: AttentionInputs) -> bool:
    """Whether a fused kernel can measure this layer: causal or boolean mask, no softcap or sinks, on CPU or CUDA."""
    query, mask = inputs.query, inputs.mask
    return (
        query.device.type in ("cpu", "cuda")
        and inputs.rows is None
        and (query.shape[2] > 1 if mask is None else mask.dtype == torch.bool)
        and inputs.softcap is None
        and inputs.sinks is None
    )


def attend_fused_measured(
    inputs: AttentionInputs, positions: Positions, *, wanted: frozenset[str] = frozenset()
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output, and for each query ``first_token_weight`` and ``entropy`` as far as ``wanted``.

    With lse_i the log-sum-exp of query i's scaled scores s·q_i·k_j, the first token's weight is exp(s·q_i·k_0 − lse_i),
    and the entropy is lse_i − s·q_i·E_i[k] with E_i[k] attention with keys as values. Values and keys go through one
    call side by side, with zeros behind the queries and keys that they are compared by: the exponentials cost more than
    the longer products.

    Entropies are taken from float32 copies: in half precision E_i[k] is rounded, and where a head leans on one key the
    difference of the two large terms would be off by up to 0.1 nat.

    Returns:
        Output ``[batch, head, query, value head_dim]`` and what was wanted, float32 ``[batch, head, query]``. They mean
        nothing for a query that may attend to nothing.
    """
    query, key, value, mask, group = inputs.query, inputs.key, inputs.value, inputs.mask, inputs.group_size
    head_dim, value_dim, length, dtype = query.shape[-1], value.shape[-1], query.shape[2], query.dtype
    if mask is None:
        key, value = key[:, :, :length], value[:, :, :length]  # a static cache has more slots than it has keys
    if "entropy" in wanted:
        query, key, value = query.float(), key.float(), value.float()
    side_by_side = torch.cat([value, key], dim=-1) if "entropy" in wanted else value
    # The kernels want one size for queries, keys and values, and on a GPU one that fills their loads.
    width = -(-max(head_dim, side_by_side.shape[-1]) // 8) * 8
    padded = [F.pad(tensor, (0, width - tensor.shape[-1])) for tensor in (query, key, side_by_side)]
    both, lse = _attend_with_lse(padded[0], padded[1], padded[2], mask, inputs.scaling)
    output = both[..., :value_dim].to(dtype)
    found: dict[str, Tensor] = {}
    if "entropy" in wanted:
        expected_key = both[..., value_dim : value_dim + head_dim]
        energy = (query * expected_key).sum(-1) * inputs.scaling
        entropy = (lse - energy).clamp(min=0)
        # A query that sees one key has entropy 0 exactly, not a difference of rounded numbers.
        alone = torch.arange(length, device=lse.device) == 0 if mask is None else mask.sum(-1) == 1
        found["entropy"] = entropy.masked_fill(alone, 0)
    if "first_token_weight" in wanted:
        first = positions.at(key, positions.first)  # [batch, key-value head, head_dim]
        score = torch.einsum("bhtd,bhd->bht", query.float(), first.repeat_interleave(group, dim=1).float())
        weight = (score * inputs.scaling - lse).clamp(max=0).exp()
        if mask is not None:
            sees_first = torch.take_along_dim(mask, positions.first.view(-1, 1, 1, 1), dim=-1).squeeze(-1)
            weight = weight.masked_fill(~sees_first, 0)
        found["first_token_weight"] = weight
    return output, found


def _attend_with_lse(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attention output, causal if there is no mask, and float32 log-sum-exp ``[batch, head, query]``.

    These operators are private to PyTorch, so they are tried and compared before they are relied on.
    """
    operators = torch.ops.aten
    causal, length, keys = mask is None, query.shape[2], key.shape[2]
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~mask, -torch.inf)
    if query.device.type == "cpu":
        return operators._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=bias, scale=scaling
        )
    if causal and query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= 256:
        output, lse = operators._scaled_dot_product_flash_attention(query, key, value, 0.0, True, False, scale=scaling)[
            :2
        ]
    else:
        if (group := query.shape[1] // key.shape[1]) > 1:
            key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        if bias is not None:  # its rows have to begin at addresses that are multiples of 16 bytes
            bias = F.pad(bias, (0, -keys % 16))[..., :keys].expand(query.shape[0], query.shape[1], length, keys)
        output, lse = operators._scaled_dot_product_efficient_attention(
            query, key, value, bias, True, 0.0, causal, scale=scaling
        )[:2]
    return output, lse[:, :, :length]
