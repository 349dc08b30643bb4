"""The attention function that headcount registers with transformers: translate the call, refuse the unknown."""

from typing import Any

import torch
from torch import Tensor, nn

from headcount.attention.inputs import AttentionInputs
from headcount.errors import ModelError
from headcount.models.numbered import NumberedMask

#: Keyword arguments that reach attention functions and do not change the attention: bookkeeping, or already in the mask.
_WITHOUT_EFFECT = frozenset(
    {
        "cache_position", "is_causal", "num_items_in_batch", "output_attentions", "output_hidden_states",
        "output_router_logits", "past_key_values", "position_embeddings", "position_ids", "return_dict",
        "sliding_window", "use_cache", "logits_to_keep", "layer_idx",
    }
)  # fmt: skip


def read_call(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> AttentionInputs:
    """What transformers passes to an attention function, as AttentionInputs.

    Raises:
        ModelError: dropout is on, or the layer passes an argument that would change its attention in a way that
            headcount does not implement.
    """
    if dropout:
        raise ModelError(
            f"Attention dropout of {dropout} is on: heads are measured in evaluation mode. Call model.eval()."
        )
    if not getattr(module, "is_causal", True) or others.get("is_causal") is False:
        raise ModelError(
            f"{type(module).__name__} is not causal: its tokens see those after them, as in encoders. headcount measures "
            "causal language models (…ForCausalLM)."
        )
    if unknown := sorted(name for name, given in others.items() if given is not None and name not in _WITHOUT_EFFECT):
        raise ModelError(
            f"{type(module).__name__} calls its attention with {', '.join(unknown)}, which headcount does not know, so its "
            "numbers could be wrong. Please report the model; nothing was measured."
        )
    if torch.is_autocast_enabled(device := query.device.type):  # transformers' own functions round to its dtype here
        query, key, value = (_autocast(tensor, device) for tensor in (query, key, value))
    numbered = isinstance(attention_mask, NumberedMask)
    return AttentionInputs(
        query=query,
        key=key,
        value=value,
        mask=None if numbered else attention_mask,
        rows=attention_mask.rows.to(query.device) if numbered else None,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        sinks=s_aux,
    )


def _autocast(tensor: Tensor, device: str) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.get_autocast_dtype(device))
