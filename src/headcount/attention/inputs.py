"""What an attention layer is called with."""

from dataclasses import dataclass, replace

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
class Rows:
    """Where texts stand among a layer's tokens and what they see, by number: for what reads neither copies nor masks.

    A query sees the keys of its own text up to itself, or the last ``window`` of them.
    """

    queries: Tensor  # int32 [row, 2], the first and how many; they are the last tokens of their texts
    keys: Tensor  # int32 [row, stretch, 2], likewise, in the order of the text
    packed: bool  # all in one row of the batch; if not, each in its own
    most_queries: int
    most_keys: int
    window: int | None = None

    def to(self, device: torch.device) -> "Rows":
        if self.queries.device == device:
            return self
        return replace(self, queries=self.queries.to(device), keys=self.keys.to(device))

    def spread(self, of_queries: Tensor) -> Tensor:
        """``[batch, head, token, …]`` → ``[row, head, token, …]``; padding repeats each row's last token."""
        if not self.packed:
            return of_queries
        steps = torch.arange(self.most_queries, device=of_queries.device)
        return _chosen(of_queries, self.queries[:, :1] + steps.minimum(self.queries[:, 1:] - 1))

    def spread_keys(self, of_keys: Tensor) -> Tensor:
        """Likewise, with each row's stretches joined."""
        if not self.packed:
            return of_keys
        first, number = self.keys.unbind(-1)
        ends = number.cumsum(1)
        steps = torch.arange(self.most_keys, device=of_keys.device).minimum(ends[:, -1:] - 1)
        stretch = (steps[..., None] >= ends[:, None]).sum(-1)
        return _chosen(of_keys, (first - ends + number).gather(1, stretch) + steps)

    def mask(self, queries: int, keys: int) -> Tensor | None:
        """bool ``[row, 1, query, key]`` of what is spread; None where it is plain causal."""
        if self.packed and self.window is None and self.keys.shape[1] == 1:
            return None
        device, total = self.keys.device, self.keys[..., 1].sum(1)[:, None]
        begins = self.queries.new_zeros(1, 1) if self.packed else self.keys[:, 0, :1]
        places = torch.arange(keys, device=device) - begins  # [row, key]
        own = torch.arange(queries, device=device) - (0 if self.packed else self.queries[:, :1])
        own = own + total - self.queries[:, 1:]  # [row, query]
        seen = (places[:, None] <= own[..., None]) & ((places >= 0) & (places < total))[:, None]
        if self.window is not None:
            seen &= places[:, None] > own[..., None] - self.window
        return seen[:, None]


def _chosen(tokens: Tensor, index: Tensor) -> Tensor:
    """``[1, head, token, …]`` at ``index [row, place]`` → ``[row, head, place, …]``."""
    return tokens[0].index_select(1, index.flatten()).unflatten(1, index.shape).transpose(0, 1)


@dataclass(frozen=True, kw_only=True)
class AttentionInputs:
    """Query, key and value of every head, as the model's attention layer hands them over.

    ``mask`` is True (or 0) where a query may attend, False (or a large negative number) where not; ``None``
    means plain causal attention with as many keys as queries, or one query that sees every key. With ``rows`` there is no
    mask, and ``[batch, …, token, …]`` may be one row with all texts in it; outputs are ``[row, …]`` all the same.
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
    rows: Rows | None = None

    def laid_out(self) -> "AttentionInputs":
        """The same with a text in each row of the batch and what it sees in a mask."""
        if (rows := self.rows) is None:
            return self
        query, key, value = rows.spread(self.query), rows.spread_keys(self.key), rows.spread_keys(self.value)
        mask = rows.mask(query.shape[2], key.shape[2])
        return replace(self, query=query, key=key, value=value, mask=mask, rows=None)

    @property
    def group_size(self) -> int:
        return self.query.shape[1] // self.key.shape[1]
