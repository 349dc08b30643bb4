"""Read the log-probabilities of chosen tokens out of a forward pass, projecting to the vocabulary only where they are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

#: Positions whose log-softmax over the vocabulary is taken at a time, in float32.
_POSITIONS_AT_A_TIME = 256


class Reading:
    """Which positions of a batch are read, for which tokens."""

    def __init__(self, wanted: Sequence[tuple[int, int, int]], width: int) -> None:
        """``wanted``: (row, position, token) triples; ``width``: positions of a row."""
        rows, columns, self._targets = np.array(wanted, dtype=np.int64).reshape(-1, 3).T
        # Several tokens are asked of one position: project each position to the vocabulary once. A pass that nothing is
        # read from projects one position, since not every model can project none.
        flat, self._index = np.unique(rows * width + columns, return_inverse=True)
        self._where = torch.from_numpy(np.stack(np.divmod(flat if len(flat) else np.zeros(1, np.int64), width)))

    @contextmanager
    def projecting(self, model: PreTrainedModel, shape: torch.Size) -> Iterator[None]:
        """Inside, the model's vocabulary projection runs on the read positions alone.

        The hidden states ``[batch, position, hidden]`` of ``shape`` become ``[1, read, hidden]`` just before the
        projection, so whatever the model does to its logits afterwards (scaling, softcapping) still happens.
        """
        projection = model.get_output_embeddings()
        if not isinstance(projection, nn.Module):
            yield
            return

        def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            hidden = args[0] if args else None
            if isinstance(hidden, Tensor) and hidden.dim() == 3 and hidden.shape[:2] == shape:
                rows, columns = self._where.to(hidden.device)
                return (hidden[rows, columns][None], *args[1:])
            return None

        handle = projection.register_forward_pre_hook(select)
        try:
            yield
        finally:
            handle.remove()

    def loglikelihoods(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """For each triple the token's log-probability (float32), and whether it is the likeliest one.

        ``logits`` are those of a pass inside ``projecting``, ``[1, read, vocabulary]``; or of every position, from a model
        that does not go through its ``get_output_embeddings()``.
        """
        if logits.shape[:2] != (1, self._where.shape[1]):
            rows, columns = self._where.to(logits.device)
            logits = logits[rows, columns][None]
        logits = logits[0]
        index, targets = (torch.from_numpy(array).to(logits.device) for array in (self._index, self._targets))
        normaliser, best = [], []
        for some in logits.split(_POSITIONS_AT_A_TIME):
            normaliser.append(torch.logsumexp(some.float(), dim=-1))
            best.append(some.argmax(dim=-1))
        nats = logits[index, targets].float() - torch.cat(normaliser)[index]
        return nats.cpu().numpy(), (torch.cat(best)[index] == targets).cpu().numpy()
