"""Attention by PyTorch's fused kernel, for layers whose weights nothing asks for."""

import torch.nn.functional as F
from torch import Tensor

from headcount.attention.inputs import AttentionInputs


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
