"""What is removed as a whole: a query head, a key-value group, or a layer."""

from collections.abc import Sequence

from headcount.removal.selection import Unit
from headcount.units import LayerUnits


def num_units(layer: LayerUnits, unit: Unit) -> int:
    return {"query": layer.num_attention_heads, "group": layer.num_key_value_heads, "layer": 1}[unit]


def heads_of_unit(layer: LayerUnits, unit: Unit, number: int) -> Sequence[int]:
    """The query heads of a layer's unit; units divide a layer's heads in order."""
    size = layer.num_attention_heads // num_units(layer, unit)
    return range(number * size, (number + 1) * size)
