"""What a selection of heads means for each layer of a model, decided before anything is cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Literal

from headcount.errors import InputError
from headcount.units import LayerUnits, MlpUnits, UnitMap, UnitSet

Uneven = Literal["index", "repeat", "keep"]


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """The heads of one layer after the cut.

    Attributes:
        before: the layer's heads as they are.
        query: the query heads that stay, in their order.
        key_value: for each key-value head of the cut layer, the one that it is a copy of.
        index: for each query head that stays, its place in ``key_value``; None where all groups have one size.
    """

    before: LayerUnits
    query: tuple[int, ...]
    key_value: tuple[int, ...]
    index: tuple[int, ...] | None = None

    @property
    def unchanged(self) -> bool:
        return len(self.query) == self.before.num_attention_heads

    @property
    def group_size(self) -> int:
        """Query heads a key-value head, as the attention function counts them; 1 where an index says which."""
        return 1 if self.index is not None or not self.query else len(self.query) // len(self.key_value)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A cut of the whole model.

    Attributes:
        layers: every attention layer, in order.
        asked: the heads that were selected.
    """

    layers: tuple[LayerPlan, ...]
    asked: UnitSet

    @property
    def num_parts(self) -> int:
        """Query heads of the model before the cut."""
        return sum(layer.before.num_attention_heads for layer in self.layers)

    @property
    def removed(self) -> UnitSet:
        """The query heads that go."""
        return UnitSet(
            (layer.before.index, head)
            for layer in self.layers
            for head in set(range(layer.before.num_attention_heads)) - set(layer.query)
        )

    @property
    def kept_after_all(self) -> UnitSet:
        """Selected heads that stay, because their group keeps others and groups must have one size."""
        return UnitSet(set(self.asked) - set(self.removed))

    @property
    def emptied(self) -> list[int]:
        """Layers that lose all their heads."""
        return [layer.before.index for layer in self.layers if not layer.query]

    @property
    def key_value_heads(self) -> tuple[int, int]:
        """Key-value heads of all layers, before and after."""
        before = sum(layer.before.num_key_value_heads for layer in self.layers)
        return before, sum(len(layer.key_value) for layer in self.layers)

    @property
    def uniform(self) -> tuple[int, int] | None:
        """(query heads, key-value heads) of every layer, if these are the same in all and groups have one size."""
        counts = {(len(layer.query), len(layer.key_value)) for layer in self.layers}
        if len(counts) > 1 or self.emptied or any(layer.index is not None for layer in self.layers):
            return None
        return counts.pop()


@dataclass(frozen=True, kw_only=True)
class NeuronPlan:
    """A cut of neurons.

    Attributes:
        layers: every layer's neurons as they are, in order.
        removed: the neurons that go.
    """

    layers: tuple[MlpUnits, ...]
    removed: UnitSet

    @property
    def num_parts(self) -> int:
        """Neurons of the model before the cut."""
        return sum(layer.num_neurons for layer in self.layers)

    @property
    def kept(self) -> dict[int, list[int]]:
        """The neurons that stay, for each layer that loses some."""
        staying = {layer.index: dict.fromkeys(range(layer.num_neurons)) for layer in self.layers}
        for layer, neuron in self.removed:
            del staying[layer][neuron]
        return {
            layer.index: [*staying[layer.index]]
            for layer in self.layers
            if len(staying[layer.index]) < layer.num_neurons
        }

    @property
    def uniform(self) -> tuple[int, int] | None:
        """Neurons of every layer, before and after, if these are the same in all."""
        kept = self.kept
        counts = {(layer.num_neurons, len(kept.get(layer.index, range(layer.num_neurons)))) for layer in self.layers}
        return counts.pop() if len(counts) == 1 else None


def plan_neurons(units: UnitMap, neurons: Sequence[tuple[int, int]] | UnitSet) -> NeuronPlan:
    """How to take ``neurons`` out of a model.

    Args:
        units: the model's neurons.
        neurons: (layer, neuron) pairs.

    Raises:
        InputError: a neuron that the model lacks, or every neuron of a layer.
    """
    removed = UnitSet(neurons)
    removed.check(units)
    plan = NeuronPlan(layers=tuple(layer for layer in units.layers if isinstance(layer, MlpUnits)), removed=removed)
    if emptied := [layer for layer, staying in plan.kept.items() if not staying]:
        raise InputError(
            f"All neurons of layer {emptied[0]} are selected, and an MLP needs one. Leave some in each layer."
        )
    return plan


def plan_removal(units: UnitMap, heads: Sequence[tuple[int, int]] | UnitSet, *, uneven: Uneven) -> Plan:
    """How to take ``heads`` out of a model.

    A key-value head goes when its whole group goes. Where the groups of a layer lose different numbers of query heads:
    ``index`` keeps every other key-value head once and records which query head uses which; ``repeat`` copies key-value
    heads until groups have one size (exact, at the cost of a larger key-value cache); ``keep`` lets as many selected
    heads stay as that takes, those last in ``heads`` first.

    Args:
        units: the model's.
        heads: (layer, head) pairs, the least needed first.
        uneven: ``index``, ``repeat`` or ``keep``.

    Raises:
        InputError: a head that the model lacks, every head of the model, or an unknown ``uneven``.
    """
    if uneven not in ("index", "repeat", "keep"):
        raise InputError(f"Uneven groups are solved by 'index', 'repeat' or 'keep', not {uneven!r}.")
    asked = UnitSet(heads)
    asked.check(units)
    if len(asked) == units.num_units:
        raise InputError(f"All {len(asked)} heads of the model are selected. Leave some.")
    layers = []
    for before in units.heads:
        of_layer = [head for layer, head in heads if layer == before.index]
        layers.append(_plan_layer(before, of_layer, uneven))
    return Plan(layers=tuple(layers), asked=asked)


def _plan_layer(before: LayerUnits, going: Sequence[int], uneven: Uneven) -> LayerPlan:
    members = before.members("group")
    groups = [[head for head in heads if head not in going] for heads in members]
    if uneven == "keep":
        largest = max(map(len, groups))
        for group, staying in enumerate(groups):
            if 0 < len(staying) < largest:
                back = [head for head in reversed(going) if head in members[group]]
                staying += back[: largest - len(staying)]
                staying.sort()
    kept = [group for group, staying in enumerate(groups) if staying]
    lengths = {len(groups[group]) for group in kept}
    query = tuple(head for staying in groups for head in staying)
    if len(lengths) > 1 and uneven == "index":
        index = (place for place, group in enumerate(kept) for _ in groups[group])
        return LayerPlan(before=before, query=query, key_value=tuple(kept), index=tuple(index))
    size = gcd(*lengths)
    return LayerPlan(
        before=before, query=query, key_value=tuple(group for group in kept for _ in range(len(groups[group]) // size))
    )
