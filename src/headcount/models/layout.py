"""How rows of different lengths stand in a model's batch: each padded to the longest, or end to end in one row."""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from headcount.attention.inputs import Rows
from headcount.devices import moved
from headcount.models.batching import pad


class Layout:
    """Rows of tokens as the model gets them.

    Packed rows stand end to end in one row, so that everything but attention computes real tokens only; attention gets
    them row by row. Otherwise every row is padded on the right.

    Attributes:
        tokens: int64 ``[batch, token]``, what the model reads.
        attention_mask: int64, the same shape, 0 for padding.
        lengths: int64 ``[row]``.
        stretches: of packed rows, int32 ``[row, 2]``, where each begins and how many tokens it has.
        padded: whether rows differ in length.
        real: bool ``[row, token]``, False for padding.
        own_index: int64 ``[row, token]``, each token's place in its row; padding has that of the row's last token.
    """

    def __init__(self, rows: Sequence[Sequence[int]], device: torch.device, *, packed: bool) -> None:
        self.packed = packed
        self._sizes = [len(row) for row in rows]
        self._offsets = [0, *accumulate(self._sizes)]
        self.padded = len({*self._sizes}) > 1
        lengths = torch.tensor(self._sizes)
        steps = torch.arange(max(self._sizes))
        real, own_index = steps < lengths[:, None], steps.minimum(lengths[:, None] - 1)
        self.lengths, self.real, self.own_index = (moved(tensor, device) for tensor in (lengths, real, own_index))
        if packed:
            tokens = torch.tensor([[token for row in rows for token in row]], dtype=torch.int64)
            self.tokens = moved(tokens, device)
            self.attention_mask = torch.ones_like(self.tokens)
            # [row · token] → its place in the packed row
            self.stretches = moved(torch.tensor([self._offsets[:-1], self._sizes]).T.int(), device)
            self._spread = moved((own_index + torch.tensor(self._offsets[:-1])[:, None]).flatten(), device)
            self._real_places = moved(real.flatten().nonzero().squeeze(1), device)
        else:
            self.tokens, self.attention_mask = pad(rows, device)

    def where(self, places: Sequence[tuple[int, int]]) -> Tensor:
        """int64 ``[2, place]``: (batch row, column) of each (row, token)."""
        if self.packed:
            places = [(0, self._offsets[row] + column) for row, column in places]
        return torch.tensor(places, dtype=torch.int64).view(-1, 2).T

    def line_up(self, values: Tensor) -> Tensor:
        """``[row, token]`` → ``[batch, token]``."""
        return values.flatten().index_select(0, self._real_places)[None] if self.packed else values

    def spread(self, heads: Tensor) -> Tensor:
        """``[batch, head, token, dim]`` → ``[row, head, token, dim]``; padding repeats each row's last token."""
        if not self.packed or len(self._sizes) == 1:
            return heads
        spread = heads[0].index_select(1, self._spread.to(heads.device))
        return spread.unflatten(1, self.own_index.shape).transpose(0, 1)

    def numbered(self, keys: Tensor, most_keys: int, window: int | None) -> Rows:
        """Packed rows as attention reads them, with their ``keys`` int32 ``[row, stretch, 2]``."""
        return Rows(
            queries=self.stretches,
            keys=keys,
            packed=True,
            most_queries=max(self._sizes),
            most_keys=most_keys,
            window=window,
        )

    def rows(self, hidden: Tensor) -> Tensor:
        """``[batch, token, hidden]`` → ``[row, token, hidden]``, as ``spread``."""
        return self.spread(hidden[:, None])[:, 0]

    @cached_property
    def row_tokens(self) -> Tensor:
        """int64 ``[row, token]``: ids; padding has those of any token."""
        return self.rows(self.tokens[..., None])[..., 0]

    def line_up_heads(self, heads: Tensor) -> Tensor:
        """``[row, head, token, dim]`` → ``[batch, head, token, dim]``, the inverse of ``spread``."""
        if not self.packed or len(self._sizes) == 1:
            return heads
        tokens = heads.transpose(1, 2).flatten(0, 1)  # [row · token, head, dim]
        return tokens.index_select(0, self._real_places.to(heads.device))[None].transpose(1, 2)

    def line_up_rows(self, rows: Tensor) -> Tensor:
        """``[row, token, width]`` → ``[batch, token, width]``, the inverse of ``rows``."""
        return self.line_up_heads(rows[:, None])[:, 0]

    def row(self, hidden: Tensor, row: int) -> Tensor:
        """One row's tokens out of ``[batch, token, hidden_size]``."""
        if self.packed:
            return hidden[0, self._offsets[row] : self._offsets[row + 1]]
        return hidden[row, : self._sizes[row]]

    def join(self, rows: Sequence[Tensor]) -> Tensor:
        """Rows ``[token, hidden_size]`` → ``[batch, token, hidden_size]``."""
        return torch.cat([*rows])[None] if self.packed else torch.nn.utils.rnn.pad_sequence([*rows], batch_first=True)
