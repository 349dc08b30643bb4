"""Cut heads out of a model's weights."""

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headcount.models.observe import attention_modules
from headcount.removal.head_weights import HeadWeights, head_weights_of, sizes
from headcount.removal.plan import LayerPlan, Plan
from headcount.removal.replace import Projection, Replacement, read_projection
from headcount.removal.resize import resize_attention

#: Attributes in which attention modules of transformers keep their numbers of heads.
_QUERY_COUNTS = ("num_heads", "num_attention_heads")
_KEY_VALUE_COUNTS = ("num_key_value_heads", "kv_heads")


def cut_heads(model: PreTrainedModel, plan: Plan, replacement: Replacement) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A copy of the model without the plan's heads, and how it was resized.

    Weights that do not change are shared with ``model``, which stays as it is.

    Args:
        model: a model of plain, unquantised projections.
        plan: which heads each layer keeps.
        replacement: the output projections to cut, for exactly the heads that the plan removes.

    Returns:
        The cut model, of the same class, and the argument of ``resize_attention`` that gives a stock model its shapes.

    Raises:
        ModelError: an attention layer whose weights cannot be divided among heads.
    """
    assert set(replacement.removed) == set(plan.removed)
    head_weights = head_weights_of(model)
    modules = attention_modules(model)
    names = {id(module): name for name, module in model.named_modules()}
    resized: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for layer in plan.layers:
        if layer.unchanged:
            continue
        module, of_heads = modules[layer.before.index], head_weights[layer.before.index]
        path = names[id(module)]
        new = replacement.projections[layer.before.index]
        if not layer.query:
            resized[path] = {"removed": layer.before.index}
            hidden = new.weight.shape[0]
            tensors[f"{path}.bias"] = torch.zeros(hidden) if new.bias is None else new.bias
            continue
        resized[path] = _sizes_after(module, of_heads, layer, new)
        tensors |= {f"{path}.{name}": tensor for name, tensor in _tensors_after(module, of_heads, layer, new).items()}
    return resized_copy(model, resized, tensors), resized


def resized_copy(model: PreTrainedModel, resized: dict[str, Any], tensors: dict[str, Tensor]) -> PreTrainedModel:
    """A copy of the model after ``resize_attention``, with these new parameters; the others are shared with ``model``."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    pruned = copy.deepcopy(model, shared)
    resize_attention(pruned, resized)
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameter = pruned.get_parameter(name)
            assert parameter.shape == tensor.shape
            parameter.copy_(tensor)
    return pruned.eval().requires_grad_(False)


def laid_out(module: nn.Module, name: str, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """The parameters of the module's projection ``name``, for a weight ``[output, input]`` and a bias, as it keeps them."""
    found = {f"{name}.weight": weight.T if isinstance(module.get_submodule(name), Conv1D) else weight}
    return found if bias is None else found | {f"{name}.bias": bias}


def _sizes_after(module: nn.Module, of_heads: HeadWeights, layer: LayerPlan, new: Projection) -> dict[str, Any]:
    query, key_value = len(layer.query), len(layer.key_value)
    projections = {}
    for name, blocks in of_heads.projections.items():
        projection = module.get_submodule(name)
        outputs = sum((query if block.owner == "query" else key_value) * block.width for block in blocks)
        projections[name] = [sizes(projection)[1], outputs, getattr(projection, "bias", None) is not None]
    hidden = new.weight.shape[0]
    projections[of_heads.output] = [query * of_heads.units.head_dim, hidden, new.bias is not None]
    counts = {"query": query, "key_value": key_value}
    attributes = {name: query for name in _QUERY_COUNTS if hasattr(module, name)}
    attributes |= {name: key_value for name in _KEY_VALUE_COUNTS if hasattr(module, name)}
    if hasattr(module, "num_key_value_groups"):
        attributes["num_key_value_groups"] = layer.group_size
    width = query * of_heads.units.head_dim
    # Modules of old families keep widths that are head counts in disguise.
    old_width = layer.before.num_attention_heads * of_heads.units.head_dim
    attributes |= {name: width for name in ("split_size", "embed_dim") if getattr(module, name, None) == old_width}
    if hasattr(module, "kv_dim"):
        attributes["kv_dim"] = key_value * of_heads.units.head_dim
    own = {"num_attention_heads": query, "num_key_value_heads": key_value} if "qkv_proj" in of_heads.projections else {}
    return {
        "projections": projections,
        "vectors": {
            name: [counts[owner], *module.get_parameter(name).shape[1:]] for name, owner in of_heads.vectors.items()
        },
        "lists": {name: counts[owner] for name, owner in of_heads.lists.items()},
        "attributes": attributes,
        "config": own,
        "key_value_index": None if layer.index is None else list(layer.index),
    }


def _tensors_after(module: nn.Module, of_heads: HeadWeights, layer: LayerPlan, new: Projection) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    for name in of_heads.projections:
        weight, bias = read_projection(module.get_submodule(name))
        rows = of_heads.rows(name, layer.query, layer.key_value)
        found |= laid_out(module, name, weight[rows], None if bias is None else bias[rows])
    found |= laid_out(module, of_heads.output, new.weight[:, of_heads.columns(layer.query)], new.bias)
    heads = {"query": layer.query, "key_value": layer.key_value}
    for name, owner in of_heads.vectors.items():
        found[name] = module.get_parameter(name).detach()[list(heads[owner])]
    for name, owner in of_heads.lists.items():
        entries = list(module.get_submodule(name).children())
        for place, head in enumerate(heads[owner]):
            found |= {f"{name}.{place}.{key}": value for key, value in entries[head].state_dict().items()}
    return found
