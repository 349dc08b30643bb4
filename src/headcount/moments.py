"""Moments of vectors that come a batch at a time."""

import torch
from torch import Tensor

from headcount.devices import doubled, with_float64


class Mean:
    """The mean of vectors that come a batch at a time."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = torch.zeros((), dtype=torch.float64)  # [feature] from the first vectors on

    def add(self, vectors: Tensor) -> None:
        """``vectors``: ``[token, feature]``."""
        self.count += len(vectors)
        self._sum = self._sum + with_float64(vectors).sum(0, dtype=torch.float64)

    @property
    def mean(self) -> Tensor:
        """float64 ``[feature]``."""
        return self._sum / self.count


class Covariance(Mean):
    """The mean and the covariance of vectors, in one pass, with none of them kept."""

    def __init__(self) -> None:
        super().__init__()
        self._products = torch.zeros((), dtype=torch.float64)  # [feature, feature] from the first vectors on
        self._origin: Tensor | None = (
            None  # float32 [feature]; products about a point near the mean lose no digits to it
        )

    def add(self, vectors: Tensor) -> None:
        if not len(vectors):
            return
        vectors = vectors.float()
        if self._origin is None:
            self._origin = vectors.mean(0)
        vectors = vectors - self._origin
        super().add(vectors)
        self._products = self._products + doubled(vectors.T @ vectors)

    @property
    def covariance(self) -> Tensor:
        """float64 ``[feature, feature]``, about the mean, divided by the count."""
        shift = super().mean
        return self._products / self.count - torch.outer(shift, shift)

    @property
    def mean(self) -> Tensor:
        assert self._origin is not None
        return super().mean + with_float64(self._origin)
