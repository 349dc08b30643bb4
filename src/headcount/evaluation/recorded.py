"""Scores of the untouched model, kept as passes find them: of each input, or as summaries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from headcount.devices import moved
from headcount.evaluation.summing import Sums
from headcount.models.act import Act
from headcount.models.layout import Layout
from headcount.models.prefixes import Segment
from headcount.scores import Score
from headcount.summaries import ScoreSummary
from headcount.units import KINDS, UnitMap


class Recorded:
    """What some scores said of a plan's inputs.

    Args:
        units: the model's.
        scores: of inputs and of tokens.
        inputs: what is read.
        times: how often each input counts in summaries.
        summarise: whether scores of inputs are summarised too, as those of tokens always are.

    Attributes:
        kept: the scores whose values are needed after a pass; the others go into ``sink`` as layers give them.
    """

    def __init__(
        self, units: UnitMap, scores: Sequence[Score], inputs: Sequence[Sequence[int]], times: Sequence[int], *,
        summarise: bool,
    ) -> None:  # fmt: skip
        self._units, self._times = units, times
        self._lengths = np.array([len(row) for row in inputs], dtype=np.int64)
        summed = [score for score in scores if summarise or score.per == "token"]
        self._sunk = summed if KINDS[units.kind].many else []
        self.kept = [score for score in scores if score not in self._sunk]
        self._tabled = [score.id for score in scores if score not in summed]
        shape = len(self._tabled), len(inputs), len(units.layers), units.most_units
        self._values = np.full(shape, np.nan, np.float32)
        self._sums, self._summaries = Sums(units), dict[str, ScoreSummary]()
        self._pass = Sums(units)

    def sink(self, segments: Sequence[Segment]) -> "_Sink | None":
        """For one pass over a batch of segments, which counts once it is noted."""
        if not self._sunk:
            return None
        lengths = np.array([segment.length for segment in segments])
        real = np.arange(lengths.max()) < lengths[:, None]
        of_rows = {"input": self._ending(segments), "token": (self._continued(segments)[:, None] * real).ravel()}
        self._pass = Sums(self._units)
        return _Sink(
            scores=self._sunk, sums=self._pass, rows={per: _alike(times) for per, times in of_rows.items()}, moved_rows={}
        )  # fmt: skip

    def note(self, act: Act, segments: Sequence[Segment], layout: Layout) -> None:
        """Keep what was found in one pass over a batch of segments."""
        of_inputs = [score.id for score in self.kept if score.per == "input"]
        if of_inputs:
            values = dict(zip(of_inputs, act.values(), strict=True))
            for name, table in zip(self._tabled, self._values, strict=True):
                for row, segment in enumerate(segments):
                    if segment.input is not None:
                        table[segment.input] = values[name][row]
            self._summarise({name: v for name, v in values.items() if name not in self._tabled}, self._ending(segments))
        if of_tokens := [score.id for score in self.kept if score.per == "token"]:
            real = layout.real.cpu().numpy()
            values = dict(zip(of_tokens, act.values_of_tokens(real), strict=True))  # each [token, layer, unit]
            self._summarise(values, np.repeat(self._continued(segments), real.sum(1)))
        self._sums.merge(self._pass)
        self._pass = Sums(self._units)

    def scores(self) -> xr.Dataset:
        """Those that are not summarised, in the form of ``Probe.scores``."""
        dims = ("example", "layer", "head")
        return xr.Dataset(
            {name: (dims, values) for name, values in zip(self._tabled, self._values, strict=True)},
            coords={
                "layer": self._units.layer_indices,
                "head": np.arange(self._units.most_units),
                "num_tokens": ("example", self._lengths),
            },
            attrs={"num_units": self._units.counts},
        )

    def summaries(self) -> dict[str, ScoreSummary]:
        """The others."""
        return self._summaries | self._sums.summaries()

    def _ending(self, segments: Sequence[Segment]) -> NDArray[np.int64]:
        """How often each row counts as an input."""
        return np.array([0 if segment.input is None else self._times[segment.input] for segment in segments])

    def _continued(self, segments: Sequence[Segment]) -> NDArray[np.int64]:
        """How often each row's tokens count: as often as inputs have them."""
        return np.array([sum(self._times[input] for input in segment.ending()) for segment in segments])

    def _summarise(self, values: Mapping[str, NDArray[np.float32]], times: NDArray[np.int64]) -> None:
        """Add values ``[row, layer, unit]`` of each score, each row as often as it counts."""
        for name, of_score in values.items():
            for often, rows in _alike(times).items():
                found = ScoreSummary.of(of_score[rows]).times(often)
                self._summaries[name] = self._summaries[name] + found if name in self._summaries else found


@dataclass(frozen=True, kw_only=True)
class _Sink:
    """Adds up what layers give in one pass."""

    scores: Sequence[Score]
    sums: Sums
    rows: Mapping[str, Mapping[int, NDArray[np.int64]]]  # input or token → how often rows count → which
    moved_rows: dict[tuple[str, int, torch.device], Tensor]

    def __call__(self, place: int, score: Score, values: Tensor) -> None:
        for often, rows in self.rows[score.per].items():
            known = score.per, often, values.device
            if known not in self.moved_rows:
                self.moved_rows[known] = moved(torch.from_numpy(rows), values.device)
            some = values if len(rows) == len(values) else values.index_select(0, self.moved_rows[known])
            self.sums.add(place, score, some, often)


def _alike(times: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """How often rows count, if at all, and which of them do so."""
    return {int(often): np.flatnonzero(times == often) for often in np.unique(times) if often}
