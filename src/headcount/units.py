"""What is measured, off or removed as a whole: kinds of units, which of them a model has, and sets of them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import index
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from headcount.errors import InputError

KindId = Literal["query", "group", "layer"]
MOST_HEADS = 65_536  # of a layer that a file may speak of
Count = Annotated[int, Field(strict=True, ge=0, le=10**9)]
_Heads = Annotated[int, Field(strict=True, ge=1, le=MOST_HEADS)]


@dataclass(frozen=True)
class Kind:
    """What a unit is."""

    noun: str  # one of them, as users read it
    plural: str
    of_heads: "Callable[[LayerUnits], tuple[int, ...]]"  # for each query head of a layer, the unit that it is part of


#: Every kind of unit; each is made of whole query heads.
KINDS: dict[KindId, Kind] = {
    "query": Kind("query head", "query heads", lambda layer: tuple(range(layer.num_attention_heads))),
    "group": Kind("key-value group", "key-value groups", lambda layer: layer.key_value_heads),
    "layer": Kind("layer's attention", "layers' attention", lambda layer: (0,) * layer.num_attention_heads),
}


@dataclass(frozen=True, kw_only=True)
class LayerUnits:
    """The heads of one attention layer.

    ``index`` is the layer's position in the model (``layer_idx``); ``head_dim`` is the size of a head's
    output, which is the size of its values and may differ from that of queries and keys. ``key_value_index`` names for
    each query head its key-value head, where groups have several sizes; None where they have one.
    """

    index: Count
    num_attention_heads: _Heads
    num_key_value_heads: _Heads
    head_dim: _Heads
    key_value_index: tuple[Count, ...] | None = None

    #: Where files are parsed, which hold it as it is.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

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

    def members(self, kind: KindId) -> list[tuple[int, ...]]:
        """The query heads of each of the layer's units."""
        found: dict[int, list[int]] = defaultdict(list)
        for head, unit in enumerate(KINDS[kind].of_heads(self)):
            found[unit].append(head)
        return [tuple(found[unit]) for unit in sorted(found)]

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

    def reduce(
        self,
        values: NDArray[np.floating],
        to: KindId,
        by: Literal["mean", "most_active"] = "mean",
        *,
        inactive_when: Literal["low", "high"] = "low",
    ) -> NDArray[np.floating]:
        """Scores of units out of those of their query heads.

        Args:
            values: ``[…, layer, head]``.
            to: the kind of unit.
            by: the ``mean`` of a unit's heads; or its ``most_active`` one, with which a unit is beyond a threshold exactly
                where all its heads are.
            inactive_when: the side of the score on which heads are inactive, for ``most_active``.

        Returns:
            ``[…, layer, unit]``; NaN for a unit with a head that has none, and where a layer has fewer units.
        """
        over = np.mean if by == "mean" else np.max if inactive_when == "low" else np.min
        members = [layer.members(to) for layer in self.layers]
        found = np.full((*values.shape[:-1], max(map(len, members))), np.nan, values.dtype)
        for place, of_layer in enumerate(members):
            for unit, heads in enumerate(of_layer):
                found[..., place, unit] = over(np.take(values[..., place, :], heads, axis=-1), axis=-1)
        return found


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
