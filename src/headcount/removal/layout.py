"""Which rows and columns of an attention layer's weights belong to which head."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from headcount.errors import ModelError
from headcount.models.projection import output_projection
from headcount.units import LayerUnits

Owner = Literal["query", "key_value"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive outputs of a projection: ``num_heads`` heads of ``width`` outputs each."""

    owner: Owner
    num_heads: int
    width: int


@dataclass(frozen=True, kw_only=True)
class AttentionLayout:
    """Where the heads of one attention layer are in its weights.

    Names are those of submodules and parameters of the attention module.
    """

    heads: LayerUnits
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
        return key_value * 2 * self.heads.head_dim  # query, key and value in one block

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
        return (heads[:, None] * self.heads.head_dim + torch.arange(self.heads.head_dim)).flatten()

    def num_parameters(self, module: nn.Module, query: int, key_value: int) -> int:
        """Parameters of the layer's projections and per-head vectors with so many heads, output bias left out."""
        total = 0
        for name, blocks in self.projections.items():
            projection = module.get_submodule(name)
            outputs = sum((query if block.owner == "query" else key_value) * block.width for block in blocks)
            total += outputs * (sizes(projection)[1] + (getattr(projection, "bias", None) is not None))
        total += query * self.heads.head_dim * sizes(module.get_submodule(self.output))[0]
        for name, owner in self.vectors.items():
            total += (query if owner == "query" else key_value) * module.get_parameter(name)[0].numel()
        for name, owner in self.lists.items():
            entry = next(iter(module.get_submodule(name).children()))
            total += (query if owner == "query" else key_value) * sum(p.numel() for p in entry.parameters())
        return total


def sizes(projection: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a projection."""
    weight = projection.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return (columns, rows) if isinstance(projection, Conv1D) else (rows, columns)


def attention_layout(module: nn.Module, heads: LayerUnits) -> AttentionLayout:
    """The layout of an attention module with the given heads.

    Raises:
        ModelError: the module has weights that cannot be divided among its heads, or that are not known here.
    """
    kind = type(module).__name__
    if getattr(module, "key_value_index", None) is not None:
        raise ModelError(
            f"Layer {heads.index} has groups of unequal size from an earlier pruning, which cannot be cut again. Prune the "
            "original model, with the heads of both selections."
        )
    num_query, num_key_value = heads.num_attention_heads, heads.num_key_value_heads
    projection = output_projection(module)
    output = next(name for name, child in module.named_children() if child is projection)
    children = {name: child for name, child in module.named_children() if any(True for _ in child.parameters())}
    for name, child in children.items():
        if name.endswith(("proj", "c_attn", "query_key_value", "dense")) and not _is_plain(child):
            raise ModelError(
                f"{kind}.{name} is a {type(child).__name__}, not a plain projection, so its heads cannot be cut out. Load the "
                "model without quantisation, and merge adapters into it first."
            )

    def block(name: str, owner: Owner) -> tuple[Block, ...]:
        count = num_query if owner == "query" else num_key_value
        outputs = sizes(children[name])[0]
        if outputs % count:
            raise ModelError(f"{kind}.{name} has {outputs} outputs, which {count} heads do not divide evenly.")
        return (Block(owner=owner, num_heads=count, width=outputs // count),)

    width = heads.head_dim
    parts: dict[str, tuple[Block, ...]]
    if "kv_b_proj" in children:  # multi-head latent attention: the latent that is cached is no head's
        query = "q_b_proj" if "q_b_proj" in children else "q_proj"
        parts = {query: block(query, "query"), "kv_b_proj": block("kv_b_proj", "query")}
    elif {"q_proj", "k_proj", "v_proj"} <= set(children):
        parts = {
            "q_proj": block("q_proj", "query"),
            "k_proj": block("k_proj", "key_value"),
            "v_proj": block("v_proj", "key_value"),
        }
    elif fused := {"qkv_proj", "c_attn", "query_key_value"} & set(children):
        name = fused.pop()
        if name == "query_key_value" or (name == "c_attn" and getattr(module, "multi_query", None) is False):
            parts = {name: block(name, "query")}  # query, key and value of one head lie together
        else:
            groups = Block(owner="key_value", num_heads=num_key_value, width=width)
            parts = {name: (Block(owner="query", num_heads=num_query, width=width), groups, groups)}
        if (expected := sum(b.num_heads * b.width for b in parts[name])) != sizes(children[name])[0]:
            raise ModelError(
                f"{kind}.{name} has {sizes(children[name])[0]} outputs where its heads need {expected}: its layout is unknown."
            )
    else:
        raise ModelError(
            f"{kind} has none of the projections that headcount can cut: q_proj, k_proj and v_proj; qkv_proj; c_attn; "
            "query_key_value; or kv_b_proj."
        )

    vectors: dict[str, Owner] = {}
    lists: dict[str, Owner] = {}
    shared = {"q_a_proj", "q_a_layernorm", "kv_a_proj_with_mqa", "kv_a_layernorm"} if "kv_b_proj" in parts else set()
    for name, parameter in module.named_parameters():
        first, _, rest = name.partition(".")
        if first in parts or first == output or first in shared:
            continue
        owner: Owner = "query" if first in ("sinks", "q_norm", "q_layernorm", "query_layernorm") else "key_value"
        count = num_query if owner == "query" else num_key_value
        if first == "sinks" and parameter.shape == (num_query,):
            vectors[name] = owner
        elif first not in ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "query_layernorm", "key_layernorm"):
            raise ModelError(
                f"{kind} has {name}, which headcount does not know how to divide among heads. Use zero-filled weights "
                "(--format zeros), which keep every shape."
            )
        elif rest.startswith("norms."):
            lists[f"{first}.norms"] = owner
        elif parameter.dim() == 2 and parameter.shape[0] == count:
            vectors[name] = owner
        elif count > 1 and any(
            b.owner == owner and len(parameter) == b.num_heads * b.width for blocks in parts.values() for b in blocks
        ):
            raise ModelError(
                f"{kind}.{first} normalises all heads of a layer together, so cutting one out would change the others. Use "
                "zero-filled weights (--format zeros), which keep every shape."
            )
    return AttentionLayout(
        heads=heads,
        output=output,
        projections=parts,
        vectors=vectors,
        lists=lists,
        latent=sizes(children["kv_a_proj_with_mqa"])[0] if "kv_b_proj" in parts else None,
    )


def _is_plain(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, Conv1D)
