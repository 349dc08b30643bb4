"""What one layer hands to the map into the residual stream in one pass, unit by unit, and what is known of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headcount.attention.inputs import Positions
from headcount.calibration import Calibration


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Of one layer in one pass.

    Attributes:
        layer: its index in the model.
        values: ``[row, unit, token, width]``, what each unit puts out.
        positions: which of the tokens are real; None: all are, and the texts start here.
        starts: whether each row's first real token here is the first of its text.
        measured: means over the real tokens of each row's text so far, each ``[row, unit]``; of whole tensors what scores read.
        by_token: the same measurements of each token, ``[row, unit, token]``.
        block_input: what entered the attention block, ``[row, token, hidden]``; None unless something reads it.
        calibration: of the model; None where there is none.
        tokens: token ids, int64 ``[row, token]``; None where the model was given embeddings.
        places: of each token in its text, counted from 0, int64 ``[row, token]``; None as ``tokens``.
    """

    layer: int
    values: Tensor
    positions: Positions | None = None
    starts: bool = True
    measured: Mapping[str, Tensor] = field(default_factory=dict)
    by_token: Mapping[str, Tensor] = field(default_factory=dict)
    block_input: Tensor | None = None
    calibration: Calibration | None = None
    tokens: Tensor | None = None
    places: Tensor | None = None

    @property
    def padded(self) -> bool:
        """Whether some of the tokens are none of a text."""
        return self.positions is not None and self.positions.real is not None

    @property
    def real(self) -> Tensor:
        """bool ``[row, 1, token]``: False for padding."""
        rows, _, length, _ = self.values.shape
        if self.positions is None or self.positions.real is None:
            return self.values.new_ones(1, 1, 1, dtype=torch.bool).expand(rows, 1, length)
        return self.positions.real[:, None].to(self.values.device)

    @property
    def first(self) -> Tensor | None:
        """bool ``[row, 1, token]``: the first token of each row's text; None where no text starts here."""
        if not self.starts:
            return None
        rows, _, length, _ = self.values.shape
        first = self.values.new_zeros(rows, 1, length, dtype=torch.bool)
        where = first.new_zeros(rows, dtype=torch.int64) if self.positions is None else self.positions.first
        return first.scatter_(2, where.to(first.device).view(-1, 1, 1), True)
