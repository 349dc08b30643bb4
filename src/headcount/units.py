"""Which heads a model has, and sets of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np

from headcount.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LayerUnits:
    """The heads of one attention layer.

    ``index`` is the layer's position in the model (``layer_idx``); ``head_dim`` is the size of a head's
    output, which is the size of its values and may differ from that of queries and keys. ``key_value_index`` names for
    each query head its key-value head, where groups have several sizes; None where they have one.
    """

    index: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    key_value_index: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.key_value_index is not None:  # a list, where it comes from JSON
            object.__setattr__(self, "key_value_index", tuple(self.key_value_index))

    @property
    def group_size(self) -> int:
        """Query heads that share one key-value head, where all groups have one size."""
        assert self.key_value_index is None
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def key_value_heads(self) -> tuple[int, ...]:
        """For each query head the key-value head that it uses."""
        if self.key_value_index is not None:
            return self.key_value_index
        return tuple(head // self.group_size for head in range(self.num_attention_heads))

    def facts(self) -> dict[str, Any]:
        """For JSON; read back by ``LayerUnits(**facts)``."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        return known | ({"key_value_index": list(self.key_value_index)} if self.key_value_index is not None else {})


@dataclass(frozen=True, kw_only=True)
class UnitMap:
    """Every attention layer of a model, in the order in which the model calls them.

    Layers without attention (hybrid models) are left out; layers may differ in their number of heads.
    """

    layers: tuple[LayerUnits, ...]

    @property
    def layer_indices(self) -> list[int]:
        return [layer.index for layer in self.layers]

    @property
    def max_attention_heads(self) -> int:
        return max(layer.num_attention_heads for layer in self.layers)

    @property
    def num_heads(self) -> int:
        """Query heads of the whole model."""
        return sum(layer.num_attention_heads for layer in self.layers)

    def exists(self) -> np.ndarray:
        """bool [layer, head]: True where the layer has that query head."""
        heads = np.arange(self.max_attention_heads)
        return np.stack([heads < layer.num_attention_heads for layer in self.layers])


@dataclass(frozen=True)
class UnitSet:
    """A set of query heads, each named by (layer index, head index).

    >>> UnitSet([(0, 3), (2, 1)]) | UnitSet([(0, 3), (1, 0)])
    UnitSet([(0, 3), (1, 0), (2, 1)])
    """

    heads: frozenset[tuple[int, int]]

    def __init__(self, heads: Iterable[tuple[int, int]] = ()) -> None:
        if not isinstance(heads, Iterable):
            raise InputError(f"Heads are pairs (layer, head), such as [(0, 3), (2, 1)], not {heads!r}.")
        pairs = []
        for pair in heads:
            try:
                layer, head = pair
                pairs.append((index(layer), index(head)))
            except (TypeError, ValueError):
                raise InputError(f"A head is a pair (layer, head) of whole numbers, not {pair!r}.") from None
        object.__setattr__(self, "heads", frozenset(pairs))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(sorted(self.heads))

    def __len__(self) -> int:
        return len(self.heads)

    def __contains__(self, head: object) -> bool:
        return head in self.heads

    def __or__(self, other: "UnitSet") -> "UnitSet":
        return UnitSet(self.heads | other.heads)

    def __repr__(self) -> str:
        return f"UnitSet({list(self)})"

    def check(self, units: UnitMap) -> None:
        """Raise InputError if a head of the set is not one of the model's."""
        counts = {layer.index: layer.num_attention_heads for layer in units.layers}
        for layer, head in self:
            if not 0 <= head < counts.get(layer, 0):
                raise InputError(
                    f"Head {head} of layer {layer} does not exist: attention layers are "
                    f"{min(counts)}…{max(counts)} with up to {max(counts.values())} query heads. "
                    "Count layers and heads from 0."
                )
