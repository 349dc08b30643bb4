"""Read the log-probabilities of chosen tokens out of the logits of a forward pass."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: Positions whose log-softmax over the vocabulary is taken at a time, in float32.
_POSITIONS_AT_A_TIME = 256


class Reading:
    """Which positions of a batch are read, for which tokens."""

    def __init__(self, wanted: Sequence[tuple[int, int, int]]) -> None:
        """``wanted``: (row, position, token) triples. Several tokens may be asked of one position."""
        self.places = list(dict.fromkeys((row, position) for row, position, _ in wanted))
        index = {place: i for i, place in enumerate(self.places)}
        self._index = torch.tensor([index[row, position] for row, position, _ in wanted], dtype=torch.int64)
        self._targets = torch.tensor([token for *_, token in wanted], dtype=torch.int64)

    def loglikelihoods(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """For each triple the token's log-probability (float32), and whether it is the likeliest one.

        ``logits`` are those at ``places``, ``[place, vocabulary]``.
        """
        index, targets = self._index.to(logits.device), self._targets.to(logits.device)
        normaliser, best = [logits.new_zeros(0, dtype=torch.float32)], [targets[:0]]
        for some in logits.split(_POSITIONS_AT_A_TIME):
            if len(some):
                normaliser.append(torch.logsumexp(some.float(), dim=-1))
                best.append(some.argmax(dim=-1))
        nats = logits[index, targets].float() - torch.cat(normaliser)[index]
        return nats.cpu().numpy(), (torch.cat(best)[index] == targets).cpu().numpy()
