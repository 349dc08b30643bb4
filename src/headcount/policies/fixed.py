"""Off are the same heads on every input."""

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headcount.devices import moved
from headcount.policies.policy import Policy, PolicyFacts
from headcount.policies.seen import Seen
from headcount.units import UnitMap, UnitSet


@dataclass(frozen=True)
class Fixed(Policy):
    """The same heads are off on every input.

    Args:
        heads: a UnitSet, or (layer, head) pairs.
        name: its label in tables.
    """

    heads: UnitSet
    name: str = field(default="fixed", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        heads = self.heads if isinstance(self.heads, UnitSet) else UnitSet(self.heads)
        object.__setattr__(self, "heads", heads)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def facts(self) -> PolicyFacts:
        heads = sorted((layer, head) for layer, head in self.heads if layer not in self.exclude_layers)
        digest = hashlib.blake2b(repr(heads).encode(), digest_size=8).hexdigest()
        decides = ", ".join(filter(None, (f"{len(heads)} heads", digest, self.decides)))
        return PolicyFacts(policy=self.called(self.name), decides=decides)

    def __str__(self) -> str:
        pairs = [f"{layer}.{head}" for layer, head in self.heads]
        named = ", ".join(pairs[:12]) + (f" and {len(pairs) - 12} more" if len(pairs) > 12 else "")
        return f"{self._verb} the same {len(pairs)} heads on every input (layer.head: {named}){self._how}"

    def check(self, units: UnitMap) -> None:
        super().check(units)
        self.heads.check(units)

    def decide(self, seen: Seen) -> Tensor:
        chosen = torch.zeros(seen.shape[1], dtype=torch.bool)
        chosen[[head for layer, head in self.heads if layer == seen.layer]] = True
        return moved(chosen, seen.device).expand(seen.shape)
