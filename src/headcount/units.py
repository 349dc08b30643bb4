"""What is measured, off or removed as a whole: kinds of units, which of them a model has, and sets of them."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from headcount.errors import InputError

KindId = Literal["head", "group", "attention", "neuron", "mlp"]
SiteId = Literal["attention", "mlp"]
MOST_UNITS = 1 << 20  # of a layer that a file may speak of
Count = Annotated[int, Field(strict=True, ge=0, le=10**9)]
_Width = Annotated[int, Field(strict=True, ge=1, le=MOST_UNITS)]


@dataclass(frozen=True)
class Kind:
    """What a unit is."""

    noun: str  # one of them, as users read it
    plural: str
    site: SiteId  # what writes it into the residual stream
    of_parts: (
        "Callable[[Any], tuple[int, ...]]"  # for each query head or neuron of a layer, the unit that it is part of
    )
    short: str  # several of them, where it is clear whose
    one_a_layer: bool = False
    many: bool = False  # so many that scores are summarised, and counted by layer

    @staticmethod
    def titled(name: str) -> str:
        """At the beginning of a sentence."""
        return name[:1].upper() + name[1:]


#: Every kind of unit; each is made of whole query heads, or of whole neurons: channels of what an MLP's last map reads.
KINDS: dict[KindId, Kind] = {
    "head": Kind("query head", "query heads", "attention", lambda layer: tuple(range(layer.num_parts)), "heads"),
    "group": Kind("key-value group", "key-value groups", "attention", lambda layer: layer.key_value_heads, "groups"),
    "attention": Kind(
        "layer's attention", "layers' attention", "attention", lambda layer: (0,) * layer.num_parts, "layers' attention",
        one_a_layer=True,
    ),
    "neuron": Kind("MLP neuron", "MLP neurons", "mlp", lambda layer: tuple(range(layer.num_parts)), "neurons", many=True),
    "mlp": Kind("layer's MLP", "layers' MLPs", "mlp", lambda layer: (0,) * layer.num_parts, "MLPs", one_a_layer=True),
}  # fmt: skip


def checked_kind(kind: str) -> KindId:
    """A kind's id. Raises InputError for another text."""
    if kind not in KINDS:
        raise InputError(f"A unit is one of {', '.join(KINDS)}, not {kind!r:.60}.")
    return kind


class _Parts(ABC):
    """A layer's query heads, or neurons."""

    @property
    @abstractmethod
    def num_parts(self) -> int: ...

    def members(self, kind: KindId) -> list[tuple[int, ...]]:
        """The query heads, or neurons, of each of the layer's units."""
        found: dict[int, list[int]] = defaultdict(list)
        for part, unit in enumerate(KINDS[kind].of_parts(self)):
            found[unit].append(part)
        return [tuple(found[unit]) for unit in sorted(found)]


@dataclass(frozen=True, kw_only=True)
class LayerUnits(_Parts):
    """The heads of one attention layer.

    ``index`` is the layer's position in the model (``layer_idx``); ``head_dim`` is the size of a head's
    output, which is the size of its values and may differ from that of queries and keys. ``key_value_index`` names for
    each query head its key-value head, where groups have several sizes; None where they have one.
    """

    index: Count
    num_attention_heads: _Width
    num_key_value_heads: _Width
    head_dim: _Width
    key_value_index: tuple[Count, ...] | None = None

    #: Where files are parsed, which hold it as it is.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.key_value_index is not None:  # a list, where it comes from JSON
            object.__setattr__(self, "key_value_index", tuple(self.key_value_index))

    @property
    def num_parts(self) -> int:
        """Query heads."""
        return self.num_attention_heads

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
class MlpUnits(_Parts):
    """The neurons of one decoder layer's MLP: the channels that its map into the residual stream reads.

    ``index`` is the layer's place among the decoder layers.
    """

    index: Count
    num_neurons: _Width

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    @property
    def num_parts(self) -> int:
        """Neurons."""
        return self.num_neurons

    def facts(self) -> dict[str, Any]:
        """For JSON; read back by ``MlpUnits(**facts)``."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class UnitMap:
    """Every layer of a model that has units of a kind, in the order in which the model calls them.

    Layers without attention (hybrid models) have no heads and are left out; layers may differ in their number of units.
    """

    layers: tuple[LayerUnits, ...] | tuple[MlpUnits, ...]
    kind: KindId = "head"

    @property
    def heads(self) -> tuple[LayerUnits, ...]:
        """The layers, whose units are made of query heads."""
        return tuple(layer for layer in self.layers if isinstance(layer, LayerUnits))

    @property
    def layer_indices(self) -> list[int]:
        return [layer.index for layer in self.layers]

    @cached_property
    def counts(self) -> list[int]:
        """Units of each layer."""
        if self.kind in ("head", "neuron"):
            return [layer.num_parts for layer in self.layers]
        return [len(layer.members(self.kind)) for layer in self.layers]

    @property
    def most_units(self) -> int:
        """Units of the layer that has the most."""
        return max(self.counts)

    @property
    def num_units(self) -> int:
        """Units of the whole model."""
        return sum(self.counts)

    def exists(self) -> np.ndarray:
        """bool [layer, unit]: True where the layer has that unit."""
        return np.arange(self.most_units) < np.array(self.counts)[:, None]

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
        parts = [layer.members(to) for layer in self.layers]
        found = np.full((*values.shape[:-1], max(map(len, parts))), np.nan, values.dtype)
        for place, of_layer in enumerate(parts):
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
        counts, kind = dict(zip(units.layer_indices, units.counts, strict=True)), KINDS[units.kind]
        for layer, unit in self:
            if not 0 <= unit < counts.get(layer, 0):
                if kind.one_a_layer:
                    raise InputError(
                        f"({layer}, {unit}) is no {kind.noun}: layers are {min(counts)}…{max(counts)}, and each has one, 0."
                    )
                raise InputError(
                    f"{kind.titled(kind.noun)} {unit} of layer {layer} does not exist: layers are {min(counts)}…{max(counts)} "
                    f"with up to {max(counts.values())} {kind.plural}. Count layers and {kind.plural} from 0."
                )
