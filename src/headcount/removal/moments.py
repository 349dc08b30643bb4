"""Means and covariances of head outputs that come a batch at a time."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headcount.models.batching import Progress, no_progress
from headcount.removal.activations import read_head_outputs


class Mean:
    """The mean of vectors."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None  # float64 [feature]

    def add(self, vectors: Tensor) -> None:
        """``vectors``: ``[token, feature]``."""
        self.count += len(vectors)
        total = vectors.sum(0, dtype=torch.float64)
        self._sum = total if self._sum is None else self._sum + total

    @property
    def mean(self) -> Tensor:
        """float64 ``[feature]``."""
        assert self._sum is not None
        return self._sum / self.count


class Moments(Mean):
    """The mean and the covariance of vectors, in one pass, with none of them kept."""

    def __init__(self) -> None:
        super().__init__()
        self._products: Tensor | None = None  # float64 [feature, feature]
        self._origin: Tensor | None = (
            None  # float32 [feature]; products about a point near the mean lose no digits to it
        )

    def add(self, vectors: Tensor) -> None:
        vectors = vectors.float()
        if self._origin is None:
            self._origin = vectors.mean(0)
        vectors = vectors - self._origin
        super().add(vectors)
        products = (vectors.T @ vectors).double()
        self._products = products if self._products is None else self._products + products

    @property
    def covariance(self) -> Tensor:
        """float64 ``[feature, feature]``, about the mean, divided by the count."""
        assert self._products is not None
        shift = super().mean
        return self._products / self.count - torch.outer(shift, shift)

    @property
    def mean(self) -> Tensor:
        assert self._origin is not None
        return super().mean + self._origin


Kind = TypeVar("Kind", bound=Mean)


def head_output_statistics(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    kind: type[Kind],
    *,
    layers: Sequence[int] | None = None,
    batch_tokens: int = 4096,
    progress: Progress = no_progress,
) -> dict[int, Kind]:
    """By layer, the ``Mean`` or ``Moments`` of what its output projection is given; tokens as in ``read_head_outputs``."""
    found: dict[int, Kind] = defaultdict(kind)
    read_head_outputs(
        model, rows, lambda layer, outputs: found[layer].add(outputs), layers=layers, batch_tokens=batch_tokens,
        progress=progress,
    )  # fmt: skip
    return dict(found)
