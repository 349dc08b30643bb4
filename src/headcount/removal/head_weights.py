"""Which rows and columns of an attention layer's weights belong to which head."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headcount.errors import ModelError
from headcount.models.observe import attention_modules, units_of
from headcount.models.projection import output_projection
from headcount.units import LayerUnits

Owner = Literal["query", "key_value"]
#: Submodules and parameters outside the projections that may have an entry of their own for each head.
_OF_QUERIES = {"sinks", "q_norm", "q_layernorm", "query_layernorm"}
_OF_KEYS = {"k_norm", "k_layernorm", "key_layernorm"}
#: Those that all heads of latent attention share.
_LATENT = {"q_a_proj", "q_a_layernorm", "kv_a_proj_with_mqa", "kv_a_layernorm"}


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive outputs of a projection: ``num_heads`` heads of ``width`` outputs each."""

    owner: Owner
    num_heads: int
    width: int


@dataclass(frozen=True, kw_only=True)
class HeadWeights:
    """Where the heads of one attention layer are in its weights.

    Names are those of submodules and parameters of the attention module.
    """

    units: LayerUnits
    output: str
    """The output projection, whose inputs are the concatenated outputs of the query heads."""
    projections: dict[str, tuple[Block, ...]]
    """Every other projection that has outputs of single heads, and the blocks these come in."""
    vectors: dict[str, Owner] = field(default_factory=dict)
    """Parameters whose first dimension is one entry a head: sinks, norms with weights of their own for each head."""
    lists: dict[str, Owner] = field(default_factory=dict)
    """Lists of modules, one a head."""
    latent: int | None = None
    """Multi-head latent attention: numbers cached a token for all heads together."""

    def cached(self, key_value: int) -> int:
        """Numbers in the key-value cache a token, with so many key-value heads."""
        if self.latent is not None:
            return self.latent
        blocks = [block for blocks in self.projections.values() for block in blocks]
        if (keys_and_values := [block.width for block in blocks if block.owner == "key_value"]) != []:
            return key_value * sum(keys_and_values)
        return key_value * 2 * self.units.head_dim  # query, key and value in one block

    def rows(self, name: str, query: Sequence[int], key_value: Sequence[int]) -> Tensor:
        """The outputs of projection ``name`` that belong to the given heads, in their order."""
        found, start = [], 0
        for block in self.projections[name]:
            heads = torch.tensor(query if block.owner == "query" else key_value, dtype=torch.int64)
            found.append((start + heads[:, None] * block.width + torch.arange(block.width)).flatten())
            start += block.num_heads * block.width
        return torch.cat(found)

    def columns(self, query: Sequence[int]) -> Tensor:
        """The inputs of the output projection that come from the given query heads."""
        heads = torch.tensor(query, dtype=torch.int64)
        return (heads[:, None] * self.units.head_dim + torch.arange(self.units.head_dim)).flatten()

    def num_parameters(self, module: nn.Module, query: int, key_value: int) -> int:
        """Parameters of the layer's projections and per-head vectors with so many heads, output bias left out."""
        counts = {"query": query, "key_value": key_value}
        total = query * self.units.head_dim * sizes(module.get_submodule(self.output))[0]
        for name, blocks in self.projections.items():
            projection = module.get_submodule(name)
            outputs = sum(counts[block.owner] * block.width for block in blocks)
            total += outputs * (sizes(projection)[1] + (getattr(projection, "bias", None) is not None))
        for name, owner in self.vectors.items():
            total += counts[owner] * module.get_parameter(name)[0].numel()
        for name, owner in self.lists.items():
            entry = next(iter(module.get_submodule(name).children()))
            total += counts[owner] * sum(parameter.numel() for parameter in entry.parameters())
        return total


def sizes(projection: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a projection."""
    weight = projection.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return (columns, rows) if isinstance(projection, Conv1D) else (rows, columns)


def head_weights_of(model: PreTrainedModel) -> dict[int, HeadWeights]:
    """Where the heads of every attention layer are in its weights, by layer index.

    Raises:
        ModelError: an attention layer whose weights cannot be divided among heads, or that are not in memory.
    """
    modules = attention_modules(model)
    refuse_offloaded(model)
    return {layer.index: _head_weights(modules[layer.index], layer) for layer in units_of(model).heads}


def refuse_offloaded(model: PreTrainedModel) -> None:
    """Raise ModelError where a weight is not in memory."""
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":
            raise ModelError(
                f"{name} is not in memory (offloaded). Load the model whole, on a device or machine with room for it, to prune."
            )


def _head_weights(module: nn.Module, units: LayerUnits) -> HeadWeights:
    if getattr(module, "key_value_index", None) is not None:
        raise ModelError(
            f"Layer {units.index} has groups of unequal size from an earlier pruning, which cannot be cut again. Prune the "
            "original model, with the heads of both selections."
        )
    projection = output_projection(module)
    output = next(name for name, child in module.named_children() if child is projection)
    for name, child in module.named_children():
        named = name.endswith(("proj", "c_attn", "query_key_value", "dense"))
        if named and _has_parameters(child) and type(child) not in (nn.Linear, Conv1D):
            raise ModelError(
                f"{type(module).__name__}.{name} is a {type(child).__name__}, not a plain projection, so its heads cannot "
                "be cut out. Load the model without quantisation, and merge adapters into it first."
            )
    projections = _projections(module, units)
    latent = "kv_b_proj" in projections
    known = {*projections, output} | (_LATENT if latent else set())
    vectors, lists = _single_heads(module, units, projections, known)
    return HeadWeights(
        units=units, output=output, projections=projections, vectors=vectors, lists=lists,
        latent=sizes(module.get_submodule("kv_a_proj_with_mqa"))[0] if latent else None,
    )  # fmt: skip


def _projections(module: nn.Module, units: LayerUnits) -> dict[str, tuple[Block, ...]]:
    """The blocks of every projection that has outputs of single heads."""
    kind = type(module).__name__
    children = {name: child for name, child in module.named_children() if _has_parameters(child)}
    counts: dict[Owner, int] = {"query": units.num_attention_heads, "key_value": units.num_key_value_heads}

    def block(name: str, owner: Owner) -> tuple[Block, ...]:
        outputs, count = sizes(children[name])[0], counts[owner]
        if outputs % count:
            raise ModelError(f"{kind}.{name} has {outputs} outputs, which {count} heads do not divide evenly.")
        return (Block(owner=owner, num_heads=count, width=outputs // count),)

    if "kv_b_proj" in children:  # multi-head latent attention: the latent that is cached is no head's
        query = "q_b_proj" if "q_b_proj" in children else "q_proj"
        return {query: block(query, "query"), "kv_b_proj": block("kv_b_proj", "query")}
    if {"q_proj", "k_proj", "v_proj"} <= set(children):
        owners: dict[str, Owner] = {"q_proj": "query", "k_proj": "key_value", "v_proj": "key_value"}
        return {name: block(name, owner) for name, owner in owners.items()}
    fused = {"qkv_proj", "c_attn", "query_key_value"} & set(children)
    if not fused:
        raise ModelError(
            f"{kind} has none of the projections that headcount can cut: q_proj, k_proj and v_proj; qkv_proj; c_attn; "
            "query_key_value; or kv_b_proj."
        )
    name = fused.pop()
    if name == "query_key_value" or (name == "c_attn" and getattr(module, "multi_query", None) is False):
        blocks = block(name, "query")  # query, key and value of one head lie together
    else:
        owned: tuple[Owner, ...] = ("query", "key_value", "key_value")
        blocks = tuple(Block(owner=owner, num_heads=counts[owner], width=units.head_dim) for owner in owned)
    if (expected := sum(block.num_heads * block.width for block in blocks)) != sizes(children[name])[0]:
        raise ModelError(
            f"{kind}.{name} has {sizes(children[name])[0]} outputs where its heads need {expected}: its layout is unknown."
        )
    return {name: blocks}


def _single_heads(
    module: nn.Module, units: LayerUnits, projections: dict[str, tuple[Block, ...]], known: Collection[str]
) -> tuple[dict[str, Owner], dict[str, Owner]]:
    """``HeadWeights.vectors`` and ``HeadWeights.lists``, of the parameters outside the submodules ``known``."""
    kind = type(module).__name__
    vectors: dict[str, Owner] = {}
    lists: dict[str, Owner] = {}
    for name, parameter in module.named_parameters():
        first, _, rest = name.partition(".")
        if first in known:
            continue
        owner: Owner = "query" if first in _OF_QUERIES else "key_value"
        count = units.num_attention_heads if owner == "query" else units.num_key_value_heads
        if first == "sinks" and parameter.shape == (count,):
            vectors[name] = owner
        elif first == "sinks" or first not in _OF_QUERIES | _OF_KEYS:
            raise ModelError(
                f"{kind} has {name}, which headcount does not know how to divide among heads. Use zero-filled weights "
                "(--format zeros), which keep every shape."
            )
        elif rest.startswith("norms."):
            lists[f"{first}.norms"] = owner
        elif parameter.dim() == 2 and parameter.shape[0] == count:
            vectors[name] = owner
        elif count > 1 and any(
            block.owner == owner and len(parameter) == block.num_heads * block.width
            for blocks in projections.values()
            for block in blocks
        ):
            raise ModelError(
                f"{kind}.{first} normalises all heads of a layer together, so cutting one out would change the others. Use "
                "zero-filled weights (--format zeros), which keep every shape."
            )
    return vectors, lists


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
