"""Scores summed where they arise, layer by layer: for units so many that nobody can hold their values."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headcount.scores import Score
from headcount.summaries import FINE_BITS, NUM_BINS, PART_BITS, Counts, Moments, ScoreSummary, spread
from headcount.units import UnitMap

_COARSE = NUM_BINS >> (FINE_BITS - PART_BITS)  # coarse bins
#: Bins of numbers that are finite; those of infinities and NaN lie around them.
_FINITE = slice(1 << FINE_BITS, NUM_BINS - (1 << FINE_BITS))


class Sums:
    """Of some scores of every unit, counted by layer. Nothing here waits for a device before ``summaries``."""

    def __init__(self, units: UnitMap) -> None:
        self._units = units
        self._moments: dict[tuple[str, int], list[Tensor]] = {}  # score, place of the layer → as of ``_moments``
        self._coarse: dict[tuple[str, int], Tensor] = {}  # int64 [coarse bin]
        self._fine: dict[tuple[str, torch.device], Tensor] = {}  # int64 [fine bin]

    def add(self, place: int, score: Score, values: Tensor, often: int) -> None:
        """Values of one layer ``[row, unit]``, each ``often`` times; what is not finite does not count."""
        if values.device.type == "mps":  # has no float64
            values = values.cpu()
        values = values.detach().float().contiguous()
        bins = _counted(values) * often
        self._add((score.id, place), _moments(values, often), bins.view(_COARSE, -1).sum(1))
        self._add_fine((score.id, values.device), bins)

    def merge(self, other: "Sums") -> None:
        """Add what another one holds, which is used up."""
        for known, moments in other._moments.items():
            self._add(known, moments, other._coarse[known])
        for known, bins in other._fine.items():
            self._add_fine(known, bins)

    def _add(self, known: tuple[str, int], moments: list[Tensor], coarse: Tensor) -> None:
        self._moments[known] = _merged(self._moments[known], moments) if known in self._moments else moments
        self._coarse[known] = self._coarse[known].add_(coarse) if known in self._coarse else coarse

    def _add_fine(self, known: tuple[str, torch.device], bins: Tensor) -> None:
        self._fine[known] = self._fine[known].add_(bins) if known in self._fine else bins

    def summaries(self) -> dict[str, ScoreSummary]:
        """By score."""
        return {id: self._summary(id) for id in dict.fromkeys(id for id, _ in self._moments)}

    def _summary(self, id: str) -> ScoreSummary:
        shape = len(self._units.layers), self._units.most_units
        empty = (
            np.zeros(shape, np.int64),
            np.full(shape, np.nan),
            np.zeros(shape),
            np.full(shape, np.inf),
            np.full(shape, -np.inf),
        )
        coarse = np.zeros((shape[0], _COARSE), np.int64)
        for place in range(shape[0]):
            if (id, place) in self._moments:
                coarse[place] = self._coarse[id, place].cpu().numpy()
                for whole, part in zip(empty, self._moments[id, place], strict=True):
                    whole[place, : len(part)] = part.cpu().numpy()
        count, mean, deviations, smallest, largest = empty
        fine = sum(bins.cpu().numpy() for (score, _), bins in self._fine.items() if score == id)
        return ScoreSummary(
            moments=Moments(
                count=count, mean=np.where(count > 0, mean, np.nan), deviations=deviations, smallest=smallest, largest=largest
            ),
            fine=Counts.of_bins(np.asarray(fine)), by_part=spread(Counts.of_bins(coarse.ravel())), parts="layer",
        )  # fmt: skip


def _moments(values: Tensor, often: int) -> list[Tensor]:
    """Count, mean, squared deviations, smallest and largest of each unit: int64, then float64, ``[unit]``."""
    known = values.isfinite()
    exact = values.masked_fill(~known, 0).double()
    count = known.sum(0)
    mean = exact.sum(0) / count.clamp(min=1)
    deviations = (exact - mean).masked_fill_(~known, 0).square_().sum(0)
    infinite = torch.inf
    smallest, largest = values.masked_fill(~known, infinite).amin(0), values.masked_fill(~known, -infinite).amax(0)
    return [count * often, mean, deviations * often, smallest.double(), largest.double()]


def _merged(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
    """Those of both, as ``Moments`` adds: Chan, Golub and LeVeque (1983), eq. 2.1."""
    count = one[0] + other[0]
    weight = other[0] / count.clamp(min=1)
    apart = other[1] - one[1]
    return [
        count, one[1] + apart * weight, one[2] + other[2] + apart.square() * one[0] * weight, one[3].minimum(other[3]),
        one[4].maximum(other[4]),
    ]  # fmt: skip


def _counted(values: Tensor) -> Tensor:
    """int64 ``[fine bin]``: how many finite values fall into each, in the order of the values as ``summaries`` numbers them."""
    pattern = (values + 0.0).view(torch.int32)  # −0 becomes 0
    codes = ((pattern ^ ((pattern >> 31) & 0x7FFFFFFF)) >> (23 - FINE_BITS)) + NUM_BINS // 2
    if values.device.type == "cpu":
        bins = torch.bincount(codes.flatten(), minlength=NUM_BINS)
    else:  # which would wait
        bins = torch.zeros(NUM_BINS, dtype=torch.int64, device=values.device)
        bins.scatter_add_(0, codes.flatten().long(), torch.ones_like(codes.flatten(), dtype=torch.int64))
    bins[: _FINITE.start] = 0
    bins[_FINITE.stop :] = 0
    return bins
