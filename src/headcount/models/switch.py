"""Switch a model's attention to a function of headcount's own, and back."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from headcount.attention.gpu import reads_rows
from headcount.attention.inputs import AttentionInputs
from headcount.errors import ModelError
from headcount.models.attention_function import read_call
from headcount.models.context import ForwardContext
from headcount.models.numbered import NumberedMask, window_of
from headcount.models.prompts import forget
from headcount.models.state import check_call, measurable, own_settings, uncompiled, unwrapped

#: Attention of one layer: (attention module, layer index, inputs, the pass) → output [batch, head, query, head_dim].
LayerFunction = Callable[[nn.Module, int, AttentionInputs, ForwardContext], Tensor]
#: From transformers' rule of which positions a layer may see to the layer's mask, bool [batch, 1, query, key], or None.
MaskFunction = Callable[[Callable[..., Any]], Tensor | None]

_PREFIX = "headcount_"
_counter = itertools.count()
_opening = Lock()
#: The blocks that this thread or task is inside of. A new thread starts outside of every block.
_inside: ContextVar[frozenset[str]] = ContextVar("headcount_blocks", default=frozenset())


@contextmanager
def attention_replaced(
    model: PreTrainedModel,
    layer_function: LayerFunction,
    *,
    start: Callable[[ForwardContext], None] = lambda _: None,
    finish: Callable[[ForwardContext, Any], None] = lambda *_: None,
    mask_function: Callable[[], MaskFunction | None] = lambda: None,
) -> Iterator[None]:
    """``layer_function`` in the place of every layer's attention; ``start`` and ``finish`` around every forward pass.

    ``mask_function`` gives what builds the pass's masks, or None for the usual ones. One block at a time is open on a
    model, and only the thread or task that opened it runs the model: the switch is in the model's configuration, which
    everybody sees.

    Raises:
        ModelError: a block is open on the model, or the model computes attention itself.
    """
    model = measurable(model)
    block = _Block(model, layer_function, start, finish, mask_function)
    with ExitStack() as stack:
        stack.callback(block.modules.clear)
        stack.enter_context(uncompiled())
        with _opening:
            block.switch(stack)
        _inside.set(_inside.get() | {block.name})
        stack.callback(lambda: _inside.set(_inside.get() - {block.name}))
        adapted = getattr(model, "get_base_model", lambda: model)()  # which PEFT's wrapper generates with
        for module in dict.fromkeys((model, unwrapped(model.base_model), adapted)):
            stack.callback(module.register_forward_pre_hook(block.begin, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(block.end, always_call=True).remove)
        yield


class _Block:
    """One model's attention while it is headcount's own."""

    def __init__(
        self,
        model: PreTrainedModel,
        layer_function: LayerFunction,
        start: Callable[[ForwardContext], None],
        finish: Callable[[ForwardContext, Any], None],
        mask_function: Callable[[], MaskFunction | None],
    ) -> None:
        self.name = f"{_PREFIX}{next(_counter)}"
        self.model, self.layer_function, self.masks = model, layer_function, mask_function
        self.start, self.finish = start, finish
        self.modules = {id(module): module for module in model.modules()}  # empty once the block is closed
        self.before: str | None = None
        self.now: ForwardContext | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model (deepcopy, pickle) takes its hooks along; its block is one that was closed."""
        return _closed, (self.name, self.before)

    def switch(self, stack: ExitStack) -> None:
        """Register the block's name, and set it wherever the model looks up its attention."""
        model = self.model
        for hook in [*model._forward_pre_hooks.values()]:
            if isinstance(left := getattr(hook, "__self__", None), _Block) and not left.modules:
                left.restore(model)
        configs = _configurations(model)
        if any(str(config._attn_implementation).startswith(_PREFIX) for config in configs):
            raise ModelError(
                f"This {type(model).__name__}, or one that shares its configuration or layers, is inside a headcount block "
                "already (`instrument`, `measure_heads`, `evaluate`). Close that block first, or give one block both the "
                "policy and the scores."
            )
        self.before = model.config._attn_implementation
        AttentionInterface.register(self.name, self.attention)
        stack.callback(AttentionInterface._global_mapping.pop, self.name)
        AttentionMaskInterface.register(self.name, self.mask)
        stack.callback(AttentionMaskInterface._global_mapping.pop, self.name)
        for config in configs:
            stack.callback(setattr, config, "_attn_implementation_internal", config._attn_implementation)
        if model._can_set_attn_implementation():
            model.set_attn_implementation(self.name)
            # A layer may hold a configuration of its own (models pruned layer by layer), which the switch must reach too.
            for config in configs:
                config._attn_implementation_internal = self.name
        if model.config._attn_implementation != self.name:
            raise ModelError(
                f"{type(model).__name__} computes attention itself instead of calling transformers' attention interface, "
                "which is where headcount measures. Llama, Qwen, OLMo, Mistral, Gemma, Phi, GPT-2, GPT-NeoX and about 150 "
                "other classes work; falcon, bloom, mpt, gptj, codegen, gpt_neo and xglm do not."
            )

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if id(module) not in self.modules:
            return self.restore(module)
        self._check_inside()
        now = self.now
        if now is None or module is self.model or not now.hands_on(module, args, kwargs):
            self.now = None  # what an interrupt left behind
            check_call(self.model, self.modules.values(), kwargs)
            context = ForwardContext(module, args, kwargs)
            self.start(context)
            self.now = context

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        now = self.now
        if now is not None and now.module is module and self.name in _inside.get():
            self.now = None
            if output is not None:  # None: the pass raised
                self.finish(now, output)

    def attention(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        self._check_inside()
        if id(module) not in self.modules:
            raise ModelError(
                f"{type(module).__name__} is no layer of the model inside the headcount block, but of one that shares its "
                "configuration, or it was put in afterwards. Close the block first, or build models from copies of the "
                "configuration."
            )
        if self.now is None:
            if any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules()):
                raise ModelError(
                    "Gradient checkpointing runs attention again in the backward pass, where nothing can be measured. Call "
                    "model.gradient_checkpointing_disable() first."
                )
            raise ModelError(
                "An attention layer ran outside its model's forward pass, or the model was called inside its own. Call the "
                "model itself, one pass after the other, and without gradient checkpointing, which runs layers again."
            )
        layer = getattr(module, "layer_idx", None)
        if layer is None:
            raise ModelError(f"{type(module).__name__} does not know its layer's index, so its heads cannot be named.")
        self.now.num_layers += 1
        inputs = read_call(module, query, key, value, attention_mask, **kwargs)
        with own_settings(query.device.type):
            return self.layer_function(module, int(layer), inputs, self.now).transpose(1, 2).contiguous(), None

    def mask(
        self, *args: Any, mask_function: Callable[..., Any] = causal_mask_function, **kwargs: Any
    ) -> Tensor | None:
        self._check_inside()
        if (own := self.masks()) is not None:
            return own(mask_function)
        # Padding on the right is never seen by a real token under a causal mask, so the cheaper causal way serves.
        now = self.now
        if now and mask_function is causal_mask_function and not now.continues and now.positions.right_padded:
            kwargs["attention_mask"] = None
        elif now and reads_rows(now.positions.first.device) and (window := window_of(mask_function)):
            sizes = [kwargs.get(name, 0) for name in ("q_length", "kv_length", "q_offset", "kv_offset")]
            if sizes == [now.length, now.length, 0, 0] and (rows := now.rows(*window)):
                return NumberedMask(rows)
        return sdpa_mask(*args, mask_function=mask_function, **kwargs)

    def restore(self, copy: nn.Module) -> None:
        """Give a copy that was made inside the block its attention back, and take the hooks off that it brought along."""
        for config in _configurations(copy):
            if config._attn_implementation == self.name:
                config._attn_implementation_internal = self.before
        for hooks, *others in (
            (copy._forward_pre_hooks, copy._forward_pre_hooks_with_kwargs),
            (copy._forward_hooks, copy._forward_hooks_with_kwargs, copy._forward_hooks_always_called),
        ):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                for of_key in (hooks, *others):
                    of_key.pop(key, None)
        forget(copy)

    def _check_inside(self) -> None:
        if self.name not in _inside.get():
            raise ModelError(
                "The model is inside a headcount block that another thread or task opened, whose heads this pass would be "
                "given. Run the model where the block was opened, or after it is closed."
            )


def _closed(name: str, before: str | None) -> _Block:
    block = _Block.__new__(_Block)
    block.name, block.before, block.modules, block.now = name, before, {}, None
    return block


def _configurations(model: nn.Module) -> list[PreTrainedConfig]:
    """Every configuration that the model's modules hold, and those inside these."""
    waiting = [getattr(module, "config", None) for module in model.modules()]
    found: dict[int, PreTrainedConfig] = {}
    while waiting:
        config = waiting.pop()
        if isinstance(config, PreTrainedConfig) and id(config) not in found:
            found[id(config)] = config
            waiting += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())
