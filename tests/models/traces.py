"""What a model gives and what instrumenting it could leave behind."""

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

TOKENS = torch.randint(3, 256, (3, 12), generator=torch.Generator().manual_seed(1))


def logits(model, tokens=TOKENS, **kwargs):
    with torch.no_grad():
        return model(tokens, **kwargs).logits


def traces(model):
    """Everything that instrumenting could leave behind."""
    hooks = [
        len(hooks)
        for module in model.modules()
        for hooks in (
            module._forward_hooks,
            module._forward_hooks_with_kwargs,
            module._forward_hooks_always_called,
            module._forward_pre_hooks,
            module._forward_pre_hooks_with_kwargs,
        )
    ]
    names = [set(AttentionInterface._global_mapping), set(AttentionMaskInterface._global_mapping)]
    return model.config._attn_implementation, hooks, names, dict(model.config.to_dict())
