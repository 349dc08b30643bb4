"""Switch a model's attention to a function of headcount's own, and back."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from headcount.attention.inputs import AttentionInputs
from headcount.errors import ModelError
from headcount.models.attention_function import read_call
from headcount.models.context import ForwardContext

#: Attention of one layer: (attention module, layer index, inputs, the pass) → output [batch, head, query, head_dim].
LayerFunction = Callable[[nn.Module, int, AttentionInputs, ForwardContext], Tensor]
#: From transformers' rule of which positions a layer may see to the layer's mask, bool [batch, 1, query, key], or None.
MaskFunction = Callable[[Callable[..., Any]], Tensor | None]

_counter = itertools.count()


@contextmanager
def attention_replaced(
    model: PreTrainedModel,
    layer_function: LayerFunction,
    *,
    finish: Callable[[ForwardContext], None] = lambda _: None,
    mask_function: Callable[[], MaskFunction | None] = lambda: None,
) -> Iterator[None]:
    """``layer_function`` in the place of every layer's attention; ``finish`` after every forward pass.

    ``mask_function`` gives what builds the pass's masks, or None for the usual ones.
    """
    name = f"headcount_{next(_counter)}"
    current: list[ForwardContext] = []

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if not current:
            raise ModelError("An attention layer ran outside its model's forward pass. Call the model itself.")
        layer = getattr(module, "layer_idx", None)
        if layer is None:
            raise ModelError(f"{type(module).__name__} does not know its layer's index, so its heads cannot be named.")
        inputs = read_call(module, query, key, value, attention_mask, **kwargs)
        return layer_function(module, int(layer), inputs, current[-1]).transpose(1, 2).contiguous(), None

    def mask(*args: Any, mask_function: Callable[..., Any] = causal_mask_function, **kwargs: Any) -> Tensor | None:
        if (own := masks()) is not None:
            return own(mask_function)
        # Padding on the right is never seen by a real token under a causal mask, so the cheaper causal way serves.
        if (
            current
            and mask_function is causal_mask_function
            and not current[-1].continues
            and current[-1].positions.right_padded
        ):
            kwargs["attention_mask"] = None
        return sdpa_mask(*args, mask_function=mask_function, **kwargs)

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not current:
            current.append(ForwardContext(module, args, kwargs))
            owners.append(module)

    def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if owners and owners[-1] is module:
            owners.pop()
            finish_with = current.pop()
            if output is not None:  # None: the pass raised
                finish(finish_with)

    masks = mask_function
    owners: list[nn.Module] = []
    with ExitStack() as stack:
        AttentionInterface.register(name, attention)
        stack.callback(AttentionInterface._global_mapping.pop, name)
        AttentionMaskInterface.register(name, mask)
        stack.callback(AttentionMaskInterface._global_mapping.pop, name)
        # A layer may hold a configuration of its own (models pruned layer by layer), which the switch must reach too.
        found = (getattr(module, "config", None) for module in model.modules())
        configs = {id(config): config for config in found if isinstance(config, PreTrainedConfig)}
        for config in configs.values():
            stack.callback(setattr, config, "_attn_implementation_internal", config._attn_implementation)
        if model._can_set_attn_implementation():
            model.set_attn_implementation(name)
            for config in configs.values():
                config._attn_implementation_internal = name
        if model.config._attn_implementation != name:
            raise ModelError(
                f"{type(model).__name__} computes attention itself instead of calling transformers' attention interface, "
                "which is where headcount measures. Llama, Qwen, OLMo, Mistral, Gemma, Phi, GPT-2, GPT-NeoX and about 150 "
                "other classes work; falcon, bloom, mpt, gptj, codegen, gpt_neo and xglm do not."
            )
        for module in dict.fromkeys((model, model.base_model)):
            stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(end, always_call=True).remove)
        yield
