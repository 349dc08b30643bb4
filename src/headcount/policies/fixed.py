"""Off are the same heads on every input."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from headcount.policies.policy import Described, PolicyFacts, Seen, layer_set
from headcount.replacements import ZERO, Replacement
from headcount.units import UnitMap, UnitSet


@dataclass(frozen=True)
class Fixed(Described):
    """Zero the same heads on every input.

    Args:
        heads: a UnitSet, or (layer, head) pairs.
        name: its label in tables.
        exclude_layers: layers never touched.
        instead: what stands in their place.
    """

    heads: UnitSet
    name: str = field(default="fixed", kw_only=True)
    exclude_layers: frozenset[int] = field(default=frozenset(), kw_only=True)
    instead: Replacement = field(default=ZERO, kw_only=True)

    def __post_init__(self) -> None:
        heads = self.heads if isinstance(self.heads, UnitSet) else UnitSet(self.heads)
        object.__setattr__(self, "heads", heads)
        object.__setattr__(self, "exclude_layers", layer_set(self.exclude_layers))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def facts(self) -> PolicyFacts:
        return PolicyFacts(policy=self.name)

    def __str__(self) -> str:
        pairs = [f"{layer}.{head}" for layer, head in self.heads]
        named = ", ".join(pairs[:12]) + (f" and {len(pairs) - 12} more" if len(pairs) > 12 else "")
        return f"zeroes the same {len(pairs)} heads on every input (layer.head: {named}){self.suffix}"

    def check(self, units: UnitMap) -> None:
        self.heads.check(units)

    def decide(self, seen: Seen) -> Tensor:
        chosen = torch.zeros(seen.shape[1], dtype=torch.bool)
        chosen[[head for layer, head in self.heads if layer == seen.layer]] = True
        return chosen.to(seen.device).expand(seen.shape)
