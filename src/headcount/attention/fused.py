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
    """Whether a fused kernel can measure this layer: causal attention without a mask, softcap or sinks, on CPU or CUDA."""
    query, head_dim = inputs.query, inputs.key.shape[-1]
    return (
        query.device.type in ("cpu", "cuda")
        and inputs.mask is None
        and query.shape[2] > 1
        and inputs.softcap is None
        and inputs.sinks is None
        and inputs.value.shape[-1] == head_dim
        and (query.device.type == "cpu" or (head_dim <= 128 and head_dim % 8 == 0))
    )


def attend_fused_measured(
    inputs: AttentionInputs, positions: Positions, *, needs: frozenset[str] = frozenset()
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output, and ``first_token_weight`` and ``entropy`` as far as ``needs`` names them.

    With lse_i the log-sum-exp of query i's scaled scores s·q_i·k_j, the first token's weight is exp(s·q_i·k_0 − lse_i),
    and the entropy is lse_i − s·q_i·E_i[k] with E_i[k] attention with keys as values. Values and keys go through one
    call side by side, with zeros behind the queries and keys that they are compared by: the exponentials cost more than
    the longer products.

    In half precision lse_i is float32 and E_i[k] is not, and the difference of the two is the entropy. On the demo
    model's layers in bfloat16 this moves mean entropies by less than 6e-4 nat, as much as the rounded scores of eager
    attention do; the output and the first token's weight are more exact than eager attention's.
    """
    query, key, value, group = inputs.query, inputs.key, inputs.value, inputs.group_size
    head_dim, length = query.shape[-1], query.shape[2]
    key, value = key[:, :, :length], value[:, :, :length]  # a static cache has more slots than it has keys
    expected_key = None
    if "entropy" in needs:
        wide = (0, head_dim)
        output, lse = _causal(F.pad(query, wide), F.pad(key, wide), torch.cat([value, key], dim=-1), inputs.scaling)
        output, expected_key = output.split(head_dim, dim=-1)
    else:
        output, lse = _causal(query, key, value, inputs.scaling)
    measured: dict[str, Tensor] = {}
    if expected_key is not None:
        energy = torch.einsum("bhtd,bhtd->bht", query.float(), expected_key.float()) * inputs.scaling
        entropy = (lse - energy).clamp(min=0)
        entropy[:, :, 0] = 0  # the first query sees one key: exactly 0, not a difference of rounded numbers
        measured["entropy"] = positions.mean(entropy)
    if "first_token_weight" in needs:
        first = positions.at(key, positions.first).repeat_interleave(group, dim=1)  # [batch, head, head_dim]
        score = torch.einsum("bhtd,bhd->bht", query.float(), first.float()) * inputs.scaling
        measured["first_token_weight"] = positions.mean((score - lse).clamp(max=0).exp())
    return output, measured


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Causal attention output and float32 log-sum-exp ``[batch, head, query]``.

    These operators are private to PyTorch, so they are tried and compared before they are relied on.
    """
    operators = torch.ops.aten
    if query.device.type == "cpu":
        return operators._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True, scale=scaling)
    if (group := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    if query.dtype in (torch.float16, torch.bfloat16):
        output, lse = operators._scaled_dot_product_flash_attention(query, key, value, 0.0, True, False, scale=scaling)[
            :2
        ]
    else:
        output, lse = operators._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, True, scale=scaling
        )[:2]
    return output, lse[:, :, : query.shape[2]]
