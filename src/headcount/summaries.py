"""Summaries of scores: for corpora whose scores are too many to keep, what thresholds, CDFs and head maps need.

For each score a summary counts how many values fall into each bin of a fixed grid, over all heads in fine bins and for
each head in coarse ones, and keeps each head's count, mean, variance, smallest and largest value. A bin is the set of
float32 numbers with the same sign, exponent and first bits of the mantissa, so its width is a fixed fraction of its
values: 2⁻¹¹ (0.05%) for the fine bins, 2⁻⁶ (1.6%) for those of a head. Counts are exact, so:

* a quantile, and so a threshold, is off by less than its bin: 0.05% of its value, whatever the distribution;
* a share below a value is off by less than the share of the one bin that the value lies in;
* summaries of parts, added in any order, count exactly what one of the whole counts.

Why not a quantile sketch such as KLL: those draw random numbers, so that the same run twice gives other bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from headcount.errors import InputError

FINE_BITS, HEAD_BITS = 11, 6  # of the mantissa
HEAD_SPAN = 1 << 32  # codes of a head start at its number times this


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Each head's values: how many were measured, mean, sum of squared deviations, smallest, largest. [layer, head]"""

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
        found, counts = np.unique(codes, return_counts=True)
        return cls(codes=found, counts=counts)

    def __add__(self, other: "Counts") -> "Counts":
        codes, place = np.unique(np.concatenate([self.codes, other.codes]), return_inverse=True)
        counts = np.zeros(len(codes), np.int64)
        np.add.at(counts, place, np.concatenate([self.counts, other.counts]))
        return Counts(codes=codes, counts=counts)


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """One score of every head on some inputs."""

    moments: Moments
    fine: Counts
    """Of all heads together."""
    by_head: Counts
    """Of each head: codes are the head's number (layer by layer) times 2³² plus its coarse bin."""

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> "ScoreSummary":
        """From values [example, layer, head]; what is not finite does not count."""
        known = np.isfinite(values)
        heads = np.broadcast_to(np.arange(values[0].size).reshape(values.shape[1:]), values.shape)[known]
        return cls(
            moments=Moments.of(values.astype(np.float64)),
            fine=Counts.of(_codes(values[known], FINE_BITS)),
            by_head=Counts.of(heads * HEAD_SPAN + _codes(values[known], HEAD_BITS)),
        )

    def __add__(self, other: "ScoreSummary") -> "ScoreSummary":
        return ScoreSummary(
            moments=self.moments + other.moments, fine=self.fine + other.fine, by_head=self.by_head + other.by_head
        )

    def times(self, often: int) -> "ScoreSummary":
        """The same values as many times."""
        moments, both = self.moments, (self.fine, self.by_head)
        fine, by_head = (replace(counts, counts=counts.counts * often) for counts in both)
        return ScoreSummary(
            moments=replace(moments, count=moments.count * often, deviations=moments.deviations * often), fine=fine,
            by_head=by_head,
        )  # fmt: skip

    def quantiles(self, shares: ArrayLike) -> NDArray[np.float64]:
        """Values below which these shares of all heads' values lie, as ``numpy.quantile`` does by
        ``interpolated_inverted_cdf``; NaN when nothing was measured."""
        total = int(self.fine.counts.sum())
        if not total:
            return np.full(np.shape(shares), np.nan)
        rank = np.clip(np.asarray(shares, float) * total, 1, total)
        below = np.floor(rank)
        low, high = self._at_rank(below), self._at_rank(np.minimum(below + 1, total))
        return low + (high - low) * (rank - below)

    def share_below(self, values: ArrayLike) -> NDArray[np.float64]:
        """The share of all heads' values below each of these: the CDF."""
        total = max(1, int(self.fine.counts.sum()))
        return np.array([self._below(self.fine, FINE_BITS, value).sum() for value in np.ravel(values)]) / total

    def share_of_inputs(self, threshold: float, *, below: bool) -> NDArray[np.float64]:
        """For each head [layer, head] the share of inputs on which its value lies below (or above) a threshold.

        NaN for a head that was not measured.
        """
        heads = self.moments.count.size
        counts = Counts(codes=self.by_head.codes % HEAD_SPAN, counts=self.by_head.counts)
        lower = np.bincount(
            self.by_head.codes // HEAD_SPAN, weights=self._below(counts, HEAD_BITS, threshold), minlength=heads
        ).reshape(self.moments.count.shape)
        lower = np.where(self.moments.largest < threshold, self.moments.count, lower)
        lower = np.where(self.moments.smallest >= threshold, 0, lower)
        inactive = lower if below else self.moments.count - lower
        return np.divide(inactive, self.moments.count, out=np.full(lower.shape, np.nan), where=self.moments.count > 0)

    def head_quantiles(self, shares: ArrayLike) -> NDArray[np.float64]:
        """The values below which these shares of each head's values lie, [share, layer, head]: off by less than a bin.

        At shares 0 and 1 a head's smallest and largest value, exactly; NaN for a head that was not measured.
        """
        count = self.moments.count.ravel()
        known = np.flatnonzero(count)
        found = np.full((np.size(shares), len(count)), np.nan)
        # Ranks among the values of all heads, head after head.
        last = np.cumsum(self.by_head.counts)
        start = (np.cumsum(count) - count)[known]
        rank = np.clip(np.ravel(shares).astype(float)[:, None] * count[known], 1, count[known])
        place = np.searchsorted(last, start + rank)
        low, high = _edges(self.by_head.codes[place] % HEAD_SPAN, HEAD_BITS)
        part = (start + rank - (last[place] - self.by_head.counts[place]) - 0.5) / self.by_head.counts[place]
        smallest, largest = self.moments.smallest.ravel()[known], self.moments.largest.ravel()[known]
        inside = np.clip(low + (high - low) * part, smallest, largest)
        found[:, known] = np.where(rank <= 1, smallest, np.where(rank >= count[known], largest, inside))
        return found.reshape(-1, *self.moments.count.shape)

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
    def of(cls, table: xr.Dataset) -> "Summary":
        """Of scores as ``measure_heads`` gives them."""
        return cls(
            scores={
                str(name): ScoreSummary.of(values.transpose("example", "layer", "head").values)
                for name, values in table.data_vars.items()
            },
            layers=table["layer"].values.tolist(),
            num_inputs=table.sizes["example"],
            num_tokens=int(table["num_tokens"].sum()),
            attrs=dict(table.attrs),
        )

    def __add__(self, other: "Summary") -> "Summary":
        if list(self.scores) != list(other.scores) or self.layers != other.layers:
            raise InputError("Summaries of different scores or models cannot be added.")
        return Summary(
            scores={name: mine + other.scores[name] for name, mine in self.scores.items()}, layers=self.layers,
            num_inputs=self.num_inputs + other.num_inputs, num_tokens=self.num_tokens + other.num_tokens,
            attrs=self.attrs,
        )  # fmt: skip

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


def _codes(values: NDArray[np.float32], bits: int) -> NDArray[np.int64]:
    """Numbers of the values' bins, in the order of the values: sign, exponent and ``bits`` of the mantissa."""
    pattern = np.ascontiguousarray(values + np.float32(0), np.float32).view(np.uint32).astype(np.int64)  # −0 becomes 0
    ordered = np.where(pattern >> 31, 0xFFFFFFFF - pattern, pattern + 0x80000000)
    return ordered >> (23 - bits)


def _edges(codes: NDArray[np.int64], bits: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where bins begin and end."""

    def value(ordered: NDArray[np.int64]) -> NDArray[np.float64]:
        pattern = np.where(ordered >> 31, ordered - 0x80000000, 0xFFFFFFFF - ordered)
        return pattern.astype(np.uint32).view(np.float32).astype(np.float64)

    first = codes << (23 - bits)
    return value(first), value(first + (1 << (23 - bits)))
