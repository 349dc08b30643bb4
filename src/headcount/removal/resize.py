"""Give the layers of a stock transformers model fewer heads, or fewer MLP neurons.

This file is saved with checkpoints whose layers differ in their number of these, so it needs transformers alone.
"""

import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

_INDEXED = "key_values_by_index"


class LayerConfig:
    """The model's configuration, with some values of one layer's own."""

    def __init__(self, shared: Any, own: dict[str, Any]) -> None:
        self.__dict__.update(own)
        self.shared = shared

    def __getattr__(self, name: str) -> Any:
        if name == "shared":  # while it is being copied
            raise AttributeError(name)
        return getattr(self.shared, name)


class RemovedAttention(nn.Module):
    """Takes the place of an attention layer that lost all its heads: it puts out a constant."""

    def __init__(self, hidden_size: int, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        for name in ("past_key_values", "layer_past"):
            if (cache := kwargs.get(name)) is not None:  # it counts the tokens seen, so it needs an entry for each
                empty = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
                cache.update(empty, empty, self.layer_idx)
        return self.bias.to(hidden_states.dtype).expand(hidden_states.shape), None


def resize_attention(model: PreTrainedModel, layers: dict[str, dict[str, Any]]) -> None:
    """Replace the projections of attention layers, or of MLPs, by smaller ones, whose weights are then to be loaded.

    Args:
        model: changed in place.
        layers: by the name of the attention module, or of an MLP's decoder layer, either ``{"removed": layer_idx}``, or
            ``projections`` (name → [inputs, outputs, bias]), ``vectors`` (name → shape), ``lists`` (name → length),
            ``attributes`` and ``config`` (values to set), and ``key_value_index`` (for each query head its key-value head,
            or None where all groups have one size).
    """
    for path, layer in layers.items():
        module: Any = model.get_submodule(path)
        if "removed" in layer:
            reference = next(module.parameters())
            empty = RemovedAttention(model.config.get_text_config().hidden_size, layer["removed"])
            _set(model, path, empty.to(reference.device, reference.dtype))
            continue
        for name, (inputs, outputs, bias) in layer["projections"].items():
            old: Any = module.get_submodule(name)
            if isinstance(old, Conv1D):
                new: nn.Module = Conv1D(outputs, inputs)
            else:
                new = nn.Linear(inputs, outputs, bias=bias)
            _set(module, name, new.to(old.weight.device, old.weight.dtype))
        for name, shape in layer["vectors"].items():
            holder, _, last = name.rpartition(".")
            old = module.get_parameter(name)
            setattr(module.get_submodule(holder), last, nn.Parameter(old.new_zeros(shape)))
        for name, length in layer["lists"].items():
            entries = list(module.get_submodule(name))[:length]
            _set(module, name, nn.ModuleList(copy.deepcopy(entry) for entry in entries))
        for name, value in layer["attributes"].items():
            setattr(module, name, value)
        own = dict(layer["config"])
        if layer["key_value_index"] is not None:
            AttentionInterface.register(_INDEXED, _attend_by_index)
            module.key_value_index = layer["key_value_index"]
            own["_attn_implementation"] = _INDEXED
        if own:
            module.config = LayerConfig(module.config, own)


def _attend_by_index(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The model's own attention function, each query head with the key-value head that its index names."""
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.config.shared._attn_implementation, eager)
    index = module.key_value_index
    return attend(module, query, key[:, index], value[:, index], attention_mask, **kwargs)


def _set(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
