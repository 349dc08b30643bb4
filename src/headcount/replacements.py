"""What stands where a unit that is off would have written: zero."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Replacement(Protocol):
    """What takes the place of units that are off."""

    @property
    def suffix(self) -> str:
        """What it adds to the names of policies and curves; empty for zero."""
        ...

    def values(self, outputs: Tensor, off: Tensor) -> Tensor | None:
        """What stands in a layer's ``outputs [row, unit, token, width]`` where ``off [row, unit]``, in that shape; None is 0."""
        ...


@dataclass(frozen=True)
class Zero:
    """Nothing: the unit writes 0 into the residual stream, as in the paper (arXiv 2504.03889, Section 3)."""

    @property
    def suffix(self) -> str:
        return ""

    def values(self, outputs: Tensor, off: Tensor) -> None:
        return None


ZERO = Zero()


def replaced(outputs: Tensor, off: Tensor | None, instead: Replacement = ZERO) -> Tensor:
    """``outputs [row, unit, token, width]`` with those of the units ``off [row, unit]`` replaced; None is none."""
    if off is None:
        return outputs
    where = off.to(outputs.device)[:, :, None, None]
    values = instead.values(outputs, off)
    return outputs.masked_fill(where, 0) if values is None else values.where(where, outputs)
