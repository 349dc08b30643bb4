"""What an attention layer is called with."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Which positions of a batch hold real tokens; padding may be on either side.

    A batch without padding has ``real = None``, which spares every masked mean.
    """

    real: Tensor | None  # bool [batch, position]
    first: Tensor  # int64 [batch], the first real position
    last: Tensor  # int64 [batch], the last real position

    @classmethod
    def from_mask(cls, mask: Tensor | None, batch: int, length: int, device: torch.device) -> "Positions":
        """From a 0/1 attention mask ``[batch, position]``, or None where every position is real."""
        if mask is None or bool(mask.all()):
            zeros = torch.zeros(batch, dtype=torch.int64, device=device)
            return cls(real=None, first=zeros, last=zeros + (length - 1))
        real = mask.to(device=device, dtype=torch.bool)
        index = torch.arange(length, device=device)
        return cls(
            real=real,
            first=torch.where(real, index, length).amin(1).clamp(max=length - 1),
            last=torch.where(real, index, -1).amax(1).clamp(min=0),
        )

    @property
    def num_tokens(self) -> Tensor:
        """Real tokens of each example, int64 ``[batch]``."""
        return self.last - self.first + 1 if self.real is None else self.real.sum(1)

    @property
    def right_padded(self) -> bool:
        """True when every row is real tokens first, padding after (or none)."""
        return self.real is None or not bool((self.real[:, 1:] & ~self.real[:, :-1]).any())

    def to(self, device: torch.device) -> "Positions":
        if self.first.device == device:
            return self
        real = None if self.real is None else self.real.to(device)
        return Positions(real=real, first=self.first.to(device), last=self.last.to(device))

    def mean(self, values: Tensor) -> Tensor:
        """Mean over real positions of ``values […, batch, head, position]`` → ``[…, batch, head]``."""
        if self.real is None:
            return values.mean(-1)
        real = self.real[:, None]  # [batch, 1, position]
        return values.masked_fill(~real, 0).sum(-1) / real.sum(-1)

    def at(self, values: Tensor, index: Tensor) -> Tensor:
        """``values [batch, head, position, …]`` at one position per example → ``[batch, head, …]``."""
        return values[torch.arange(len(index), device=values.device), :, index]


@dataclass(frozen=True, kw_only=True)
class AttentionInputs:
    """Query, key and value of every head, as the model's attention layer hands them over.

    ``mask`` is True (or 0) where a query may attend, False (or a large negative number) where not; ``None``
    means plain causal attention with as many keys as queries, or one query that sees every key.
    """

    query: Tensor  # [batch, head, query, head_dim]
    key: Tensor  # [batch, key-value head, key, head_dim]
    value: Tensor  # [batch, key-value head, key, value head_dim]
    mask: Tensor | None  # bool or float [batch, 1 or head, query, key]
    scaling: float
    softcap: float | None = None
    """Gemma 2: scaled scores s become softcap · tanh(s / softcap)."""
    past: int = 0
    """Keys that stand before those of the queries' own tokens: what was read earlier of the same text."""
    sinks: Tensor | None = None  # [head]
    """gpt-oss: one more logit per head in the softmax's denominator, with value 0."""

    @property
    def group_size(self) -> int:
        return self.query.shape[1] // self.key.shape[1]
