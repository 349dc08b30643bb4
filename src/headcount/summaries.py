"""Summaries of scores: for corpora whose scores are too many to keep, what thresholds, CDFs and head maps need.

For each score a summary counts how many values fall into each bin of a fixed grid, over all units in fine bins and for
each part of the model in coarse ones, and keeps each unit's count, mean, variance, smallest and largest value. A part is a
unit where a model has hundreds of them (heads), and a layer where it has many thousands (neurons). A bin is the set of
float32 numbers with the same sign, exponent and first bits of the mantissa, so its width is a fixed fraction of its
values: 2⁻¹¹ (0.05%) for the fine bins, 2⁻⁶ (1.6%) for those of a part. Counts are exact, so:

* a quantile, and so a threshold, is off by less than its bin: 0.05% of its value, whatever the distribution;
* a share below a value is off by less than the share of the one bin that the value lies in;
* summaries of parts, added in any order, count exactly what one of the whole counts.

Why not a quantile sketch such as KLL: those draw random numbers, so that the same run twice gives other bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from headcount.errors import InputError

FINE_BITS, PART_BITS = 11, 6  # of the mantissa
PART_SPAN = 1 << 32  # codes of a part start at its number times this
NUM_BINS = 1 << (9 + FINE_BITS)  # sign and exponent have 9 bits
#: What is counted by itself: each unit (numbered layer by layer), or each layer.
Parts = Literal["unit", "layer"]


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Each unit's values: how many were measured, mean, sum of squared deviations, smallest, largest. [layer, head]"""

    count: NDArray[np.int64]
    mean: NDArray[np.float64]
    deviations: NDArray[np.float64]
    smallest: NDArray[np.float64]
    largest: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> "Moments":
        """From values [example, layer, head]; what is not finite does not count."""
        known = np.isfinite(values)
        count = known.sum(axis=0)
        total = np.where(known, values, 0).sum(axis=0)
        mean = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
        deviations = (np.where(known, np.where(known, values, 0) - mean, 0) ** 2).sum(axis=0)
        smallest, largest = np.where(known, values, np.inf).min(axis=0), np.where(known, values, -np.inf).max(axis=0)
        return cls(count=count, mean=mean, deviations=deviations, smallest=smallest, largest=largest)

    def __add__(self, other: "Moments") -> "Moments":
        # Chan, Golub and LeVeque (1983), eq. 2.1
        count = self.count + other.count
        mine, theirs = (np.where(part.count > 0, part.mean, 0) for part in (self, other))
        weight = np.divide(other.count, count, out=np.zeros(count.shape), where=count > 0)
        return Moments(
            count=count,
            mean=np.where(count > 0, mine + (theirs - mine) * weight, np.nan),
            deviations=self.deviations + other.deviations + (theirs - mine) ** 2 * self.count * weight,
            smallest=np.minimum(self.smallest, other.smallest),
            largest=np.maximum(self.largest, other.largest),
        )


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many values fall into each bin that has any; bins by their codes, ascending."""

    codes: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, codes: NDArray[np.int64]) -> "Counts":
        if len(codes) and np.ptp(codes) < 8 * len(codes):  # fewer bins than sorting would compare
            return cls.of_bins(np.bincount(codes - codes.min()), first=int(codes.min()))
        found, counts = np.unique(codes, return_counts=True)
        return cls(codes=found, counts=counts)

    @classmethod
    def of_bins(cls, counts: NDArray[np.int64], *, first: int = 0) -> "Counts":
        """From the counts of all bins, of which the first has the code ``first``."""
        found = np.flatnonzero(counts)
        return cls(codes=found + first, counts=counts[found])

    def __add__(self, other: "Counts") -> "Counts":
        codes, place = np.unique(np.concatenate([self.codes, other.codes]), return_inverse=True)
        counts = np.zeros(len(codes), np.int64)
        np.add.at(counts, place, np.concatenate([self.counts, other.counts]))
        return Counts(codes=codes, counts=counts)


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """One score of every unit on some inputs."""

    moments: Moments
    fine: Counts
    """Of all units together."""
    by_part: Counts
    """Of each part: codes are the part's number times 2³² plus its coarse bin."""
    parts: Parts = "unit"

    @classmethod
    def of(cls, values: NDArray[np.float32], parts: Parts = "unit") -> "ScoreSummary":
        """From values [example, layer, head]; what is not finite does not count."""
        known = np.isfinite(values)
        numbers = np.arange(values[0].size).reshape(values.shape[1:])
        numbers = numbers if parts == "unit" else np.arange(len(numbers))[:, None]
        part = np.broadcast_to(numbers, values.shape)[known]
        fine = _codes(values[known])
        coarse = Counts.of(part * (NUM_BINS >> _COARSER) + (fine >> _COARSER))
        return cls(
            moments=Moments.of(values.astype(np.float64)), fine=Counts.of(fine), by_part=spread(coarse), parts=parts
        )  # fmt: skip

    def __add__(self, other: "ScoreSummary") -> "ScoreSummary":
        return ScoreSummary(
            moments=self.moments + other.moments, fine=self.fine + other.fine, by_part=self.by_part + other.by_part,
            parts=self.parts,
        )  # fmt: skip

    def times(self, often: int) -> "ScoreSummary":
        """The same values as many times."""
        moments, both = self.moments, (self.fine, self.by_part)
        fine, by_part = (replace(counts, counts=counts.counts * often) for counts in both)
        return ScoreSummary(
            moments=replace(moments, count=moments.count * often, deviations=moments.deviations * often), fine=fine,
            by_part=by_part, parts=self.parts,
        )  # fmt: skip

    def quantiles(self, shares: ArrayLike) -> NDArray[np.float64]:
        """Values below which these shares of all units' values lie, as ``numpy.quantile`` does by
        ``interpolated_inverted_cdf``; NaN when nothing was measured."""
        total = int(self.fine.counts.sum())
        if not total:
            return np.full(np.shape(shares), np.nan)
        rank = np.clip(np.asarray(shares, float) * total, 1, total)
        below = np.floor(rank)
        low, high = self._at_rank(below), self._at_rank(np.minimum(below + 1, total))
        return low + (high - low) * (rank - below)

    def share_below(self, values: ArrayLike) -> NDArray[np.float64]:
        """The share of all units' values below each of these: the CDF."""
        total = max(1, int(self.fine.counts.sum()))
        return np.array([self._below(self.fine, FINE_BITS, value).sum() for value in np.ravel(values)]) / total

    @cached_property
    def of_parts(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """How many values each part has, their smallest and their largest: each [layer, head] or [layer]."""
        moments = self.moments
        if self.parts == "unit":
            return moments.count, moments.smallest, moments.largest
        return moments.count.sum(1), moments.smallest.min(1), moments.largest.max(1)

    def share_of_inputs(self, threshold: float, *, below: bool) -> NDArray[np.float64]:
        """For each part, [layer, head] or [layer], the share of its values that lie below (or above) a threshold.

        NaN for a part that was not measured.
        """
        count, smallest, largest = self.of_parts
        bins = Counts(codes=self.by_part.codes % PART_SPAN, counts=self.by_part.counts)
        lower = np.bincount(
            self.by_part.codes // PART_SPAN, weights=self._below(bins, PART_BITS, threshold), minlength=count.size
        ).reshape(count.shape)
        lower = np.where(largest < threshold, count, lower)
        lower = np.where(smallest >= threshold, 0, lower)
        inactive = lower if below else count - lower
        return np.divide(inactive, count, out=np.full(lower.shape, np.nan), where=count > 0)

    def always(self, threshold: float, *, below: bool) -> NDArray[np.bool_]:
        """Which units, [layer, head], lie below (or above) a threshold on every input: exactly."""
        beyond = self.moments.largest < threshold if below else self.moments.smallest > threshold
        return beyond & (self.moments.count > 0)

    def never(self, threshold: float, *, below: bool) -> NDArray[np.bool_]:
        """Which units, [layer, head], lie below (or above) a threshold on no input: exactly."""
        within = self.moments.smallest >= threshold if below else self.moments.largest <= threshold
        return within & (self.moments.count > 0)

    def part_quantiles(self, shares: ArrayLike) -> NDArray[np.float64]:
        """The values below which these shares of each part's values lie, [share, layer, head] or [share, layer]: off by less
        than a bin.

        At shares 0 and 1 a part's smallest and largest value, exactly; NaN for a part that was not measured.
        """
        counts, least, most = self.of_parts
        count = counts.ravel()
        known = np.flatnonzero(count)
        found = np.full((np.size(shares), len(count)), np.nan)
        # Ranks among the values of all parts, part after part.
        last = np.cumsum(self.by_part.counts)
        start = (np.cumsum(count) - count)[known]
        rank = np.clip(np.ravel(shares).astype(float)[:, None] * count[known], 1, count[known])
        place = np.searchsorted(last, start + rank)
        low, high = _edges(self.by_part.codes[place] % PART_SPAN, PART_BITS)
        part = (start + rank - (last[place] - self.by_part.counts[place]) - 0.5) / self.by_part.counts[place]
        smallest, largest = least.ravel()[known], most.ravel()[known]
        inside = np.clip(low + (high - low) * part, smallest, largest)
        found[:, known] = np.where(rank <= 1, smallest, np.where(rank >= count[known], largest, inside))
        return found.reshape(-1, *counts.shape)

    def _at_rank(self, rank: NDArray[np.float64]) -> NDArray[np.float64]:
        """The value of each rank, counted from 1; values are taken as evenly spread within their bin."""
        last = np.cumsum(self.fine.counts)
        place = np.searchsorted(last, rank)
        low, high = _edges(self.fine.codes[place], FINE_BITS)
        counts = self.fine.counts[place]
        part = (rank - (last[place] - counts) - 0.5) / counts
        smallest, largest = self.moments.smallest.min(), self.moments.largest.max()
        inside = np.clip(low + (high - low) * part, smallest, largest)
        return np.where(rank <= 1, smallest, np.where(rank >= last[-1], largest, inside))

    @staticmethod
    def _below(counts: Counts, bits: int, value: float) -> NDArray[np.float64]:
        """Of each bin's count, what lies below a value."""
        low, high = _edges(counts.codes, bits)
        part = np.divide(value - low, high - low, out=(low < value).astype(float), where=high > low)
        return counts.counts.astype(float) * np.clip(part, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What was measured on some inputs, without the single values. ``a + b`` is the summary of both inputs.

    Attributes:
        scores: a summary for each score id.
        layers: index of each layer in the model.
        num_inputs: inputs measured.
        num_tokens: their tokens in all.
        attrs: what ``measure_heads`` notes of the first of them.
    """

    scores: dict[str, ScoreSummary]
    layers: list[int]
    num_inputs: int
    num_tokens: int
    attrs: dict[str, Any]

    @classmethod
    def of(cls, table: xr.Dataset, parts: Parts = "unit") -> "Summary":
        """Of scores as ``measure_heads`` gives them."""
        return cls(
            scores={
                str(name): ScoreSummary.of(values.transpose("example", "layer", "head").values, parts)
                for name, values in table.data_vars.items()
            },
            layers=table["layer"].values.tolist(),
            num_inputs=table.sizes["example"],
            num_tokens=int(table["num_tokens"].sum()),
            attrs=dict(table.attrs),
        )

    def __add__(self, other: "Summary") -> "Summary":
        alike = list(self.scores) == list(other.scores) and self.layers == other.layers
        if not alike or any(mine.parts != other.scores[name].parts for name, mine in self.scores.items()):
            raise InputError("Summaries of different scores or models cannot be added.")
        return Summary(
            scores={name: mine + other.scores[name] for name, mine in self.scores.items()}, layers=self.layers,
            num_inputs=self.num_inputs + other.num_inputs, num_tokens=self.num_tokens + other.num_tokens,
            attrs=self.attrs,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"Summary({', '.join(self.scores)}: {self.num_inputs:,} inputs, {self.num_tokens:,} tokens)"

    def __contains__(self, name: str) -> bool:
        return name in self.scores

    def __getitem__(self, names: list[str]) -> "Summary":
        """Of these scores alone."""
        return replace(self, scores={name: self.scores[name] for name in names})

    @cached_property
    def heads(self) -> xr.Dataset:
        """Of each head, dims (score, layer, head): ``count`` of inputs, ``mean``, ``variance`` (over inputs, divided by
        their number), ``smallest`` and ``largest``."""
        moments = [summary.moments for summary in self.scores.values()]
        count = np.stack([part.count for part in moments])

        def stacked(arrays: Iterable[NDArray[Any]]) -> tuple[tuple[str, ...], NDArray[Any]]:
            return ("score", "layer", "head"), np.where(count > 0, np.stack(list(arrays)), np.nan)

        return xr.Dataset(
            {
                "count": (("score", "layer", "head"), count),
                "mean": stacked(part.mean for part in moments),
                "variance": stacked(part.deviations / np.maximum(part.count, 1) for part in moments),
                "smallest": stacked(part.smallest for part in moments),
                "largest": stacked(part.largest for part in moments),
            },
            coords={"score": list(self.scores), "layer": self.layers, "head": np.arange(count.shape[2])},
        )


_COARSER = FINE_BITS - PART_BITS


def spread(coarse: Counts) -> Counts:
    """``ScoreSummary.by_part`` of counts whose codes are the part's number times the number of coarse bins, plus the bin."""
    part, place = np.divmod(coarse.codes, NUM_BINS >> _COARSER)
    return replace(coarse, codes=part * PART_SPAN + place)


def _codes(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Numbers of the values' fine bins, in the order of the values: sign, exponent and the mantissa's first bits."""
    pattern = np.ascontiguousarray(values + np.float32(0), np.float32).view(np.uint32).astype(np.int64)  # −0 becomes 0
    ordered = np.where(pattern >> 31, 0xFFFFFFFF - pattern, pattern + 0x80000000)
    return ordered >> (23 - FINE_BITS)


def _edges(codes: NDArray[np.int64], bits: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where bins begin and end."""

    def value(ordered: NDArray[np.int64]) -> NDArray[np.float64]:
        pattern = np.where(ordered >> 31, ordered - 0x80000000, 0xFFFFFFFF - ordered)
        return pattern.astype(np.uint32).view(np.float32).astype(np.float64)

    first = codes << (23 - bits)
    return value(first), value(first + (1 << (23 - bits)))
